"""What a request selects, by the type of the column and the form of the selector."""

import datetime
import json
import operator as python
import warnings
from decimal import Decimal, InvalidOperation

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets.table import InMemoryTable
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unlearn.request import ErasureRequest, split
from hf_unlearn.request.mentions import is_mentioned, plain


def selected(cells, request, kind=None):
    """Positions of the cells of the column `c` that a request selects; a row that never matches is added."""
    array = pa.array([*cells, None], kind)
    rows = Dataset(InMemoryTable(pa.table({"c": array, "n": range(len(array))})))
    return list(split(rows, request, text_columns=[]).forget["n"])


def records(*values):
    return ErasureRequest.records(values, "c")


def attribute(operator, value):
    return ErasureRequest.attribute("c", operator, value)


# Numbers and text


def test_numbers_select_cells_spelled_like_them():
    cells = ["17", "7", "x17", "-1", "0.5", "", "NA", "170"]
    assert selected(cells, records(17, -1)) == [0, 3]
    assert selected(cells, attribute("==", 0.5)) == [4]
    assert selected(cells, attribute("in", [7, 170])) == [1, 7]
    assert selected(cells, attribute("!=", 17)) == [1, 2, 3, 4, 5, 6, 7]
    assert selected(cells, records("17", "x17")) == [0, 2]
    assert selected(["1e+22", "a"], attribute("==", 1e22)) == [0]


@pytest.mark.parametrize("other", ["017", "7.0", " 17", "+17", "1.7e1", "17.", "١٧"])
@pytest.mark.parametrize("operator", ["==", "!=", "in", "record"])
def test_the_same_number_in_another_spelling_is_an_error(operator, other):
    cells = ["17", "7", other, other, "SECRET"]
    request = records(17, 7) if operator == "record" else attribute(operator, [17, 7] if operator == "in" else 17)
    if other == "7.0" and operator in ("==", "!="):
        return
    with pytest.raises(
        ValueError, match="2 cells of column 'c', which is text, are a number.*Give the values as texts"
    ) as error:
        selected(cells, request)
    assert "SECRET" not in str(error.value) and "17" not in str(error.value).replace("07 is of 7", "")
    assert selected(cells, records("17", other)) == [0, 2, 3]


def test_numbers_that_occur_in_no_cell_are_missing():
    with pytest.raises(ValueError, match="1 of the 2 values of the request occur in no row of column 'c'"):
        selected(["17", "x"], records(17, 18))


def test_order_of_numbers_in_text_is_exact():
    cells = ["9", "10", "", "10.00000000000000000001", "-3", "1e2", " 11 "]
    assert selected(cells, attribute(">", 10)) == [3, 5, 6]
    assert selected(cells, attribute("<=", 10)) == [0, 1, 4]
    assert selected(cells, attribute("<", 9.5)) == [0, 4]
    with pytest.raises(ValueError, match="3 cells of column 'c' are no numbers, so that '>' cannot compare") as error:
        selected([*cells, "SECRET", "NA", "nan"], attribute(">", 10))
    assert "SECRET" not in str(error.value)


def test_texts_that_spell_numbers_in_another_order_are_an_error():
    assert selected(["2019", "2024", "2024-05-01", "x"], attribute(">", "2020")) == [1, 2, 3]
    with pytest.raises(
        ValueError, match="2 cells of column 'c', which is text, compare by '>=' otherwise.*as a number"
    ):
        selected(["9", "30", "41", "100"], attribute(">=", "30"))
    assert selected(["9", "30", "41", "100"], attribute(">=", 30)) == [1, 2, 3]


def test_order_of_texts_is_that_of_texts():
    assert selected(["2024-05-01", "2023-12-31", "", "x"], attribute(">=", "2024")) == [0, 3]


# Dates, decimals, integers


