import json
import math

import numpy as np
import pytest

from hf_unlearn.audit.verdicts.decision import VERDICTS
from hf_unlearn.audit.verdicts.margins import Margins
from hf_unlearn.audit.verdicts.verdict import adjust, judge, reference_warning
from hf_unlearn.statistics.multiplicity import holm


N = 300
RECORDS = np.random.default_rng(0).normal(size=(2, N))


def scores(memory=0.0, seed=0, n=N, noise=0.2):
    """Membership scores of forget set and holdout under a model that remembers the former so much."""
    rng = np.random.default_rng(1000 + seed)
    forget, holdout = RECORDS[:, :n] + rng.normal(0, noise, (2, n))
    return forget + memory, holdout


def judge_auc(name, *models, surface="membership", **options):
    return judge(name, "auc", *models, surface=surface, **options)


def shares(memory=0.0, seed=0, n=N, noise=0.05):
    rng = np.random.default_rng(2000 + seed)
    return np.clip(0.3 + RECORDS[0, :n] / 20 + memory + rng.normal(0, noise, n), 0, 1)


ORIGINAL, RETRAINED = scores(3), scores(0, seed=1)


# The rows of the decision table.


def test_as_retrained_is_no_trace_found():
    found = judge_auc("loss", ORIGINAL, scores(0, seed=2), RETRAINED)
    assert (found.verdict, found.reason, found.surface) == ("no_trace_found", None, "membership")
    assert -0.05 < found.unlearned.low < found.unlearned.high < 0.05 and found.unlearned.level == pytest.approx(0.9)
    assert found.original.low > 0.3 and abs(found.share_left) < 0.1


def test_as_original_is_residual():
    found = judge_auc("loss", ORIGINAL, ORIGINAL, RETRAINED)
    assert (found.verdict, found.share_left) == ("residual", 1) and found.p_residual < 1e-3
    half = judge_auc("loss", ORIGINAL, scores(1, seed=2), RETRAINED)
    assert half.verdict == "residual" and 0.3 < half.share_left < 0.8


def test_below_retrained_is_over_forgotten_and_never_privacy():
    found = judge_auc("loss", ORIGINAL, scores(-3, seed=2), RETRAINED)
    assert found.verdict == "over_forgotten" and "over" in found.flags
    nearly_zero = judge_auc("loss", ORIGINAL, scores(-30, seed=2), RETRAINED)
    assert nearly_zero.verdict == "over_forgotten" and nearly_zero.unlearned.value < -0.4


def test_an_attack_that_saw_nothing_before_attests_nothing():
    blind = scores(0, seed=3)
    found = judge_auc("loss", blind, scores(0, seed=2), RETRAINED)
    assert (found.verdict, found.reason) == ("no_baseline", "no_signal_before") and math.isnan(found.share_left)
    assert judge_auc("loss", blind, scores(2, seed=2), RETRAINED).flags == ("created_by_edit",)
    assert judge_auc("loss", blind, scores(-2, seed=2), RETRAINED).flags == ("over",)


def test_too_few_records_are_inconclusive_with_what_it_would_take():
    o, u, r = (scores(m, s, n=25) for m, s in ((3, 0), (0, 2), (0, 1)))
    found = judge_auc("loss", o, u, r)
    assert (found.verdict, found.reason) == ("inconclusive", "underpowered")
    assert found.records_needed > 25 and 0 < found.detectable < 0.3
    enough = judge_auc("loss", o, u, r, margins=Margins(auc=0.3))
    assert enough.verdict == "no_trace_found" and enough.records_needed <= 25


def test_a_difference_within_the_margin_but_not_zero_leans():
    rng = np.random.default_rng(0)
    retrained = rng.random(100) / 2
    u = retrained + 0.035 + rng.normal(0, 0.1, 100)
    found = judge("probability", "share", retrained + 0.5, u, retrained)
    assert (found.verdict, found.flags) == ("inconclusive", ("leans_residual", "one_retrained"))
    assert found.margin == 0.04
    down = judge("probability", "share", retrained + 0.5, retrained - (u - retrained), retrained)
    assert (down.verdict, down.flags) == ("inconclusive", ("leans_over", "one_retrained"))


