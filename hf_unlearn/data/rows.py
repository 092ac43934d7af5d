"""What a row of a data set looks like: the formats that there are, and what each says. Imports no library of models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


#: Label of a position that is not scored, as in torch and transformers.
IGNORE_INDEX = -100
#: The columns of each format. A row is of the first format of which it has all columns; the last column is what is scored.
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
#: Where the class of an image is.
LABEL_COLUMNS = ("labels", "label")

Row = Mapping[str, Any] | str


def format_of(row: Row, among: Iterable[str] = FORMATS) -> str | None:
    """Which of the `FORMATS` a row has, or `None`. A string is a text, and a column that holds `None` is none.

    Args:
        among (*optional*, defaults to all formats): `TEXTS` reads the text of a row that has ids or an image as well.
    """
    if isinstance(row, str):
        return "text"
    return next((name for name in among if all(row.get(column) is not None for column in FORMATS[name])), None)


def is_chat(row: Row) -> bool:
    """Whether the text of a row is that of a chat."""
    return format_of(row, TEXTS) == "messages"


def column_names(rows) -> Sequence[str]:
    """Columns of a table, or of the first of some rows; nothing is decoded."""
    if hasattr(rows, "column_names"):
        return rows.column_names
    first = rows[0] if isinstance(rows, Sequence) and len(rows) else {}
    return list(first) if isinstance(first, Mapping) else []


def label_of(row: Mapping[str, Any]) -> Any:
    """The class of an image, or `None`."""
    return next((row[column] for column in LABEL_COLUMNS if row.get(column) is not None), None)


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
    """The text before the answer: the prompt, the messages but the last with line breaks between them; of a text none."""
    kind = format_of(row, TEXTS)
    if kind == "messages":
        return "\n".join(message["content"] or "" for message in row["messages"][:-1])
    return row["prompt"] if kind == "prompt" else ""


def text_of(row: Row) -> str | None:
    """All of the text, with line breaks between the messages of a chat; `None` for a row without text."""
    kind = format_of(row, TEXTS)
    if kind == "messages":
        return "\n".join(message["content"] or "" for message in row["messages"])
    return prompt_of(row) + scored_text(row) if kind else None


def content_of(row: Any) -> Any:
    """The image of a row or all of its text; `None` where there is neither. What is no row stays as it is."""
    if not isinstance(row, Mapping):
        return row
    return row["image"] if row.get("image") is not None else text_of(row)


def _same(text: str) -> str:
    return text


def reworded(row: Row, question: Callable[[str], str] = _same, answer: Callable[[str], str] = _same) -> Row:
    """The row with its question or its answer in other words, and no columns but those of its format.

    Args:
        row: of text.
        question (`Callable`, *optional*): from the prompt, or the last message before the answer, to the new one. A text
            has none.
        answer (`Callable`, *optional*): from the text that is scored to the new one.
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
    raise ValueError(f"The row holds no text that could be put in other words. Give rows of {READABLE}.")
