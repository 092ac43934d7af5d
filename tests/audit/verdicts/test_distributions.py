import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from hf_unlearn.audit.verdicts.distributions import distance_band, distribution_difference


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40))
def test_both_sides_agree_with_scipy(pairs):
    first, second = np.array(pairs, dtype=float).T
    found = distribution_difference(first, second)
    # scipy names the side by the distribution function, which is lower where values are larger.
    assert found.above == pytest.approx(ks_2samp(first, second, alternative="less").statistic)
    assert found.below == pytest.approx(ks_2samp(first, second, alternative="greater").statistic)
    assert abs(found.value) == pytest.approx(ks_2samp(first, second).statistic)


def test_sign_p_values_and_interval():
    rng = np.random.default_rng(0)
    second = rng.normal(size=300)
    found = distribution_difference(rng.normal(0.5, 1, 300), second)
    assert found.value > 0.1 and found.p_greater() < 1e-4 and found.p_less() == 1
    asymptotic = ks_2samp(rng.normal(0.5, 1, 300), second, alternative="less", method="asymp")
    assert asymptotic.pvalue < 1e-4
    interval = found.estimate(0.95)
    assert interval.high - interval.value == pytest.approx(1.358 * np.sqrt(2 / 300), rel=1e-3)
    low = found.estimate(0.9).low
    assert found.p_greater(low) == pytest.approx(0.05, abs=1e-9)
    mirrored = distribution_difference(-rng.normal(0.5, 1, 300), -second)
    assert mirrored.value < 0 and mirrored.p_less() < 1e-4


def test_equal_distributions_are_rarely_called_different():
    wrong = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        wrong += distribution_difference(rng.normal(size=60), rng.normal(size=60)).p_greater() < 0.05
    assert wrong <= 15 + 2.6 * np.sqrt(300 * 0.05 * 0.95)


def test_missing_records_and_the_largest_distance_between_seeds():
    found = distribution_difference([1, np.nan, 3], [1, 2, 3])
    assert (found.n, found.n_missing, found.value) == ((2,), 1, 0)
    assert np.isnan(distribution_difference([np.nan], [1.0]).estimate().low)
    zeros, ones, half = np.zeros(4), np.ones(4), np.array([0, 0, 1, 1.0])
    assert distance_band([zeros, half, ones]).largest == 1
    assert distance_band([zeros]) is None
