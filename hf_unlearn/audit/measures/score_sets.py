"""The tables of every set under one model, with those of the further texts that are made from the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hf_unlearn.audit.measures.membership import further_passes, with_prefix
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.data.rows import format_of, reworded, text_of


#: In the `meta` of a table whose texts are those of another set, changed for one attack: the name of that set.
CHANGED_FROM = "changed_from"
TRUTH_RATIO_COLUMNS = {"prompt", "paraphrased_completion", "perturbed_completions"}
# ReCaLL (arXiv 2406.15968) gains up to about this many rows in the prefix, and they cannot be attacked themselves.
MOST_PREFIX_ROWS = 7
PREFIX_SHARE = 10


def score_sets(
    model, processing_class, sets: Mapping[str, Any], batch_size: int = 16, name: str = "model", **kwargs
) -> dict[str, Scores]:
    """Score every set under one model: all texts in one pass, sets of images one after the other.

    Args:
        sets (`dict[str, Dataset]`): rows named `"forget"` (required), `"retain"` and `"holdout"`; for a request about a
            class also `"test"` (never trained on, outside the request) and `"siblings"` (never trained on, of classes
            like those to forget).
        kwargs: passed to [`score`].

    Returns:
        `dict[str, Scores]` by set. Forget rows with the columns `paraphrased_completion` and `perturbed_completions` add
        `"forget_paraphrased"` and `"forget_perturbed"`, these answers to the same prompts, for the truth ratio. Texts of
        the forget set and the holdout add `"forget_lowercase"`, `"forget_recall"` and the same of the holdout, for the
        membership attacks lowercase and ReCaLL: the text in lower case, and behind the first texts of the holdout.
    """
    from hf_unlearn.audit.table.score import score
    from hf_unlearn.data.images import has_images
    from hf_unlearn.data.text import context_length

    sets = {key: rows for key, rows in sets.items() if rows is not None}
    if has_images(sets["forget"]):
        # A list of all rows would hold all images.
        return {
            key: score(model, processing_class, rows, batch_size, description=f"Scoring the {name}, {key}", **kwargs)
            for key, rows in sets.items()
        }
    texts: dict[str, list] = {key: list(rows) for key, rows in sets.items()}
    texts |= _truth_ratio_rows(texts["forget"])
    changed, n_prefix = _changed_rows(texts, processing_class, kwargs.get("max_length") or context_length(model))
    rows_by_table = texts | {table: rows for table, (_, rows) in changed.items()}
    everything = [row for rows in rows_by_table.values() for row in rows]
    scores = score(model, processing_class, everything, batch_size, description=f"Scoring the {name}", **kwargs)
    tables, start = {}, 0
    for key, rows in rows_by_table.items():
        tables[key] = scores[start : start + len(rows)]
        start += len(rows)
    for key, (source, _) in changed.items():
        meta = {**tables[key].meta, CHANGED_FROM: source, "prefix_rows": str(n_prefix)}
        tables[key] = replace(tables[key], meta=meta)
    return tables


def _truth_ratio_rows(forget: list) -> dict[str, list]:
    if not forget or not isinstance(forget[0], Mapping) or not set(forget[0]) >= TRUTH_RATIO_COLUMNS:
        return {}
    return {
        "forget_paraphrased": [
            reworded(row, answer=lambda own, row=row: row["paraphrased_completion"]) for row in forget
        ],
        "forget_perturbed": [
            reworded(row, answer=lambda own, text=text: text)
            for row in forget
            for text in row["perturbed_completions"]
        ],
    }


def _changed_rows(
    sets: Mapping[str, list], tokenizer, max_length: int | None
) -> tuple[dict[str, tuple[str, list]], int]:
    """Forget set and holdout, changed for an attack, and how many rows of the holdout are in the prefix of ReCaLL.

    The prefix has as many rows as fit before the longest text, at most seven and a tenth of the holdout. There is none if
    the holdout has fewer than twenty rows, or for chats, where nothing can stand before the first turn.

    Returns:
        `({table: (set, rows)}, n)`: nothing where there is no holdout, or a row holds ids in place of text.
    """
    holdout = sets.get("holdout", [])
    attacked = {"forget": sets["forget"], "holdout": holdout}
    formats = {format_of(row) for rows in attacked.values() for row in rows}
    if not holdout or "ids" in formats:
        return {}, 0
    changed = {
        f"{key}_{further.name}": (key, further.rows(rows))
        for further in further_passes()
        for key, rows in attacked.items()
    }
    most = min(MOST_PREFIX_ROWS, len(holdout) // PREFIX_SHARE)
    if tokenizer is None or most < 2 or "messages" in formats:
        return changed, 0
    for n in range(most, 0, -1):
        prefix = "\n".join(map(text_of, holdout[:n])) + "\n"
        behind = {f"{key}_recall": (key, with_prefix(rows, prefix, tokenizer)) for key, rows in attacked.items()}
        lengths = [len(row["input_ids"]) for _, rows in behind.values() for row in rows if "input_ids" in row]
        if max_length is None or max(lengths, default=0) <= max_length:
            return changed | behind, n
    return changed, 0
