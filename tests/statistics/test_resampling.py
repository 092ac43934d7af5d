import numpy as np
import pytest
from scipy import stats

from hf_unlearn.statistics.differences import paired_difference
from hf_unlearn.statistics.resampling import group_codes, resampled_counts


@pytest.mark.parametrize("n", [3, 7, 12, 40, 300])
def test_p_values_and_intervals_never_disagree(n):
    rng = np.random.default_rng(n)
    difference = paired_difference(rng.normal(0.3, 1, n), rng.normal(0, 1, n))
    for level in (0.8, 0.9, 0.95):
        ends = difference.estimate(level)
        assert difference.p_greater(ends.low) == pytest.approx((1 - level) / 2, abs=0.003)
        assert difference.p_less(ends.high) == pytest.approx((1 - level) / 2, abs=0.003)


def test_without_spread_the_p_value_is_that_of_none_of_n():
    found = paired_difference(np.ones(20), np.zeros(20))
    assert found.p_greater(0.9) == pytest.approx(0.9**20)
    assert found.estimate(0.9).low == pytest.approx(0.05 ** (1 / 20))
    assert found.p_greater(1.0) == 1 and found.p_less(0.5) == 1


def test_p_values_go_on_beyond_the_number_of_draws():
    rng = np.random.default_rng(0)
    found = paired_difference(rng.normal(1, 1, 200), np.zeros(200))
    assert found.p_greater() < 1e-8 < 1 / 2001


@pytest.mark.parametrize("n", [2, 5, 10, 15, 40])
def test_one_sided_errors_are_near_their_level_for_normal_values(n):
    rng = np.random.default_rng(1000 + n)
    p = [paired_difference(rng.normal(size=n), np.zeros(n), seed=i).p_greater() for i in range(1000)]
    assert np.mean(np.array(p) < 0.05) < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 1000)


def test_p_values_agree_with_students_t():
    values = np.random.default_rng(3).normal(0.2, 1, 60)
    expected = stats.ttest_1samp(values, 0, alternative="greater").pvalue
    assert paired_difference(values, np.zeros(60)).p_greater() == pytest.approx(expected, rel=0.15)
    few = values[:6]
    expected = stats.ttest_1samp(few, 0, alternative="greater").pvalue
    assert paired_difference(few, np.zeros(6)).p_greater() == pytest.approx(expected, rel=0.15)


def test_counts_are_multinomial_draws():
    drawn = np.concatenate([counts for (counts,) in resampled_counts([5], [None], seed=0)])
    assert drawn.shape == (2000, 5) and (drawn.sum(axis=1) == 5).all()
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(drawn.var(axis=0), 0.8, atol=0.1)


def test_groups_are_drawn_whole():
    codes = group_codes(["b", "a", "b", "c"], np.ones(4, bool))
    (counts,) = next(resampled_counts([4], [codes], seed=0))
    np.testing.assert_array_equal(counts[:, 0], counts[:, 2])
    assert set(counts[:, [0, 1, 3]].sum(axis=1)) == {3}
