"""JSON: a list of objects, or one object per line. Every value is what the file says, and no text becomes a date."""

from __future__ import annotations

import json
from math import isinf
from typing import Any

import pyarrow as pa


class _Repeated(dict):
    """An object that has a key twice."""

    def __init__(self, key: str):
        super().__init__()
        self.key = key


class _NoNumber:
    """What JSON writers write for NaN and the infinities, and numbers that no column can hold."""


class _Fault(Exception):
    """The index of a row, and why a column cannot hold its value."""


_WORDS = {str: "text", int: "a number", float: "a number", bool: "a boolean", list: "a list", dict: "an object"}
# More than 64 bits have, and far fewer than Python refuses to read.
_DIGITS = 21
# Up to here floating point has every integer.
_EXACT = 2**53


def parse_json(text: str, field: str | None = None) -> pa.Table:
    """A table with the columns of all objects. A key that an object lacks is a missing value, as `null` is.

    Args:
        field (`str`, *optional*): the key of the list of rows, where the file is one object.

    Raises:
        ValueError: it is no JSON, a row is no object, a key comes twice, the values of a column have several types, or a
            value is no text of whole characters and no finite number of 64 bits. The message names the line or the index of
            the row, and the column, and quotes no value.
    """
    rows, places = json_values(text, field)
    names: dict[str, None] = {}
    for row, place in zip(rows, places, strict=True):
        if not isinstance(row, dict):
            raise ValueError(
                f'{place} is no object. Each row must be one, as in {{"prompt": ..., "completion": ...}}.'
            )
        if isinstance(row, _Repeated):
            raise ValueError(f"{place} has the key {row.key!r} twice. Keep one of them.")
        names |= dict.fromkeys(row)
    if rows and not names:
        raise ValueError("Its objects are empty, so that there is no column.")
    columns = {}
    for name in names:
        cells = [row.get(name) for row in rows]
        try:
            _check_name(0, name)
            kind = _type_of([(index, cell) for index, cell in enumerate(cells) if cell is not None])
        except _Fault as fault:
            index, reason = fault.args
        except RecursionError:
            index, reason = 0, "it is nested too deep."
        else:
            columns[name] = pa.array(cells, kind)
            continue
        raise ValueError(f"{places[index]}, column {name!r}: {reason}")
    return pa.table(columns)


def json_values(text: str, field: str | None = None) -> tuple[list, list[str]]:
    """The values of a list or of lines, which need be no objects yet, and where each of them stands; see [`parse_json`]."""
    if field is None and not text.lstrip(" \t\r\n").startswith("["):
        lines = [(f"Line {n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip(" \t\r")]
        return [_load(line, place) for place, line in lines], [place for place, _ in lines]
    rows = _load(text, "The file")
    if field is not None:
        rows = rows.get(field) if isinstance(rows, dict) else None
        if not isinstance(rows, list):
            raise ValueError(f"It is no object with a list of rows under {field!r}, as the data set says.")
    return rows, [f"Row {index}" for index in range(len(rows))]


def _load(text: str, place: str) -> Any:
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=lambda digits: int(digits) if len(digits) <= _DIGITS else _NoNumber(),
            parse_float=lambda digits: _NoNumber() if isinf(float(digits)) else float(digits),
            parse_constant=lambda _: _NoNumber(),
        )
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if place.startswith("Line") else f"line {error.lineno}, column {error.colno}"
    except RecursionError:
        at = "nested too deep"
    # Raised out here because the original error carries the text.
    raise ValueError(f"{place} is no JSON ({at}). Write a list of objects, or one object per line.")


def _object(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    return _Repeated(next(name for name in names if names.count(name) > 1))


def _type_of(cells: list[tuple[int, Any]]) -> pa.DataType:
    """The one type that all values have, each of which comes with the index of its row."""
    first: dict[type, int] = {}
    for index, cell in cells:
        first.setdefault(type(cell), index)
    if _NoNumber in first:
        raise _Fault(first[_NoNumber], "it is no finite number of 64 bits. Write it as text, or as null.")
    if _Repeated in first:
        raise _Fault(first[_Repeated], "an object in it has a key twice. Keep one of them.")
    if len({_WORDS[kind] for kind in first}) > 1:
        kinds = list(first)
        raise _Fault(
            max(first.values()),
            f"the values are {' and '.join(dict.fromkeys(_WORDS[kind] for kind in kinds))}, by row. Write all as one type.",
        )
    kind = next(iter(first), None)
    if kind is str:
        for index, text in cells:
            _check_characters(index, text)
        return pa.string()
    if kind is bool:
        return pa.bool_()
    if kind in (int, float):
        return _type_of_numbers(cells, has_floats=float in first)
    if kind is list:
        return pa.list_(_type_of([(index, item) for index, items in cells for item in items if item is not None]))
    if kind is dict:
        inner: dict[str, list] = {}
        for index, item in cells:
            for key, value in item.items():
                _check_name(index, key)
                inner.setdefault(key, []).extend([] if value is None else [(index, value)])
        return pa.struct([(key, _type_of(values)) for key, values in inner.items()])
    return pa.null()


def _type_of_numbers(cells: list[tuple[int, int | float]], has_floats: bool) -> pa.DataType:
    integers = [(index, number) for index, number in cells if isinstance(number, int)]
    low = -_EXACT if has_floats else -(2**63)
    high = _EXACT if has_floats else 2**63 - 1 if any(number < 0 for _, number in integers) else 2**64 - 1
    for index, number in integers:
        if not low <= number <= high:
            held = "beside fractions it would be rounded" if has_floats else "it is no number of 64 bits"
            raise _Fault(index, f"the integer is too large: {held}. Write the column as text.")
    if has_floats:
        return pa.float64()
    return pa.int64() if all(number < 2**63 for _, number in integers) else pa.uint64()


def _check_name(index: int, name: str) -> None:
    _check_characters(index, name)
    if "\0" in name:
        raise _Fault(index, "a key has a character NUL, which no name can have. Rename it.")


def _check_characters(index: int, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        pass
    else:
        return
    raise _Fault(index, "it has half of a character (a surrogate such as \\ud83d). Write whole characters.")
