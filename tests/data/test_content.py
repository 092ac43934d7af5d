"""The digest of what a model reads of a row: one for all forms of the same row, and none where there is nothing to read."""

import json

import pytest
from datasets import Dataset
from PIL import Image

from hf_unlearn.data.content import content_digests


def same(*rows):
    """Whether all rows have one digest, alone and in a table."""
    alone = list(content_digests(rows))
    assert len(alone) == len(rows) and None not in alone
    return len(set(alone)) == 1


def test_texts_are_equal_in_any_form_of_their_letters():
    assert same("Jos\u00e9 b", {"text": " Jose\u0301\n b ", "id": 7}, {"text": "José b", "prompt": None})
    assert not same("José b", "Joséb")
    assert same({"prompt": "a", "completion": "b"}, {"prompt": " a", "completion": "b ", "person": "x"})
    assert not same({"prompt": "a", "completion": "b"}, {"prompt": "a b", "completion": ""})
    assert not same("a b", {"prompt": "a", "completion": "b"})


def test_chats_are_equal_in_every_form():
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada\n L."}]
    parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    shared = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada L."}]
    pair = {"prompt": messages[:1], "completion": messages[1:]}
    forms = [{"messages": form} for form in (messages, parts, shared, json.dumps(messages))]
    assert same(*forms, pair)
    tables = [Dataset.from_list([form, {"messages": None, "prompt": None}]) for form in (*forms, pair)]
    assert {next(content_digests(table)) for table in tables} == set(content_digests([pair]))
    assert not same({"messages": messages}, {"messages": messages[::-1]})


def test_ids_and_images():
    assert same({"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [1, 2], "labels": [-100, 2]})
    red, blue = (Image.new("RGB", (2, 2), color) for color in ("red", "blue"))
    assert same({"image": red, "label": 0}, {"image": red.copy(), "label": 0, "id": 7})
    assert not same({"image": red, "label": 0}, {"image": blue, "label": 0})
    assert not same({"image": red, "label": 0}, {"image": red, "label": 1})
    table = Dataset.from_list([{"image": red, "label": 0}, {"image": red, "label": 0}, {"image": blue, "label": 0}])
    first, second, third = content_digests(table)
    assert first == second != third


def test_rows_without_content_have_no_digest():
    empty = [{"role": "user", "content": ""}, {"role": "assistant", "content": " "}]
    rows = ["", {"text": " \n"}, {"prompt": "", "completion": ""}, {"messages": []}, {"question": "a"}, {}]
    assert set(content_digests([*rows, {"messages": empty}])) == {None}
    assert list(content_digests(Dataset.from_dict({"question": ["a", "b"]}))) == [None, None]


def test_images_of_palettes_are_compared_by_their_colors():
    red, green = (Image.new("P", (2, 2), 0) for _ in range(2))
    red.putpalette([255, 0, 0] * 256)
    green.putpalette([0, 255, 0] * 256)
    assert not same({"image": red, "label": 0}, {"image": green, "label": 0})


def test_the_file_of_an_image_that_is_gone_is_named_by_its_row():
    row = {"image": {"bytes": None, "path": "/nowhere/secret.png"}, "label": 0}
    with pytest.raises(ValueError, match=r"^Row 0 of the forget set: The file .* \(FileNotFoundError\)") as error:
        list(content_digests([row], "forget set"))
    assert "secret" not in str(error.value)
