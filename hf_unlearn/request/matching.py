"""The rows that a selector means."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from datetime import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_unlearn.data.rows import FORMATS, canonical, naming_row
from hf_unlearn.request.comparison import (
    Comparison,
    by_mention,
    by_order_of_numbers,
    by_order_of_texts,
    by_spelling,
    by_substring,
    by_text,
    by_time,
    by_value,
)
from hf_unlearn.request.numbers import number_of, spelled
from hf_unlearn.request.request import ErasureRequest
from hf_unlearn.request.selector import NEGATIVE, columns_of, values_of


if TYPE_CHECKING:
    from datasets import Dataset


_BATCH = 10_000
_ORDER = ("<", "<=", ">", ">=")
_IN_TEXT = ("contains", "mentions")
# What a message is, and not what it says.
_NO_CONTENT = ("role", "from", "type")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def matching_rows(dataset: Dataset, request: ErasureRequest, complete: bool, name: str = "dataset") -> np.ndarray:
    """Boolean mask, shape `(len(dataset),)`.

    Args:
        complete (`bool`): every value of the selector must occur, and of several names at least one.
        name (`str`, *optional*, defaults to `"dataset"`): what the rows are, for errors.

    Raises:
        ValueError: a column does not exist or cannot be compared with the values, or it is unclear whether a cell is meant.
            The message counts cells, and quotes none.
    """
    selector, values = request.selector, values_of(request.selector)
    if "rows" in selector:
        if max(values) >= len(dataset):
            raise ValueError(f"The request names a row position that the {name}, with {len(dataset)} rows, lacks.")
        return np.isin(np.arange(len(dataset)), values)
    operator = "mentions" if "mentions" in selector else selector.get("operator", "in")
    columns = columns_of(selector)
    comparisons = {column: _comparison(dataset, column, operator, values, name) for column in columns}
    in_json = [column for column in columns if operator in _IN_TEXT and _is_json_chat(dataset, column)]
    masks, n = [np.zeros(0, dtype=bool)], 0
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=_BATCH):
        masks.append(np.zeros(table.num_rows, dtype=bool))
        for column, comparison in comparisons.items():
            start = 0
            for cells in table[column].chunks:
                cells = _of_json(cells, n + start, name) if column in in_json else cells
                for owners, items in _texts(cells) if operator in _IN_TEXT else [_items(cells)]:
                    masks[-1][start + owners[comparison(items).to_numpy(zero_copy_only=False)]] = True
                start += len(cells)
        n += table.num_rows
    for comparison in comparisons.values():
        comparison.check()
    mask = np.concatenate(masks)
    found = set().union(*(comparison.found for comparison in comparisons.values()))
    if complete and mask.any() and len(found) < len(values):
        _say_what_is_missing(len(values) - len(found), len(values), columns, operator)
    return mask


def _say_what_is_missing(n: int, n_values: int, columns: Sequence[str], operator: str) -> None:
    of = f"column {columns[0]!r}" if len(columns) == 1 else f"the columns {', '.join(map(repr, columns))}"
    if operator == "mentions":
        warnings.warn(f"{n} of the {n_values} names of the request occur in no row of {of}.", stacklevel=4)
        return
    raise ValueError(
        f"{n} of the {n_values} values of the request occur in no row of {of}. Either correct them, or take out those that are "
        "not in this dataset."
    )


def _items(cells: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """What is compared of cells: items of lists and contents of messages; and the cell that each of them is of."""
    owners = np.arange(len(cells))
    while (step := _step(cells.type)) is not None:
        if step == "items":
            owners, cells = owners[pc.list_parent_indices(cells).to_numpy()], pc.list_flatten(cells)
        elif step == "values":
            cells = cells.dictionary_decode()
        else:
            cells = pc.coalesce(*(pc.struct_field(cells, name) for name in step))
    if is_text(cells.type):
        cells = cells.cast(pa.large_string())
    # `is_in` looks floats up by their bits, for which -0.0 is not 0.0.
    return owners, pc.add(cells, pa.scalar(0, cells.type)) if pa.types.is_floating(cells.type) else cells


def _texts(cells: pa.Array, owners: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, pa.Array]]:
    """All texts in cells, as what messages hold beside their contents; and the cell that each of them is of."""
    owners = np.arange(len(cells)) if owners is None else owners
    if _step(cells.type) == "items":
        yield from _texts(pc.list_flatten(cells), owners[pc.list_parent_indices(cells).to_numpy()])
    elif pa.types.is_struct(cells.type):
        for field in cells.type:
            if field.name not in _NO_CONTENT:
                yield from _texts(pc.struct_field(cells, field.name), owners)
    elif _step(cells.type) == "values":
        yield from _texts(cells.dictionary_decode(), owners)
    elif is_text(cells.type):
        yield owners, cells.cast(pa.large_string())


def _step(kind: pa.DataType) -> str | tuple[str, ...] | None:
    """How to get from a type to what is compared: `"items"` of a list, `"values"` of a code, fields; `None`: as it is."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return "items"
    if pa.types.is_dictionary(kind):
        return "values"
    if pa.types.is_struct(kind):
        return _contents(kind)
    return None


