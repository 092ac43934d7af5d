"""Prompts and answers made from the columns of a row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from datasets import Dataset

from hf_unlearn.data.rows import FORMATS, format_of, naming_row


# A column, and in brackets positions of lists and keys of objects in it.
_FIELD = re.compile(r"(?P<column>[^\[\]]*)(?P<path>(?:\[[^\[\]]+\])*)")


def with_templates(dataset: Dataset, prompt: str | None, completion: str | None, name: str = "data set") -> Dataset:
    """Add the columns `prompt` and `completion`, made from the other columns of a row.

    What stands for a column is its text or its integer, as it is. Anything else would be written in a form that is not in the
    row, so it is an error: a missing value, a fraction, a boolean, a date, a list or an object.

    Args:
        prompt, completion (`str` or `None`): templates such as `"Question: {question}\\nAnswer:"` and `" {answer}"`. The
            data set is returned as it is if both are `None`. `{answers[0]}` is an item of a list, `{at[year]}` one of an
            object, and `{{` a brace.
        name (`str`, *optional*, defaults to `"data set"`): name of the data set in errors.

    Raises:
        ValueError: only one is given, a template names a column that does not exist, the completion names none, or a value
            cannot stand in a text. The message names the row and the column, and quotes no value.
    """
    if prompt is None and completion is None:
        return dataset
    if prompt is None or completion is None:
        raise ValueError("You set one of prompt_template and completion_template. Set both, or neither.")
    parts = {"prompt": _parse(prompt, dataset.column_names), "completion": _parse(completion, dataset.column_names)}
    if not any(path for _, path in parts["completion"]):
        raise ValueError(
            f"The completion template {completion!r} names no column, so that all rows would have the same answer. Name one in "
            "braces, as in ' {answer}'."
        )
    made = dict.fromkeys((*dataset.column_names, *parts), "")
    if (kind := format_of(made)) != "prompt":
        raise ValueError(
            f"You set templates, but the {name} has the column {FORMATS[kind][0]}, which is read before a prompt and a "
            "completion. Either leave the templates out, or take the column out of the data."
        )
    columns = list(dict.fromkeys(path[0] for template in parts.values() for _, path in template if path))

    def fill(*cells) -> dict[str, str]:
        *cells, index = cells
        row = dict(zip(columns, cells, strict=True))
        with naming_row(index, name):
            return {column: _filled(template, row) for column, template in parts.items()}

    # In memory, as `map` leaves a copy of the rows in the cache otherwise, and forget rows must leave none.
    return dataset.with_format(None).map(
        fill, input_columns=columns, with_indices=True, keep_in_memory=True, desc="Filling the templates"
    )


def _parse(template: str, names: Sequence[str]) -> list[tuple[str, list[str | int]]]:
    """Pieces of text, each with the way to the value that follows it: a column, then positions and keys. The last has none."""
    pieces, unknown = [], []
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"The template {template!r} cannot be read: {error}. Write {{{{ for a brace.") from None
    for text, field, spec, conversion in parsed:
        if field is None:
            pieces.append((text, []))
            continue
        if spec or conversion:
            raise ValueError(
                f"The template {template!r} sets how {field!r} is written, which would not be as in the row. Write "
                f"{{{field}}} alone."
            )
        match = None if field in names else _FIELD.fullmatch(field)
        column, keys = (
            (field, []) if match is None else (match["column"], re.findall(r"\[([^\[\]]+)\]", match["path"]))
        )
        if column not in names:
            unknown.append(column)
        pieces.append((text, [column, *(int(key) if key.isdecimal() else key for key in keys)]))
    if unknown:
        raise ValueError(
            f"The template {template!r} names {', '.join(map(repr, sorted(unknown)))}, but the columns are "
            f"{', '.join(names)}."
        )
    return pieces


def _filled(template: Sequence[tuple[str, list[str | int]]], row: Mapping[str, Any]) -> str:
    return "".join(text + (_value(path, row) if path else "") for text, path in template)


def _value(path: Sequence[str | int], row: Mapping[str, Any]) -> str:
    value: Any = row
    for key in path:
        fits = isinstance(value, list if isinstance(key, int) else Mapping)
        if not fits or (key >= len(value) if isinstance(key, int) else key not in value):
            raise ValueError(
                f"the template names {_written(path)}, which this row does not have. Leave the row out, or name another column."
            )
        value = value[key]
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    held = "is missing" if value is None else f"is of type {type(value).__name__}"
    raise ValueError(
        f"the value of {_written(path)} {held}, and only text and integers are written as they stand in the row. Convert the "
        "column to text, or leave the row out."
    )


def _written(path: Sequence[str | int]) -> str:
    return repr(path[0] + "".join(f"[{key}]" for key in path[1:]))