def test_on_the_margin_with_enough_records_it_is_called_near():
    rng = np.random.default_rng(0)
    retrained = rng.random(4000) / 2
    found = judge("p", "share", retrained + 0.5, retrained + 0.02 + rng.normal(0, 0.02, 4000), retrained)
    assert (found.verdict, found.reason) == ("inconclusive", "near_margin")


def test_without_an_original_a_trace_is_found_but_none_is_not_attested():
    assert judge_auc("loss", None, ORIGINAL, RETRAINED).verdict == "residual"
    assert judge_auc("loss", None, scores(-3), RETRAINED).verdict == "over_forgotten"
    found = judge_auc("loss", None, scores(0, seed=2), RETRAINED)
    assert (found.verdict, found.reason) == ("no_baseline", "no_original")


def test_without_a_retrained_model_only_a_trace_in_exchangeable_sets_counts():
    plain = judge_auc("loss", ORIGINAL, ORIGINAL, None)
    assert (plain.verdict, plain.reason) == ("no_baseline", "no_reference")
    assert judge_auc("loss", ORIGINAL, ORIGINAL, None, exchangeable=False).reason == "not_exchangeable"
    found = judge_auc("loss", ORIGINAL, ORIGINAL, None, exchangeable=True)
    assert (found.verdict, found.flags) == ("residual", ("no_reference",))
    assert found.unlearned.value == pytest.approx(0.4, abs=0.12)
    chance = judge_auc("loss", ORIGINAL, RETRAINED, None, exchangeable=True)
    assert (chance.verdict, chance.reason) == ("no_baseline", "no_reference")
    below = judge_auc("loss", ORIGINAL, scores(-3), None, exchangeable=True)
    assert (below.verdict, below.flags) == ("no_baseline", ("over",))
    assert judge("p", "share", shares(0.5), shares(0.5), None).reason == "no_reference"


# Known truths.


@pytest.mark.parametrize("n", [40, 300])
def test_identical_models_are_never_residual(n):
    r, original = scores(0, 1, n), scores(3, 0, n)
    found = [judge_auc("loss", original, r, r)]
    values, known = shares(0, 1, n), shares(0.6, 0, n)
    found.append(judge("probability", "share", known, values, values))
    found.append(judge("extraction", "rate", np.ones(n), np.zeros(n), np.zeros(n)))
    for verdict in adjust(found):
        assert verdict.unlearned.value == 0
        assert verdict.verdict in ("no_trace_found", "inconclusive")
        assert verdict.verdict == "no_trace_found" or verdict.reason == "underpowered"
    five = judge("extraction", "rate", np.ones(5), np.zeros(5), np.zeros(5))
    assert (five.verdict, five.reason) == ("inconclusive", "underpowered")
    three_alike = judge_auc("loss", r, r, r)
    assert three_alike.verdict == "no_baseline"
    assert judge_auc("loss", r, r, None, exchangeable=True).verdict == "no_baseline"


def test_a_model_without_opinion_has_an_auc_of_one_half():
    flat = (np.zeros(N), np.zeros(N))
    found = judge_auc("loss", ORIGINAL, flat, flat, exchangeable=True)
    assert found.evidence.reference_auc.value == 0.5 and found.verdict == "no_trace_found"


def test_a_memorizer_is_residual_in_every_kind():
    everything, nothing = np.ones(N), np.zeros(N)
    rng = np.random.default_rng(0)
    losses = rng.gamma(2, 1, N)
    found = adjust(
        [
            judge_auc("loss", scores(30), scores(30), RETRAINED),
            judge("extraction", "rate", everything, everything, nothing, surface="verbatim"),
            judge("memorization", "share", shares(0.7), shares(0.7), shares(0, 1)),
            judge("relearned", "relearn", shares(0.6), shares(0.6), shares(0, 1), surface="relearn"),
            judge("truth ratio", "distribution", shares(0.4), shares(0.4), shares(0, 1)),
            judge("minus loss", "unbounded", 0 * losses, 0 * losses, -losses, [rng.normal(0, 0.1, N) - losses]),
        ]
    )
    assert [verdict.verdict for verdict in found] == ["residual"] * 6
    assert all(verdict.family == 6 for verdict in found)


