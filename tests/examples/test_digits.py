import numpy as np
import pytest
import torch
from datasets import load_dataset
from sklearn.datasets import load_digits
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_unlearn.data import encode_dataset, load_rows
from hf_unlearn.examples.digits import LABELS, SIZES, make_digits, write_digits
from hf_unlearn.request import ErasureRequest, split


@pytest.fixture(scope="module")
def written(written_by):
    """Two folders from two processes with different hash seeds, and what the first printed."""
    folders, printed = written_by("digits")
    return folders, printed[0][0]


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_bytes_in_every_process(written):
    (one, two), printed = written
    assert files(one) == files(two)
    assert sorted(printed.split()) == sorted(str(one / name) for name in files(one))


def test_every_digit_of_scikit_learn_is_in_one_split():
    digits = load_digits()
    original = sorted(
        (int(label), *image.flatten().astype(int)) for image, label in zip(digits.images, digits.target, strict=True)
    )
    found = []
    for name, rows in make_digits().items():
        assert len(rows) == SIZES[name] and rows.features["label"].names == LABELS
        assert np.bincount(rows["label"], minlength=10).min() > len(rows) / 20
        for row in rows:
            assert row["image"].mode == "L" and row["image"].size == (8, 8)
            ink = np.rint(np.asarray(row["image"], dtype=np.float64) * 16 / 255).astype(int)
            found.append((row["label"], *ink.flatten()))
    assert sorted(found) == original and sum(SIZES.values()) == len(original) == 1797


def test_seeds(written, tmp_path):
    assert make_digits(1)["train"]["label"] != make_digits(0)["train"]["label"]
    write_digits(tmp_path, seed=1)
    zero, one = files(written[0][0]), files(tmp_path)
    assert set(zero) == set(one)
    same = {name for name in zero if zero[name] == one[name]}
    assert same == {"base/config.json", "base/preprocessor_config.json"}


def test_what_is_written_loads_offline(written):
    folder = written[0][0]
    data = load_dataset(str(folder))
    assert {name: len(rows) for name, rows in data.items()} == SIZES
    model = AutoModelForImageClassification.from_pretrained(folder / "base")
    rows = encode_dataset(
        load_rows(str(folder), "holdout"), AutoImageProcessor.from_pretrained(folder / "base"), n_classes=10
    )
    assert rows[0]["pixel_values"].shape == (3, 8, 8)
    assert model(pixel_values=torch.stack([rows[i]["pixel_values"] for i in range(4)])).logits.shape == (4, 10)
    assert [model.config.id2label[i] for i in range(10)] == LABELS


def test_the_requests_split_the_data(written):
    folder = written[0][0]
    data = load_dataset(str(folder))
    by_class = split(data, ErasureRequest.load(folder / "requests" / "class.json"))
    assert set(by_class.forget["label"]) == set(by_class.holdout["label"]) == {8}
    assert 8 not in by_class.retain["label"] and len(by_class.holdout) > 30
    by_record = split(data, ErasureRequest.load(folder / "requests" / "records.json"))
    assert len(by_record.forget) == 40 and len(by_record.holdout) == SIZES["holdout"]