def _contents(kind: pa.StructType) -> tuple[str, ...] | None:
    """The fields that hold what a message or a part of one says. A table of chats in two forms has the fields of both."""
    names = {field.name for field in kind}
    found = [name for name in ("content", "value") if name in names and (name == "content" or "from" in names)]
    found = found or [name for name in ("text",) if name in names]
    return tuple(found) if found and len({kind.field(name).type for name in found}) == 1 else None


def _is_json_chat(dataset: Dataset, column: str) -> bool:
    return column == FORMATS["messages"][0] and is_text(dataset.data.schema.field(column).type)


def _of_json(cells: pa.Array, start: int, name: str) -> pa.Array:
    """The texts of chats in JSON, in which letters can be written as codes; `start` is the row of the first cell."""
    chats = []
    for index, cell in enumerate(cells.to_pylist(), start):
        with naming_row(index, name):
            chats.append(list(_said(canonical({"messages": cell or "[]"})["messages"])))
    return pa.array(chats, pa.list_(pa.large_string()))


def _said(value: Any) -> Iterator[str]:
    """All texts in messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _said([item for key, item in value.items() if key not in _NO_CONTENT])
    elif isinstance(value, list):
        for item in value:
            yield from _said(item)


def _inner(feature: Any, kind: pa.DataType) -> tuple[Any, pa.DataType, bool]:
    """The feature and the type of what is compared, and whether a cell may hold several of them."""
    several = False
    while (step := _step(kind)) is not None:
        if step == "items":
            several, kind = True, kind.value_type
            feature = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        elif step == "values":
            kind = kind.value_type
        else:
            kind = kind.field(step[0]).type
            feature = feature.get(step[0]) if isinstance(feature, dict) else None
    return feature, kind, several


def is_text(kind: pa.DataType) -> bool:
    """Whether a type of Arrow is text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _comparison(dataset: Dataset, column: str, operator: str, values: list, name: str) -> Comparison:
    """How the cells of a column are compared with the values."""
    from datasets import ClassLabel

    if column not in dataset.features:
        raise ValueError(
            f"The request selects on column {column!r}, but the columns of the {name} are {dataset.column_names}."
        )
    feature, kind, several = _inner(dataset.features[column], dataset.data.schema.field(column).type)
    given = "text" if isinstance(values[0], str) else "booleans" if isinstance(values[0], bool) else "numbers"
    if several and operator in NEGATIVE:
        raise ValueError(
            f"Column {column!r} holds lists, of which {operator!r} could mean any item or all of them. Select what is meant by "
            "'==', 'in' or 'contains'."
        )
    if isinstance(feature, ClassLabel):
        return by_value(operator, _labels(column, feature, kind, operator, given, values))
    if pa.types.is_null(kind):  # nothing is known but missing values
        return Comparison(lambda cells: pa.array(np.zeros(len(cells), dtype=bool)))
    if operator in _IN_TEXT:
        if not is_text(kind):
            raise ValueError(
                f"Column {column!r} has the type {kind}, which cannot be compared with text: {operator!r} looks into text. "
                "Name a column of text, or select by values."
            )
        return by_mention(values) if operator == "mentions" else by_substring(column, values)
    if is_text(kind) and given == "numbers":
        if operator in _ORDER:
            return by_order_of_numbers(column, operator, values[0])
        return by_spelling(column, operator, values)
    if is_text(kind) and given == "text":
        if operator in _ORDER:
            return by_order_of_texts(column, operator, values[0])
        # Other forms of a text that is the whole record are found as its copies.
        is_key = column not in FORMATS["text"]
        return by_text(column, operator, values) if is_key else by_value(operator, pa.array(values, pa.large_string()))
    if pa.types.is_temporal(kind) and given == "text":
        days = [position for position, value in enumerate(values) if _DAY.fullmatch(value)]
        return by_time(column, operator, _times(column, kind, values), days)
    if operator in _ORDER and pa.types.is_boolean(kind) and given == "booleans":
        raise ValueError(f"Column {column!r} holds {kind}, which {operator!r} cannot compare.")
    return by_value(operator, _operand(column, kind, given, values))