def test_why_a_test_shows_nothing_is_told_apart():
    one, nothing = np.ones(4), np.zeros(4)
    few = judge("verbatim", "rate", one, nothing, nothing)
    assert (few.verdict, few.reason) == ("no_baseline", "signal_unclear")  # everything came out, of four records
    known = shares(0.4)
    same = judge("p", "share", known, known, known + 1e-7)
    assert (same.verdict, same.reason) == ("no_baseline", "same_as_original")


def test_few_records_never_show_equality():
    rng = np.random.default_rng(0)
    o, r = 0.9 + rng.random(8) / 100, rng.random(8) / 1000
    found = judge("p", "share", o, r + rng.random(8) / 1000, r)
    assert found.unlearned.high < found.margin and (found.verdict, found.reason) == ("inconclusive", "underpowered")


def test_beyond_the_margin_but_not_after_the_correction():
    o, r = shares(0.6), shares(0, seed=1)
    noise = np.random.default_rng(1).normal(0, 0.09, N)
    u = r + 0.031 + noise - noise.mean()
    alone = judge("p", "share", o, u, r)
    assert alone.verdict == "residual"
    many = adjust(
        [alone, *[judge("p", "share", o, r + np.random.default_rng(i).normal(0, 0.1, N), r) for i in range(9)]]
    )
    assert (many[0].verdict, many[0].reason) == ("inconclusive", "not_after_correction")


def test_beside_the_original_only_more_than_under_retraining_counts():
    more, less = scores(2, seed=2), scores(-2, seed=2)
    # The retrained model beside the original betrays the records too, so no original has to show that there is a signal.
    known = {"surface": "two-checkpoint"}
    assert judge_auc("drop", None, scores(0, seed=2), RETRAINED, **known).verdict == "no_trace_found"
    assert judge_auc("drop", None, more, RETRAINED, **known).verdict == "residual"
    found = judge_auc("drop", None, less, RETRAINED, **known)
    assert (found.verdict, found.flags[0]) == ("no_trace_found", "beside_original") and "over" not in found.flags
    assert judge_auc("drop", None, less, RETRAINED).verdict == "over_forgotten"
    # An AUC of 1 there is no sign that the reference was trained on the forget set.
    assert reference_warning([judge_auc("drop", None, ORIGINAL, ORIGINAL, **known)]) is None


# Corrections, seeds, scales.


def test_p_values_are_corrected_for_the_family():
    rng = np.random.default_rng(3)
    retrained = rng.random(200) / 2
    weak = retrained + 0.035 + rng.normal(0, 0.12, 200)
    alone = judge("weak", "share", retrained + 0.5, weak, retrained)
    assert alone.verdict == "residual" and 0.01 < alone.p_residual < 0.05
    others = [judge(f"null {i}", "share", retrained + 0.5, retrained, retrained) for i in range(9)]
    family = adjust([*others, alone])
    raw = [verdict.p_residual for verdict in (*others, alone)]
    np.testing.assert_allclose([verdict.p_residual for verdict in family], holm(raw))
    assert family[-1].verdict == "inconclusive" and family[-1].family == 10
    assert family[-1].detectable > alone.detectable
    assert adjust(family) == family and adjust([]) == []


def test_what_other_seeds_explain_is_no_trace_of_the_records():
    rng = np.random.default_rng(0)
    r, other, third, u = (shares(0, 1) + shift + rng.normal(0, 0.01, N) for shift in (0, 0.06, -0.05, 0.07))
    alone = judge("p", "share", shares(0.6), u, r)
    assert alone.verdict == "residual" and "one_retrained" in alone.flags and math.isnan(alone.seed_band)
    several = judge("p", "share", shares(0.6), u, r, [other, third])
    assert (several.verdict, several.reason) == ("inconclusive", "seed_noise")
    assert several.seed_band > 0.07 and "one_retrained" not in several.flags and several.n_retrained == 3
    assert judge("p", "share", shares(0.69), shares(0.69), r, [other, third]).verdict == "residual"
    # A wide band is no licence: equivalence is still shown within the margin alone.
    assert several.margin == 0.02


