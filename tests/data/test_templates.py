"""Templates put into a text what is in the row, as it is, and nothing else."""

import datetime

import pytest
from datasets import Dataset

from hf_unlearn.data import load_rows, with_templates


ROWS = [{"question": f"Where is {i}?", "answer": f"Place {i}"} for i in range(10)]
TABLE = Dataset.from_list(ROWS)


def test_templates_add_a_prompt_and_a_completion(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    TABLE.to_json(tmp_path / "rows.jsonl")
    rows = load_rows(str(tmp_path / "rows.jsonl"))
    before = set(tmp_path.rglob("*"))
    filled = with_templates(rows, "Question: {question}\nAnswer:", " {answer}")
    assert filled[3]["prompt"] == "Question: Where is 3?\nAnswer:"
    assert filled[3]["completion"] == " Place 3"
    assert filled.remove_columns(["prompt", "completion"]).to_list() == ROWS
    assert set(tmp_path.rglob("*")) == before  # no copy of the filled rows on disk


def test_templates_reach_into_lists_and_objects_and_may_hold_braces():
    rows = Dataset.from_list([{"answers": ["Paris", "Lyon"], "at": {"year": 1999}}])
    filled = with_templates(rows, "In {at[year]} {{x}}:", " {answers[0]}")
    assert filled[0]["prompt"] == "In 1999 {x}:"
    assert filled[0]["completion"] == " Paris"


def test_text_of_a_row_and_names_of_columns_stay_as_they_are():
    rows = Dataset.from_list([{"a.b": "x {c} {{y}} %s \\n", "c": "é\u0301 {0}", "n": -7}])
    filled = with_templates(rows, "{a.b}|{n}", "{c}{c}")
    assert (filled[0]["prompt"], filled[0]["completion"]) == ("x {c} {{y}} %s \\n|-7", "é\u0301 {0}é\u0301 {0}")


def test_a_prompt_can_be_made_anew_from_itself_and_a_format_does_not_matter():
    rows = Dataset.from_dict({"prompt": ["Who?", "Where?"], "n": [1, 2]}).with_format("numpy").select([1, 0])
    filled = with_templates(rows, "Q: {prompt}", " {n}")
    assert filled[:] == {"prompt": ["Q: Where?", "Q: Who?"], "n": [2, 1], "completion": [" 2", " 1"]}


def test_no_templates_change_nothing():
    assert with_templates(TABLE, None, None) is TABLE


@pytest.mark.parametrize("templates", [("{question}", None), (None, "{answer}")])
def test_one_template_is_refused(templates):
    with pytest.raises(ValueError, match="You set one of prompt_template and completion_template"):
        with_templates(TABLE, *templates)


@pytest.mark.parametrize("template", ["{query}", "{}", "{0}", "{query[0]} {question}", "{question.upper}"])
def test_a_template_that_names_no_column(template):
    with pytest.raises(ValueError, match="names '.*', but the columns are question, answer"):
        with_templates(TABLE, template, "{answer}")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (" Yes.", "completion template ' Yes.' names no column"),
        ("", "names no column"),
        ("{{answer}}", "names no column"),
        ("{answer!r}", "sets how 'answer' is written"),
        ("{answer:>9}", "sets how 'answer' is written"),
        ("{answer:{question}}", "sets how 'answer' is written"),
        ("{answer", r"cannot be read.*Write \{\{"),
        ("answer}", r"cannot be read.*Write \{\{"),
        ("{answer[0]}", r"Row 0 of the split train: the template names 'answer\[0\]', which this row does not have"),
    ],
)
def test_completions_that_are_not_of_the_row(template, message):
    with pytest.raises(ValueError, match=message):
        with_templates(TABLE, "{question}", template, "split train")


@pytest.mark.parametrize(
    ("value", "held"),
    [
        (None, "is missing"),
        (0.1, "of type float"),
        (float("nan"), "of type float"),
        (True, "of type bool"),
        (["SECRET"], "of type list"),
        ({"name": "SECRET"}, "of type dict"),
        (datetime.date(2024, 5, 1), "of type date"),
        (datetime.datetime(2024, 5, 1), "of type datetime"),
        (b"SECRET", "of type bytes"),
    ],
)
@pytest.mark.parametrize("templates", [("{x}", "{q}"), ("{q}", " {x}")])
def test_values_that_are_no_text_are_refused(value, held, templates):
    rows = Dataset.from_list([{"x": None, "q": "a"}, {"x": value, "q": "b"}]).select([1])
    with pytest.raises(ValueError, match="^Row 0 of the data set: the value of 'x' is.*Convert") as error:
        with_templates(rows, *templates)
    assert held in str(error.value) and "SECRET" not in str(error.value)


def test_the_index_of_the_row_is_named():
    rows = Dataset.from_dict({"q": ["a", "b", None], "at": [{"y": 1}, {"y": 2}, {"y": 3}]})
    with pytest.raises(ValueError, match="^Row 2 of the data set: the value of 'q' is missing"):
        with_templates(rows, "{at[y]}", "{q}")
    with pytest.raises(ValueError, match=r"^Row 0 .*'at\[z\]', which this row does not have"):
        with_templates(rows, "{at[z]}", "{q}")


@pytest.mark.parametrize(
    ("column", "value"), [("messages", [{"role": "user", "content": "a"}]), ("input_ids", [1, 2]), ("image", "a")]
)
def test_a_column_that_would_be_read_in_place_of_the_templates_is_refused(column, value):
    rows = Dataset.from_list([{**row, column: value} for row in ROWS])
    with pytest.raises(ValueError, match=f"the split train has the column {column}, which is read before a prompt"):
        with_templates(rows, "{question}", " {answer}", "split train")
