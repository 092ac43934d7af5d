import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from hf_unlearn.audit import auc, ks, mean, paired_auc_difference, paired_difference, rate, tpr_at_fpr
from hf_unlearn.statistics.differences import difference_in_differences
from hf_unlearn.statistics.estimate import known, known_mean
from hf_unlearn.statistics.intervals import rate_of
from hf_unlearn.statistics.ranking import Ranking
from hf_unlearn.statistics.resampling import resampled_counts


def two_groups(n=60, m=80, shift=0.5, decimals=None, seed=0):
    rng = np.random.default_rng(seed)
    members, others = rng.normal(shift, 1, n), rng.normal(0, 1, m)
    return (members, others) if decimals is None else (members.round(decimals), others.round(decimals))


def labelled(members, others):
    return np.r_[np.ones(len(members)), np.zeros(len(others))], np.r_[members, others]


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_auc_agrees_with_sklearn_also_with_ties(decimals):
    members, others = two_groups(decimals=decimals)
    assert auc(members, others).value == pytest.approx(roc_auc_score(*labelled(members, others)), rel=1e-12)


@pytest.mark.parametrize("decimals", [None, 0])
def test_delong_agrees_with_its_definition_by_pairs(decimals):
    members, others = two_groups(decimals=decimals)
    wins = (members[:, None] > others) + 0.5 * (members[:, None] == others)
    std = math.sqrt(wins.mean(1).var(ddof=1) / len(members) + wins.mean(0).var(ddof=1) / len(others))
    result = auc(members, others)
    assert result.method == "delong"
    assert (result.low, result.high) == pytest.approx((wins.mean() - 1.959964 * std, wins.mean() + 1.959964 * std))


def test_delong_covers_the_truth():
    truth = stats.norm.cdf(0.5 / math.sqrt(2))
    results = [auc(*two_groups(seed=seed)) for seed in range(300)]
    assert 0.91 <= np.mean([result.low <= truth <= result.high for result in results]) <= 0.985


def test_the_bootstrap_is_used_for_small_groups_and_is_seeded():
    members, others = two_groups(n=20, m=80)
    first, again, other = auc(members, others), auc(members, others), auc(members, others, seed=1)
    assert first.method == "stratified bootstrap"
    assert first == again and first.low != other.low
    wide = auc(members, others, level=0.99)
    assert wide.low < first.low < first.value < first.high < wide.high


def test_resampled_auc_agrees_with_resampling_by_hand():
    members, others = two_groups(n=7, m=9, decimals=0)
    ranking = Ranking(members, others)
    counts = next(resampled_counts((7, 9), (None, None), seed=3))
    for member_counts, other_counts, value in zip(*counts, ranking.auc(*counts), strict=True):
        sample = labelled(np.repeat(members, member_counts), np.repeat(others, other_counts))
        assert value == pytest.approx(roc_auc_score(*sample))
        if member_counts[0] > 2:
            break


def test_perfect_separation_is_not_given_an_interval_of_no_width():
    result = auc(np.ones(40) + np.arange(40), np.zeros(25))
    assert (result.value, result.high) == (1, 1)
    assert result.low == pytest.approx(0.05 ** (1 / 25))
    flipped = auc(np.zeros(25), np.ones(40))
    assert (flipped.value, flipped.low, flipped.high) == (0, 0, pytest.approx(1 - 0.05 ** (1 / 25)))
    assert flipped.reason == "perfect separation"


def test_auc_counts_missing_scores_and_says_when_there_is_nothing():
    result = auc([1.0, np.nan, 3.0], [0.0, 2.0, np.nan, np.nan])
    assert (result.value, result.n, result.n_missing) == (0.75, (2, 2), 3)
    empty = auc([np.nan], [1.0])
    assert np.isnan(empty.value) and empty.reason == "no members"
    single = auc([1.0], [0.0, 2.0])
    assert (single.value, single.low, single.high) == (0.5, 0, 1)


def test_all_scores_equal_is_chance():
    assert auc(np.zeros(50), np.zeros(50)).value == 0.5


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("fpr", [0.0125, 0.05, 0.1, 0.5, 1.0])
def test_tpr_agrees_with_the_roc_curve(decimals, fpr):
    members, others = two_groups(decimals=decimals)
    false, true, _ = roc_curve(*labelled(members, others), drop_intermediate=False)
    point = tpr_at_fpr(members, others, fpr)
    assert point.tpr.value == pytest.approx(true[false <= fpr + 1e-12].max())
    assert point.fpr.value <= fpr + 1e-12
    interval = stats.binomtest(round(point.tpr.value * 60), 60).proportion_ci(method="exact")
    if 0 < point.tpr.value < 1:
        assert (point.tpr.low, point.tpr.high) == pytest.approx((interval.low, interval.high))


