import numpy as np
import pytest
from scipy.stats import binomtest, multinomial

from hf_unlearn.statistics.paired_rates import PairedRates, paired_rates


@pytest.mark.parametrize(("n", "slack"), [(5, 0.015), (12, 0.008), (25, 0.003)])
def test_each_end_holds_its_level_by_enumeration(n, slack):
    outcomes = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    low = np.array([PairedRates(b, c, n).estimate(0.9).low for b, c in outcomes])
    table = np.array([(b, c, n - b - c) for b, c in outcomes])
    for p in np.linspace(0, 1, 15):
        for q in np.linspace(0, 1 - p, 9):
            chance = multinomial.pmf(table, n, [p, q, max(0.0, 1 - p - q)])
            assert chance[low <= p - q + 1e-12].sum() >= 0.95 - slack


def test_no_discordant_record_is_three_over_n():
    found = paired_rates(np.zeros(100), np.zeros(100)).estimate(0.9)
    assert (found.low, found.high) == pytest.approx((-(1 - 0.05 ** (1 / 100)), 1 - 0.05 ** (1 / 100)))
    assert found.high == pytest.approx(3 / 100, rel=0.02) and found.reason == "no discordant records"


def test_one_discordant_kind_has_the_exact_limits_of_its_rate():
    first = np.r_[np.ones(7), np.zeros(93)]
    exact = binomtest(7, 100).proportion_ci(0.9, method="exact")
    found = paired_rates(first, np.zeros(100)).estimate(0.9)
    assert found.value == 0.07
    assert found.high == pytest.approx(exact.high)
    assert found.low < exact.low  # the other model might have given away up to three of a hundred


def test_first_and_second_are_mirrored_and_p_values_invert_the_interval():
    rng = np.random.default_rng(0)
    first, second = rng.random(80) < 0.3, rng.random(80) < 0.15
    forth, back = paired_rates(first, second), paired_rates(second, first)
    assert (forth.first_only, forth.second_only) == (int((first & ~second).sum()), int((second & ~first).sum()))
    one, other = forth.estimate(0.9), back.estimate(0.9)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert forth.p_greater(one.low) == pytest.approx(0.05, abs=1e-6)
    assert forth.p_less(one.high) == pytest.approx(0.05, abs=1e-6)
    assert forth.p_greater(0.02) == pytest.approx(back.p_less(-0.02))
    assert forth.p_greater(forth.value + 0.1) == 1


def test_a_clear_difference_is_found_and_none_is_not():
    everything = paired_rates(np.ones(50), np.zeros(50))
    assert everything.p_greater(0.1) < 1e-6 and everything.p_less(-0.1) == 1
    assert paired_rates(np.zeros(50), np.zeros(50)).p_greater() == 1


def test_what_the_holdout_does_as_well_is_subtracted():
    rng = np.random.default_rng(1)
    forget, holdout = (
        [(rng.random(60) < 0.5).astype(float) for _ in range(2)],
        [rng.random(40) < 0.4 for _ in range(2)],
    )
    found = paired_rates((forget[0], holdout[0]), (forget[1], holdout[1]))
    expected = (forget[0] - forget[1]).mean() - (holdout[0].astype(float) - holdout[1]).mean()
    assert found.value == pytest.approx(expected) and found.n == (60, 40)
    assert found.p_greater(found.estimate(0.9).low) == pytest.approx(0.05, abs=1e-6)


def test_the_difference_to_the_holdout_holds_its_level():
    wrong = 0
    for trial in range(400):
        rng = np.random.default_rng(trial)
        models = [tuple((rng.random(n) < 0.2).astype(float) for n in (40, 30)) for _ in range(2)]
        wrong += paired_rates(*models).p_greater() < 0.05
    assert wrong <= 20 + 2.6 * np.sqrt(400 * 0.05 * 0.95)


def test_missing_records_are_counted_and_other_numbers_refused():
    found = paired_rates([1, np.nan, 0, 1], [0, 1, np.nan, 1])
    assert (found.n, found.n_missing, found.value) == ((2,), 2, 0.5)
    empty = paired_rates([np.nan], [1])
    assert np.isnan(empty.value) and np.isnan(empty.p_greater()) and empty.estimate().reason == "no records"
    with pytest.raises(ValueError, match="0 or 1"):
        paired_rates([0.5], [0])