def _labels(column: str, feature, kind: pa.DataType, operator: str, given: str, values: list) -> pa.Array:
    known = feature.names if given == "text" else range(feature.num_classes)
    if given == "booleans" or not all(value in known for value in values):
        raise ValueError(
            f"Column {column!r} holds class labels. A value of the request is none of its {feature.num_classes} "
            f"label names, and no integer below {feature.num_classes}."
        )
    if operator in _ORDER or operator in _IN_TEXT:
        raise ValueError(f"Column {column!r} holds class labels, which {operator!r} cannot compare.")
    return pa.array(feature.str2int(values) if given == "text" else values, kind)


def _times(column: str, kind: pa.DataType, values: Sequence[str]) -> pa.Array:
    try:
        if not pa.types.is_time(kind):
            return pa.array(values, pa.string()).cast(kind)
        clocks = list(map(time.fromisoformat, values))
        operand = pa.array(clocks, kind)
        if operand.to_pylist() == clocks:  # no part of a second and no zone is lost
            return operand
    except (pa.ArrowException, ValueError):
        pass
    # Raised out here because Arrow's messages quote the value.
    zone = "" if getattr(kind, "tz", None) is None else ", with its offset from UTC, as in 2026-05-04T09:30:00Z"
    raise ValueError(
        f"A value of the request does not fit column {column!r}, which has the type {kind}. Give it as ISO 8601 text{zone}, or "
        "convert the column to text."
    )


def _operand(column: str, kind: pa.DataType, given: str, values: list) -> pa.Array:
    """The values in the type of the column, as which they must be exact."""
    if pa.types.is_decimal(kind) and given in ("numbers", "text"):
        values = [number_of(value) if given == "text" else Decimal(spelled(value)) for value in values]
        fits = None not in values
    else:
        is_integer = pa.types.is_integer(kind) and all(isinstance(value, int) for value in values)
        fits = (given == "booleans" and pa.types.is_boolean(kind)) or (
            given == "numbers" and (is_integer or pa.types.is_floating(kind))
        )
    if not fits:
        raise _cannot_compare(column, kind, given)
    try:
        operand = pa.array(values, type=kind)
        return pc.add(operand, pa.scalar(0, kind)) if pa.types.is_floating(kind) else operand
    except (pa.ArrowException, OverflowError):
        pass
    # Raised out here because Arrow's messages quote the value.
    raise ValueError(f"A value of the request does not fit column {column!r}, which has the type {kind}.")


def _cannot_compare(column: str, kind: pa.DataType, given: str) -> ValueError:
    if pa.types.is_integer(kind) and given == "numbers":
        remedy = "Give integers"
    elif is_text(kind):
        remedy = "Give texts, as the data spells them"
    elif pa.types.is_temporal(kind):
        remedy = "Give ISO 8601 texts, or convert the column to text or to integers"
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        remedy = "Give numbers"
    elif pa.types.is_boolean(kind):
        remedy = "Give true or false"
    else:
        remedy = "Select on another column, or add one of text, numbers, booleans, dates or class labels made from it"
    return ValueError(f"Column {column!r} has the type {kind}, which cannot be compared with {given}. {remedy}.")
