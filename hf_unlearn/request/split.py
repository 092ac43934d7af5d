"""The rows a request is about, the rows that stay, and rows to compare with."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_unlearn.request.copies import copies_of
from hf_unlearn.request.matching import matching_rows
from hf_unlearn.request.request import ErasureRequest
from hf_unlearn.request.selector import columns_of


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


#: What can be done with rows that the selector does not match but that have the content of rows that it does.
DUPLICATES = ("error", "forget", "keep")


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """A dataset divided by an erasure request.

    Attributes:
        forget (`Dataset`): the rows to erase, in their order.
        retain (`Dataset`): all other rows of the training split, in their order.
        holdout (`Dataset` or `None`): rows that the model was never trained on and that are exchangeable with the
            forget set: the whole holdout for a request about records, only the rows that match the selector for a
            request about a class or an attribute. `None` if there are no such rows.
        duplicates (`int`): number of rows that the selector did not match but that have the content of a row that it
            did. They are part of `forget` or of `retain`, as asked.
        holdout_rows (`int`): number of holdout rows before those that do not match were left out.
    """

    forget: Dataset
    retain: Dataset
    holdout: Dataset | None = None
    duplicates: int = 0
    holdout_rows: int = 0

    def counts(self) -> dict[str, int]:
        """Number of rows of `forget`, `retain` and `holdout`, and of `duplicates` among the first two."""
        counts = {name: len(getattr(self, name) or ()) for name in ("forget", "retain", "holdout")}
        return {**counts, "duplicates": self.duplicates}

    def __repr__(self) -> str:
        counts = self.counts()
        if self.holdout is None and self.holdout_rows:
            counts["holdout"] = f"0 of {self.holdout_rows}"
        return f"Split({', '.join(f'{name}={count}' for name, count in counts.items())})"


def split(
    dataset: Dataset | DatasetDict,
    request: ErasureRequest,
    holdout: Dataset | None = None,
    *,
    holdout_split: str = "holdout",
    duplicates: str = "error",
    text_columns: Sequence[str] | None = None,
) -> Split:
    """Divide a dataset into forget set, retain set and holdout.

    Nothing is written to disk and no model is needed. Columns are read in batches, and a few numbers per row stay in
    memory. No message contains a value of a row or of the request.

    For a request about a class or an attribute, the forget set is compared with holdout rows that match the *same*
    selector: holdout rows of other classes differ from the forget set for more reasons than training, and an attack
    that tells them apart would have shown nothing.

    Args:
        dataset (`Dataset` or `DatasetDict`): the data that the model was trained on; of a `DatasetDict`, its `train`.
        request ([`ErasureRequest`]): says which rows to erase.
        holdout (`Dataset`, *optional*): rows that the model was never trained on, with the same columns. Defaults to
            the split `holdout_split`, if `dataset` has it.
        holdout_split (`str`, *optional*, defaults to `"holdout"`): the split of a `DatasetDict` that is the holdout.
        duplicates (`str`, *optional*, defaults to `"error"`): what to do with rows that the selector does not match
            but that have the content of a row that it does: `"error"`, `"forget"` (erase them too) or `"keep"`
            (leave them in the retain set, where training teaches them again).
        text_columns (`Sequence[str]`, *optional*): the columns that hold the content, for finding duplicates. Rows
            are equal if these are, after Unicode NFC and with every run of whitespace as one space. Defaults to what a
            model reads of a row (prompt and completion, messages, text, ids, or the image and its label), whatever its
            keys are. Where the rows have no such columns yet, it is all text columns except the one whose values the
            request names, with a warning, as keys hide copies. `[]` turns the comparison off.

    Returns:
        [`Split`]: `forget` and `retain` are selections of the training data, with its format and its order.

    Raises:
        ValueError: no row matches, or a value of a record or class selector occurs in no row; the column does not
            exist or its type cannot be compared with the value; it is unclear whether cells are meant, as `007` by 7;
            a position is not in the dataset; there are
            duplicates and `duplicates` is `"error"`; no row is left to retain; the holdout numbers its classes in another order.
    """
    from datasets import Dataset, DatasetDict  # here, as a request by itself needs no seconds of imports

    if duplicates not in DUPLICATES:
        raise ValueError(f"`duplicates` must be one of {', '.join(map(repr, DUPLICATES))}.")
    if isinstance(dataset, DatasetDict):
        if "train" not in dataset:
            raise ValueError(
                f"The dataset has the splits {list(dataset)}, but no 'train'. Pass the one that the model was trained on."
            )
        holdout = dataset.get(holdout_split) if holdout is None else holdout
        dataset = dataset["train"]
    if not isinstance(dataset, Dataset) or not isinstance(holdout, Dataset | None):
        raise ValueError("`dataset` and `holdout` must be a `datasets.Dataset`. Load them without `streaming=True`.")

    if holdout is not None:
        _check_labels(dataset, holdout)
    mask = matching_rows(dataset, request, complete=request.kind != "attribute")
    if not mask.any():
        raise ValueError(
            f"No row of {len(dataset)} matches the request. Check its column, its values and the dataset."
        )
    copies, columns = copies_of(dataset, mask, request, text_columns)
    n_copies = int(copies.sum())
    if n_copies and duplicates == "error":
        raise ValueError(
            f"{n_copies} rows that the request does not match have the content of rows that it does (columns compared: "
            f'{columns}), so training on them teaches it again. Pass duplicates="forget" to erase them too, '
            'duplicates="keep" to retain them (--duplicates on the command line), or text_columns=[...] if the content is in '
            "other columns."
        )
    if duplicates == "forget":
        mask |= copies
    if mask.all():
        raise ValueError(
            f"All {len(dataset)} rows are to be erased, so the retain set is empty. Either retire the model, or pass "
            "the whole training data as `dataset`."
        )
    n_holdout = len(holdout or ())
    if n_holdout and request.kind != "record":
        holdout = rows_where(holdout, matching_rows(holdout, request, complete=False, name="holdout"))
        if len(holdout) == 0:
            columns = " or ".join(map(repr, columns_of(request.selector)))
            warnings.warn(
                f"0 of {n_holdout} holdout rows fit the request (column {columns}), so nothing can be compared with the "
                "forget set: there is no membership inference. Give a holdout with rows that the request would also be "
                "about. Or, if it is about a person whom the texts name, select by `mentions`, and the whole holdout is "
                "compared.",
                stacklevel=2,
            )
    return Split(rows_where(dataset, mask), rows_where(dataset, ~mask), holdout or None, n_copies, n_holdout)


def _check_labels(dataset: Dataset, holdout: Dataset) -> None:
    from datasets import ClassLabel

    for column, feature in dataset.features.items():
        other = holdout.features.get(column)
        if isinstance(feature, ClassLabel) and isinstance(other, ClassLabel) and feature.names != other.names:
            raise ValueError(
                f"The classes of column {column!r} have other numbers in the holdout than in the dataset, so that it would be "
                "compared with rows of other classes. Give both the same: holdout.align_labels_with_mapping({name: number "
                f"for number, name in enumerate(dataset.features[{column!r}].names)}}, {column!r})."
            )


def rows_where(dataset: Dataset, mask: np.ndarray) -> Dataset:
    """The rows that a mask chooses, in memory."""
    # `Dataset.filter` would leave on disk, in the cache, which rows the request is about.
    return dataset.select(np.flatnonzero(mask), keep_in_memory=True)