def test_tie_groups_are_called_whole():
    point = tpr_at_fpr([2.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0], fpr=0.25)
    assert (point.tpr.value, point.fpr.value, point.threshold) == (0.25, 0, 1)
    point = tpr_at_fpr([2.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0], fpr=0.5)
    assert (point.tpr.value, point.fpr.value) == (0.75, 0.5)


def test_products_that_round_below_a_whole_number_lose_no_false_positive():
    assert 0.29 * 100 < 29
    others = np.arange(100.0)
    assert tpr_at_fpr(others, others, fpr=0.29).fpr.value == 0.29


def test_an_fpr_finer_than_the_sample_is_unmeasurable():
    point = tpr_at_fpr(np.ones(100), np.zeros(100), fpr=0.001)
    assert np.isnan(point.tpr.value)
    assert point.tpr.reason == (
        "unmeasurable: a false positive rate of 0.001 needs 1000 non-members, and there are 100"
    )
    assert tpr_at_fpr(np.ones(100), np.zeros(100), fpr=0.01).tpr.value == 1
    assert np.isnan(tpr_at_fpr(np.ones(5), np.zeros(5), fpr=0.0).tpr.value)
    assert tpr_at_fpr([], [1.0], fpr=1.0).tpr.reason == "no members"
    json.dumps(point.as_dict(), allow_nan=False)


@pytest.mark.parametrize(("hits", "n"), [(1, 10), (5, 10), (399, 400), (7, 1000)])
def test_rate_agrees_with_the_exact_interval(hits, n):
    interval = stats.binomtest(hits, n).proportion_ci(method="exact")
    result = rate(hits, n)
    assert (result.value, result.low, result.high) == pytest.approx((hits / n, interval.low, interval.high))


def test_the_rate_of_hits_counts_those_that_are_missing():
    hits = np.array([1, 0, np.nan, 1, np.nan])
    assert known(hits).tolist() == [1, 0, 1] and known_mean(hits) == 2 / 3
    assert rate_of(hits) == replace(rate(2, 3), n_missing=2)
    assert math.isnan(known_mean([np.nan])) and rate_of([np.nan]).reason == "no records"


def test_none_of_n_has_a_one_sided_bound():
    assert rate(0, 100).high == pytest.approx(1 - 0.05 ** (1 / 100)) == pytest.approx(0.0295, abs=1e-4)
    assert rate(100, 100).low == pytest.approx(0.05 ** (1 / 100))
    assert np.isnan(rate(0, 0).value)
    with pytest.raises(ValueError, match="between 0 and n"):
        rate(3, 2)


def test_mean_has_an_interval_close_to_the_standard_error_and_counts_missing_values():
    values = np.random.default_rng(0).gamma(2, 1, 400)
    result = mean(np.r_[values, [np.nan] * 3])
    half = 1.96 * values.std(ddof=1) / 20
    assert (result.value, result.n, result.n_missing) == (pytest.approx(values.mean()), (400,), 3)
    assert (result.low, result.high) == pytest.approx((values.mean() - half, values.mean() + half), rel=0.02)
    assert mean(values) == mean(values)


def test_mean_of_too_little_says_so():
    assert np.isnan(mean([np.nan]).value) and mean([np.nan]).n_missing == 1
    assert mean([2.0]).value == 2 and np.isnan(mean([2.0]).low)
    assert mean([2.0, np.inf]).value == np.inf


def test_values_without_an_upper_end_that_are_all_alike_have_no_interval():
    for values, bounds in (([3.7] * 40, None), ([0.0] * 40, (0, math.inf)), ([0.0] * 5, (-math.inf, math.inf))):
        result = mean(values, bounds=bounds)
        assert np.isnan([result.low, result.high]).all() and result.reason.startswith("no spread")
        json.dumps(result.as_dict(), allow_nan=False)
    # Shares: as ever, and with bounds that say so.
    width = 1 - 0.025 ** (1 / 40)
    for result in (mean([0.0] * 40), mean([0.0] * 40, bounds=(0, 1))):
        assert (result.low, result.high, result.reason) == (0, pytest.approx(width), "no spread")
    # In another unit the bound is as many times as wide.
    bits = mean([6.0] * 40, bounds=(0, 8))
    assert (bits.low, bits.high) == pytest.approx((6 - 8 * width, 6 + 8 * width))
    assert mean([6.0] * 5, bounds=(0, 8)).high == 8


