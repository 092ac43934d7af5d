"""The audit of image classifiers: the table against the definition, and which measures there are."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from scipy.stats import beta
from sklearn.metrics import roc_auc_score
from tiny import tiny_llama, tiny_tokenizer, tiny_vit
from transformers import ViTImageProcessorPil as Processor

from hf_unlearn.audit import CLASS_ATTACKS, Scores, compare, score, score_sets
from hf_unlearn.audit.measures.measure import MEASURES
from hf_unlearn.data import encode_dataset


PROCESSOR = Processor(size={"height": 16, "width": 16})
NAMES = list("abcde")


def table(n: int, seed: int = 0) -> Dataset:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    labels = np.random.default_rng(seed + 1).integers(5, size=n)
    return Dataset.from_dict({"image": [PILImage.fromarray(p) for p in pixels], "label": labels}, features)


def probabilities(model, rows) -> np.ndarray:
    """By the definition, one image at a time, in float64."""
    model = model.double()
    encoded = list(encode_dataset(rows, PROCESSOR))
    with torch.no_grad():
        logits = [model(pixel_values=row["pixel_values"][None].double()).logits[0] for row in encoded]
    model.float()
    return torch.stack(logits).softmax(-1).numpy()


@pytest.fixture(scope="module")
def model():
    return tiny_vit()


def test_the_table_is_that_of_the_definition(model):
    rows = table(23)
    p, labels = probabilities(model, rows), np.array(rows["label"])
    for batch_size in (1, 5, 100):
        scores = score(model, PROCESSOR, rows, batch_size)
        own = p[np.arange(23), labels]
        np.testing.assert_allclose(scores.log_prob, np.log(own), atol=1e-5)
        np.testing.assert_array_equal(scores.hit, p.argmax(1) == labels)
        np.testing.assert_array_equal(scores.rank, (p > own[:, None]).sum(1))
        np.testing.assert_allclose(scores.mean, (p * np.log(p)).sum(1), atol=1e-5)
        np.testing.assert_allclose(scores.class_log_probs, np.log(p), atol=1e-5)
        np.testing.assert_array_equal(scores.target_ids, labels)
        np.testing.assert_array_equal(scores.offsets, np.arange(24))
        assert not scores.is_end.any() and not scores.zlib_size.any() and scores.meta["targets"] == "label"
    encoded = score(model, None, list(encode_dataset(rows, PROCESSOR)), 5)
    lazily = score(model, None, encode_dataset(rows, PROCESSOR), 5)
    for other in (encoded, lazily):
        np.testing.assert_allclose(other.log_prob, scores.log_prob, atol=1e-5)
        np.testing.assert_allclose(other.class_log_probs, scores.class_log_probs, atol=1e-5)
        assert other.meta["targets"] == "label"


def test_no_more_than_a_batch_is_encoded_before_it_is_scored(model):
    events = []

    class Recording(Processor):
        def __call__(self, *args, **kwargs):
            events.append("image")
            return super().__call__(*args, **kwargs)

    handle = model.register_forward_pre_hook(lambda *_: events.append("pass"))
    sets = {"forget": table(7), "retain": table(4, seed=5), "holdout": None}
    tables = score_sets(model, Recording(size={"height": 16, "width": 16}), sets, batch_size=3)
    handle.remove()
    batch = ["image"] * 3 + ["pass"]
    assert events == [*batch, *batch, "image", "pass", *batch, "image", "pass"]
    assert {name: len(scores) for name, scores in tables.items()} == {"forget": 7, "retain": 4}


def test_a_label_beyond_the_head_is_named_by_its_row(model):
    rows = table(6)
    wide = Features({"image": Image(), "label": ClassLabel(num_classes=9)})
    rows = rows.cast(wide).remove_columns("label").add_column("label", [0, 1, 2, 7, 0, 0])
    with pytest.raises(ValueError, match="Row 3 of the examples: The label is not the index of one of 5 classes"):
        score(model, PROCESSOR, rows)
    with pytest.raises(ValueError, match="no image processor was given"):
        score(model, None, table(2))


SETS = {"forget": table(40, 1), "retain": table(30, 2), "holdout": table(50, 3), "test": table(60, 4)}
SETS["siblings"] = SETS["test"].select(range(20))


@pytest.fixture(scope="module")
def tables():
    models = {"original": tiny_vit(), "unlearned": tiny_vit(seed=1), "retrained": tiny_vit(seed=2)}
    return {name: score_sets(model, PROCESSOR, SETS, 16) for name, model in models.items()}


def test_the_report_has_what_means_something_for_a_label(tables):
    report = compare(tables)
    of_sets = {
        (measure, name)
        for name in SETS
        for measure in ("next_token_accuracy", "loss")
        + (("answer_probability",) if name in ("forget", "retain") else ())
    }
    attacks = ["auc_loss", "tpr_at_1%_fpr", "tpr_at_5%_fpr", "auc_reference", "auc_rmia", "auc_likelihood_drop"]
    attacks += [f"auc_{name}" for name in CLASS_ATTACKS if name != "confidence"]  # that one is the loss again
    of_attacks = {(f"membership_{name}", "forget against holdout") for name in attacks}
    of_attacks |= {
        ("tpr_at_threshold_of_original", "forget"),
        ("fpr_at_threshold_of_original", "holdout"),
        ("balanced_accuracy_at_threshold_of_original", "forget against holdout"),
    }
    salun = {"ua": "forget", "ra": "retain", "ta": "test", "mia": "forget", "average_gap": "all"}
    expected = of_sets | of_attacks | {(f"salun_{column}", of) for column, of in salun.items()}
    assert {(row["measure"], row["set"]) for row in report.rows} == expected
    assert len(report.rows) == len(expected)
    assert report.sets == {name: len(rows) for name, rows in SETS.items()}


def test_the_numbers_are_those_of_the_definition(tables):
    report = compare(tables)
    p = {name: probabilities(tiny_vit(seed=1), rows) for name, rows in SETS.items()}
    labels = {name: np.array(rows["label"]) for name, rows in SETS.items()}
    losses = {name: -np.log(p[name][np.arange(len(labels[name])), labels[name]]) for name in SETS}
    for name, rows in SETS.items():
        hits, n = int((p[name].argmax(1) == labels[name]).sum()), len(rows)
        assert report.value("next_token_accuracy", name) == pytest.approx(hits / n)
        assert report.value("loss", name) == pytest.approx(losses[name].mean(), abs=1e-5)
        (row,) = [row for row in report.rows if (row["measure"], row["set"]) == ("next_token_accuracy", name)]
        estimate = row["unlearned"]  # a share of images, so the interval is that of a rate
        assert 0 < hits < n and estimate["low"] == pytest.approx(beta.ppf(0.025, hits, n - hits + 1))
    members = np.r_[np.ones(40), np.zeros(50)]
    auc = roc_auc_score(members, -np.r_[losses["forget"], losses["holdout"]])
    assert report.value("membership_auc_loss", "forget against holdout") == pytest.approx(auc, abs=1e-3)


def test_saved_tables_give_the_same_report(tables, tmp_path):
    loaded = {}
    for model, sets in tables.items():
        for name, scores in sets.items():
            scores.save(tmp_path / f"{model}-{name}.safetensors")
            loaded.setdefault(model, {})[name] = Scores.load(tmp_path / f"{model}-{name}.safetensors")
    assert compare(loaded).as_dict() == compare(tables).as_dict()


def test_tokens_keep_all_their_measures():
    rows = [{"prompt": f"Question {i}?\nAnswer:", "completion": f" It is {i}."} for i in range(6)]
    sets = {"forget": rows[:2], "retain": rows[2:4], "holdout": rows[4:]}
    scores = score_sets(tiny_llama(), tiny_tokenizer(), sets)
    assert scores["forget"].meta["targets"] == "tokens"
    report = compare({"unlearned": scores})
    of_sets = [(m.statistic.name, m.statistic.set) for m in MEASURES if "text" in m.kinds and m.statistic.set in sets]
    assert [(row["measure"], row["set"]) for row in report.rows][: len(of_sets)] == of_sets
    assert len(of_sets) == 13
    names = {row["measure"] for row in report.rows}
    assert {"membership_auc_zlib", "membership_auc_min_k", "membership_auc_min_k_plus_plus"} <= names
