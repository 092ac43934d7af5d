"""The aggregates of published evaluation logs must come out of our formulas, fed with their values a record."""

import json

import numpy as np
import pytest
from data_dir import DATA

from hf_unlearn.audit import (
    auc,
    forget_quality,
    forget_truth_ratio_aggregate,
    mean,
    model_utility,
    option_probability,
    privleak,
    true_better,
    truth_ratio,
)


FULL, RETAINED = "llama-3.2-1b_full_forget10", "llama-3.2-1b_retain90"
LOGS = None if DATA is None else DATA / "tofu_eval_logs"
pytestmark = pytest.mark.skipif(
    LOGS is None or not LOGS.is_dir(), reason="no published TOFU logs; set HF_UNLEARN_TEST_DATA to the data folder"
)
both_models = pytest.mark.parametrize("model", [FULL, RETAINED])


@pytest.fixture(scope="module")
def logs():
    return {model: json.loads((LOGS / f"{model}.json").read_text()) for model in (FULL, RETAINED)}


def column(metric, key):
    rows = metric["value_by_index"]
    return np.array([rows[index][key] for index in sorted(rows, key=int)])


def losses(log, split):
    """Losses of the correct and of the wrong answers; real authors and world facts have no paraphrase."""
    correct = f"{split}_Q_A_PARA_Prob" if split in ("forget", "retain") else f"{split}_Q_A_Prob"
    return column(log[correct], "avg_loss"), column(log[f"{split}_Q_A_PERT_Prob"], "avg_loss")


@both_models
@pytest.mark.parametrize("split", ["forget", "retain", "ra", "wf"])
def test_truth_ratios(logs, model, split):
    name = "forget_truth_ratio" if split == "forget" else f"{split}_Truth_Ratio"
    ratios = truth_ratio(*losses(logs[model], split))
    # The benchmark's code adds 1e-10 to a probability as small as 1e-7 and works in 32 bit.
    np.testing.assert_allclose(ratios, column(logs[model][name], "score"), rtol=2e-3)
    np.testing.assert_allclose(np.median(ratios / column(logs[model][name], "score")), 1, atol=1e-6)
    aggregate = forget_truth_ratio_aggregate if split == "forget" else true_better
    assert aggregate(ratios).value == pytest.approx(logs[model][name]["agg_value"], abs=2e-6)


def test_forget_truth_ratio_and_the_other_variant(logs):
    correct, wrong = losses(logs[FULL], "forget")
    assert forget_truth_ratio_aggregate(truth_ratio(correct, wrong)).value == pytest.approx(0.475564, abs=1e-6)
    paper = forget_truth_ratio_aggregate(truth_ratio(correct, wrong, "paper"))
    assert paper.value == pytest.approx(0.493, abs=5e-4)


def test_forget_quality(logs):
    full, retained = (truth_ratio(*losses(logs[model], "forget")) for model in (FULL, RETAINED))
    result = forget_quality(full, retained)
    assert result.p == pytest.approx(logs[FULL]["forget_quality"]["agg_value"], rel=1e-6)
    assert result.p == pytest.approx(3.905e-22, rel=1e-3)
    assert (result.d, result.n) == (pytest.approx(0.35), (400, 400))
    assert forget_quality(retained, retained).p == 1


def test_forget_quality_of_the_other_variant_is_another_number(logs):
    full, retained = (truth_ratio(*losses(logs[model], "forget"), "paper") for model in (FULL, RETAINED))
    result = forget_quality(full, retained)
    assert (result.d, result.p) == (pytest.approx(0.3375), pytest.approx(1.4e-20, rel=0.05))


@both_models
@pytest.mark.parametrize("split", ["ra", "wf"])
def test_option_probabilities(logs, model, split):
    stored = logs[model][f"{split}_Q_A_Prob_normalised"]
    probabilities = option_probability(*losses(logs[model], split))
    np.testing.assert_allclose(probabilities, column(stored, "prob"), rtol=1e-3)
    assert mean(probabilities).value == pytest.approx(stored["agg_value"], abs=2e-6)