DAYS = [datetime.date(2024, 5, 1), datetime.date(2023, 12, 31)]
TIMES = [
    datetime.datetime(2024, 5, 1),
    datetime.datetime(2024, 5, 1, 9, 30),
    datetime.datetime(2023, 12, 31, 23, 59, 59),
]


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_dates_by_iso_text(kind):
    assert selected(DAYS, records("2024-05-01"), kind) == [0]
    assert selected(DAYS, attribute("<", "2024-05-01"), kind) == [1]
    assert selected(DAYS, attribute("not in", ["2024-05-01"]), kind) == [1]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "+02:00"])
def test_times_by_iso_text(unit, zone):
    kind, utc = pa.timestamp(unit, zone), "" if zone is None else "Z"
    assert selected(TIMES, records(f"2024-05-01T09:30:00{utc}"), kind) == [1]
    assert selected(TIMES, records(f"2024-05-01 00:00{utc}", f"2023-12-31T23:59:59{utc}"), kind) == [0, 2]
    assert selected(TIMES, attribute(">=", f"2024-05-01T00:00{utc}"), kind) == [0, 1]
    if zone is not None:
        assert selected(TIMES, records("2024-05-01T11:30:00+02:00"), kind) == [1]
        with pytest.raises(ValueError, match="ISO 8601 text, with its offset"):
            selected(TIMES, attribute(">", "2024-05-01T00:00"), kind)
        return
    assert selected(TIMES, attribute("<", "2024-05-01"), kind) == [2]
    assert selected(TIMES[::2], records("2024-05-01"), kind) == [0]
    with pytest.raises(ValueError, match="1 cells of column 'c' are times within a day.*Select the whole day by >="):
        selected(TIMES, records("2024-05-01"), kind)
    with pytest.raises(ValueError, match="does not fit column 'c'.*ISO 8601"):
        selected(TIMES, records("2024-05-01T09:30:00Z"), kind)


def test_times_of_day_and_decimals():
    clocks = [datetime.time(9, 30), datetime.time(23, 59)]
    assert selected(clocks, attribute(">", "12:00:00"), pa.time32("s")) == [1]
    for clock in ("12:00:00.5", "12:00+02:00", "noon"):
        with pytest.raises(ValueError, match="does not fit column 'c'"):
            selected(clocks, attribute(">", clock), pa.time32("s"))
    prices = [Decimal("1.10"), Decimal("20.00")]
    assert selected(prices, records(1.1), pa.decimal128(10, 2)) == [0]
    assert selected(prices, records("20"), pa.decimal128(10, 2)) == [1]
    assert selected(prices, attribute(">", 1), pa.decimal128(10, 2)) == [0, 1]
    with pytest.raises(ValueError, match="does not fit"):
        selected(prices, records(1.105), pa.decimal128(10, 2))


def test_large_integers_are_exact():
    cells = [2**63, 2**53, 2**53 + 1]
    assert selected(cells, records(2**63), pa.uint64()) == [0]
    assert selected(cells, records(2**53 + 1), pa.uint64()) == [2]
    with pytest.raises(ValueError, match="does not fit"):
        selected([0.5, 2.0**53], records(2**53 + 1), pa.float64())


@pytest.mark.parametrize(
    ("cells", "kind", "value", "remedy"),
    [
        ([1], pa.int64(), 1.0, "Give integers"),
        ([1], pa.int64(), "1", "Give numbers"),
        ([True], pa.bool_(), "true", "Give true or false"),
        (["true"], pa.string(), True, "Give texts"),
        ([1], pa.timestamp("s"), 1, "Give ISO 8601 texts"),
        ([1], pa.duration("s"), "1", "ISO 8601|convert the column"),
        ([b"a"], pa.binary(), "a", "Select on another column"),
    ],
)
def test_other_types_name_the_remedy(cells, kind, value, remedy):
    with pytest.raises(ValueError, match=f"column 'c'|Column 'c'.*{remedy}") as error:
        selected(cells, records(value), kind)
    assert remedy.split("|")[-1] in str(error.value)


