"""Folders and Hub ids: their CSV and JSON files are read as single files are."""

import gzip
import json
from types import SimpleNamespace

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value, load_dataset, load_dataset_builder
from PIL import Image as Picture

from hf_unlearn.data import load_rows


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache / "hub"))
    yield cache
    assert [path for path in cache.rglob("*.arrow")] == []


def folder_with(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


def test_splits_and_slices_of_csv(tmp_path):
    rows = [f"00{i},NA,2024-05-0{i}\n" for i in range(1, 10)]
    header = "id,country,at\n"
    files = {"train.csv": header + "".join(rows[:6]), "test.csv": header + "".join(rows[6:])}
    folder = folder_with(tmp_path, files)
    assert load_rows(folder)[0] == {"id": "001", "country": "NA", "at": "2024-05-01"}
    assert load_rows(folder, "test[1:]")["id"][:] == ["008", "009"]
    assert load_rows(folder, "train[-50%:]+test[:1]")["id"][:] == ["004", "005", "006", "007"]
    with pytest.raises(ValueError, match="has no split 'validation'. It has .*train"):
        load_rows(folder, "validation")
    # A file that is not asked for is not read.
    (tmp_path / "test.csv").write_text("")
    assert len(load_rows(folder)) == 6
    with pytest.raises(ValueError, match="test.csv is empty"):
        load_rows(folder, "test")


def test_several_files_of_a_split_and_compressed_ones(tmp_path):
    one, two = '{"id": 1, "at": "2024-05-01"}\n', '{"id": 2, "at": "2024-05-02", "more": true}\n'
    folder = folder_with(tmp_path, {"train-0.jsonl": one, "train-1.jsonl.gz": gzip.compress(two.encode())})
    assert load_rows(folder).to_list() == [
        {"id": 1, "at": "2024-05-01", "more": None},
        {"id": 2, "at": "2024-05-02", "more": True},
    ]
    (tmp_path / "train-0.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(ValueError, match="A column has other types in .*train-0.jsonl than in other files"):
        load_rows(folder)


def test_csv_files_with_other_columns_are_refused(tmp_path):
    folder = folder_with(tmp_path, {"train-0.csv": "a,b\n1,2\n", "train-1.csv": "a,c\n1,2\n"})
    with pytest.raises(ValueError, match="train-1.csv has other columns than .*train-0.csv"):
        load_rows(folder)


def test_files_of_another_kind_are_named(tmp_path):
    folder = folder_with(tmp_path, {"train.csv": "a\n1\n", "train.jsonl": '{"a": 2}\n', "test.jsonl": '{"a": 3}\n'})
    with pytest.warns(UserWarning, match="1 files in .* are not read.*: train.csv. Move them out"):
        assert load_rows(folder)["a"][:] == [2]


def card(body):
    return f"---\n{body}\n---\n"


def test_tabs_and_what_a_card_says_of_the_files(tmp_path):
    folder = folder_with(tmp_path / "tabs", {"train.tsv": "id\tt\n007\ta,b\n"})
    assert load_rows(folder).to_list() == [{"id": "007", "t": "a,b"}]
    semicolons = card('configs:\n- config_name: de\n  data_files: rows.csv\n  sep: ";"')
    folder = folder_with(tmp_path / "card", {"rows.csv": "id;t\n007;a,b\n", "README.md": semicolons})
    assert load_rows(folder, config="de").to_list() == [{"id": "007", "t": "a,b"}]
    field = card("configs:\n- config_name: default\n  data_files: rows.json\n  field: data")
    folder = folder_with(tmp_path / "field", {"rows.json": '{"data": [{"id": "007"}]}', "README.md": field})
    assert load_rows(folder).to_list() == [{"id": "007"}]
    (tmp_path / "field" / "rows.json").write_text('[{"id": "007"}]')
    with pytest.raises(ValueError, match="no object with a list of rows under 'data'"):
        load_rows(folder)


def test_options_that_are_not_kept_to_are_refused(tmp_path):
    skipping = card('configs:\n- config_name: default\n  data_files: rows.csv\n  skiprows: 1\n  na_values: ["x"]')
    folder = folder_with(tmp_path, {"rows.csv": "id,t\n007,a\n", "README.md": skipping})
    with pytest.raises(ValueError, match="sets skiprows, na_values for its csv files"):
        load_rows(folder)


DECLARED = """dataset_info:
  features:
  - name: id
    dtype: int64
  - name: of
    dtype:
      class_label:
        names:
          '0': cat
          '1': dog
  - name: t
    dtype: string"""


def test_declared_types_are_kept_to(tmp_path):
    folder = folder_with(tmp_path, {"train.csv": "t,id,of,x\nNA,007,dog,1\n,,cat,2\n", "README.md": card(DECLARED)})
    rows = load_rows(folder)
    assert rows.to_list() == [{"id": 7, "of": 1, "t": "NA"}, {"id": None, "of": 0, "t": ""}]
    assert rows.features == {"id": Value("int64"), "of": ClassLabel(names=["cat", "dog"]), "t": Value("string")}
    for content, message in (
        ("t,id,of\na,SECRET,cat\n", "cell of the column 'id' does not have the type"),
        ("t,id,of\na,1,SECRET\n", "cell of the column 'of' does not have the type"),
        ("t,id\na,1\n", "declares the columns 'of', which its files lack"),
    ):
        (tmp_path / "train.csv").write_text(content)
        with pytest.raises(ValueError, match=message) as error:
            load_rows(folder)
        assert "SECRET" not in str(error.value) and error.value.__context__ is None


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("metadata.csv", "file_name,person,at,label\n0.png,NA,2024-05-01,1\n1.png,007,,0\n"),
        (
            "metadata.jsonl",
            '{"file_name": "0.png", "person": "NA", "at": "2024-05-01", "label": 1}\n'
            '{"file_name": "1.png", "person": "007", "at": "", "label": 0}\n',
        ),
    ],
)
def test_tables_beside_images(tmp_path, name, table):
    folder = folder_with(tmp_path, {f"train/{name}": table})
    for i in range(2):
        Picture.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"train/{i}.png")
    rows = load_rows(folder)
    assert isinstance(rows.features["image"], Image) and [image.getpixel((0, 0))[0] for image in rows["image"]] == [
        0,
        1,
    ]
    assert rows.remove_columns("image").to_list() == [
        {"person": "NA", "at": "2024-05-01", "label": 1},
        {"person": "007", "at": "", "label": 0},
    ]
    (tmp_path / "train" / name).write_text("SECRET\nSECRET,SECRET\n")
    with pytest.raises(ValueError, match=f"train/{name}: ") as error:
        load_rows(folder)
    assert "SECRET" not in str(error.value)


