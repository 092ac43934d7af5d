import copy

import numpy as np
import pytest
import torch
from cases import text_rows
from tiny import tiny_llama, tiny_tokenizer

from hf_unlearn.audit import exact_memorization, mean, score
from hf_unlearn.audit.attacks.relearning import relearn
from hf_unlearn.evaluate_modules.base import load_metric


def test_curves_of_ones_own_are_read_as_their_definitions_say():
    rng = np.random.default_rng(0)
    steps = [0, 1, 4, 10]
    ours, theirs, original = rng.random((30, 4)), rng.random((30, 4)) / 2, rng.random(30)
    ours[3, 2] = np.nan
    results = load_metric("relearning").compute(
        predictions=ours, references=theirs, steps=steps, original=original, share=0.5, seed=3
    )
    widths = np.diff(steps)

    def area(curves):
        return ((curves[:, 1:] + curves[:, :-1]) / 2 * widths).sum(1) / 10

    between = area(ours) - area(theirs)
    assert results["area_between"] == pytest.approx(np.nanmean(between), rel=1e-12)
    expected = mean(between, seed=3)
    assert results["area_between_low"] == pytest.approx(expected.low)
    assert results["area"] == pytest.approx(np.nanmean(area(ours)), rel=1e-12)
    np.testing.assert_allclose(results["curve"], np.nanmean(ours, axis=0))
    np.testing.assert_allclose(results["curve_retrained"], theirs.mean(0))
    assert (results["n"], results["n_missing"], results["steps"]) == (29, 1, steps)

    def first(curves):
        for step, values in zip(steps, curves.T, strict=True):
            known = ~np.isnan(values)
            if values[known].mean() >= 0.5 * original[known].mean():
                return step
        return np.inf

    assert results["steps_to_share"] == first(ours) and results["steps_to_share_retrained"] == first(theirs)
    without = load_metric("relearning").compute(predictions=ours, references=theirs)
    assert "steps_to_share" not in without and without["steps"] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="one value for each of the 3 numbers of steps"):
        load_metric("relearning").compute(predictions=ours, references=theirs, steps=[0, 1, 2])


def test_relearning_of_models_is_that_of_the_audit_and_leaves_them_as_they_are():
    tokenizer = tiny_tokenizer()
    models = [tiny_llama(seed=seed) for seed in (0, 1, 2)]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    forget, others = text_rows(5), text_rows(6, offset=50)
    options = {"steps": (0, 1, 3), "batch_size": 3, "seed": 4}
    results = load_metric("relearning").compute(
        examples=forget,
        rows=[*others, forget[0]],
        model=models[0],
        retrained=models[1],
        original=models[2],
        processing_class=tokenizer,
        metric="exact_memorization",
        learning_rates=(1e-5, 3e-2),
        **options,
    )
    areas = []
    for model in models[:2]:
        runs = [
            relearn(model, tokenizer, [*others, forget[0]], {"forget": forget}, learning_rate=rate, **options)
            for rate in (1e-5, 3e-2)
        ]
        areas.append(
            max((run.area(exact_memorization).mean(), rate) for run, rate in zip(runs, (1e-5, 3e-2), strict=True))
        )
    assert (results["area"], results["learning_rate"]) == pytest.approx(areas[0])
    assert (results["area_retrained"], results["learning_rate_retrained"]) == pytest.approx(areas[1])
    assert results["area_between"] == pytest.approx(areas[0][0] - areas[1][0])
    assert results["n_injected"] == 1 and results["n"] == 5
    start = exact_memorization(score(models[0], tokenizer, forget)).mean()
    assert results["curve"][0] == pytest.approx(start)
    target = 0.9 * exact_memorization(score(models[2], tokenizer, forget)).mean()
    reached = [step for step, value in zip(results["steps"], results["curve"], strict=True) if value >= target]
    assert results["steps_to_share"] == (reached[0] if reached else np.inf)
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_relearning_needs_a_retrained_model_and_rows_to_train_on():
    module, options = load_metric("relearning"), {"model": tiny_llama(), "processing_class": tiny_tokenizer()}
    with pytest.raises(ValueError, match="no rows or no retrained"):
        module.compute(examples=text_rows(2), rows=text_rows(2), **options)
    with pytest.raises(ValueError, match="metric must be one of extraction_strength"):
        module.compute(examples=text_rows(2), metric="rouge", **options)


def test_intervals_keep_to_what_an_area_can_be():
    module, rng = load_metric("relearning"), np.random.default_rng(0)
    ours, theirs = rng.random((3, 3)) ** 0.1, rng.random((3, 3))
    results = module.compute(predictions=ours, references=theirs)
    assert results["area_high"] == 1 and 0 <= results["area_retrained_low"] and -1 <= results["area_between_low"]
    same = module.compute(predictions=[[1.0] * 3] * 20, references=[[0.0] * 3] * 20)
    assert same["area_low"] == pytest.approx(0.025 ** (1 / 20)) and same["area_between_high"] == 1
    # A measure that is no share: nothing is known of records that were not seen.
    same = module.compute(predictions=[[-3.0] * 3] * 20, references=[[0.5] * 3] * 20)
    assert np.isnan(same["area_low"]) and np.isnan(same["area_retrained_low"]) and "area: no spread" in same["reason"]
