import numpy as np
import pytest

from hf_unlearn.audit import mean, score
from hf_unlearn.audit.measures.exposure import Canaries, exposure, fitted_exposure
from hf_unlearn.evaluate_modules.base import load_metric


def test_exposure_of_losses_agrees_with_a_count():
    rng = np.random.default_rng(0)
    candidates, canaries = rng.normal(50, 5, 99), np.array([20.0, 50.0, np.nan, 60.0])
    results = load_metric("exposure").compute(
        predictions=canaries, candidates=candidates, planted=[True, True, True, False]
    )
    expected = [np.log2(100) - np.log2(1 + (candidates <= loss).sum()) for loss in canaries]
    np.testing.assert_allclose(results["exposures"], [*expected[:2], np.nan, expected[3]], rtol=1e-12)
    assert results["exposure"] == pytest.approx(np.mean(expected[:2]))
    assert results["exposure_not_planted"] == pytest.approx(expected[3])
    assert results["max_exposure"] == results["exposures"][0] == np.log2(100)
    assert (results["n"], results["n_missing"]) == (2, 1)
    assert results["exposure_high"] == results["max_exposure"]  # two canaries tell little, but more there cannot be
    assert results["exposure_low"] == 0 and mean(expected[:2]).low < 0
    fitted = load_metric("exposure").compute(predictions=canaries[:2], candidates=candidates, method="fit")
    np.testing.assert_array_equal(fitted["exposures"], fitted_exposure(canaries[:2], candidates))
    assert fitted["max_exposure"] == np.inf and "exposure_not_planted" not in fitted


def test_each_canary_may_have_candidates_of_its_own():
    results = load_metric("exposure").compute(predictions=[1.0, 3.0], candidates=[[2.0, 3.0, 4.0], [1.0, 2.0, 4.0]])
    np.testing.assert_allclose(results["exposures"], [2, 2 - np.log2(3)])


@pytest.mark.parametrize("batch_size", [1, 16])
def test_exposure_from_a_model_is_that_of_its_likelihoods(model, tokenizer, batch_size):
    words = [word for word in tokenizer.get_vocab() if word.isalpha() and word != "s"][:8]
    rows = [{"prompt": "the cat", "completion": f" {word}"} for word in words]
    canaries = Canaries(rows[:2], np.array([True, False]), rows[2:])
    results = load_metric("exposure").compute(
        examples=canaries.rows,
        candidates=canaries.candidates,
        planted=canaries.included,
        model=model,
        processing_class=tokenizer,
        batch_size=batch_size,
    )
    expected = exposure(score(model, tokenizer, rows[:2]), score(model, tokenizer, rows[2:]))
    np.testing.assert_array_equal(results["exposures"], expected)
    assert results["exposure"] == expected[0] and results["max_exposure"] == np.log2(7)


def test_what_is_missing_is_named():
    module = load_metric("exposure")
    with pytest.raises(ValueError, match="no candidates"):
        module.compute(predictions=[1.0])
    with pytest.raises(ValueError, match="method must be one of rank, fit"):
        module.compute(predictions=[1.0], candidates=[2.0], method="guess")
    with pytest.raises(ValueError, match="planted must say of each of the 1 canaries"):
        module.compute(predictions=[1.0], candidates=[2.0], planted=[True, True])


def test_intervals_keep_to_what_an_exposure_can_be():
    module, rng = load_metric("exposure"), np.random.default_rng(0)
    candidates = rng.normal(50, 5, 99)
    for method, highest in (("rank", np.log2(100)), ("fit", np.inf)):
        results = module.compute(predictions=[20.0, 49.0, 51.0], candidates=candidates, method=method)
        assert 0 <= results["exposure_low"] < results["exposure"] < results["exposure_high"] <= highest
    # All canaries come out first: another one may not, but no more than one can be missed.
    same = module.compute(predictions=[1.0] * 20, candidates=candidates)
    assert same["exposure"] == pytest.approx(np.log2(100)) and same["exposure_high"] == same["max_exposure"]
    assert same["exposure_low"] == pytest.approx(np.log2(100) * 0.025 ** (1 / 20))
    fitted = module.compute(predictions=[20.0] * 20, candidates=candidates, method="fit")
    assert np.isnan(fitted["exposure_low"]) and "exposure: no spread" in fitted["reason"]