def test_two_retrained_models_do_not_hide_what_the_original_memorized():
    original, retrained, other = shares(0.3), shares(0, seed=1), shares(0.05, seed=2)
    found = judge("share", "share", original, original, retrained, [other])
    # Two models bound a third so badly that nothing is beyond it, but that there was a signal is beyond doubt.
    assert found.seed_band > 0.3 and (found.verdict, found.reason) == ("inconclusive", "seed_noise")
    assert found.share_left == 1
    within = judge("share", "share", shares(0.04, seed=4), original, retrained, [other])
    assert within.reason == "no_signal_before"


def test_less_the_holdout_a_better_seed_is_no_trace_either():
    holdout = 0.3 + RECORDS[1] / 20
    rng = np.random.default_rng(0)
    models = {m: (shares(m, 1) + b, holdout + b + rng.normal(0, 0.01, N)) for m, b in ((0.6, 0), (0.0, 0.0))}
    better = (shares(0, 2) + 0.1, holdout + 0.1 + rng.normal(0, 0.01, N))
    assert judge("p", "share", models[0.6][0], better[0], models[0.0][0]).verdict == "residual"
    found = judge("p", "share", models[0.6], better, models[0.0])
    assert found.verdict == "no_trace_found" and "one_retrained" not in found.flags
    assert judge("p", "share", models[0.6], models[0.6], models[0.0]).verdict == "residual"
    rates = [tuple((side > 0.35).astype(float) for side in pair) for pair in (models[0.6], better, models[0.0])]
    assert judge("hit", "rate", *rates).n_retrained == 1


def test_a_number_without_a_scale_only_informs_until_there_are_several_retrained_models():
    losses = np.random.default_rng(0).gamma(2, 1, (4, N))
    r = -losses[0]
    found = judge("minus loss", "unbounded", 0 * r, r + 0.5, r)
    assert (found.verdict, found.reason) == (None, "no_margin") and math.isnan(found.margin)
    assert math.isnan(found.p_residual) and adjust([found])[0].family == 0
    assert judge("minus loss", "unbounded", 0 * r, r + 0.5, r, [r]).verdict is None  # the same seed twice is no band
    banded = judge("minus loss", "unbounded", 0 * r, r + 0.5, r, [r + 0.02, r - 0.03])
    assert banded.verdict == "residual" and banded.margin == pytest.approx(0.05)
    worse = judge("minus loss", "unbounded", 0 * r, r - 2, r, [r + 0.02, r - 0.03])
    assert worse.verdict == "over_forgotten" and "over" in worse.flags


def test_an_auc_below_that_of_the_retrained_model_is_flagged_whatever_the_verdict():
    slightly = scores(-0.15, seed=1)
    found = judge_auc("loss", ORIGINAL, slightly, RETRAINED)
    assert found.verdict in ("no_trace_found", "inconclusive") and "over" in found.flags


def test_distributions_need_enough_records():
    rng = np.random.default_rng(0)
    record = rng.normal(size=400)
    o, u, r = (record + rng.normal(m, 0.3, 400) for m in (3, 0, 0))
    found = judge("truth ratio", "distribution", o, u, r)
    assert (found.verdict, found.margin) == ("no_trace_found", 0.15)
    few = judge("truth ratio", "distribution", o[:40], u[:40], r[:40])
    assert (few.verdict, few.reason) == ("inconclusive", "underpowered")
    assert judge("truth ratio", "distribution", o, u - 3, r).verdict == "over_forgotten"
    assert judge("truth ratio", "distribution", o, o, r, [u]).seed_band < 0.15


