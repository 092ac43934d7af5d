"""CSV and TSV: tables whose cells are all text, exactly as the file has them."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator

import pyarrow as pa


def parse_delimited(text: str, delimiter: str = ",") -> pa.Table:
    """A table whose columns are all text, named by the first line: `NA`, `007`, dates and empty cells stay as they are.

    Cells may stand in double quotes, and may then hold the delimiter and line breaks. Blank lines are no rows.

    Raises:
        ValueError: a row has too few or too many cells, a quote is not closed, or a column has no name or that of another.
            The message names the line, and quotes no cell.
    """
    rows = _rows(text.rstrip("\r\n"), delimiter)
    names = next((cells for _, cells in rows if cells), [])
    _check_header(names, delimiter)
    columns: list[list[str]] = [[] for _ in names]
    for line, cells in rows:
        if not cells and len(names) > 1:
            continue
        if not cells:  # of one column: an empty cell, or no row?
            raise ValueError(f'Line {line} is blank. Write "" for an empty cell, or take the line out.')
        if len(cells) != len(names):
            raise ValueError(
                f"The row at line {line} has {len(cells)} cells, but there are {len(names)} columns. Put a cell that holds "
                f"{delimiter!r} or a line break in double quotes, or complete the row."
            )
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell)
    return pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)})


def _rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row, and the line that it begins at, from 1: a cell may hold line breaks."""
    # A carriage return alone ends a line only where nothing else does; inside a cell without quotes it is refused.
    lines = io.StringIO(text, newline="\n" if "\n" in text else "\r")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line, limit = reader.line_num + 1, csv.field_size_limit(sys.maxsize)  # the limit is one for the whole process
        try:
            cells = next(reader, None)
        except csv.Error:
            cells = "unreadable"
        finally:
            csv.field_size_limit(limit)
        if cells is None:
            return
        if cells == "unreadable":
            raise ValueError(
                f"The row at line {line} cannot be divided into cells: a double quote is not closed, or a quote or a "
                'carriage return stands inside a cell. Put the whole cell in double quotes, and write "" for each one inside it.'
            )
        yield line, cells


def _check_header(names: list[str], delimiter: str) -> None:
    if not names:
        raise ValueError("It is empty. Its first line must name the columns.")
    other = next((other for other in ",;\t|" if other != delimiter and other in names[0]), None)
    if len(names) == 1 and other:
        raise ValueError(
            f"It has one column, whose name holds {other!r}: its cells seem to be divided by that. Save it with commas as "
            ".csv, or with tabs as .tsv."
        )
    if "" in names:
        raise ValueError(
            f"Column {names.index('') + 1} has no name. Name it in the first line (pandas: to_csv(index=False) writes no "
            "index)."
        )
    if nul := [index for index, name in enumerate(names, 1) if "\0" in name]:
        raise ValueError(
            f"The name of column {nul[0]} has a character NUL, which no name can have. Rename the column."
        )
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"Several columns are named {', '.join(map(repr, twice))}. Give each a name of its own.")
