"""What a row is taken for, and what it says: every format once."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from hf_unlearn.data.rows import (
    FORMATS,
    TEXTS,
    answer_of,
    canonical,
    column_names,
    content_of,
    format_of,
    is_chat,
    label_of,
    prompt_of,
    reworded,
    scored_text,
    text_of,
)
from hf_unlearn.data.text import encode


CHAT = [
    {"role": "system", "content": None},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Ada Lovelace"},
]
#: Of each format: a row, what is asked, what is scored, and all of its text.
ROWS = {
    "string": ("Ada lived.", "", "Ada lived.", "Ada lived."),
    "text": ({"text": "Ada lived."}, "", "Ada lived.", "Ada lived."),
    "prompt": ({"prompt": "Who?", "completion": " Ada"}, "Who?", " Ada", "Who? Ada"),
    "messages": ({"messages": CHAT}, "\nWho?", "Ada Lovelace", "\nWho?\nAda Lovelace"),
    "ids": ({"input_ids": np.arange(3), "labels": np.arange(3)}, "", None, None),
    "image": ({"image": np.zeros((2, 2)), "label": 0}, "", None, None),
    "pixels": ({"pixel_values": np.zeros((3, 2, 2)), "labels": 1}, "", None, None),
}


@pytest.mark.parametrize("kind", ROWS)
def test_what_a_row_says(kind):
    row, asked, scored, text = ROWS[kind]
    assert format_of(row) == {"string": "text"}.get(kind, kind)
    assert (prompt_of(row), scored_text(row), text_of(row)) == (asked, scored, text)
    assert answer_of(row) == (scored if kind in ("prompt", "messages") else None)
    assert is_chat(row) == (kind == "messages")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_table_fills_the_columns_of_other_formats_with_none(kind):
    row = dict.fromkeys(column for columns in FORMATS.values() for column in columns)
    assert format_of(row) is format_of({}) is None and text_of(row) is scored_text(row) is answer_of(row) is None
    filled = {**row, **ROWS[kind][0]}
    assert format_of(filled) == kind
    assert (prompt_of(filled), scored_text(filled), text_of(filled)) == ROWS[kind][1:]


@given(st.sets(st.sampled_from(sorted({c for columns in FORMATS.values() for c in columns} | {"id", "label"}))))
def test_a_row_is_of_the_first_format_that_it_has_whole(columns):
    row = dict.fromkeys(columns, "x")
    complete = [name for name, needed in FORMATS.items() if columns >= set(needed)]
    if columns & {"prompt", "completion", "label"} and complete[-1:] == ["text"]:
        complete.pop()  # half of a pair, or an answer, beside a text
    assert format_of(row) == (complete[0] if complete else None)
    assert format_of(row, TEXTS) == next((name for name in complete if name in TEXTS), None)


def test_an_encoded_row_may_keep_its_text_and_is_read_as_ids():
    row = {"input_ids": [1, 2], "labels": [1, 2], "text": "Ada"}
    assert format_of(row) == "ids" and scored_text(row) == text_of(row) == "Ada"
    assert encode(row) == row


@pytest.mark.parametrize("kind", ["text", "prompt", "messages"])
def test_a_row_is_encoded_as_the_format_that_it_is_taken_for(kind):
    tokenizer = tiny_tokenizer(chat_template=True)
    row = ROWS[kind][0]
    if kind == "messages":
        row = {"messages": CHAT[1:]}
    encoded = encode({**row, "id": 3, "input_ids": None, "text": row.get("text")}, tokenizer)
    assert encoded == encode(row, tokenizer)
    targets = [i for i in encoded["labels"] if i >= 0]
    assert scored_text(row).strip() in tokenizer.decode(targets)


@pytest.mark.parametrize("kind", ["string", "text", "prompt", "messages"])
def test_reworded_rows_have_other_words_and_no_other_columns(kind):
    row, asked, scored, _ = ROWS[kind]
    more = row if kind == "string" else {**row, "id": 3}
    before = str(more)
    louder = reworded(more, question=lambda text: f"Please: {text}", answer=str.upper)
    assert scored_text(louder) == scored.upper()
    assert reworded(more) == (row if kind == "string" else canonical(row))
    assert prompt_of(louder) == (asked and asked.replace("Who?", "Please: Who?"))
    assert kind == "string" or louder.keys() == row.keys()
    assert str(more) == before
    alone = {"messages": CHAT[2:]}
    assert reworded(alone, answer=str.lower)["messages"] == [{"role": "assistant", "content": "ada lovelace"}]


@pytest.mark.parametrize("kind", ["ids", "image", "pixels"])
def test_what_holds_no_text_is_not_reworded(kind):
    with pytest.raises(ValueError, match="holds no text"):
        reworded(ROWS[kind][0])


def test_contents_are_images_or_texts():
    image = ROWS["image"][0]["image"]
    assert content_of({"image": image, "label": 1, "text": "a digit"}) is image and content_of(image) is image
    assert content_of("Ada") == content_of({"image": None, "text": "Ada"}) == "Ada"
    assert content_of(ROWS["ids"][0]) is None


def test_labels_and_columns():
    assert label_of({"label": 3}) == label_of({"labels": 3, "label": 4}) == label_of({"labels": None, "label": 3}) == 3
    assert label_of({"text": "Ada"}) is None and label_of({"label": 0}) == 0
    assert column_names([{"text": "Ada", "id": 1}]) == ["text", "id"]
    assert column_names(["Ada"]) == column_names([]) == []


def test_the_formats_need_no_library_of_models():
    code = "import sys, hf_unlearn.data.rows; print({'torch', 'datasets', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_the_door_for_users_gives_what_it_names():
    import hf_unlearn.data as door

    assert all(getattr(door, name).__name__ == name for name in door.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod_rows'"):
        getattr(door, "lod_rows")  # noqa: B009