def test_a_column_without_any_value_matches_nothing():
    rows = Dataset.from_dict({"c": ["a", "b"], "text": ["x", "y"]})
    holdout = Dataset.from_dict({"c": [None, None], "text": ["z", "w"]})
    with pytest.warns(UserWarning, match="0 of 2 holdout rows fit"):
        assert split(rows, attribute("==", "a"), holdout=holdout).holdout is None


# Lists, chats, several columns


def test_an_item_of_a_list_is_enough():
    tags = [["a", "b"], [], ["ab", None], ["b"]]
    assert selected(tags, records("b")) == [0, 3]
    assert selected(tags, attribute("contains", "b")) == [0, 2, 3]
    assert selected(tags, attribute("in", ["b", "x"]), pa.large_list(pa.large_string())) == [0, 3]
    assert selected([[1, 2], [3]], records(2)) == [0]
    assert selected([["a", "b"], ["c", "d"]], records("d"), pa.list_(pa.string(), 2)) == [1]
    assert selected([[["x"], ["y"]], [["z"]]], records("y")) == [0]
    for operator, value in (("!=", "a"), ("not in", ["a"])):
        with pytest.raises(ValueError, match="Column 'c' holds lists, of which .* could mean any item or all"):
            selected(tags, attribute(operator, value))


def test_items_of_class_labels():
    features = Features({"c": List(ClassLabel(names=["cat", "dog"])), "n": Value("int64")})
    rows = Dataset.from_dict({"c": [[0], [0, 1], [], [0]], "n": range(4)}, features)
    assert split(rows, ErasureRequest.of_class("c", ["dog"])).forget["n"][:] == [1]


def chat(*contents):
    return [{"role": "user", "content": content} for content in contents]


def test_chats_are_searched_in_their_contents():
    chats = [chat("Hi", "I am Ada"), chat("user"), chat(None, "ada"), []]
    assert selected(chats, attribute("contains", "Ada")) == [0]
    assert selected(chats, ErasureRequest.records(mentions=["Ada"], column="c")) == [0, 2]
    assert selected(chats, attribute("contains", ["user", "Ada"])) == [0, 1]
    parts = [
        chat([{"type": "text", "text": "Ada"}, {"type": "image", "text": None}]),
        chat([{"type": "text", "text": "b"}]),
    ]
    assert selected(parts, ErasureRequest.records(mentions=["ada"], column="c")) == [0]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_batches_cut_lists_and_chats_between_rows(size, monkeypatch):
    monkeypatch.setattr("hf_unlearn.request.matching._BATCH", size)
    assert selected([["a"], None, [], ["b", "c"], ["d", "a"]], records("a", "c")) == [0, 3, 4]
    assert selected([["a", "b"], None, ["c", "a"]], records("a"), pa.list_(pa.string(), 2)) == [0, 2]
    assert selected([chat("b"), [], None, chat("b", None, "a")], attribute("contains", "a")) == [3]
    assert selected(["7", "x", None, "7"], records(7)) == [0, 3]