def test_groups_count_instead_of_rows():
    people = np.repeat(np.arange(10), 30)
    rng = np.random.default_rng(0)
    r, o = shares(0, 1), shares(0.6)
    u = np.clip(r + np.repeat(rng.normal(0, 0.03, 10), 30), 0, 1)
    rows, grouped = judge("p", "share", o, u, r), judge("p", "share", o, u, r, groups=people)
    width = [v.unlearned.high - v.unlearned.low for v in (rows, grouped)]
    assert width[1] > 3 * width[0] and grouped.margin == 0.05
    both = judge_auc("loss", ORIGINAL, scores(0, seed=2), RETRAINED, groups=(people, people))
    assert both.unlearned.method.endswith("groups")
    hits = judge("hit", "rate", np.ones(N), np.zeros(N), np.zeros(N), groups=people)
    assert hits.unlearned.high == pytest.approx(1 - 0.05 ** (1 / 10))


# The reference itself, missing values, errors.


def test_a_reference_that_saw_the_forget_set_is_named():
    good = [judge_auc("loss", ORIGINAL, RETRAINED, scores(0, seed=2), exchangeable=True)]
    assert reference_warning(good) is None
    assert reference_warning([judge_auc("loss", ORIGINAL, RETRAINED, scores(3, seed=2))]) == "reference_saw_forget_set"
    partly = [judge_auc("loss", ORIGINAL, RETRAINED, scores(0.6, seed=2), exchangeable=e) for e in (True, None)]
    assert reference_warning(partly[:1]) is not None and reference_warning(partly[1:]) is None
    same = [judge("p", "share", shares(0.5), shares(0), shares(0.5) + 1e-7), judge("x", "rate", *[np.zeros(9)] * 3)]
    assert reference_warning(same) is not None
    assert reference_warning(same[1:]) is None  # nothing is ever extracted: that tells nothing about the reference
    assert reference_warning([*same, *good]) is None
    assert same[0].verdict == "no_baseline"


def test_missing_records_are_counted_and_none_at_all_is_not_tested():
    values = shares(0, 2)
    values[:7] = np.nan
    found = judge("p", "share", shares(0.6), values, shares(0, 1))
    assert found.unlearned.n_missing == 7 and found.unlearned.n == (N - 7,)
    empty = judge("p", "share", shares(0.6), np.full(N, np.nan), shares(0, 1))
    assert (empty.verdict, empty.reason) == ("not_tested", "no_records")
    one = judge("p", "share", [0.9], [0.2], [0.3])
    assert (one.verdict, one.reason) == ("no_baseline", "signal_unclear")
    infinite = judge("m", "unbounded", np.zeros(20), np.full(20, -np.inf), np.zeros(20), [np.ones(20)])
    assert (infinite.verdict, infinite.reason) == ("inconclusive", "not_measurable")


def test_a_failed_blind_check_is_shown_with_a_retrained_model_too():
    assert "not_exchangeable" in judge_auc("loss", ORIGINAL, ORIGINAL, RETRAINED, exchangeable=False).flags


def test_everything_is_plain_for_json():
    cases = [
        judge_auc("loss", ORIGINAL, ORIGINAL, RETRAINED),
        judge_auc("loss", None, ORIGINAL, None),
        judge("m", "unbounded", None, np.zeros(5), np.zeros(5)),
    ]
    for verdict in cases:
        text = json.dumps(verdict.as_dict(), allow_nan=False)
        assert "evidence" not in text and verdict.verdict in (*VERDICTS, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: judge("p", "mean", None, [1.0], [1.0]), "kind must be one of auc, rate"),
        (lambda: judge("p", "auc", None, [1.0], [1.0]), "for each model"),
        (lambda: judge("p", "share", None, [1.0], [1.0], surface="somewhere"), "surface must be one of verbatim"),
        (lambda: judge("p", "share", None, [1.0, 2.0], [1.0]), "same order"),
        (lambda: judge("p", "rate", None, [0.5], [0.0]), "0 or 1"),
        (lambda: judge("p", "distribution", None, ([0.5], [0.5]), ([0.5], [0.5])), "forget set alone"),
    ],
)
def test_errors_name_the_cause(call, message):
    with pytest.raises(ValueError, match=message):
        call()
