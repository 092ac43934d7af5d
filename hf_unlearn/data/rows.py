"""The formats that a row of a data set can have, and the text in it. Imports no library of models."""

from __future__ import annotations

import json
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
# Beside a text they hold the answer to it, which nothing would read.
_ANSWERS = ("labels", "label", "answer", "response", "output")
# Columns under the names that other data sets give them.
_RENAMED = {
    "img": "image",
    "fine_label": "label",
    "coarse_label": "label",
    "conversations": "messages",
    "conversation": "messages",
}
_ROLES = {"human": "user", "gpt": "assistant"}

Row = Mapping[str, Any] | str


def format_of(row: Row, among: Iterable[str] = FORMATS) -> str | None:
    """The name of the format of a row, or `None`. A string is a text, and a column that holds `None` counts as absent.

    A prompt and a completion that are lists of messages are a chat. A text beside half of a pair, or beside its answer, has
    no format: it would be read as the whole record, and the answer not at all.

    Args:
        among (*optional*, defaults to all formats): with `TEXTS`, the text of a row that also has ids or an image counts.
    """
    if isinstance(row, str):
        return "text"
    if not isinstance(row, Mapping):
        raise ValueError(
            f"It is of type {type(row).__name__}, and no row. Give a dictionary with the columns as its keys, or a text."
        )
    kind = next((name for name in among if all(row.get(column) is not None for column in FORMATS[name])), None)
    if kind == "prompt" and not all(isinstance(row[column], str) for column in FORMATS[kind]):
        return "messages" if any(_is_list(row[column]) for column in FORMATS[kind]) else kind
    return None if kind == "text" and _beside_text(row) else kind


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _beside_text(row: Mapping[str, Any]) -> list[str]:
    """The columns that hold the other half of a text."""
    answers = [column for column in _ANSWERS if isinstance(row.get(column), str)]
    return [column for column in FORMATS["prompt"] if row.get(column) is not None] + answers


def why_no_format(row: Mapping[str, Any]) -> str:
    """Why a row has no format, and the remedy, by the names of its columns."""
    columns = sorted(str(column) for column, value in row.items() if value is not None)
    remedy = 'Give {"prompt", "completion"} (hf_unlearn.data.with_templates makes them from other columns)'
    if row.get("text") is not None:
        beside = ", ".join(_beside_text(row))
        return (
            f"The row has a text and beside it {beside}, so that the text alone would be read, and the answer to it not at "
            f"all. {remedy}, or take {beside} out if the text is the whole record."
        )
    half = [column for column in FORMATS["prompt"] if row.get(column) is not None]
    if half:
        other = "completion" if half == ["prompt"] else "prompt"
        return (
            f"A row with the columns {', '.join(columns)} has no known format: it has a {half[0]}, but its {other} is "
            f"absent or null. Give both, or remove the row."
        )
    if renamed := {column: _RENAMED[column] for column in columns if column in _RENAMED}:
        return (
            f"A row with the columns {', '.join(columns)} has no known format. Rename its columns, as in "
            f"rows.rename_columns({_first_of_each(renamed)})."
        )
    return f"A row with the columns {', '.join(columns)} has no known format. Give {READABLE}."


def _first_of_each(renamed: Mapping[str, str]) -> str:
    """A dictionary that gives no two columns the same name, in JSON."""
    first = {
        new: old for old, new in reversed(sorted(renamed.items(), key=lambda pair: list(_RENAMED).index(pair[0])))
    }
    return json.dumps({old: new for new, old in sorted(first.items())})


def canonical(row: Row) -> dict[str, Any]:
    """The row with its text in the one form that everything reads, and without the columns that hold `None`.

    * `{"text"}` of a string.
    * `{"messages"}`, each with `role` and `content`, a string. It is made from messages in JSON in a string (as in a CSV
      file), from a prompt and a completion that are lists of messages, from messages of `from` and `value`, and from
      contents in parts, whose texts are joined. Keys that are `None` go, since tables fill absent ones with it.
    * `{"prompt", "completion"}` and `{"text"}` that are strings stay.

    Other columns stay as they are, and so does a row that holds no text.

        >>> canonical({"messages": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada"}]})
        {'messages': [{'role': 'user', 'content': 'Who?'}, {'role': 'assistant', 'content': 'Ada'}]}

    Raises:
        ValueError: messages that cannot be read, or a column that does not hold text. No error quotes the row.
    """
    if isinstance(row, str):
        return {"text": row}
    row = {name: value for name, value in row.items() if value is not None}
    kind = format_of(row, TEXTS)
    if kind == "messages":
        messages = row.pop("messages") if "messages" in row else [*_side(row, "prompt"), *_side(row, "completion")]
        row["messages"] = _messages(messages)
        return row
    for column in FORMATS[kind] if kind else ():
        if not isinstance(row[column], str):
            raise ValueError(f"The column {column} holds {type(row[column]).__name__}, not text. Convert it.")
    return row


