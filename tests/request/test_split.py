import operator
import sys
import unicodedata
import warnings
from functools import partial

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image as Picture

from hf_unlearn.request import ErasureRequest, Split, split


SECRET = "jane.doe@example.org"


def records():
    return Dataset.from_dict(
        {
            "id": [10, 11, 12, 13, 14],
            "author": ["ada", "bob", SECRET, "ada", None],
            "text": ["a cat", "a dog", "my illness", "a bird", "a fish"],
            "age": [20.5, 30.0, 40.0, None, 60.0],
            "smoker": [True, False, True, None, False],
        }
    )


def labelled(labels=(0, 1, 2, 1, 0)):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["cat", "zebra", "dog"])})
    return Dataset.from_dict({"text": [f"row {i}" for i in range(len(labels))], "label": list(labels)}, features)


def ids(dataset):
    return list(dataset["id"])


def test_records_by_id():
    parts = split(records(), ErasureRequest.records(ids=[13, 10]))
    assert ids(parts.forget) == [10, 13]
    assert ids(parts.retain) == [11, 12, 14]
    assert parts.holdout is None


def test_records_by_any_column():
    parts = split(records(), ErasureRequest.records(ids=["ada"], column="author"))
    assert ids(parts.forget) == [10, 13]


def test_records_by_position():
    parts = split(records(), ErasureRequest.records(rows=[4, 0, 4]))
    assert ids(parts.forget) == [10, 14]
    assert ids(parts.retain) == [11, 12, 13]


def test_a_class_by_name_and_by_integer():
    for values in (["zebra"], [1]):
        parts = split(labelled(), ErasureRequest.of_class(column="label", values=values))
        assert list(parts.forget["label"]) == [1, 1]
        assert list(parts.retain["label"]) == [0, 2, 0]


@pytest.mark.parametrize(
    ("column", "operator", "value", "expected"),
    [
        ("author", "==", "ada", [10, 13]),
        ("author", "!=", "ada", [11, 12]),
        ("author", "in", ["ada", "bob", "nobody"], [10, 11, 13]),
        ("author", "not in", ["ada", "bob"], [12]),
        ("text", "contains", "ill", [12]),
        ("text", "contains", ".", None),
        ("text", "contains", "ILL", None),
        ("age", "<", 40, [10, 11]),
        ("age", "<=", 40, [10, 11, 12]),
        ("age", ">", 40, [14]),
        ("age", ">=", 40.0, [12, 14]),
        ("age", "!=", 40, [10, 11, 14]),
        ("smoker", "==", True, [10, 12]),
        ("id", "in", [14, 10], [10, 14]),
        ("author", ">", "b", [11, 12]),
    ],
)
def test_attribute_operators(column, operator, value, expected):
    request = ErasureRequest.attribute(column=column, operator=operator, value=value)
    if expected is None:
        with pytest.raises(ValueError, match="No row of 5 matches the request"):
            split(records(), request)
    else:
        assert ids(split(records(), request).forget) == expected


def test_class_labels_can_be_attributes_but_have_no_order():
    parts = split(labelled(), ErasureRequest.attribute("label", "!=", "zebra"))
    assert list(parts.forget["label"]) == [0, 2, 0]
    with pytest.raises(ValueError, match="class labels, which '<' cannot compare"):
        split(labelled(), ErasureRequest.attribute("label", "<", 2))


def test_minus_zero_is_zero():
    dataset = Dataset.from_dict({"id": [0, 1, 2], "x": [0.0, -0.0, 1.0]})
    for value in (0.0, -0.0):
        assert ids(split(dataset, ErasureRequest.records(ids=[value], column="x")).forget) == [0, 1]


def test_a_value_is_compared_in_the_precision_of_the_column():
    features = Features({"id": Value("int8"), "x": Value("float32")})
    dataset = Dataset.from_dict({"id": [0, 1], "x": [0.1, 0.2]}, features)
    assert ids(split(dataset, ErasureRequest.records(ids=[0.1], column="x")).forget) == [0]


# Holdout


def test_the_train_split_is_divided_and_the_holdout_comes_along():
    data = DatasetDict(train=records(), holdout=records().select([1, 2]), test=records())
    parts = split(data, ErasureRequest.records(ids=[10]))
    assert parts.counts() == {"forget": 1, "retain": 4, "holdout": 2, "duplicates": 0}
    assert str(parts) == repr(parts) == "Split(forget=1, retain=4, holdout=2, duplicates=0)"