def test_rounding_is_no_spread():
    assert np.isnan(mean([40.1] * 997).low) and np.isnan(mean(1e6 + np.zeros(60) + 0.1).low)
    assert mean(np.r_[np.full(50, 40.1), 40.1 + 1e-6]).reason is None


def test_an_interval_keeps_to_the_bounds():
    few, many = [0.1, 0.2, 9.0], np.random.default_rng(0).exponential(size=12)
    assert mean(few).low < 0 == mean(few, bounds=(0, math.inf)).low
    assert mean(few, bounds=(0, 10)).high == 10 and mean(few, bounds=(0, 10)).method == "Student's t"
    assert mean(many, bounds=(0, math.inf)) == mean(many) and mean(many).low > 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_ks_agrees_with_scipy(a, b):
    result, expected = ks(a, b), stats.ks_2samp(a, b)
    assert (result.d, result.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert result.n == (len(a), len(b))


def test_ks_of_total_separation_restates_the_sample_sizes():
    result = ks(np.zeros(400), np.ones(400))
    assert result.d == 1 and result.p == pytest.approx(1.06e-239, rel=0.01)
    assert result.log10_p == pytest.approx(-238.97, abs=0.01)
    assert result.critical_d == pytest.approx(0.096, abs=1e-3)
    huge = ks(np.zeros(4000), np.ones(4000))
    assert np.isfinite(huge.log10_p) and huge.log10_p < -300


def test_ks_without_values_is_nan():
    assert np.isnan(ks([], [1.0]).p) and ks([np.nan], [1.0]).n_missing == 1


def test_paired_difference_is_narrower_than_an_unpaired_one():
    rng = np.random.default_rng(0)
    record = rng.normal(0, 1, 300)
    first, second = record + rng.normal(0.1, 0.1, 300), record + rng.normal(0, 0.1, 300)
    result = paired_difference(first, second).estimate()
    half = 1.96 * (first - second).std(ddof=1) / math.sqrt(300)
    mean_difference = (first - second).mean()
    assert (result.low, result.high) == pytest.approx((mean_difference - half, mean_difference + half), abs=0.002)
    assert half < 0.2 * (mean(first).high - mean(first).low)


def test_paired_difference_has_direction_p_values_and_levels():
    rng = np.random.default_rng(0)
    second = rng.random(200) / 2
    result = paired_difference(second + 0.2 + rng.normal(0, 0.1, 200), second)
    assert result.value == pytest.approx(0.2, abs=0.03)
    assert result.p_greater() < 0.001 and result.p_less() == 1
    assert result.p_greater(0.19) > 0.01 and result.p_less(0.3) < 0.001
    narrow, wide = result.estimate(0.9), result.estimate(0.95)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_records_that_one_model_cannot_score_leave_both():
    result = paired_difference([1.0, np.nan, 3.0, 4.0], [0.0, 5.0, np.nan, 2.0])
    assert (result.value, result.n, result.n_missing) == (1.5, (2,), 2)
    empty = paired_difference([np.nan], [1.0])
    assert np.isnan(empty.value) and np.isnan(empty.p_greater()) and empty.estimate().reason == "no records"
    with pytest.raises(ValueError, match="same order"):
        paired_difference([1.0], [1.0, 2.0])


def test_no_discordant_record_still_has_a_width():
    result = paired_difference(np.zeros(100), np.zeros(100)).estimate(0.9)
    assert (result.low, result.high) == pytest.approx((-0.0295, 0.0295), abs=1e-4)
    saturated = paired_auc_difference(np.ones(50), np.zeros(50), np.ones(50), np.zeros(50)).estimate(0.9)
    assert (saturated.low, saturated.high) == pytest.approx((-0.0582, 0.0582), abs=1e-4)


def test_paired_auc_difference_uses_the_same_draw_for_both_models():
    members, others = two_groups(n=100, m=100)
    same = paired_auc_difference(members, others, members, others)
    assert same.value == 0 and np.ptp(same.draws) == 0
    noise = np.random.default_rng(1).normal(0, 0.1, 100)
    near = paired_auc_difference(members + noise, others, members, others)
    assert near.value == pytest.approx(auc(members + noise, others).value - auc(members, others).value)
    assert near.draws.std() < 0.3 * math.sqrt(201 / (12 * 100 * 100))


def test_the_bootstrap_has_two_thousand_resamples():
    members, others = two_groups(n=400, m=400)
    assert len(paired_auc_difference(members, others, members[::-1], others).draws) == 2000


def test_a_single_record_shows_no_difference():
    one = paired_difference(np.array([3.1]), np.array([2.9])).estimate()
    assert np.isnan(one.low) and one.reason == "one record has no spread"


@pytest.mark.parametrize("n", [2, 3, 5, 9, 12])
def test_false_alarms_at_few_records(n):
    # Two models that are alike: an interval of 95 % misses 0 in about one case of twenty.
    rng = np.random.default_rng(n)
    missed = 0
    for trial in range(400):
        first, second = rng.normal(size=(2, n))
        interval = paired_difference(first, second, seed=trial).estimate()
        missed += not interval.low <= 0 <= interval.high
    assert missed / 400 < 0.1


def repeated(values, times=3):
    return np.repeat(values, times), np.repeat(np.arange(len(values)), times)


def test_rows_that_only_repeat_a_record_add_nothing_where_they_are_a_group():
    values = np.random.default_rng(0).random(25)
    often, groups = repeated(values)
    plain, grouped, naive = mean(values), mean(often, groups=groups), mean(often)
    assert (grouped.low, grouped.high) == pytest.approx((plain.low, plain.high))
    assert grouped.method == "bootstrap, groups" and grouped.n == (75,)
    assert naive.high - naive.low < 0.65 * (plain.high - plain.low)


def test_groups_hold_for_differences_and_for_aucs_of_both_sides():
    members, others = two_groups(n=22, m=25)
    again = members + np.random.default_rng(1).normal(0, 0.5, 22)
    (m, m_groups), (o, o_groups), (a, _) = (repeated(values) for values in (members, others, again))
    groups = (m_groups, o_groups)
    pairs = [
        (auc(members, others), auc(m, o, groups=groups)),
        (paired_difference(members, again).estimate(), paired_difference(m, a, groups=m_groups).estimate()),
        (
            paired_auc_difference(members, others, again, others).estimate(),
            paired_auc_difference(m, o, a, o, groups=groups).estimate(),
        ),
        (
            difference_in_differences((members, others), (again, others)).estimate(),
            difference_in_differences((m, o), (a, o), groups=groups).estimate(),
        ),
    ]
    for plain, grouped in pairs:
        assert (grouped.value, grouped.low, grouped.high) == pytest.approx((plain.value, plain.low, plain.high))
        assert grouped.method.endswith(", groups") and not plain.method.endswith(", groups")


def test_missing_records_leave_their_group_and_labels_must_fit():
    values = np.array([0.1, np.nan, 0.5, 0.9, 0.2])
    result = mean(values, groups=["a", "b", "c", "c", "d"])
    assert (result.n, result.n_missing) == ((4,), 1)
    assert paired_difference(values, values * 0, groups=["a", "b", "c", "c", "d"]).n_groups == (3,)
    with pytest.raises(ValueError, match="one label for each record"):
        mean(values, groups=["a", "b"])


def test_only_groups_cover_the_truth_where_rows_of_a_person_are_alike():
    missed = {"rows": 0, "people": 0}
    for trial in range(200):
        rng = np.random.default_rng(trial)
        values = np.repeat(rng.normal(size=15), 6) + rng.normal(0, 0.3, 90)
        groups = np.repeat(np.arange(15), 6)
        for name, of in (("rows", None), ("people", groups)):
            found = mean(values, groups=of, seed=trial)
            missed[name] += not found.low <= 0 <= found.high
    assert missed["rows"] > 60 and missed["people"] < 22


def test_a_difference_in_differences_ignores_what_a_model_does_better_everywhere():
    rng = np.random.default_rng(0)
    forget, holdout = rng.random(80) / 2, rng.random(60) / 2
    better = difference_in_differences((forget + 0.3, holdout + 0.3), (forget, holdout))
    assert better.value == pytest.approx(0) and better.n == (80, 60)
    noise = rng.normal(0, 0.05, 80)
    known = difference_in_differences((forget + 0.2 + noise, holdout), (forget, holdout))
    half = 1.96 * noise.std(ddof=1) / math.sqrt(80)
    assert known.value == pytest.approx(0.2 + noise.mean())
    assert known.estimate().high - known.value == pytest.approx(half, rel=0.15)
    nothing = difference_in_differences((np.ones(40), np.zeros(40)), (np.zeros(40), np.ones(40)))
    assert nothing.value == 2 and nothing.estimate().high == 2
    assert np.isnan(difference_in_differences((forget, []), (forget, [])).value)
