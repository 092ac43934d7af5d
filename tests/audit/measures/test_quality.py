import json

import numpy as np
import pytest
from scipy import stats
from score_table import table

from hf_unlearn.audit import (
    answer_probability,
    corpus_perplexity,
    forget_quality,
    forget_truth_ratio_aggregate,
    loss,
    model_utility,
    option_probability,
    perplexity,
    privleak,
    true_better,
    truth_ratio,
)


RNG = np.random.default_rng(0)
CORRECT, WRONG = RNG.gamma(2, 1, 12), RNG.gamma(2, 1, (12, 5))


def test_perplexity_of_texts_and_corpus_are_different_numbers():
    scores = table([[-1.0, -1.0, -1.0], [-5.0], []])
    np.testing.assert_allclose(perplexity(scores), np.exp([1, 5, np.nan]))
    assert corpus_perplexity(scores) == pytest.approx(np.exp(2))
    assert corpus_perplexity(scores) != pytest.approx(np.nanmean(perplexity(scores)))


def test_perplexity_from_lists_of_log_probabilities():
    rows = [[-1.0, -2.0, -0.5], [], [-4.0]]
    np.testing.assert_array_equal(perplexity(rows), perplexity(table(rows)))
    assert corpus_perplexity(rows) == corpus_perplexity(table(rows)) == pytest.approx(np.exp(7.5 / 4))


def test_perplexity_of_nothing_is_nan():
    assert np.isnan(corpus_perplexity(table([]))) and np.isnan(corpus_perplexity(table([[], []])))


def test_answer_probability_is_the_geometric_mean():
    scores = table([list(np.log([0.9, 0.4, 0.5])), []])
    np.testing.assert_allclose(answer_probability(scores), [stats.gmean([0.9, 0.4, 0.5]), np.nan])


def test_option_probability_agrees_with_the_fraction():
    correct, wrong = np.exp(-CORRECT), np.exp(-WRONG)
    np.testing.assert_allclose(option_probability(CORRECT, WRONG), correct / (correct + wrong.sum(1)), rtol=1e-12)


def test_option_probability_survives_losses_whose_exponential_underflows():
    np.testing.assert_allclose(option_probability([2000.0], [[2000.0, 2000.0, 2000.0]]), [0.25])


def test_truth_ratio_variants_agree_with_means_of_probabilities():
    correct, wrong = np.exp(-CORRECT), np.exp(-WRONG)
    geometric = stats.gmean(wrong, axis=1)
    np.testing.assert_allclose(truth_ratio(CORRECT, WRONG), geometric / correct, rtol=1e-12)
    np.testing.assert_allclose(truth_ratio(CORRECT, WRONG, "paper"), wrong.mean(1) / correct, rtol=1e-12)
    np.testing.assert_allclose(truth_ratio(CORRECT, WRONG, "probability"), correct / (correct + geometric), rtol=1e-12)
    assert np.all(truth_ratio(CORRECT, WRONG, "paper") >= truth_ratio(CORRECT, WRONG))


def test_truth_ratio_reads_scores_row_by_row():
    correct = table([[-1.0, -3.0], [-2.0]])
    wrong = table([[-2.0], [-4.0], [-1.0], [-1.0, -5.0]])
    np.testing.assert_allclose(truth_ratio(correct, wrong), np.exp([2 - 3, 2 - 2]))
    np.testing.assert_allclose(truth_ratio(correct, loss(wrong).reshape(2, 2)), np.exp([2 - 3, 2 - 2]))


@pytest.mark.parametrize("variant", ["tofu", "paper", "probability"])
def test_missing_wrong_answers_are_left_out_and_missing_records_stay_nan(variant):
    wrong = WRONG[:3].copy()
    wrong[0, 3:] = np.nan
    wrong[1] = np.nan
    correct = np.array([CORRECT[0], CORRECT[1], np.nan])
    result = truth_ratio(correct, wrong, variant)
    assert result[0] == pytest.approx(truth_ratio(CORRECT[:1], WRONG[:1, :3], variant)[0])
    assert np.isnan(result[1:]).all()
    options = option_probability(correct, wrong)
    assert options[0] == pytest.approx(option_probability(CORRECT[:1], WRONG[:1, :3])[0])
    assert np.isnan(options[1:]).all()


def test_wrong_answers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="split evenly"):
        truth_ratio(table([[-1.0]] * 2), table([[-1.0]] * 5))
    with pytest.raises(ValueError, match="shape"):
        truth_ratio(CORRECT, WRONG.T)
    with pytest.raises(ValueError, match="variant"):
        truth_ratio(CORRECT, WRONG, "geometric")


def test_aggregates_of_truth_ratios_by_hand():
    ratios = [0.5, 2.0, 1.0, np.nan]
    forget = forget_truth_ratio_aggregate(ratios)
    assert (forget.value, forget.n, forget.n_missing) == (pytest.approx(2 / 3), (3,), 1)
    assert true_better(ratios).value == pytest.approx(0.5 / 3)
    assert forget_truth_ratio_aggregate([0.0, np.inf, 1.0]).value == pytest.approx(1 / 3)


def test_forget_quality_is_one_for_the_same_model_and_ignores_the_direction_of_the_ratio():
    unlearned, retrained = truth_ratio(CORRECT, WRONG), truth_ratio(CORRECT[::-1], WRONG)
    assert forget_quality(retrained, retrained).p == 1
    assert forget_quality(unlearned, retrained).d == pytest.approx(forget_quality(1 / unlearned, 1 / retrained).d)


def test_metrics_that_need_a_retrained_model_refuse_to_go_without():
    with pytest.raises(ValueError, match="retrained without the forget set"):
        forget_quality([0.5, 0.6], None)
    with pytest.raises(ValueError, match="retrained without the forget set"):
        privleak(0.6, None)


def test_model_utility_is_the_harmonic_mean():
    parts = {"probability": 0.9, "rouge": 0.5, "truth ratio": 0.4}
    assert model_utility(parts).value == pytest.approx(stats.hmean([0.9, 0.5, 0.4]))


def test_model_utility_names_zero_and_missing_parts():
    zero = model_utility({"probability": 0.9, "rouge": 0.0})
    assert (zero.value, zero.reason) == (0, "zero: rouge")
    missing = model_utility({"probability": 0.9, "rouge": float("nan"), "truth ratio": 0.0, "other": None})
    assert (missing.value, missing.reason) == (None, "missing: rouge, other")
    json.dumps(missing.as_dict(), allow_nan=False)


def test_model_utility_refuses_negative_parts_and_nothing():
    with pytest.raises(ValueError, match="negative: rouge"):
        model_utility({"rouge": -0.1})
    with pytest.raises(ValueError, match="at least one"):
        model_utility({})


def test_privleak_by_hand():
    assert privleak(0.5, 0.5) == 0
    assert privleak(1.0, 0.5) == -100
    assert privleak(0.0, 0.5) == 100
    assert privleak(0.25, 0.2) == pytest.approx(-6.25)


def test_privleak_warns_when_the_reference_looks_like_a_member():
    with pytest.warns(UserWarning, match="looks as if it had seen"):
        assert privleak(0.0, 0.981) > 5000
    with pytest.warns(UserWarning):
        assert np.isnan(privleak(0.5, 1.0))
