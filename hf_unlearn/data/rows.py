"""The formats that a row of a data set can have. Imports no library of models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


#: Label of a position that is not scored, as in torch and transformers.
IGNORE_INDEX = -100
#: The columns of each format. A row has the first format of which it has all columns; the last column is scored.
FORMATS = {
    "pixels": ("pixel_values",),
    "image": ("image",),
    "ids": ("input_ids",),
    "messages": ("messages",),
    "prompt": ("prompt", "completion"),
    "text": ("text",),
}
#: The formats that hold text.
TEXTS = ("messages", "prompt", "text")
#: The formats of text, in words for errors.
READABLE = '{"prompt", "completion"}, {"messages"} or {"text"}'
#: The columns that may hold the class of an image.
LABEL_COLUMNS = ("labels", "label")

Row = Mapping[str, Any] | str


def format_of(row: Row, among: Iterable[str] = FORMATS) -> str | None:
    """The name of the format of a row, or `None`. A string is a text, and a column that holds `None` counts as absent.

    Args:
        among (*optional*, defaults to all formats): with `TEXTS`, the text of a row that also has ids or an image counts.
    """
    if isinstance(row, str):
        return "text"
    return next((name for name in among if all(row.get(column) is not None for column in FORMATS[name])), None)


def is_chat(row: Row) -> bool:
    """Whether the text of a row is a chat."""
    return format_of(row, TEXTS) == "messages"


def column_names(rows) -> Sequence[str]:
    """Columns of a table, or of the first row of a sequence; nothing is decoded."""
    if hasattr(rows, "column_names"):
        return rows.column_names
    first = rows[0] if isinstance(rows, Sequence) and len(rows) else {}
    return list(first) if isinstance(first, Mapping) else []


def label_of(row: Mapping[str, Any]) -> Any:
    """The class of an image, or `None`."""
    return next((row[column] for column in LABEL_COLUMNS if row.get(column) is not None), None)


@contextmanager
def naming_row(index: int, name: str) -> Iterator[None]:
    """Begin a `ValueError` with the index of the row and the name of its data set."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Row {index} of the {name}: {error}") from None


def scored_text(row: Row) -> str | None:
    """The text that is scored: a completion, the last message of a chat, a text; `None` for a row without text."""
    kind = format_of(row, TEXTS)
    if kind is None or isinstance(row, str):
        return row if kind else None
    scored = row[FORMATS[kind][-1]]
    return scored[-1]["content"] if kind == "messages" else scored


def answer_of(row: Row) -> str | None:
    """The text that answers a prompt, or `None` for a row that has none."""
    return scored_text(row) if format_of(row, TEXTS) in ("messages", "prompt") else None


def prompt_of(row: Row) -> str:
    """The text before the answer: the prompt, or all messages but the last, one per line; a text has none."""
    kind = format_of(row, TEXTS)
    if kind == "messages":
        return _joined(row["messages"][:-1])
    return row["prompt"] if kind == "prompt" else ""


def text_of(row: Row) -> str | None:
    """All of the text, with the messages of a chat one per line; `None` for a row without text."""
    kind = format_of(row, TEXTS)
    if kind == "messages":
        return _joined(row["messages"])
    return prompt_of(row) + scored_text(row) if kind else None


def _joined(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(message["content"] or "" for message in messages)


def content_of(row: Any) -> Any:
    """The image of a row, or else all of its text, or else `None`. What is not a row stays as it is."""
    if not isinstance(row, Mapping):
        return row
    return row["image"] if row.get("image") is not None else text_of(row)


def reworded(
    row: Row, question: Callable[[str], str] = lambda text: text, answer: Callable[[str], str] = lambda text: text
) -> Row:
    """The row of text with its question or its answer in other words, and only the columns of its format.

    Args:
        question (`Callable`, *optional*): makes the new prompt, or the new last message before the answer, from the old
            one. A text has no question.
        answer (`Callable`, *optional*): makes the new scored text from the old one.
    """
    if isinstance(row, str):
        return answer(row)
    kind = format_of(row, TEXTS)
    if kind == "messages":
        *before, last = row["messages"]
        if before:
            before[-1] = {**before[-1], "content": question(before[-1]["content"])}
        return {"messages": [*before, {**last, "content": answer(last["content"])}]}
    if kind == "prompt":
        return {"prompt": question(row["prompt"]), "completion": answer(row["completion"])}
    if kind == "text":
        return {"text": answer(row["text"])}
    raise ValueError(f"The row holds no text to put in other words. Give rows of {READABLE}.")
