import math

import numpy as np
import pytest
from scipy import stats

from hf_unlearn.statistics.differences import paired_auc_difference, paired_difference
from hf_unlearn.statistics.equivalence import records_needed, smallest_detectable, standard_error
from hf_unlearn.statistics.paired_rates import paired_rates


def changes(n=100, mean=0.0, std=0.1, seed=0):
    return np.random.default_rng(seed).normal(mean, std, n)


def equivalent(difference, margin):
    """Two one-sided tests of "the difference is as large as the margin" at 5 % (Schuirmann, 1987)."""
    interval = difference.estimate(0.90)
    return -margin < interval.low and interval.high < margin


@pytest.mark.parametrize("margin", [0.01, 0.02, 0.03, 0.05])
def test_two_one_sided_t_tests_agree(margin):
    values = changes(mean=0.01)
    found = paired_difference(values, np.zeros(100))
    above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(values, margin, alternative="less").pvalue
    p = max(found.p_greater(-margin), found.p_less(margin))
    assert p == pytest.approx(max(above, below), rel=0.2, abs=1e-3)
    assert equivalent(found, margin) == (max(above, below) < 0.05)


def test_no_significant_difference_is_no_equivalence():
    few = paired_difference(changes(n=8), np.zeros(8))
    assert few.p_greater() > 0.05 and few.p_less() > 0.05
    assert not equivalent(few, 0.02)
    assert equivalent(paired_difference(changes(n=4000), np.zeros(4000)), 0.02)


def test_identical_models_are_equivalent_only_if_there_are_enough_records():
    for n, expected in ((100, False), (400, True)):
        assert equivalent(paired_rates(np.zeros(n), np.zeros(n)), 0.02) == expected


def test_the_standard_error_is_that_of_the_mean():
    values = changes(n=400)
    found = standard_error(paired_difference(values, np.zeros(400)))
    assert found == pytest.approx(values.std(ddof=1) / 20, rel=0.06)


def test_the_smallest_detectable_difference_is_found_in_four_of_five_tests():
    detectable = smallest_detectable(paired_difference(changes(n=60), np.zeros(60)))
    std = changes(n=60).std(ddof=1)
    found = [
        paired_difference(changes(60, detectable, std, seed), np.zeros(60)).p_greater() < 0.05
        for seed in range(1, 301)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.07)


def test_as_many_records_as_needed_show_equivalence_in_four_of_five_tests():
    needed = int(records_needed(paired_difference(changes(n=400), np.zeros(400)), margin=0.02))
    std = changes(n=400).std(ddof=1)
    assert needed == pytest.approx((2.926 * std / 0.02) ** 2, rel=0.15)
    found = [
        equivalent(paired_difference(changes(needed, 0, std, seed), np.zeros(needed)), 0.02) for seed in range(1, 301)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.09)


def test_an_auc_needs_about_1150_records_a_side_if_the_models_share_nothing():
    rng = np.random.default_rng(0)
    sides = [rng.normal(size=1000) for _ in range(4)]
    needed = records_needed(paired_auc_difference(*sides), margin=0.05)
    assert needed == pytest.approx(1150, rel=0.12)


def test_unknown_errors_stay_unknown():
    one = paired_difference([1.5], [3.0])
    assert math.isnan(smallest_detectable(one)) and math.isnan(records_needed(one, 0.1))
    assert not equivalent(one, 0.1)
