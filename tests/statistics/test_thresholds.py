import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from hf_unlearn.statistics.thresholds import at_original_threshold, best_threshold


def accuracy(members, others, threshold):
    truth = np.r_[np.ones(len(members)), np.zeros(len(others))]
    return balanced_accuracy_score(truth, np.r_[members, others] > threshold)


@pytest.mark.parametrize("decimals", [None, 0])
def test_no_threshold_does_better_than_the_best(decimals):
    rng = np.random.default_rng(0)
    members, others = rng.normal(0.7, 1, 31), rng.normal(0, 1, 40)
    if decimals is not None:
        members, others = members.round(decimals), others.round(decimals)
    candidates = np.r_[-np.inf, members, others]
    best = max(accuracy(members, others, t) for t in candidates)
    assert accuracy(members, others, best_threshold(members, others)) == pytest.approx(best)


def test_the_threshold_lies_between_two_scores():
    assert best_threshold([3.0, 4.0], [1.0, 2.0]) == 2.5
    assert best_threshold([1.0, np.nan], [1.0]) == 1.0
    with pytest.raises(ValueError, match="has none"):
        best_threshold([np.nan], [1.0])


def test_on_noise_the_other_half_shows_nothing_where_the_best_threshold_boasts():
    honest, boasting = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        members, others = rng.normal(size=40), rng.normal(size=40)
        found = at_original_threshold({"original": (members, others)}, seed=seed).balanced_accuracy["original"]
        honest.append(found.value)
        boasting.append(accuracy(members, others, best_threshold(members, others)))
        assert found.n == (20, 20) and found.low < found.value < found.high
    assert np.mean(honest) == pytest.approx(0.5, abs=0.02)
    assert np.mean(boasting) > 0.55


def test_perfect_separation_keeps_an_interval():
    found = at_original_threshold({"original": (np.ones(40), np.zeros(40))}).balanced_accuracy["original"]
    assert (found.value, found.high) == (1, 1) and found.low < 0.95


def members_and_others(shift, n=200, seed=0, noise=0):
    rng = np.random.default_rng(seed)
    forget, holdout = rng.normal(0, 1, n), rng.normal(0, 1, n)
    rng = np.random.default_rng(100 + noise)
    return forget + shift + rng.normal(0, 0.1, n), holdout + rng.normal(0, 0.1, n)


def test_the_threshold_is_frozen_on_the_original_and_rates_are_of_the_other_half():
    models = {"original": members_and_others(3), "unlearned": members_and_others(1, noise=1)}
    models["retrained"] = members_and_others(0, noise=2)
    found = at_original_threshold(models)
    assert 1 < found.threshold < 2
    assert all(estimate.n == (100,) for side in (found.tpr, found.fpr) for estimate in side.values())
    # Every rate is that of 100 records: the threshold applied to all 200 gives nearly the same.
    for name, (forget, holdout) in models.items():
        assert found.tpr[name].value == pytest.approx((forget > found.threshold).mean(), abs=0.08)
        assert found.fpr[name].value == pytest.approx((holdout > found.threshold).mean(), abs=0.08)
        gain = found.tpr[name].value - found.fpr[name].value
        assert found.balanced_accuracy[name].value == pytest.approx((1 + gain) / 2)
    accuracy = found.balanced_accuracy
    assert accuracy["unlearned"].low > 0.5 and accuracy["retrained"].low < 0.5 < accuracy["retrained"].high


def test_over_forgetting_shows_as_a_tpr_below_the_floor():
    models = {"original": members_and_others(1), "retrained": members_and_others(0, noise=1)}
    models["unlearned"] = members_and_others(-3, noise=2)
    found = at_original_threshold(models)
    assert found.tpr["unlearned"].high < found.tpr["retrained"].low


def test_without_models_and_records_to_choose_on():
    pair = members_and_others(1, n=20)
    assert set(at_original_threshold({"original": pair}).tpr) == {"original"}
    with pytest.raises(ValueError, match="fixed on the original"):
        at_original_threshold({"unlearned": pair})
    with pytest.raises(ValueError, match="at least two records"):
        at_original_threshold({"original": ([1.0], [0.0])})


def test_a_group_is_never_split():
    people = np.repeat(np.arange(20), 5)
    rng = np.random.default_rng(0)
    own = np.repeat(rng.normal(size=20), 5)
    models = {"original": (own + 1, own)}
    found = at_original_threshold(models, groups=(people, people))
    assert found.tpr["original"].n == (50,) and found.tpr["original"].method.endswith("groups")
