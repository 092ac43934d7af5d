"""Rows behind a prefix of texts that the model was not trained on, for ReCaLL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_unlearn.audit.measures.membership import with_prefix
from hf_unlearn.data.rows import format_of, text_of


# The paper (arXiv 2406.15968) gains up to about this many, and they must not be among the records that are attacked.
MOST_ROWS = 7
SHARE_OF_HOLDOUT = 10


def recall_rows(examples: Mapping[str, Sequence], tokenizer, max_length: int | None) -> tuple[dict[str, list], int]:
    """Forget set and holdout, each row behind the first texts of the holdout, and how many these are.

    As many as fit before the longest row, at most seven and a tenth of the holdout. None where there are fewer than twenty
    records in it, or rows that are not plain text: in a chat nothing can stand before the first turn.

    Args:
        examples (`dict[str, list]`): rows by set.
        max_length (`int`, *optional*): tokens that the model can read.

    Returns:
        `({"forget_recall": [...], "holdout_recall": [...]}, prefix_rows)`, the rows encoded; `({}, 0)` without a prefix.
    """
    holdout = examples.get("holdout", ())
    most = min(MOST_ROWS, len(holdout) // SHARE_OF_HOLDOUT)
    if tokenizer is None or most < 2 or None in map(_text, [*examples["forget"], *holdout]):
        return {}, 0
    for n in range(most, 0, -1):
        prefix = "\n".join(_text(row) for row in holdout[:n]) + "\n"
        found = {f"{key}_recall": with_prefix(examples[key], prefix, tokenizer) for key in ("forget", "holdout")}
        rows = [row for of_set in found.values() for row in of_set if "input_ids" in row]
        if max_length is None or all(len(row["input_ids"]) <= max_length for row in rows):
            return found, n
    return {}, 0


def _text(row: Mapping[str, Any] | str) -> str | None:
    """The text as the model reads it; `None` for what is no plain text."""
    return None if format_of(row) in ("messages", "ids") else text_of(row)
