"""The rows a request is about, the rows that stay, and rows to compare with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_unlearn.request.request import ErasureRequest
from hf_unlearn.storage.digest import digest_of_text


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


_BATCH = 10_000
_ORDER = {"<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}


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
            are equal if these are, after Unicode NFC and with every run of whitespace as one space. Defaults to all
            text columns except the one that the request selects on, and to none if the content is images, audio or
            video. `[]` turns the comparison off.

    Returns:
        [`Split`]: `forget` and `retain` are selections of the training data, with its format and its order.

    Raises:
        ValueError: no row matches, or a value of a record or class selector occurs in no row; the column does not
            exist or its type cannot be compared with the value; a position is not in the dataset; there are
            duplicates and `duplicates` is `"error"`; no row is left to retain.
    """
    from datasets import Dataset, DatasetDict  # here, as a request by itself needs no seconds of imports

    if duplicates not in ("error", "forget", "keep"):
        raise ValueError('`duplicates` must be "error", "forget" or "keep".')
    if isinstance(dataset, DatasetDict):
        if "train" not in dataset:
            raise ValueError(
                f"The dataset has the splits {list(dataset)}, but no 'train'. Pass the one that the model was trained on."
            )
        holdout = dataset.get(holdout_split) if holdout is None else holdout
        dataset = dataset["train"]
    if not isinstance(dataset, Dataset) or not isinstance(holdout, Dataset | None):
        raise ValueError("`dataset` and `holdout` must be a `datasets.Dataset`. Load them without `streaming=True`.")

    mask = _matching_rows(dataset, request, complete=request.kind != "attribute")
    if not mask.any():
        raise ValueError(
            f"No row of {len(dataset)} matches the request. Check its column, its values and the dataset."
        )
    columns = _content_columns(dataset, request, text_columns)
    copies = _copies(dataset, mask, columns)
    n_copies = int(copies.sum())
    if n_copies and duplicates == "error":
        raise ValueError(
            f"{n_copies} rows that the request does not match have the content of rows that it does (columns compared: "
            f'{columns}), so training on them teaches it again. Pass duplicates="forget" to erase them too, '
            'duplicates="keep" to retain them, or text_columns=[...] if the content is in other columns.'
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
        holdout = _select(holdout, _matching_rows(holdout, request, complete=False))
        if len(holdout) == 0:
            warnings.warn(
                f"0 of {n_holdout} holdout rows fit the request (column {request.selector['column']!r}), so nothing can "
                "be compared with the forget set: there is no membership inference. Give a holdout with rows that the "
                "request would also be about.",
                stacklevel=2,
            )
    return Split(_select(dataset, mask), _select(dataset, ~mask), holdout or None, n_copies, n_holdout)


def _select(dataset: Dataset, mask: np.ndarray) -> Dataset:
    # `Dataset.filter` would leave on disk, in the cache, which rows the request is about.
    return dataset.select(np.flatnonzero(mask), keep_in_memory=True)


def _batches(dataset: Dataset, columns: Sequence[str]) -> Iterator[pa.Table]:
    return dataset.select_columns(list(columns)).with_format("arrow").iter(batch_size=_BATCH)


def _matching_rows(dataset: Dataset, request: ErasureRequest, complete: bool) -> np.ndarray:
    """Boolean mask, shape `(len(dataset),)`. With `complete`, every value of the selector must occur."""
    selector = request.selector
    if "rows" in selector:
        if max(selector["rows"]) >= len(dataset):
            raise ValueError(f"The request names a row position that the dataset, with {len(dataset)} rows, lacks.")
        return np.isin(np.arange(len(dataset)), selector["rows"])

    column, operator = selector["column"], selector.get("operator", "in")
    values = selector["values"] if "values" in selector else selector["value"]
    operand = _operand(dataset, column, operator, values if isinstance(values, list) else [values])
    masks, found = [np.zeros(0, dtype=bool)], set()
    for table in _batches(dataset, [column]):
        cells = _signless_zero(table[column])
        matches = pc.fill_null(_compare(cells, operator, operand), False)
        masks.append(matches.to_numpy())
        if complete:
            found.update(cells.filter(matches).unique().to_pylist())
    wanted = len(operand.unique())
    if complete and found and len(found) < wanted:
        raise ValueError(
            f"{wanted - len(found)} of the {wanted} values of the request occur in no row of column {column!r}. "
            "Either correct them, or take out those that are not in this dataset."
        )
    return np.concatenate(masks)


def _operand(dataset: Dataset, column: str, operator: str, values: list) -> pa.Array:
    """The values of a selector in the Arrow type of the column."""
    from datasets import ClassLabel

    if column not in dataset.features:
        raise ValueError(
            f"The request selects on column {column!r}, but the columns of the dataset are {dataset.column_names}."
        )
    feature, kind = dataset.features[column], dataset.data.schema.field(column).type
    given = "text" if isinstance(values[0], str) else "booleans" if isinstance(values[0], bool) else "numbers"
    is_label = isinstance(feature, ClassLabel)
    if is_label:
        known = feature.names if given == "text" else range(feature.num_classes)
        if given == "booleans" or not all(value in known for value in values):
            raise ValueError(
                f"Column {column!r} holds class labels. A value of the request is none of its {feature.num_classes} "
                f"label names, and no integer below {feature.num_classes}."
            )
        values = feature.str2int(values) if given == "text" else values
    else:
        is_integer = pa.types.is_integer(kind) and all(isinstance(value, int) for value in values)
        fits = {
            "text": _is_text(kind),
            "booleans": pa.types.is_boolean(kind),
            "numbers": is_integer or pa.types.is_floating(kind),
        }
        if not fits[given]:
            raise ValueError(
                f"Column {column!r} has the type {kind}, which cannot be compared with {given}. Select on text, "
                "numbers, booleans or class labels, by values of their type."
            )
    if (operator == "contains" and not _is_text(kind)) or (operator in _ORDER and (is_label or given == "booleans")):
        held = "class labels" if is_label else kind
        raise ValueError(f"Column {column!r} holds {held}, which {operator!r} cannot compare.")
    try:
        return _signless_zero(pa.array(values, type=kind))
    except (pa.ArrowException, OverflowError):
        pass
    # Raised out here because Arrow's messages quote the value.
    raise ValueError(f"A value of the request does not fit column {column!r}, which has the type {kind}.")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _signless_zero(array: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    # `is_in` looks floats up by their bits, for which -0.0 is not 0.0.
    return pc.add(array, pa.scalar(0, array.type)) if pa.types.is_floating(array.type) else array


def _compare(cells: pa.ChunkedArray, operator: str, operand: pa.Array) -> pa.ChunkedArray:
    if operator in ("==", "in"):
        return pc.is_in(cells, value_set=operand)
    if operator in ("!=", "not in"):
        return pc.and_(pc.is_valid(cells), pc.invert(pc.is_in(cells, value_set=operand)))
    if operator == "contains":
        return pc.match_substring(cells, operand[0].as_py())
    return _ORDER[operator](cells, operand[0])


def _content_columns(dataset: Dataset, request: ErasureRequest, chosen: Sequence[str] | None) -> list[str]:
    from datasets import Audio, Image, Video

    text = [field.name for field in dataset.data.schema if _is_text(field.type)]
    if chosen is None:
        if any(isinstance(feature, (Image, Audio, Video)) for feature in dataset.features.values()):
            return []
        # An identifier that differs does not make the content differ.
        return [name for name in text if name != request.selector.get("column")] or text
    if isinstance(chosen, str) or not set(chosen) <= set(text):
        raise ValueError(f"`text_columns` must be a list of text columns. Those of the dataset are {text}.")
    return list(chosen)


def _copies(dataset: Dataset, mask: np.ndarray, columns: Sequence[str]) -> np.ndarray:
    """Rows outside `mask` with the content of one inside."""
    copies = np.zeros(len(dataset), dtype=bool)
    if columns:
        inside = set(_digests(_select(dataset, mask), columns)) - {None}
        copies[~mask] = [digest in inside for digest in _digests(_select(dataset, ~mask), columns)]
    return copies


def _digests(dataset: Dataset, columns: Sequence[str]) -> Iterator[bytes | None]:
    """Digest of the content of every row, `None` for a row without any."""
    for table in _batches(dataset, columns):
        for texts in zip(*(table[name].to_pylist() for name in columns), strict=True):
            yield digest_of_text(*texts)
