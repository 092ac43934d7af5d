import json
import math

import numpy as np
import pytest
from data_dir import DATA
from scipy import stats
from sklearn.metrics import roc_auc_score

from hf_unlearn.audit import truth_ratio
from hf_unlearn.audit.measures.aggregates import (
    average_gap,
    memorization_score,
    overall_score,
    privacy_score,
    tug_of_war,
    utility_score,
)
from hf_unlearn.audit.measures.quality import harmonic_mean


# A study of 150 published checkpoints (TOFU forget10, 1B): overall, Mem, Priv, Priv by attacks, Priv by depth, Util,
# model utility, fluency.
PUBLISHED = {
    "retain": (0.807, 0.582, 1, 1, 1, 1, 0.591, 0.899),
    "AltPO": (0.773, 0.604, 0.848, 0.864, 0.832, 0.955, 0.565, 0.854),
    "NPO": (0.739, 0.605, 0.716, 0.637, 0.818, 0.989, 0.572, 0.916),
    "SimNPO": (0.722, 0.539, 0.775, 0.816, 0.739, 0.988, 0.576, 0.903),
    "IdkDPO": (0.709, 0.550, 0.720, 0.757, 0.686, 0.975, 0.559, 0.916),
    "GradDiff": (0.637, 0.501, 0.623, 0.789, 0.515, 0.901, 0.594, 0.698),
    "RMU": (0.625, 0.666, 0.688, 0.711, 0.667, 0.542, 0.282, 0.609),
    "UNDIAL": (0.103, 0.594, 0.165, 0.091, 0.871, 0.047, 0.017, 0.892),
    "IdkNLL": (0, 0.369, 0, 0, 0.251, 0.904, 0.508, 0.879),
    "full": (0, 0.103, 0, 0, 0, 1, 0.601, 0.873),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_rows_come_out_of_their_parts(model):
    overall, mem, priv, by_attacks, by_depth, util, utility, fluency = PUBLISHED[model]
    found = overall_score(mem, priv, util)
    assert found.value == pytest.approx(overall, abs=1.5e-3)
    assert found.reason == ("zero: privacy" if priv == 0 else None)
    assert harmonic_mean({"attacks": by_attacks, "depth": by_depth}).value == pytest.approx(priv, abs=1.5e-3)
    _, _, _, _, _, _, full_utility, full_fluency = PUBLISHED["full"]
    assert utility_score(utility, full_utility, fluency, full_fluency).value == pytest.approx(util, abs=2.5e-3)


# SalUn's table, CIFAR-10, random 10 %: UA, RA, TA, MIA in percent, and the average gap.
SALUN_RETRAINED = {"UA": 5.24, "RA": 100, "TA": 94.26, "MIA": 12.88}
SALUN = {
    "FT": (0.63, 99.88, 94.06, 2.70, 3.78),
    "RL": (7.61, 99.67, 92.83, 37.36, 7.15),
    "GA": (0.69, 99.50, 94.01, 1.70, 4.12),
    "IU": (1.07, 99.20, 93.20, 2.67, 4.06),
    "BE": (0.59, 99.42, 93.85, 7.47, 2.76),
    "l1-sparse": (4.19, 97.74, 91.59, 9.84, 2.26),
    "SalUn": (2.85, 99.62, 93.93, 14.39, 1.15),
    "SalUn-soft": (4.19, 99.74, 93.44, 19.49, 2.19),
}


@pytest.mark.parametrize("method", SALUN)
def test_published_average_gaps_come_out_of_their_rows(method):
    *row, published = SALUN[method]
    found = average_gap(dict(zip(SALUN_RETRAINED, row, strict=True)), SALUN_RETRAINED)
    assert found.value == pytest.approx(published, abs=0.006)
    assert found.parts["UA"] == pytest.approx(row[0] - 5.24)


def test_mem_is_the_harmonic_mean_of_one_minus_each():
    found = memorization_score(0.7, 0.9, 0.1, 0.6)
    assert found.value == pytest.approx(stats.hmean([0.3, 0.1, 0.9, 0.4]))
    assert memorization_score(0.7, 1.0, 0.1, 0.6).value == 0
    assert memorization_score(0.7, 1.0, 0.1, 0.6).reason == "zero: 1 - exact_memorization"
    missing = memorization_score(0.7, 0.9, None, math.nan)
    assert (missing.value, missing.reason) == (None, "missing: 1 - paraphrase_probability, 1 - truth_ratio")
    json.dumps(missing.as_dict(), allow_nan=False)


def test_priv_by_hand():
    unlearned, retrained = {"loss": 0.5, "zlib": 0.3}, {"loss": 0.4, "zlib": 0.5}
    found = privacy_score(unlearned, retrained)
    assert found.parts == pytest.approx({"loss": 0.75, "zlib": 0.6})
    assert found.value == pytest.approx(stats.hmean([0.75, 0.6]))
    assert privacy_score(retrained, retrained).value == 1
    assert privacy_score({"loss": 0.9}, {"loss": 0.4}).value == 0


def test_priv_is_missing_without_an_auc_and_refuses_to_go_without_a_retrained_model():
    for unlearned, retrained in ((0.5, None), (math.nan, 0.5), (0.5, math.nan), (0.5, 0.0)):
        found = privacy_score({"loss": unlearned}, {"loss": retrained})
        assert (found.value, found.reason) == (None, "missing: loss")
    with pytest.raises(ValueError, match="retrained without the forget set"):
        privacy_score({"loss": 0.5}, None)
    with pytest.raises(ValueError, match="attacked differently"):
        privacy_score({"loss": 0.5}, {"zlib": 0.5})
    with pytest.warns(UserWarning, match="as if it had seen"):
        privacy_score({"loss": 0.5}, {"loss": 0.95})


def test_util_is_at_most_1_and_says_when_it_had_no_fluency():
    assert utility_score(0.7, 0.6).value == 1
    alone = utility_score(0.3, 0.6)
    assert (alone.value, alone.reason) == (0.5, "without fluency")
    assert utility_score(0.0, 0.6, 0.9, 0.9).value == 0
    with pytest.raises(ValueError, match="fluency of one model"):
        utility_score(0.5, 0.5, fluency=0.9)
    assert utility_score(None, 0.6).reason == utility_score(math.nan, 0.0).reason == "missing: unlearned"
    nothing = utility_score(0.5, 0.0)
    assert (nothing.value, nothing.reason) == (None, "the original model has no utility to keep")


def test_overall_names_missing_parts():
    assert overall_score(0.5, None, 0.9).reason == "missing: privacy"
    assert overall_score(0.582, 1, 1).value == pytest.approx(0.807, abs=1e-3)


def test_tug_of_war_by_hand():
    retrained = {"forget": 0.9, "retain": 1.0, "test": 0.9}
    assert tug_of_war(retrained, retrained).value == 1
    found = tug_of_war({"forget": 0.7, "retain": 0.9, "test": 1.0}, retrained)
    assert found.value == pytest.approx(0.8 * 0.9 * 0.9)
    assert found.parts == pytest.approx({"forget": -0.2, "retain": -0.1, "test": 0.1})
    assert tug_of_war({**retrained, "test": None}, retrained).reason == "missing: test"
    with pytest.raises(ValueError, match="Divide percentages"):
        tug_of_war({"forget": 70.0}, {"forget": 90.0})
    with pytest.raises(ValueError, match="same measures"):
        average_gap({"UA": 0.1}, {"RA": 0.1})


FULL, RETAINED = "llama-3.2-1b_full_forget10", "llama-3.2-1b_retain90"


@pytest.fixture(scope="module")
def logs():
    path = None if DATA is None else DATA / "tofu_eval_logs"
    if path is None or not path.is_dir():
        pytest.skip("no published TOFU logs; set HF_UNLEARN_TEST_DATA to the data folder")
    return {model: json.loads((path / f"{model}.json").read_text()) for model in (FULL, RETAINED)}


def column(metric, key):
    rows = metric["value_by_index"]
    return np.array([rows[index][key] for index in sorted(rows, key=int)])


def mem_of(log):
    paraphrased, perturbed = (column(log[f"forget_Q_A_{kind}_Prob"], "avg_loss") for kind in ("PARA", "PERT"))
    ratios = truth_ratio(paraphrased, perturbed, "probability")
    # The third form of the truth ratio, from the probabilities that the log stores beside the losses.
    p, wrong = column(log["forget_Q_A_PARA_Prob"], "prob"), column(log["forget_Q_A_PERT_Prob"], "prob")
    np.testing.assert_allclose(ratios, p / (p + stats.gmean(wrong, axis=1)), rtol=2e-3)
    memorized = [column(log[name], "score").mean() for name in ("extraction_strength", "exact_memorization")]
    return memorization_score(*memorized, np.exp(-paraphrased).mean(), ratios.mean())


def test_mem_of_the_published_logs(logs):
    # The retained model's floor is published as 0.58; the logs of the full model are of another evaluation than the
    # published 0.103.
    retained, full = mem_of(logs[RETAINED]), mem_of(logs[FULL])
    assert retained.value == pytest.approx(0.5848, abs=1e-4)
    assert retained.parts["1 - extraction_strength"] == pytest.approx(0.941, abs=1e-3)
    assert full.value == pytest.approx(0.0868, abs=1e-4)


def test_priv_of_the_published_logs(logs):
    aucs = {}
    for model in (FULL, RETAINED):
        sides = {
            name: [-column(logs[model][f"mia_{name}"][side], "score") for side in ("forget", "holdout")]
            for name in ("loss", "zlib", "min_k", "min_k_plus_plus")
        }
        aucs[model] = {
            name: roc_auc_score(np.repeat([1, 0], [len(a), len(b)]), [*a, *b]) for name, (a, b) in sides.items()
        }
    # As published: the full model scores 0, since each AUC is more than twice that of the retained model.
    found = privacy_score(aucs[FULL], aucs[RETAINED])
    assert found.value == 0 and found.reason == "zero: loss, zlib, min_k, min_k_plus_plus"
    assert privacy_score(aucs[RETAINED], aucs[RETAINED]).value == 1


def test_util_and_overall_of_the_published_logs(logs):
    utilities = {model: logs[model]["model_utility"]["agg_value"] for model in logs}
    util = utility_score(utilities[RETAINED], utilities[FULL])
    assert util.value == pytest.approx(0.59112 / 0.59915, abs=1e-4)
    overall = overall_score(mem_of(logs[RETAINED]).value, 1.0, util.value)
    assert overall.value == pytest.approx(0.807, abs=2e-3)
