"""Files of rows, read into memory and nowhere else. No reader guesses what a cell means."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, ReadInstruction, concatenate_datasets
from datasets.table import InMemoryTable

from hf_unlearn.data.delimited import parse_delimited
from hf_unlearn.data.json_rows import parse_json


def _parse_lines(text: str) -> pa.Table:
    """One row per line, blank ones too. Only line breaks end a line, and no other character that Unicode calls one."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return pa.table({"text": pa.array(lines if lines[-1] else lines[:-1], pa.string())})


#: How the text of a file becomes a table, by suffix.
PARSERS: dict[str, Callable[[str], pa.Table]] = {
    ".csv": parse_delimited,
    ".tsv": partial(parse_delimited, delimiter="\t"),
    ".json": parse_json,
    ".jsonl": parse_json,
    ".txt": _parse_lines,
}


def read_table(path: str | Path, parse: Callable[[str], pa.Table]) -> pa.Table:
    """The table in a file of UTF-8.

    Raises:
        ValueError: it is of another encoding, has no row, or `parse` refuses it. The message begins with the name of the file
            and quotes no value.
    """
    text = read_text(path)
    try:
        table = parse(text)
    except ValueError as error:
        reason = str(error)
    else:
        if table.num_rows:
            return table
        reason = "It has no row."
    raise ValueError(f"{path}: {reason}")


def read_text(path: str | Path) -> str:
    """The text of a file of UTF-8 that is not empty, without a byte order mark.

    Raises:
        ValueError: it is of another encoding, or empty.
    """
    try:
        text = Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        text, at = None, error.start
    if text is None:  # raised out here because the original error carries the file
        raise ValueError(f"{path} is not UTF-8 (byte {at}). Save it as UTF-8, and read it again.")
    text = text.removeprefix("\ufeff")
    if not text.strip("\r\n\t "):
        raise ValueError(f"{path} is empty. Give a file with rows.")
    return text


def rows_of(table: pa.Table) -> Dataset:
    """The rows of a table, which stays in memory."""
    return Dataset(InMemoryTable(table))


def of_split(name: str, split: str, parts: Mapping[str, Callable[[], Dataset]]) -> Dataset:
    """A split, a slice of one, or a sum of such. Only the splits that are named in it are read.

    Raises:
        ValueError: there is no such split.
    """
    named = {re.split(r"[\[(]", part)[0].strip() for part in split.split("+")}
    rows = {part: read() for part, read in parts.items() if part in named}
    try:
        chosen = ReadInstruction.from_spec(split).to_absolute({part: len(rows.get(part, ())) for part in parts})
    except ValueError as error:
        raise ValueError(f"{name} has no split {split!r}. It has {', '.join(parts)}. ({error})") from None
    return concatenate_datasets([rows[part.splitname].select(range(part.from_, part.to)) for part in chosen])