def test_the_holdout_can_have_another_name_and_the_training_data_are_called_train():
    data = DatasetDict(train=records(), unseen=records().select([0]))
    parts = split(data, ErasureRequest.records(ids=[10]), holdout_split="unseen")
    assert parts.counts() == {"forget": 1, "retain": 4, "holdout": 1, "duplicates": 0}
    with pytest.raises(ValueError, match=r"splits \['full', 'unseen'\], but no 'train'"):
        split(DatasetDict(full=records(), unseen=records()), ErasureRequest.records(ids=[10]))


def test_a_holdout_can_be_given_and_goes_first():
    data = DatasetDict(train=records(), holdout=records())
    assert len(split(data, ErasureRequest.records(ids=[10]), records().select([3])).holdout) == 1
    assert len(split(records(), ErasureRequest.records(ids=[10]), holdout=records()).holdout) == 5


@pytest.mark.parametrize(
    "request_", [ErasureRequest.of_class("label", ["zebra"]), ErasureRequest.attribute("label", "==", "zebra")]
)
def test_a_class_is_compared_with_holdout_rows_of_the_same_class(request_):
    parts = split(labelled(), request_, holdout=labelled([1, 0, 1, 1, 2]))
    assert list(parts.holdout["label"]) == [1, 1, 1]
    assert list(parts.holdout["text"]) == ["row 0", "row 2", "row 3"]


def test_a_holdout_of_which_nothing_fits_is_said_and_counted():
    request = ErasureRequest.attribute("label", "==", "zebra")
    with pytest.warns(UserWarning, match="0 of 2 holdout rows fit the request.*'label'") as caught:
        parts = split(labelled(), request, holdout=labelled([0, 2]))
    assert parts.holdout is None and parts.holdout_rows == 2 and parts.counts()["holdout"] == 0
    assert str(parts) == "Split(forget=2, retain=3, holdout=0 of 2, duplicates=0)"
    assert "zebra" not in str(caught[0].message)  # the value is personal data


def test_positions_say_nothing_about_the_holdout():
    parts = split(records(), ErasureRequest.records(rows=[4]), holdout=records().select([0, 1]))
    assert ids(parts.holdout) == [10, 11]


# Duplicates


def copied():
    return Dataset.from_dict(
        {
            "id": ["a", "b", "c", "d", "e", "f"],
            "text": ["Café au lait", " Cafe\u0301  au\tlait\n", "tea", "café au lait", "", None],
        }
    )


def test_copies_left_in_the_retain_set_are_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="1 rows that the request does not match.*'text'.*duplicates=\"forget\"") as e:
        split(copied(), ErasureRequest.records(ids=["a"]))
    assert "lait" not in str(e.value)


def test_copies_can_be_erased_or_kept():
    request = ErasureRequest.records(ids=["b"])
    erased = split(copied(), request, duplicates="forget")
    assert (ids(erased.forget), ids(erased.retain), erased.duplicates) == (["a", "b"], ["c", "d", "e", "f"], 1)
    kept = split(copied(), request, duplicates="keep")
    assert (ids(kept.forget), ids(kept.retain), kept.duplicates) == (["b"], ["a", "c", "d", "e", "f"], 1)
    with pytest.raises(ValueError, match="`duplicates` must be"):
        split(copied(), request, duplicates="drop")


def test_rows_without_content_are_nobodys_copy():
    assert ids(split(copied(), ErasureRequest.records(ids=["e"])).forget) == ["e"]


def test_all_text_columns_count_and_their_order_too():
    dataset = Dataset.from_dict({"q": ["x", "x", "y", "x y"], "a": ["y", "z", "x", ""], "id": [0, 1, 2, 3]})
    with pytest.warns(UserWarning, match=r"looked for in \['q', 'a'\]"):
        assert split(dataset, ErasureRequest.records(ids=[0])).duplicates == 0
    with pytest.raises(ValueError, match=r"1 rows.*\['q'\]"):
        split(dataset, ErasureRequest.records(ids=[0]), text_columns=["q"])


def test_the_columns_compared_can_be_chosen():
    dataset = Dataset.from_dict({"url": ["u", "v"], "body": ["same", "same"], "id": [0, 1]})
    request = ErasureRequest.records(ids=[0])
    with pytest.warns(UserWarning, match=r"copies of rows are looked for in \['url', 'body'\]: a key .* hides copies"):
        assert split(dataset, request).duplicates == 0
    assert split(dataset, request, duplicates="keep", text_columns=["body"]).duplicates == 1
    assert split(dataset, request, duplicates="keep", text_columns=[]).duplicates == 0
    for columns in (["id"], ["text"], "body"):
        with pytest.raises(ValueError, match=r"list of text columns.*\['url', 'body'\]"):
            split(dataset, request, text_columns=columns)


