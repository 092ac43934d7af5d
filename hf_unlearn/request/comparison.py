"""How the values of a request compare with cells, by the type of the column."""

from __future__ import annotations

import operator as python
import unicodedata
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hf_unlearn.request.mentions import is_mentioned, plain
from hf_unlearn.request.numbers import number_of, spelled
from hf_unlearn.request.selector import NEGATIVE
from hf_unlearn.storage.digest import in_one_form


_ORDER = {"<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}
_PYTHON_ORDER = {"<": python.lt, "<=": python.le, ">": python.gt, ">=": python.ge}


class Comparison:
    """Compares cells with the values of a request, batch by batch.

    Args:
        cells_match (`Callable`): from an array of cells to one of booleans, or of nulls where a cell is missing.
        positions (`dict`, *optional*): of each cell that can match, the positions of the values that it is.

    Attributes:
        found (`set[int]`): positions of the values that occurred.
    """

    def __init__(self, cells_match: Callable[[pa.Array], pa.Array], positions: dict[Any, set[int]] | None = None):
        self.found: set[int] = set()
        self._cells_match, self._positions = cells_match, positions or {}
        self._is_unclear: Callable[[Any], bool] | None = None
        self._n_unclear, self._remedy = 0, ""

    def refusing(self, is_unclear: Callable[[Any], bool], remedy: str) -> Comparison:
        """Make cells of which it is not known whether the request means them an error, with `{n}` for their number."""
        self._is_unclear, self._remedy = is_unclear, remedy
        return self

    def __call__(self, cells: pa.Array) -> pa.Array:
        if self._is_unclear is not None:
            counts = pc.value_counts(cells.drop_null()).to_pylist()
            self._n_unclear += sum(one["counts"] for one in counts if self._is_unclear(one["values"]))
        matches = pc.fill_null(self._cells_match(cells), False)
        if self._positions:
            for cell in cells.filter(matches).unique().to_pylist():
                self.found |= self._positions.get(cell, set())
        return matches

    def check(self) -> None:
        """Raise the `ValueError` of unclear cells, after all batches."""
        if self._n_unclear:
            raise ValueError(self._remedy.format(n=self._n_unclear))


def by_value(operator: str, operand: pa.Array) -> Comparison:
    """Cells compared with values of their own type."""
    if operator in _ORDER:
        return Comparison(lambda cells: _ORDER[operator](cells, operand[0]))
    wanted = operand.unique()
    if operator in NEGATIVE:
        return Comparison(lambda cells: pc.and_(cells.is_valid(), pc.invert(pc.is_in(cells, value_set=wanted))))
    positions: dict[Any, set[int]] = {}
    for position, value in enumerate(operand.to_pylist()):
        positions.setdefault(value, set()).add(position)
    return Comparison(lambda cells: pc.is_in(cells, value_set=wanted), positions)


def by_text(column: str, operator: str, texts: Sequence[str]) -> Comparison:
    """Text cells that are one of the texts. Where the letters or white space are only written otherwise, it is unclear."""
    exact, wanted = set(texts), set(map(in_one_form, texts))
    return by_value(operator, pa.array(texts, pa.large_string())).refusing(
        lambda cell: cell not in exact and in_one_form(cell) in wanted,
        f"{{n}} cells of column {column!r} differ from a value of the request in white space, or in how letters with accents are "
        "encoded, alone, so that it is unclear whether they are meant. Correct the cells, or give these forms as values too.",
    )


def by_substring(column: str, texts: Sequence[str]) -> Comparison:
    """Text cells that contain any of the texts. Where the letters are only encoded otherwise, it is unclear."""
    composed = [unicodedata.normalize("NFC", text) for text in texts]

    def is_unclear(cell: str) -> bool:
        if any(text in cell for text in texts):
            return False
        return any(text in unicodedata.normalize("NFC", cell) for text in composed)

    return Comparison(lambda cells: reduce(pc.or_, (pc.match_substring(cells, text) for text in texts))).refusing(
        is_unclear,
        f"{{n}} cells of column {column!r} contain a value of the request with letters encoded in another way (é as one "
        "character, or as e and an accent), so that it is unclear whether they are meant. Give these forms as values too.",
    )


def by_mention(names: Sequence[str]) -> Comparison:
    """Text cells that mention any of the names."""
    wanted = [plain(name) for name in names]

    def cells_match(cells: pa.Array) -> pa.Array:
        texts = (plain(cell or "") for cell in cells.to_pylist())
        found = [{position for position, name in enumerate(wanted) if is_mentioned(name, text)} for text in texts]
        comparison.found.update(*found)
        return pa.array(map(bool, found), pa.bool_())

    comparison = Comparison(cells_match)
    return comparison


def by_spelling(column: str, operator: str, numbers: Sequence[int | float]) -> Comparison:
    """Text cells that spell a number as JSON does. The same number in another spelling is unclear: `007` may be a name."""
    texts = [spelled(number) for number in numbers]
    wanted = set(map(number_of, texts))
    return by_value(operator, pa.array(texts, pa.large_string())).refusing(
        lambda cell: cell not in texts and number_of(cell) in wanted,
        f"{{n}} cells of column {column!r}, which is text, are a number of the request in another spelling (as 07 is of 7), so "
        "that it is unclear whether they are meant. Give the values as texts, as the data spells them.",
    )


def by_order_of_numbers(column: str, operator: str, number: int | float) -> Comparison:
    """Text cells that spell numbers, in the order of numbers. An empty cell never matches."""
    limit, holds = number_of(spelled(number)), _PYTHON_ORDER[operator]

    def cells_match(cells: pa.Array) -> pa.Array:
        numbers = (number_of(cell or "") for cell in cells.to_pylist())
        return pa.array([number is not None and holds(number, limit) for number in numbers], pa.bool_())

    return Comparison(cells_match).refusing(
        lambda cell: cell != "" and number_of(cell) is None,
        f"{{n}} cells of column {column!r} are no numbers, so that {operator!r} cannot compare them with one. Correct or empty "
        "these cells, or select by a list of values.",
    )


def by_order_of_texts(column: str, operator: str, text: str) -> Comparison:
    """Text cells in the order of their letters. Where cell and value spell numbers in another order, it is unclear."""
    limit, holds = number_of(text), _PYTHON_ORDER[operator]
    comparison = by_value(operator, pa.array([text], pa.large_string()))
    if limit is None:
        return comparison
    return comparison.refusing(
        lambda cell: (number := number_of(cell)) is not None and holds(number, limit) != holds(cell, text),
        f"{{n}} cells of column {column!r}, which is text, compare by {operator!r} otherwise as numbers than as texts (as 9 and 10 "
        "do). Give the value as a number to compare numbers.",
    )


def by_time(column: str, operator: str, operand: pa.Array, days: Sequence[int]) -> Comparison:
    """Dates and times; `days` are the positions of values without a time, which mean midnight."""
    comparison = by_value(operator, operand)
    if not days or operator in _ORDER or not pa.types.is_timestamp(operand.type):
        return comparison
    midnights = {operand[position].as_py() for position in days}
    times, dates = set(operand.to_pylist()), {midnight.date() for midnight in midnights}
    return comparison.refusing(
        lambda cell: cell not in times and cell.date() in dates,
        f"{{n}} cells of column {column!r} are times within a day that the request names without a time, which means its "
        "midnight. Select the whole day by >= or <, or give the times.",
    )
