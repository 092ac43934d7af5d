import numpy as np
import pytest
import torch
from cases import text_rows
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from tiny import tiny_llama, tiny_tokenizer, tiny_vit

from hf_unlearn.audit import mean
from hf_unlearn.audit.attacks.stability import distances, null_band, pairwise_distances, zrf
from hf_unlearn.evaluate_modules.base import load_metric


def test_distances_of_classes_agree_with_scipy():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(20, 8)), rng.normal(size=(20, 8))
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (ours, theirs))
    results = load_metric("output_stability").compute(predictions=ours, references=theirs + 3)
    expected = {
        "kl_ref_model": entropy(q, p, axis=1),
        "kl_model_ref": entropy(p, q, axis=1),
        "js": jensenshannon(p, q, axis=1) ** 2,
        "tv": np.abs(p - q).sum(1) / 2,
        "top1_agreement": (p.argmax(1) == q.argmax(1)).astype(float),
        "activation_distance": np.linalg.norm(p - q, axis=1),
        "top5_agreement": [
            len(set(a) & set(b)) / 5 for a, b in zip(np.argsort(-p)[:, :5], np.argsort(-q)[:, :5], strict=True)
        ],
    }
    assert set(results["records"]) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(results["records"][name], values, rtol=1e-9)
        assert results[name] == pytest.approx(np.mean(values))
        assert results[f"{name}_high"] == pytest.approx(mean(np.array(values)).high)
    assert results["n"] == 20


def test_texts_are_means_over_their_own_positions_and_what_is_missing_stays_missing():
    rng = np.random.default_rng(1)
    rows = [rng.normal(size=(n, 6)) for n in (3, 1, 2)]
    others = [row + rng.normal(size=row.shape) for row in rows]
    rows[2][0, 3] = np.nan
    results = load_metric("output_stability").compute(
        predictions=[*(row.tolist() for row in rows), []], references=[*(row.tolist() for row in others), []]
    )
    for k in (0, 1):
        p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (rows[k], others[k]))
        assert results["records"]["kl_ref_model"][k] == pytest.approx(entropy(q, p, axis=1).mean())
    assert np.isnan(results["records"]["js"][2:]).all() and (results["n"], results["n_missing"]) == (2, 2)
    assert "activation_distance" not in results


def test_equal_models_are_0_apart_and_opposite_ones_as_far_as_can_be():
    module = load_metric("output_stability")
    sure = [[0.0, -1e4], [-1e4, 0.0]]
    same, opposite = (
        module.compute(predictions=sure, references=sure),
        module.compute(predictions=sure, references=sure[::-1]),
    )
    assert same["js"] == same["tv"] == same["kl_ref_model"] == 0 and same["top1_agreement"] == 1
    assert opposite["js"] == pytest.approx(np.log(2)) and opposite["tv"] == 1 and opposite["top1_agreement"] == 0


def test_probabilities_and_shapes_that_do_not_fit_are_refused():
    module = load_metric("output_stability")
    with pytest.raises(ValueError, match="predictions look like probabilities"):
        module.compute(predictions=[[0.2, 0.8]], references=[[-1.0, -2.0]])
    with pytest.raises(ValueError, match="references look like probabilities"):
        module.compute(predictions=[[-1.0, -2.0]], references=[[0.5, 0.5]])
    for wrong in ([[-1.0, -2.0, -3.0]], [[[-1.0, -2.0]]]):
        with pytest.raises(ValueError, match="same shape|do not fit"):
            module.compute(predictions=[[-1.0, -2.0]], references=wrong)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_distances_of_models_are_those_of_the_audit(batch_size):
    tokenizer, rows = tiny_tokenizer(), [*text_rows(4), {"prompt": "Ada:", "completion": ""}]
    models = [tiny_llama(seed=seed).double() for seed in range(3)]
    results = load_metric("output_stability").compute(
        examples=rows,
        model=models[0],
        retrained=models[1:],
        processing_class=tokenizer,
        batch_size=batch_size,
        zrf=True,
    )
    expected = distances(models[0], models[1], tokenizer, rows)
    for name, values in expected.items():
        np.testing.assert_allclose(results["records"][name], values, rtol=1e-9)
        assert results[name] == pytest.approx(np.nanmean(values))
    band = null_band(pairwise_distances(models[1:], tokenizer, rows))
    assert results["js_null"] == pytest.approx(band.bound["js"]) and results["n_null_pairs"] == 1
    assert results["zrf"] == pytest.approx(np.nanmean(zrf(models[0], tokenizer, rows)))
    assert results["zrf_retrained"] == pytest.approx(np.nanmean(zrf(models[1], tokenizer, rows)))
    assert (results["n"], results["n_missing"]) == (4, 1)
    with pytest.raises(ValueError, match="but no retrained"):
        load_metric("output_stability").compute(examples=rows, model=models[0], processing_class=tokenizer)


def test_logits_of_a_classifier_give_what_the_classifier_gives():
    models = [tiny_vit(seed=seed).double() for seed in (0, 1)]
    images = [{"pixel_values": torch.randn(3, 16, 16).double(), "labels": i % 5} for i in range(6)]
    pixels = torch.stack([row["pixel_values"] for row in images])
    with torch.no_grad():
        logits = [model(pixel_values=pixels).logits.numpy() for model in models]
    module = load_metric("output_stability")
    given = module.compute(predictions=logits[0], references=logits[1])
    run = module.compute(examples=images, model=models[0], retrained=models[1], processing_class=object())
    assert set(given["records"]) == set(run["records"]) == {*given["records"]} and "top5_agreement" not in given
    for name, values in given["records"].items():
        np.testing.assert_allclose(values, run["records"][name], rtol=1e-9)


def test_intervals_keep_to_what_a_distance_can_be():
    logits = np.random.default_rng(0).normal(size=(20, 7))
    module = load_metric("output_stability")
    same = module.compute(predictions=logits, references=logits)
    # A divergence has no upper end, so records that agree say nothing of how far others may be.
    assert same["kl_ref_model"] == 0 and np.isnan(same["kl_ref_model_low"]) and np.isnan(same["kl_ref_model_high"])
    assert "kl_ref_model: no spread" in same["reason"]
    width = 1 - 0.025 ** (1 / 20)
    assert same["tv_low"] == 0 and same["tv_high"] == pytest.approx(width)
    assert same["js_high"] == pytest.approx(np.log(2) * width) and same["top1_agreement_low"] == pytest.approx(
        1 - width
    )
    few = module.compute(predictions=logits[:3], references=logits[:3] + [[0.1], [0.1], [3]] * logits[:3] ** 2)
    for name in ("kl_ref_model", "kl_model_ref", "js", "tv", "activation_distance"):
        assert 0 <= few[f"{name}_low"] <= few[name] <= few[f"{name}_high"]
    assert few["js_high"] <= np.log(2) and few["tv_high"] <= 1