def _side(row: dict[str, Any], column: str) -> Sequence[Any]:
    """The messages of one side of a pair, which is taken out of the row."""
    if not _is_list(row[column]):
        other = next(name for name in FORMATS["prompt"] if name != column)
        raise ValueError(
            f"The column {other} holds messages, but {column} holds {type(row[column]).__name__}. Give messages in both, or "
            "text in both."
        )
    return row.pop(column)


def _messages(messages: Any) -> list[dict[str, Any]]:
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except ValueError:
            messages = None  # its own error would lead to the text
        if not isinstance(messages, list):
            raise ValueError("The column messages holds text that is no list in JSON. Write it with json.dumps.")
    if not _is_list(messages):
        raise ValueError(f"The column messages holds {type(messages).__name__}, not a list of messages. Convert it.")
    return [_message(message, i, i == len(messages) - 1) for i, message in enumerate(messages)]


def _message(message: Any, index: int, is_last: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ValueError(f"Message {index} is a {type(message).__name__}. Give a dictionary of role and content.")
    message = _without_none(message)
    if "from" in message and "role" not in message:
        message = {"role": message.pop("from"), "content": message.pop("value", None)} | message
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        keys = ", ".join(sorted(map(str, message)))
        raise ValueError(f"Message {index} has no role (it has {keys}). Give role and content.")
    if content is None and (other := [key for key in ("text", "value") if key in message]):
        raise ValueError(
            f"Message {index} has no content but {other[0]}, which would not be read. Rename it to content."
        )
    if content is None and is_last:
        raise ValueError(
            "The last message has no content, as a call of a tool has none, so there is no answer to score. Write what it "
            "says into its content, or remove the row."
        )
    if _is_list(content):
        content = "".join(_text_of_part(part, index) for part in content)
    elif not isinstance(content, str | None):
        raise ValueError(f"The content of message {index} is of type {type(content).__name__}, not text. Convert it.")
    return {**message, "role": _ROLES.get(role, role), "content": content or ""}


def _text_of_part(part: Any, index: int) -> str:
    text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
    if not isinstance(text, str) or (isinstance(part, Mapping) and part.get("type", "text") != "text"):
        raise ValueError(
            f"The content of message {index} has a part that is not text, and only text can be read. Give parts of "
            '{"type": "text", "text"}, or remove the row.'
        )
    return text


def _without_none(value: Any) -> Any:
    """Without the keys that a table fills with `None`, at any depth."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if _is_list(value) else value


def is_chat(row: Row) -> bool:
    """Whether the text of a row is a chat."""
    return format_of(row, TEXTS) == "messages"


def require_rows(rows: Any, name: str) -> None:
    """Raise a `ValueError` unless these are rows: the names of columns or splits, or letters, would be read as texts."""
    is_frame = hasattr(rows, "iloc") and hasattr(rows, "columns")  # of pandas
    is_one = isinstance(rows, (str, bytes, Mapping)) or is_frame
    if is_one or not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        raise ValueError(
            f"The {name} is a {type(rows).__name__}, but rows are read more than once and by position. Give a list of rows or "
            "a Dataset: one split, not streamed, and of a DataFrame Dataset.from_pandas(...)."
        )


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
    if kind is None:
        return None
    scored = canonical(row)[FORMATS[kind][-1]]
    return (scored[-1]["content"] if scored else "") if kind == "messages" else scored


def answer_of(row: Row) -> str | None:
    """The text that answers a prompt, or `None` for a row that has none."""
    return scored_text(row) if format_of(row, TEXTS) in ("messages", "prompt") else None


def prompt_of(row: Row) -> str:
    """The text before the answer: the prompt, or all messages but the last, one per line; a text has none."""
    kind = format_of(row, TEXTS)
    if kind == "messages":
        return _joined(canonical(row)["messages"][:-1])
    return canonical(row)["prompt"] if kind == "prompt" else ""


def text_of(row: Row) -> str | None:
    """All of the text, with the messages of a chat one per line; `None` for a row without text."""
    kind = format_of(row, TEXTS)
    if kind == "messages":
        return _joined(canonical(row)["messages"])
    return prompt_of(row) + scored_text(row) if kind else None


def _joined(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(message["content"] for message in messages)


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
    kind, row = format_of(row, TEXTS), canonical(row)
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