def test_chats_of_other_forms_are_searched_too():
    shared = [
        [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada"}],
        [{"from": "human", "value": "gpt"}],
    ]
    assert selected(shared, ErasureRequest.records(mentions=["Ada", "gpt"], column="c")) == [0, 1]
    mixed = [[{"from": "human", "value": "Ada"}], chat("Ada"), chat("b")]
    assert selected(mixed, attribute("contains", "Ada")) == [0, 1]
    in_json = [json.dumps(chat("José\n Pérez")), json.dumps(chat("content")), None, json.dumps(chat("b"))]
    rows = Dataset.from_dict({"messages": in_json, "n": range(4)})
    for request, expected in (
        (ErasureRequest.records(mentions=["José Pérez", "content"], column="messages"), [0, 1]),
        (ErasureRequest.attribute("messages", "contains", "é"), [0]),
        (ErasureRequest.records([in_json[3]], "messages"), [3]),
    ):
        assert split(rows, request, text_columns=[]).forget["n"][:] == expected
    rows = Dataset.from_dict({"messages": [in_json[0], "SECRET"]})
    with pytest.raises(
        ValueError, match="Row 1 of the dataset: The column messages holds text that is no list"
    ) as error:
        split(rows, ErasureRequest.attribute("messages", "contains", "é"), text_columns=[])
    assert "SECRET" not in str(error.value)


PEOPLE = {
    "question": ["Who is Ada Lovelace?", "Who is Ann?", "Who wrote it?", "Who is Anna?"],
    "answer": ["A mathematician.", "A painter.", "It was A.\n LOVELACE!", "A cook."],
    "n": [0, 1, 2, 3],
}


def test_any_of_several_columns_is_enough():
    rows = Dataset.from_dict(PEOPLE)

    def found(request):
        return split(rows, request, text_columns=[]).forget["n"][:]

    both = ["question", "answer"]
    assert found(ErasureRequest.records(mentions=["Ada Lovelace", "A. Lovelace"], columns=both)) == [0, 2]
    assert found(ErasureRequest.records(["A cook.", "Who is Ann?"], columns=both)) == [1, 3]
    assert found(ErasureRequest.attribute(both, "contains", ["LOVELACE", "painter"])) == [1, 2]
    assert found(ErasureRequest.attribute(["question"], "contains", "Ann")) == [1, 3]
    assert found(ErasureRequest.records(mentions=["ann"], column="question")) == [1]
    with pytest.raises(
        ValueError, match="1 of the 2 values of the request occur in no row of the columns 'question', 'answer'"
    ):
        found(ErasureRequest.records(["A cook.", "SECRET"], columns=both))


def test_a_request_by_mentions_keeps_the_whole_holdout_and_counts_names_that_do_not_occur():
    rows, holdout = Dataset.from_dict(PEOPLE), Dataset.from_dict({**PEOPLE, "question": ["a", "b", "c", "d"]})
    request = ErasureRequest.records(mentions=["Ann", "SECRET", "Miss Ann"], columns=["question", "answer"])
    with pytest.warns(UserWarning, match="2 of the 3 names of the request occur in no row of the columns") as caught:
        parts = split(rows, request, holdout, text_columns=[])
    assert parts.counts() == {"forget": 1, "retain": 3, "holdout": 4, "duplicates": 0}
    assert not any("SECRET" in str(one.message) for one in caught)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="No row of 4 matches"):
        warnings.simplefilter("error")
        split(rows, ErasureRequest.records(mentions=["SECRET"], columns=["question"]), text_columns=[])


def test_names_that_no_holdout_row_contains_are_said_with_the_other_request():
    rows, holdout = Dataset.from_dict(PEOPLE), Dataset.from_dict({**PEOPLE, "question": ["a", "b", "c", "d"]})
    with pytest.warns(UserWarning, match="0 of 4 holdout rows fit.*column 'question'.*select by `mentions`"):
        parts = split(rows, ErasureRequest.attribute("question", "contains", "Ada"), holdout, text_columns=[])
    assert parts.holdout is None and parts.holdout_rows == 4


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("Ann", "Anna", False),
        ("Ann", "Joann", False),
        ("Ann", "ANN's", True),
        ("Ann", "(Ann)", True),
        ("Ann", "Mary-Ann", True),
        ("Ann", "Ann2", False),
        ("Ann", "Anna and Ann", True),
        ("Ann", "Ann\u0308", False),  # n with a diaeresis
        ("Ada  Lovelace", "ada\u00a0\n lovelace", True),
        ("José", "JOSE\u0301", True),
        ("Jose", "José", False),
        ("Strauß", "STRAUSS", True),
        ("A.", "A. Lovelace", True),
        ("A. Lovelace", "Ada A. Lovelace-King", True),
        ("राम", "रामा", False),
        ("राम", "राम का", True),
        ("田中", "田中さんは", True),
        ("Ανν", "ΑΝΝ", True),
        ("Ann", "", False),
    ],
)
def test_whole_words(name, text, expected):
    assert is_mentioned(plain(name), plain(text)) is expected