def test_a_request_by_content_finds_its_copies():
    dataset = Dataset.from_dict({"text": ["a b", "a  b", "c"]})
    assert split(dataset, ErasureRequest.records(["a b"], "text"), duplicates="forget").counts()["forget"] == 2


def test_images_with_the_same_caption_are_not_copies():
    images = [{"bytes": f"not decoded {i}".encode(), "path": None} for i in range(3)]
    features = Features({"image": Image(), "caption": Value("string")})
    dataset = Dataset.from_dict({"image": images, "caption": ["zebra"] * 3}, features)
    parts = split(dataset, ErasureRequest.records(rows=[1]))
    assert parts.counts() == {"forget": 1, "retain": 2, "holdout": 0, "duplicates": 0}


def test_copies_are_found_under_another_person_and_another_id():
    content = {"prompt": ["Who?", "Who?", "Where?"], "completion": ["Ada", " Ada ", "Ada"]}
    keys = {"person": ["ada", "bob", "cid"], "id": ["a", "b", "c"], "url": ["u", "v", "w"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is known what a model reads
        parts = split(
            Dataset.from_dict({**keys, **content}), ErasureRequest.records(["ada"], "person"), duplicates="forget"
        )
    assert (ids(parts.forget), parts.duplicates) == (["a", "b"], 1)


def test_copies_of_chats_ids_and_images():
    def chat(name, content):
        return [
            {"role": "user", "content": "Who?", "name": name},
            {"role": "assistant", "content": content, "name": None},
        ]

    def copies(**columns):
        dataset = Dataset.from_dict({**columns, "id": range(4), "person": ["p", "q", "r", "s"]})
        return ids(split(dataset, ErasureRequest.records(ids=[0]), duplicates="forget").forget)

    assert copies(messages=[chat(None, "A\n b"), chat(None, "A b"), chat("x", "A b"), chat(None, "c")]) == [0, 1]
    shared = [[{"from": "human", "value": text}, {"from": "gpt", "value": "y"}] for text in ("a", "a", "b", "c")]
    assert copies(messages=shared) == [0, 1]
    assert copies(input_ids=[[1, 2], [1, 2, 3], [1, 2], [2, 1]], labels=[[1, 2]] * 4) == [0, 2]
    pictures = [Picture.new("RGB", (4, 4), (i // 2, 0, 0)) for i in range(4)]
    assert copies(image=pictures, label=[0, 0, 1, 1]) == [0, 1]
    assert copies(image=pictures, label=[0, 1, 0, 1]) == [0]


def test_a_text_that_a_request_searches_is_content_and_its_copies_are_found():
    dataset = Dataset.from_dict(
        {"topic": ["t", "u", "t"], "question": ["Ada?", "Who?", "Who?"], "answer": ["b", "Ada", "c"]}
    )
    request = ErasureRequest.records(mentions=["Ada"], columns=["question", "answer"])
    with pytest.warns(UserWarning, match=r"looked for in \['topic', 'question', 'answer'\]"):
        assert split(dataset, request).counts()["forget"] == 2


# What is refused


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ErasureRequest.records(ids=[99]), "No row of 5 matches"),
        (ErasureRequest.records(ids=[10, 98, 99]), "2 of the 3 values .* column 'id'"),
        (ErasureRequest.records(rows=[0, 5]), "5 rows"),
        (ErasureRequest.records(ids=[1], column="key"), r"'key'.*\['id', 'author', 'text', 'age', 'smoker'\]"),
        (ErasureRequest.records(ids=[SECRET], column="id"), "'id' has the type int64, .* with text"),
        (ErasureRequest.records(ids=[10.0], column="id"), "'id' has the type int64, .* with numbers"),
        (ErasureRequest.records(ids=[True], column="id"), "'id' has the type int64, .* with booleans"),
        (ErasureRequest.records(ids=[True], column="author"), "'author' has the type string, .* with booleans"),
        (ErasureRequest.records(ids=[1], column="smoker"), "'smoker' has the type bool, .* with numbers"),
        (ErasureRequest.records(ids=[2**63], column="id"), "does not fit column 'id'"),
        (ErasureRequest.attribute("id", "contains", SECRET), "'id' has the type int64, .* with text"),
        (ErasureRequest.attribute("smoker", "<", True), "'<' cannot compare"),
        (ErasureRequest.attribute("id", ">", 0), "All 5 rows"),
    ],
)
def test_requests_that_do_not_fit_the_data(request_, message):
    with pytest.raises(ValueError, match=message) as error:
        split(records(), request_)
    for content in (SECRET, "illness", str(2**63), "98"):
        assert content not in str(error.value)
    assert error.value.__context__ is None


@pytest.mark.parametrize("value", [SECRET, 3, -1, True])
def test_unknown_labels(value):
    with pytest.raises(ValueError, match="none of its 3 label names") as error:
        split(labelled(), ErasureRequest.of_class("label", [value]))
    assert SECRET not in str(error.value)


def test_columns_of_other_types_are_named_with_their_type():
    dataset = Dataset.from_dict({"at": [{"city": "a"}, {"city": "b"}], "raw": [b"a", b"b"]})
    with pytest.raises(ValueError, match="'at' has the type struct.*add one of text"):
        split(dataset, ErasureRequest.records(ids=["a"], column="at"))
    with pytest.raises(ValueError, match="'raw' has the type binary.*add one of text"):
        split(dataset, ErasureRequest.records(ids=["a"], column="raw"))


def test_erasing_everything_through_copies_leaves_nothing_to_retain():
    dataset = Dataset.from_dict({"id": [0, 1], "text": ["same", "same"]})
    with pytest.raises(ValueError, match="All 2 rows.*retain set is empty"):
        split(dataset, ErasureRequest.records(ids=[0]), duplicates="forget")


def test_an_empty_dataset_matches_nothing():
    dataset = Dataset.from_dict({"id": [], "text": []}, Features({"id": Value("int64"), "text": Value("string")}))
    with pytest.raises(ValueError, match="No row of 0 matches the request"):
        split(dataset, ErasureRequest.records(ids=[1]))


def test_streamed_data_are_refused():
    stream = records().to_iterable_dataset()
    with pytest.raises(ValueError, match="streaming=True"):
        split(stream, ErasureRequest.records(ids=[10]))
    with pytest.raises(ValueError, match="streaming=True"):
        split(records(), ErasureRequest.records(ids=[10]), holdout=stream)


# What stays as it was


def test_format_and_earlier_selections_are_kept():
    dataset = records().select([4, 2, 0, 1]).with_format("numpy", columns=["id"])
    parts = split(dataset, ErasureRequest.attribute("age", ">=", 40))
    assert parts.forget["id"][:].tolist() == [14, 12]
    assert parts.retain["id"][:].tolist() == [10, 11]
    assert parts.forget.format["type"] == "numpy"


def test_nothing_is_written_to_the_cache(tmp_path):
    records().to_parquet(tmp_path / "data.parquet")
    cache = tmp_path / "cache"
    dataset = load_dataset("parquet", data_files=str(tmp_path / "data.parquet"), split="train", cache_dir=str(cache))
    before = sorted(path for path in cache.rglob("*"))
    split(dataset, ErasureRequest.records(ids=[10, 12]), holdout=dataset)
    assert sorted(path for path in cache.rglob("*")) == before


def test_batches_do_not_change_the_result(monkeypatch):
    whole = split(copied(), ErasureRequest.records(ids=["a", "d"]), duplicates="forget")
    monkeypatch.setattr(sys.modules["hf_unlearn.request.matching"], "_BATCH", 2)
    monkeypatch.setattr(sys.modules["hf_unlearn.data.content"], "_BATCH", 2)
    small = split(copied(), ErasureRequest.records(ids=["a", "d"]), duplicates="forget")
    assert ids(whole.forget) == ids(small.forget) == ["a", "b", "d"]


# Against a plain Python route

COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda cell, value: cell in value,
    "not in": lambda cell, value: cell not in value,
    "contains": lambda cell, value: value in cell,
}
cells = {
    "string": st.sampled_from(["", "a", "b", "ab", "é", "e\u0301", "a ", "A"]),
    "int32": st.integers(-3, 3),
    "float64": st.sampled_from([-1.5, -0.0, 0.0, 0.5, float("nan"), float("inf")]),
    "bool": st.booleans(),
}


def is_unclear(name, value, cell):
    """Whether a cell of text is a value in another encoding of its letters or with other white space."""
    if cell is None or name in ("<", "<=", ">", ">="):
        return False
    if name == "contains":
        return value not in cell and unicodedata.normalize("NFC", value) in unicodedata.normalize("NFC", cell)
    values = value if isinstance(value, list) else [value]
    return cell not in values and plain(cell) in map(plain, values)


def plain(text):
    return " ".join(unicodedata.normalize("NFC", text).split())


@st.composite
def cases(draw):
    kind = draw(st.sampled_from(list(cells)))
    column = draw(st.lists(st.none() | cells[kind], min_size=1, max_size=12))
    present = [cell for cell in column if cell is not None and cell == cell and cell != float("inf")]
    assume(present)
    values = draw(st.lists(st.sampled_from(present), min_size=1, max_size=3))
    scope = draw(st.sampled_from(["record", "class", "attribute"]))
    if scope != "attribute":
        new = ErasureRequest.records if scope == "record" else ErasureRequest.of_class
        return kind, column, "in", values, new(column="c", **{"ids" if scope == "record" else "values": values})
    name = draw(st.sampled_from(list(COMPARE)))
    assume(kind != "bool" or name in ("==", "!=", "in", "not in"))
    assume(name != "contains" or (kind == "string" and values[0]))
    value = values if name in ("in", "not in") else values[0]
    return kind, column, name, value, ErasureRequest.attribute("c", name, value)


@given(case=cases())
def test_forget_and_retain_partition_the_rows_in_order(case):
    kind, column, name, value, request = case
    features = Features({"c": Value(kind), "row": Value("int64"), "text": Value("string")})
    # Every third text is the same, so that copies cross the border of the request.
    texts = [f"text {row}" if row % 3 else "copy" for row in range(len(column))]
    dataset = Dataset.from_dict({"c": column, "row": range(len(column)), "text": texts}, features)

    if kind == "string" and any(map(partial(is_unclear, name, value), column)):
        with pytest.raises(ValueError, match="unclear whether they are meant"):
            split(dataset, request, duplicates="forget", text_columns=["text"])
        return
    matched = {row for row, cell in enumerate(column) if cell is not None and COMPARE[name](cell, value)}
    expected = matched | {row for row in range(len(column)) if texts[row] in {texts[m] for m in matched}}
    if not matched or len(expected) == len(column):
        with pytest.raises(ValueError, match="No row|All"):
            split(dataset, request, duplicates="forget", text_columns=["text"])
        return
    parts = split(dataset, request, duplicates="forget", text_columns=["text"])
    assert list(parts.forget["row"]) == sorted(expected)
    assert list(parts.retain["row"]) == sorted(set(range(len(column))) - expected)
    assert parts.duplicates == len(expected - matched)


@given(texts=st.lists(st.text(max_size=6), min_size=2, max_size=8), data=st.data())
def test_copies_are_rows_equal_after_nfc_and_whitespace(texts, data):
    forget = data.draw(st.sets(st.integers(0, len(texts) - 1), min_size=1))
    dataset = Dataset.from_dict({"text": texts})
    wanted = {plain(texts[row]) for row in forget} - {""}
    copies = [row for row in range(len(texts)) if row not in forget and plain(texts[row]) in wanted]
    request = ErasureRequest.records(rows=forget)
    if len(forget) == len(texts):
        with pytest.raises(ValueError, match="retain set is empty"):
            split(dataset, request)
    elif copies:
        with pytest.raises(ValueError, match=f"^{len(copies)} rows"):
            split(dataset, request)
    else:
        assert isinstance(split(dataset, request), Split)


@pytest.mark.parametrize("request_", [ErasureRequest.of_class("label", [0]), ErasureRequest.records(rows=[0])])
def test_a_holdout_with_other_numbers_of_classes_is_refused(request_):
    def rows(name, names):
        features = Features({"label": ClassLabel(names=names), "text": Value("string")})
        return Dataset.from_dict({"label": [0, 1], "text": [f"{name} 0", f"{name} 1"]}, features)

    train, holdout = rows("train", ["cat", "dog"]), rows("holdout", ["dog", "cat"])
    with pytest.raises(ValueError, match="'label' have other numbers in the holdout"):
        split(train, request_, holdout)
    aligned = holdout.align_labels_with_mapping({"cat": 0, "dog": 1}, "label")
    if request_.kind == "class":
        assert split(train, request_, aligned).holdout["text"][:] == ["holdout 1"]