@both_models
@pytest.mark.parametrize("metric", ["forget_Q_A_Prob", "retain_Q_A_Prob", "forget_Q_A_PARA_Prob"])
def test_answer_probability_is_the_exponential_of_minus_the_loss(logs, model, metric):
    stored = logs[model][metric]
    probability = np.exp(-column(stored, "avg_loss"))
    np.testing.assert_allclose(probability, column(stored, "prob"), rtol=1e-5)
    assert mean(probability).value == pytest.approx(stored["agg_value"], rel=1e-6)


@pytest.mark.parametrize(("model", "published"), [(FULL, 0.59915), (RETAINED, 0.59112)])
def test_model_utility(logs, model, published):
    log, parts = logs[model], {}
    for split in ("retain", "ra", "wf"):
        if split == "retain":
            parts["retain probability"] = np.exp(-column(log["retain_Q_A_Prob"], "avg_loss")).mean()
        else:
            parts[f"{split} probability"] = option_probability(*losses(log, split)).mean()
        parts[f"{split} rouge"] = column(log[f"{split}_Q_A_ROUGE"], "rougeL_recall").mean()
        parts[f"{split} truth ratio"] = true_better(truth_ratio(*losses(log, split))).value
    assert len(parts) == 9
    utility = model_utility(parts)
    assert utility.value == pytest.approx(log["model_utility"]["agg_value"], abs=2e-6)
    assert utility.value == pytest.approx(published, abs=1e-5)


ATTACKS = ["loss", "min_k", "min_k_plus_plus", "zlib", "gradnorm"]


# The retained model has no reference attack: it is the reference.
@pytest.mark.parametrize(
    ("model", "attack"), [(model, attack) for model in (FULL, RETAINED) for attack in ATTACKS] + [(FULL, "reference")]
)
def test_attack_aucs(logs, model, attack):
    log = logs[model][f"mia_{attack}"]
    # The logs store low = member-like, so the sign turns; their AUC is then ours.
    result = auc(-column(log["forget"], "score"), -column(log["holdout"], "score"))
    assert result.value == pytest.approx(log["auc"], abs=1e-12)
    assert result.n == (400, 400) and result.method == "delong" and result.low < log["auc"] < result.high


def test_the_reference_attack_is_the_difference_of_the_losses(logs):
    for side in ("forget", "holdout"):
        full, retained = (column(logs[model]["mia_loss"][side], "score") for model in (FULL, RETAINED))
        np.testing.assert_allclose(
            full - retained, column(logs[FULL]["mia_reference"][side], "score"), atol=0.06, rtol=0.05
        )


@both_models
@pytest.mark.parametrize("metric", ["exact_memorization", "extraction_strength"])
def test_means_of_memorization(logs, model, metric):
    log = logs[model][metric]
    assert mean(column(log, "score")).value == pytest.approx(log["agg_value"], rel=1e-9)


def test_extraction_strength_of_the_logs_never_reaches_zero(logs):
    # Theirs caps at 1 / T where the last token is wrong; `extraction_strength` defaults to 0 there.
    assert column(logs[RETAINED]["extraction_strength"], "score").min() == pytest.approx(0.0125)


def test_privleak_needs_the_real_retrained_model(logs):
    aucs = {}
    for model in (FULL, RETAINED):
        log = logs[model]["mia_min_k"]
        aucs[model] = auc(-column(log["forget"], "score"), -column(log["holdout"], "score")).value
    assert privleak(aucs[FULL], aucs[RETAINED]) == pytest.approx(logs[FULL]["privleak"]["agg_value"], abs=1e-6)
    assert privleak(aucs[FULL], aucs[RETAINED]) == pytest.approx(-99.457, abs=1e-3)
    # The retained model's own log was written with an AUC of 0.5 in place of a reference, hence not 0.
    assert privleak(aucs[RETAINED], 0.5) == pytest.approx(logs[RETAINED]["privleak"]["agg_value"], abs=1e-6)
    assert privleak(aucs[RETAINED], 0.5) == pytest.approx(23.4775, abs=1e-3)
    assert privleak(aucs[RETAINED], aucs[RETAINED]) == 0