@settings(max_examples=60, deadline=None)
@given(
    name=st.text("aAbé .", min_size=1, max_size=4).filter(lambda name: any(map(str.isalnum, name))),
    before=st.text("aAb é\n.-", max_size=6),
    after=st.text("aAb é\n.-", max_size=6),
)
def test_mentions_by_another_route(name, before, after):
    text = plain(f"{before}{name}{after}")
    name = plain(name)
    found = any(
        text.startswith(name, i)
        and not (i and text[i - 1].isalnum() and name[0].isalnum())
        and not (text[i + len(name) : i + len(name) + 1].isalnum() and name[-1].isalnum())
        for i in range(len(text))
    )
    assert is_mentioned(name, text) is found


NAMES = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
SPELLED = st.sampled_from(["", "x", "NA", "7", "07", "7.0", "+7", "17", "-3", "1e1", "10", "0.5", "\t7", "1_0", "٧"])


def as_number(cell):
    try:
        return None if "_" in cell else Decimal(cell.strip())
    except InvalidOperation:
        return None


@settings(max_examples=150, deadline=None)
@given(
    cells=st.lists(st.none() | SPELLED, min_size=1, max_size=8),
    operator=st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
    number=st.sampled_from([7, 10, -3, 0.5, 7.0, 17]),
)
def test_numbers_against_text_by_another_route(cells, operator, number):
    present, holds = [cell for cell in cells if cell is not None], getattr(python, NAMES[operator])
    numbers = {cell: as_number(cell) for cell in present}
    if operator in ("==", "!="):
        spelled = json.dumps(number)
        unclear = sum(numbers[cell] == Decimal(spelled) and cell != spelled for cell in present)
        expected = [i for i, cell in enumerate(cells) if cell is not None and holds(cell, spelled)]
    else:
        unclear = sum(bool(cell) and numbers[cell] is None for cell in present)
        known = [(i, numbers.get(cell)) for i, cell in enumerate(cells)]
        expected = [i for i, value in known if value is not None and holds(value, Decimal(json.dumps(number)))]
    if unclear or not expected:
        with pytest.raises(ValueError, match=f"^{unclear} cells" if unclear else "^No row"):
            selected(cells, attribute(operator, number), pa.string())
    else:
        assert selected(cells, attribute(operator, number), pa.string()) == expected


# Texts that are written in another way


def test_a_key_written_with_other_white_space_or_letters_is_unclear():
    for other in ("Jos\u00e9 ", "Jose\u0301", "\u00a0Jos\u00e9"):
        for request in (records("Jos\u00e9"), attribute("not in", ["Jos\u00e9"])):
            with pytest.raises(ValueError, match="^1 cells of column 'c' differ from a value .* unclear") as error:
                selected(["Jos\u00e9", other, "x"], request)
            assert "Jos" not in str(error.value)
        assert selected(["Jos\u00e9", other, "x"], records("Jos\u00e9", other)) == [0, 1]
    with pytest.raises(ValueError, match="1 cells .* contain a value .* unclear"):
        selected(["by Jos\u00e9", "by Jose\u0301", "x"], attribute("contains", "Jos\u00e9"))


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("other", ["reasoning_content", "name", "tool_calls"])
def test_names_are_looked_for_in_all_that_messages_hold(as_json, other):
    said = [{"function": {"arguments": "to Ada Lovelace"}}] if other == "tool_calls" else "Ada Lovelace"
    chats = [
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": f"{i}", other: said}] for i in range(2)
    ]
    chats[1][1][other] = None
    rows = Dataset.from_list([{"messages": json.dumps(chat) if as_json else chat} for chat in chats])
    for request in (
        ErasureRequest.records(mentions=["ada lovelace"], column="messages"),
        ErasureRequest.attribute("messages", "contains", "Ada"),
    ):
        assert list(split(rows, request).forget["messages"]) == [rows[0]["messages"]]
