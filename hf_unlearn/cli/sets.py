"""The sets of rows of a job: what the audit compares, and what is evaluated during training."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_unlearn.data.rows import format_of
from hf_unlearn.models.kinds import kind_of
from hf_unlearn.models.load import architecture_of


# What reads rows is imported where it is used: `--help` and a mistyped option should not take seconds.
if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_unlearn.request.request import ErasureRequest
    from hf_unlearn.request.split import Split


def audit_sets(
    data: DatasetDict, request: ErasureRequest, parts: Split, sibling_values: list[str] | None = None
) -> dict[str, Dataset]:
    """The sets that the audit compares: those that there are.

    Where the request is about a class, `holdout` has the rows of that class, so the rest of the holdout is `test`, and
    those of `sibling_values` among them `siblings`.

    Raises:
        ValueError: `sibling_values` are given, but the request is not about a class, there is no holdout, or no row of its
            rest is of one of them.
    """
    from datasets import ClassLabel

    from hf_unlearn.request.matching import matching_rows
    from hf_unlearn.request.request import ErasureRequest
    from hf_unlearn.request.split import rows_where

    sets = {"forget": parts.forget, "retain": parts.retain, "holdout": parts.holdout}
    is_class = request.kind == "class" and "holdout" in data
    if is_class:
        rest = ~matching_rows(data["holdout"], request, complete=False, name="holdout")
        sets["test"] = rows_where(data["holdout"], rest)
    if sibling_values:
        if not is_class:
            raise ValueError(
                "You set sibling_values, which are classes of the holdout, but the request is not about a class, or "
                "there is no holdout. Either set holdout_split, or leave sibling_values out."
            )
        column = request.selector["column"]
        feature = data["holdout"].features[column]
        is_label = isinstance(getattr(feature, "feature", feature), ClassLabel)  # of a column of lists, its items
        if not isinstance(request.selector["values"][0], str) and not is_label:
            # A command line has texts only, and a class that the request names by a number may be one.
            sibling_values = [int(value) if str(value).isdecimal() else value for value in sibling_values]
        siblings = ErasureRequest.of_class(column, sibling_values)
        sets["siblings"] = rows_where(
            sets["test"], matching_rows(sets["test"], siblings, complete=True, name="holdout")
        )
        if not len(sets["siblings"]):
            raise ValueError(
                "No row of the holdout is of a class of sibling_values and outside the request. Either correct them, or leave "
                "sibling_values out."
            )
    return {name: rows for name, rows in sets.items() if rows is not None and len(rows)}


def evaluation_sets(data: DatasetDict, request: ErasureRequest, parts: Split, seed: int) -> dict:
    """What is evaluated during training: the forget set, as many retain rows, and rows never trained on.

    Those are validation rows that the request would be about too: all of them for records, those of the class for a class.
    """
    from hf_unlearn.request.split import split

    size = min(len(parts.retain), len(parts.forget))
    sample = sorted(random.Random(seed).sample(range(len(parts.retain)), size))
    sets = {"forget": parts.forget, "retain": parts.retain.select(sample)}
    validation = split(data, request, holdout_split="validation", text_columns=[]).holdout
    if validation is not None:
        sets["holdout"] = validation
    return sets


def groups_of(sets: Mapping[str, Any], column: str | None) -> dict[str, list] | None:
    """The person each row of the forget set and of the holdout is about: the values of a column.

    Raises:
        ValueError: the forget set has no such column; the message lists those that it has.
    """
    if column is None:
        return None
    columns = sets["forget"].column_names
    if column not in columns:
        raise ValueError(
            f"You set group_column={column!r}, but the forget set has no such column. Its columns are "
            f"{', '.join(columns)}. Set one of them, or leave group_column out."
        )
    named = {name: sets[name] for name in ("forget", "holdout") if name in sets}
    return {name: list(rows[column]) for name, rows in named.items() if column in rows.column_names}


_TEMPLATES = (
    " Or make a prompt and an answer from these columns with prompt_template and completion_template, as in "
    "--prompt_template 'Question: {question}\\nAnswer:' --completion_template ' {answer}'."
)


def require_encodable(
    sets: Mapping[str, Any], processing_class, config, max_length: int | None, truncate: bool
) -> dict[str, dict[str, Any]]:
    """Find out before hours of work that a row of the audit cannot be scored. An empty answer can: it is missing.

    Only the labels of images are checked, not the pixels.

    Args:
        config (`PretrainedConfig`): of the model, which says how long a text and how high a label may be.

    Returns:
        `dict` by set: what of its rows is read, see [`~hf_unlearn.data.reach.reach_of`].

    Raises:
        ValueError: with the set, the position of the row in it, and the reason; never the content of the row.
    """
    from types import SimpleNamespace

    from hf_unlearn.data.images import has_images
    from hf_unlearn.data.reach import reach_of
    from hf_unlearn.data.text import context_length, limits_of

    max_length, found = max_length or context_length(SimpleNamespace(config=config)), {}
    limits = limits_of(config, kind_of(config) == "image")
    for name, rows in sets.items():
        try:
            found[name] = reach_of(rows, processing_class, f"{name} set", max_length, truncate, **limits)
        except ValueError as error:
            hint = "" if has_images(rows) or all(map(format_of, rows)) else _TEMPLATES
            raise ValueError(f"{error}{hint}") from None
    return found


def say_what_cannot_run(
    config, threats: Sequence[str], trust_remote_code: bool, method: str | None = None, training=None
) -> None:
    """Say before hours of work which attacks such a model lacks the parts for, so that they will not be run.

    Args:
        method, training (*optional*): name and config of the method that will change the model.

    Raises:
        ValueError: the method cannot work on such a model.
    """
    from hf_unlearn.audit.attacks.table import obstacles
    from hf_unlearn.methods import METHODS
    from hf_unlearn.training.checks import require_architecture

    kind = kind_of(config)
    try:
        model = architecture_of(config, trust_remote_code)
    except Exception as error:  # not every model can be made without weights
        print(f"Note: which attacks cannot run is known only in the audit ({type(error).__name__}).")
        return
    if method is not None:
        require_architecture(METHODS[method], training, model)
    for attack, reason in obstacles(model, kind, threats).items():
        print(f"Note: the attack {attack} cannot run on this model, and its surface will not be tested: {reason}")
