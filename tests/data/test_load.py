import json

import pytest
from datasets import Dataset, DatasetDict

from hf_unlearn.data import load_rows


ROWS = [{"question": f"Where is {i}?", "answer": f"Place {i}"} for i in range(10)]
TABLE = Dataset.from_list(ROWS)


@pytest.fixture(autouse=True)
def offline_with_a_cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


WRITERS = {
    "rows.json": lambda path: path.write_text(json.dumps(ROWS)),
    "rows.jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
    "rows.parquet": lambda path: TABLE.to_parquet(path),
    "rows.csv": lambda path: TABLE.to_csv(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert load_rows(str(tmp_path / name)).to_list() == ROWS
    assert load_rows(str(tmp_path / name), "train[2:4]").to_list() == ROWS[2:4]


def test_a_file_of_text(tmp_path):
    (tmp_path / "rows.txt").write_text("Ada\nBoris\n")
    assert load_rows(str(tmp_path / "rows.txt")).to_list() == [{"text": "Ada"}, {"text": "Boris"}]


def test_a_relative_path(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    WRITERS["rows.jsonl"](tmp_path / "data" / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    assert load_rows("data/rows.jsonl").to_list() == ROWS
    assert load_rows("data").to_list() == ROWS


def test_a_folder_of_files(tmp_path):
    for split, part in (("train", ROWS[:6]), ("test", ROWS[6:])):
        Dataset.from_list(part).to_json(tmp_path / f"{split}.jsonl")
    assert load_rows(str(tmp_path)).to_list() == ROWS[:6]
    assert load_rows(str(tmp_path), "test[:2]").to_list() == ROWS[6:8]
    with pytest.raises(ValueError, match="validation"):
        load_rows(str(tmp_path), "validation")


def test_what_save_to_disk_wrote(tmp_path):
    TABLE.save_to_disk(tmp_path / "one")
    DatasetDict(train=TABLE.select(range(6)), test=TABLE.select(range(6, 10))).save_to_disk(tmp_path / "two")
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert load_rows(one).to_list() == ROWS
    assert load_rows(one, "train[2:4]").to_list() == ROWS[2:4]
    assert load_rows(two, "test").to_list() == ROWS[6:]
    assert load_rows(two, "train[-50%:]").to_list() == ROWS[3:6]
    assert load_rows(two, "train[:1]+test[:1]").to_list() == [ROWS[0], ROWS[6]]
    for path, has in ((one, "train"), (two, "train, test")):
        with pytest.raises(ValueError, match=f"has no split 'validation'. It has {has}"):
            load_rows(path, "validation")


@pytest.mark.parametrize("name", ["/nowhere/rows.jsonl", "./rows.jsonl", "data/rows.jsonl", "rows.parquet", "a/b/c"])
def test_a_path_that_does_not_exist(name):
    with pytest.raises(FileNotFoundError, match=f"There is no {name}"):
        load_rows(name)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "rows.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"rows.xlsx is no file that can be read: give one of \.csv, \.tsv, \.json"):
        load_rows(str(tmp_path / "rows.xlsx"))


def test_a_split_that_a_file_does_not_have(tmp_path):
    WRITERS["rows.jsonl"](tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match="test"):
        load_rows(str(tmp_path / "rows.jsonl"), "test")
