"""What a row is taken for, and what it says: every format once."""

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from hf_unlearn.audit.checks import check_request
from hf_unlearn.audit.config import AuditConfig
from hf_unlearn.data.reach import reach_of
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
from hf_unlearn.data.text import encode, encode_dataset


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


# Forms of the same chat

ASKED, SAID = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada"}
FORMS = {
    "messages": {"messages": [ASKED, SAID]},
    "a prompt and a completion of messages": {"prompt": [ASKED], "completion": [SAID]},
    "from and value": {"messages": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada"}]},
    "JSON in a string": {"messages": json.dumps([ASKED, SAID])},
    "contents in parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "W"}, {"type": "text", "text": "ho?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Ada"}]},
        ]
    },
    "keys that a table fills": {
        "messages": [
            {**ASKED, "tool_calls": None, "from": None, "value": None},
            {"from": "gpt", "value": "Ada", "role": None, "content": None},
        ],
        "prompt": None,
        "text": None,
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_chat_says_the_same(form):
    row, tokenizer = FORMS[form], tiny_tokenizer(chat_template=True)
    before = str(row)
    assert canonical(row) == {"messages": [ASKED, SAID]} and canonical(canonical(row)) == canonical(row)
    assert (format_of(row), is_chat(row)) == ("messages", True)
    assert (prompt_of(row), scored_text(row), answer_of(row), text_of(row)) == ("Who?", "Ada", "Ada", "Who?\nAda")
    assert reworded(row, str.upper, str.lower)["messages"] == [
        {**ASKED, "content": "WHO?"},
        {**SAID, "content": "ada"},
    ]
    assert encode(row, tokenizer) == encode(FORMS["messages"], tokenizer)
    assert encode_dataset(Dataset.from_list([row]), tokenizer) == [encode(FORMS["messages"], tokenizer)]
    assert str(row) == before


def test_a_table_of_all_forms_has_the_same_chat_in_each_row():
    rows = Dataset.from_list(
        [FORMS["messages"], FORMS["from and value"], {"messages": [ASKED, {**SAID, "name": "A"}]}]
    )
    assert [text_of(row) for row in rows] == ["Who?\nAda"] * 3
    assert canonical(rows[0]) == {"messages": [ASKED, SAID]}


def test_the_roles_of_from_and_value():
    turns = [("system", "S"), ("human", "Q"), ("gpt", "A"), ("tool", "T"), ("gpt", "B")]
    row = {"messages": [{"from": role, "value": text} for role, text in turns]}
    assert [m["role"] for m in canonical(row)["messages"]] == ["system", "user", "assistant", "tool", "assistant"]


CANARY = "Zyxwv"
UNREADABLE = {
    "no content": (
        [ASKED, {"role": "assistant", "content": None, "tool_calls": [{"name": CANARY}]}],
        "has no content",
    ),
    "a part that is an image": ([{"role": "user", "content": [{"type": "image", "url": CANARY}]}, SAID], "not text"),
    "a part that a table fills": ([{"role": "user", "content": [{"type": "image", "text": None}]}, SAID], "not text"),
    "a content of another type": ([{"role": "user", "content": 3}, SAID], "of type int"),
    "no role": ([{"speaker": CANARY, "content": CANARY}, SAID], "Message 0 has no role"),
    "no dictionary": ([CANARY, SAID], "Message 0 is a str"),
    "no JSON": (f"[{{'role': '{CANARY}'}}]", "no list in JSON"),
    "no list": ({"role": CANARY}, "not a list of messages"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_messages_that_cannot_be_read_are_refused_with_their_row(case):
    messages, said = UNREADABLE[case]
    rows = [FORMS["messages"], {"messages": messages}]
    with pytest.raises(ValueError, match=f"^Row 1 of the forget set: .*{said}") as caught:
        encode_dataset(rows, tiny_tokenizer(chat_template=True), name="forget set")
    assert CANARY not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=said):
        check_request({}, {"forget": rows, "retain": [FORMS["messages"]]}, ("extraction",), AuditConfig())


def test_a_call_of_a_tool_before_the_answer_is_kept():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "find", "arguments": {"a": 1, "b": None}}]}
    first, found = canonical({"messages": [ASKED, call, SAID]})["messages"][:2]
    assert first == ASKED and found == {**call, "content": "", "tool_calls": [{"name": "find", "arguments": {"a": 1}}]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Q", "completion": None, "text": "T"}, "beside it prompt"),
        ({"prompt": "Q", "text": "T"}, "beside it prompt"),
        ({"completion": "A", "text": "T"}, "beside it completion"),
        ({"prompt": "Q", "completion": None}, "its completion is absent or null"),
        ({"prompt": None, "completion": "A", "id": 3}, "its prompt is absent or null"),
        ({"prompt": [ASKED], "completion": "A"}, "The column prompt holds messages, but completion holds str"),
        ({"prompt": "Q", "completion": [SAID]}, "The column completion holds messages, but prompt holds str"),
        ({"prompt": "Q", "completion": 3}, "The column completion holds int, not text"),
        ({"text": 3.5}, "The column text holds float, not text"),
        *(({"text": "Q", column: "A"}, f"beside it {column}") for column in ("labels", "label", "answer", "response")),
        ({"text": "Q", "output": "A"}, "beside it output"),
    ],
)
def test_half_of_a_record_is_no_record(row, said):
    with pytest.raises(ValueError, match=f"^Row 1 of the forget set: .*{said}"):
        encode_dataset([{"text": "Ada"}, row], tiny_tokenizer(), name="forget set")
    if "beside" in said:
        assert format_of(row) is text_of(row) is scored_text(row) is None