def test_damaged_files_are_said_in_one_line(tmp_path):
    folder = folder_with(tmp_path / "of", {"train.parquet": b"PAR1 SECRET PAR1"})
    for name in (folder, f"{folder}/train.parquet"):
        with pytest.raises(ValueError, match=f"^{name} cannot be read .Arrow") as error:
            load_rows(name)
        assert "SECRET" not in str(error.value) and "\n" not in str(error.value)


def test_tables_without_rows_are_said(tmp_path):
    Dataset.from_dict({"a": []}, Features({"a": Value("string")})).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet has no split 'train', or no row in it"):
        load_rows(str(tmp_path / "a.parquet"))


REVISION = "0" * 40


def downloaded(cache, files):
    """What the Hub's client keeps of a data set that it downloaded."""
    hub = cache / "hub" / "datasets--owner--people"
    folder_with(hub, {"refs/main": REVISION})
    folder_with(hub / "snapshots" / REVISION, files)


def test_what_was_downloaded_from_the_hub_before_is_read_offline(cache_of_its_own):
    with pytest.raises(ConnectionError):
        load_rows("owner/people")
    downloaded(cache_of_its_own, {"train.csv": "id,country\n007,NA\n"})
    assert load_rows("owner/people").to_list() == [{"id": "007", "country": "NA"}]


def test_the_files_of_a_data_set_on_the_hub_are_read_and_not_its_export(cache_of_its_own, monkeypatch):
    downloaded(cache_of_its_own, {"data/train.csv": "id,country\n007,NA\n"})
    file = f"hf://datasets/owner/people@{REVISION}/data/train.csv"
    # What `load_dataset_builder` gives where the Hub can be reached.
    of_the_hub = SimpleNamespace(name="csv", config=SimpleNamespace(data_files={"train": [file]}))
    local = load_dataset_builder
    monkeypatch.setattr(
        "hf_unlearn.data.builders.load_dataset_builder",
        lambda name, *config, **more: of_the_hub if name == "owner/people" else local(name, *config, **more),
    )
    assert load_rows("owner/people").to_list() == [{"id": "007", "country": "NA"}]


def test_what_load_dataset_kept_of_csv_files_is_refused(tmp_path, monkeypatch):
    rows = {"id": ["007"]}
    folder = tmp_path / "owner___people" / "default" / "0.0.0" / REVISION
    for builder, is_kept in (("parquet", True), ("csv", False)):
        Dataset.from_dict(rows).save_to_disk(folder)
        (folder / "data-00000-of-00001.arrow").rename(folder / "people-train.arrow")
        info = {
            "builder_name": builder,
            "dataset_name": "people",
            "config_name": "default",
            "features": {"id": {"dtype": "string", "_type": "Value"}},
            "splits": {"train": {"name": "train", "num_bytes": 7, "num_examples": 1, "dataset_name": "people"}},
        }
        (folder / "dataset_info.json").write_text(json.dumps(info))
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
        if is_kept:
            assert load_rows("owner/people").to_list() == load_dataset("owner/people", split="train").to_list()
        else:
            with pytest.raises(ValueError, match="owner/people holds csv files, the Hub cannot be reached"):
                load_rows("owner/people")
