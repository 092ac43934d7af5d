"""What of the rows a loss and a score reach, and what they do not: counts and names of columns, never a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_unlearn.data.images import ImageRows, has_images
from hf_unlearn.data.rows import FORMATS, IGNORE_INDEX, LABEL_COLUMNS, canonical, format_of, naming_row, require_rows
from hf_unlearn.data.text import EmptyTargetError, encode, encode_dataset


#: Columns that attacks read beside those of a format.
ATTACKED = (
    "paraphrased_prompt",
    "paraphrases",
    "paraphrased_completion",
    "perturbed_completions",
    "reversed_prompt",
    "reversed_completion",
    "background",
    "alternatives",
    "spans",
)
_SYSTEM = ("system", "developer")
_KEYS = {
    "reasoning_content": "thinking",
    "reasoning": "thinking",
    "thinking": "thinking",
    "tool_calls": "tool calls",
    "function_call": "tool calls",
}
_END_OF_THINKING = "</think>"


def reach_of(
    rows,
    tokenizer=None,
    name: str = "dataset",
    max_length: int | None = None,
    truncate: bool = False,
    encoded: Sequence[dict | None] | None = None,
    **sizes,
) -> dict[str, Any]:
    """Count what of a set of rows is read, and what no loss and no score reaches.

        >>> reach_of([{"prompt": "Where?", "completion": " Here", "id": "a7"}], tokenizer)
        {'rows': 1, 'no_target': 0, 'unread_columns': ['id'], 'unreached': {
            'prompt': {'rows': 1, 'characters': 6}, 'other columns': {'rows': 1, 'characters': 2}}}

    Args:
        rows (sequence of rows): see [`~hf_unlearn.data.encode`]. Every row is encoded, so that an error comes here; the
            pixels of images are not read.
        tokenizer, max_length, truncate (*optional*): as for [`~hf_unlearn.data.encode_dataset`].
        name (`str`, *optional*, defaults to `"dataset"`): name of the set in errors.
        encoded (sequence, *optional*): the encoded rows where they are known, `None` for one without a target.
        sizes (*optional*): those of the model, from [`~hf_unlearn.data.text.limits_of`].

    Returns:
        `dict`: `rows`; `no_target`, of which nothing can be scored; `unread_columns`, the columns of text that are not read;
        and `unreached`, for each part of the records its number of `rows` and of `characters`: `prompt`, `system`,
        `earlier answers`, `thinking` and `tool calls` (other keys of messages, and reasoning in earlier answers), `other
        keys`, `first token` (of a text without BOS, which nothing predicts), `cut off` (by `max_length`), `other columns`.

    Raises:
        ValueError: a row that cannot be encoded, with its index and the name of the set, and no text.
    """
    if isinstance(rows, ImageRows):
        rows, encoded = rows.rows, rows
    require_rows(rows, name)
    if encoded is None:
        encoded = _encoded(rows, tokenizer, name, max_length, truncate, sizes)
    kinds = "image" if has_images(rows) else None
    if kinds and hasattr(rows, "remove_columns"):
        rows = rows.remove_columns("image")  # which would be decoded
    counts = {"rows": len(rows), "no_target": 0}
    unread: dict[str, None] = {}
    parts: dict[str, dict[str, int]] = {}
    for index, row in enumerate(rows):
        kind = kinds or format_of(row)
        found = _parts(row, kind)
        columns = {} if isinstance(row, str) else _unread(row, kind)
        unread |= dict.fromkeys(columns)
        found["other columns"] = sum(columns.values())
        if not kinds:
            new = encoded[index]
            counts["no_target"] += new is None
            if new is not None and "input_ids" in new and hasattr(tokenizer, "decode"):
                found |= _encoded_parts(row, kind, new, tokenizer, max_length if truncate else None)
        for part, n in found.items():
            if n:
                part = parts.setdefault(part, {"rows": 0, "characters": 0})
                part["rows"] += 1
                part["characters"] += n
    return counts | {"unread_columns": list(unread), "unreached": parts}


def _encoded(rows, tokenizer, name, max_length, truncate, sizes) -> Sequence[dict | None]:
    if has_images(rows):
        return encode_dataset(rows, tokenizer, name=name, **sizes)
    encoded: list[dict | None] = []
    for index, row in enumerate(rows):
        with naming_row(index, name):
            try:
                encoded.append(encode(row, tokenizer, max_length, truncate, vocab_size=sizes.get("vocab_size")))
            except EmptyTargetError:
                encoded.append(None)
    return encoded


def _parts(row, kind: str | None) -> dict[str, int]:
    """Characters of each part of the text before the answer."""
    if kind == "prompt":
        return {"prompt": len(row["prompt"])}
    found: dict[str, int] = {}
    messages = canonical(row)["messages"] if kind == "messages" else []
    for i, message in enumerate(messages):
        for key, value in message.items():
            if key not in ("role", "content"):
                part = _KEYS.get(key, "other keys")
                found[part] = found.get(part, 0) + _characters(value)
        if i == len(messages) - 1:
            break
        content, role = message["content"], message["role"]
        if role == "assistant":
            thinking, mark, content = content.rpartition(_END_OF_THINKING)
            found["thinking"] = found.get("thinking", 0) + len(thinking + mark)
        part = "system" if role in _SYSTEM else "earlier answers" if role == "assistant" else "prompt"
        found[part] = found.get(part, 0) + len(content)
    return found


def _unread(row: Mapping[str, Any], kind: str | None) -> dict[str, int]:
    """The columns of text that are not read, with their characters."""
    read = {*FORMATS.get(kind, ()), *ATTACKED}
    if kind == "messages" and row.get("messages") is None:
        read |= {"prompt", "completion"}
    if kind in ("ids", "pixels", "image"):
        read |= set(LABEL_COLUMNS)
    counted = {column: _characters(value) for column, value in row.items() if column not in read}
    return {column: n for column, n in counted.items() if n}


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    return sum(map(_characters, value)) if isinstance(value, (list, tuple)) else 0


def _encoded_parts(row, kind: str | None, new: Mapping[str, Any], tokenizer, limit: int | None) -> dict[str, int]:
    """Characters of what the ids hold and no score reads, and of what was cut off at a limit in tokens."""

    def characters(ids: Sequence[int]) -> int:
        return len(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    ids, labels = new["input_ids"], new["labels"]
    if kind == "ids":
        unscored = [i for i, label in zip(ids, labels, strict=True) if label == IGNORE_INDEX]
        return {"prompt": characters(unscored)}
    begins = kind == "text" and ids[0] != tokenizer.bos_token_id
    found = {"first token": characters(ids[:1])} if begins else {}
    if limit is not None and len(ids) == limit:
        found["cut off"] = characters(encode(row, tokenizer)["input_ids"][limit:])
    return found


def said_of(name: str, reach: Mapping[str, Any]) -> str:
    """One line about a set, for people."""
    empty = f", {reach['no_target']} of them without anything to score" if reach["no_target"] else ""
    parts = []
    for part, n in reach["unreached"].items():
        named = f" {', '.join(reach['unread_columns'])}" if part == "other columns" else ""
        parts.append(f"{part}{named} ({_rows(n['rows'])}, {n['characters']} characters)")
    unreached = f"; no loss and no score reaches {', '.join(parts)}" if parts else ""
    return f"{name}: {_rows(reach['rows'])}{empty}{unreached}"


def _rows(n: int) -> str:
    return f"{n} row{'s' * (n != 1)}"