def test_a_class_beside_a_text_is_no_answer_to_it():
    assert format_of({"text": "Ada", "label": 1}) == "text" and format_of({"text": "Ada", "answer": None}) == "text"
    assert format_of({"prompt": "Q", "completion": "A", "text": "Q A", "answer": "A"}) == "prompt"
    assert format_of({"messages": [ASKED, SAID], "prompt": "Who?", "answer": "Ada"}) == "messages"


def test_the_same_record_in_two_forms_is_found_in_both_sets():
    config, retain = AuditConfig(), list(FORMS.values())
    notes = check_request({}, {"forget": [FORMS["messages"]], "retain": retain}, ("extraction",), config)
    assert notes == check_request({}, {"forget": [retain[1]], "retain": retain[:1]}, ("extraction",), config)
    assert len(notes) == 1 and notes[0].startswith("1 row of the forget set can be found in the retain set")


def test_columns_under_other_names_are_named_with_the_remedy():
    rename = 'rename_columns({"img": "image", "fine_label": "label"})'
    for row in ({"img": 1, "fine_label": 2, "coarse_label": 3}, {"img": 1, "fine_label": 2}):
        with pytest.raises(ValueError, match=re.escape(rename)):
            encode(row)
    with pytest.raises(ValueError, match=re.escape('rename_columns({"conversations": "messages"})')):
        encode({"conversations": [ASKED, SAID]})


@pytest.mark.parametrize(
    "rows",
    [
        "a text",
        {"prompt": "Where?", "completion": " Here"},
        DatasetDict(train=Dataset.from_list([{"text": "a"}])),
        pd.DataFrame({"text": ["a", "b"]}),
    ],
)
def test_names_of_columns_and_letters_are_not_read_as_texts(rows):
    for read in (encode_dataset, reach_of):
        with pytest.raises(ValueError, match=f"The forget set is a {type(rows).__name__}, but rows are"):
            read(rows, tiny_tokenizer(), name="forget set")


@pytest.mark.parametrize("row", [3, None, ["a", "b"], b"abc", pd.DataFrame({"text": ["a"]})])
def test_what_is_no_row_is_an_error(row):
    with pytest.raises(ValueError, match=f"^Row 1 of the forget set: It is of type {type(row).__name__}, and no row"):
        encode_dataset(["a text", row], tiny_tokenizer(), name="forget set")


def test_a_message_that_says_what_it_says_in_another_key_is_refused():
    messages = [{"role": "user", "text": "Where?"}, {"role": "assistant", "content": "Here"}]
    with pytest.raises(ValueError, match="Message 0 has no content but text"):
        canonical({"messages": messages})
    with pytest.raises(ValueError, match=r"Message 0 has no role \(it has 1\)"):
        canonical({"messages": [{1: "user"}]})
