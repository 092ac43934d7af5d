"""The sets of an audit of a class: its rows, those of its siblings, and the rest of the holdout."""

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from hf_unlearn.cli.sets import audit_sets
from hf_unlearn.request import ErasureRequest, split


def sets_of(cells, kind, values, siblings=None, train=None):
    features = Features({"label": kind, "text": Value("string")})
    data = DatasetDict(
        {
            name: Dataset.from_dict({"label": some, "text": [f"{name} {i}" for i in range(len(some))]}, features)
            for name, some in (("train", train or cells), ("holdout", cells))
        }
    )
    request = ErasureRequest.of_class("label", values)
    sets = audit_sets(data, request, split(data, request), siblings)
    return {name: [text.removeprefix("holdout ") for text in rows["text"]] for name, rows in sets.items()}


def test_the_rest_of_the_holdout_is_the_test_set_for_columns_of_lists_too():
    sets = sets_of([["a", "b"], ["c"], [], None], List(Value("string")), ["a"], ["c"])
    assert (sets["holdout"], sets["test"], sets["siblings"]) == (["0"], ["1", "2", "3"], ["1"])


@pytest.mark.parametrize("kind", [Value("int64"), Value("string"), ClassLabel(names=["0", "1", "2"])])
def test_siblings_of_classes_that_are_numbers(kind):
    cells = ["0", "1", "2"] if kind == Value("string") else [0, 1, 2]
    sets = sets_of(cells, kind, [0], ["2"])
    assert (sets["holdout"], sets["test"], sets["siblings"]) == (["0"], ["1", "2"], ["2"])


def test_siblings_need_not_be_trained_on_but_must_be_in_the_holdout():
    assert sets_of([0, 1, 2], Value("int64"), [0], ["2"], train=[0, 1])["siblings"] == ["2"]
    with pytest.raises(ValueError, match="No row of the holdout is of a class of sibling_values"):
        sets_of([0, 1], Value("int64"), [0], ["2"])
    with pytest.raises(ValueError, match="No row of the holdout is of a class of sibling_values"):
        sets_of([0, 1], Value("int64"), [0], ["0"])


def test_a_holdout_of_the_class_alone_has_no_rest():
    assert set(sets_of([0, 0], Value("int64"), [0], train=[0, 1])) == {"forget", "retain", "holdout"}
