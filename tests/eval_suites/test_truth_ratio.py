import json

import numpy as np
import pytest
import torch
from data_dir import DATA
from scipy.stats import ks_2samp

from hf_unlearn.audit import forget_truth_ratio_aggregate, paired_difference
from hf_unlearn.evaluate_modules.base import load_metric


ROWS = [
    {
        "prompt": "the cat",
        "completion": " sat on the mat",
        "paraphrased_completion": " was on the mat",
        "perturbed_completions": [" was on the tree", " ran under the mat", " sat"],
    },
    {"prompt": "the dog", "completion": " ran", "perturbed_completions": [" sat on the mat", " was gone"]},
    {"prompt": "it", "completion": " was a tree", "paraphrased_completion": None, "perturbed_completions": [" ran"]},
    {"prompt": "it", "completion": "", "perturbed_completions": [" ran"]},
]


def own_loss(model, tokenizer, prompt, completion):
    """Mean negative log-likelihood of a completion and its end token, by a forward pass of its own."""
    ids = tokenizer(prompt + completion, return_tensors="pt")["input_ids"]
    ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], dim=1)
    start = len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        log_probs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return -log_probs[start - 1 :].mean().item()


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("variant", ["tofu", "paper", "probability"])
def test_ratios_from_a_model_follow_their_formulas(model, tokenizer, variant, batch_size):
    module = load_metric("truth_ratio")
    results = module.compute(
        examples=ROWS, model=model, processing_class=tokenizer, variant=variant, batch_size=batch_size
    )
    expected = []
    for row in ROWS[:3]:
        answer = row.get("paraphrased_completion") or row["completion"]
        true = own_loss(model, tokenizer, row["prompt"], answer)
        wrong = np.array([own_loss(model, tokenizer, row["prompt"], text) for text in row["perturbed_completions"]])
        ratio = np.exp(-wrong).mean() / np.exp(-true) if variant == "paper" else np.exp(true - wrong.mean())
        expected.append(1 / (1 + ratio) if variant == "probability" else ratio)
    np.testing.assert_allclose(results["truth_ratios"], [*expected, np.nan], rtol=1e-9)
    folded = expected if variant == "probability" else [min(r, 1 / r) for r in expected]
    assert results["truth_ratio"] == pytest.approx(np.mean(folded), rel=1e-9)
    assert ("true_better" in results) == (variant != "probability")
    assert (results["n"], results["n_missing"], results["variant"]) == (3, 1, variant)


def test_forget_quality_agrees_with_scipy_and_the_difference_is_paired():
    rng = np.random.default_rng(0)
    true, wrong = rng.exponential(1, 60), rng.exponential(1.5, (60, 5))
    module = load_metric("truth_ratio")
    ours = module.compute(paraphrased=true, perturbed=wrong)
    theirs = module.compute(paraphrased=true + rng.normal(0.3, 0.1, 60), perturbed=wrong)
    results = module.compute(paraphrased=true, perturbed=wrong, retrained=theirs["truth_ratios"])
    test = ks_2samp(ours["truth_ratios"], theirs["truth_ratios"])
    assert results["forget_quality"] == pytest.approx(test.pvalue, rel=1e-12) and results["ks_d"] == test.statistic
    assert 10 ** results["log10_forget_quality"] == pytest.approx(test.pvalue)
    assert results["truth_ratio_retrained"] == pytest.approx(theirs["truth_ratio"])
    sides = [np.minimum(r, 1 / r) for r in (np.array(ours["truth_ratios"]), np.array(theirs["truth_ratios"]))]
    difference = paired_difference(*sides).estimate()
    assert results["truth_ratio_difference"] == difference.value
    assert results["truth_ratio_difference_low"] == difference.low
    same = module.compute(paraphrased=true, perturbed=wrong, retrained=ours["truth_ratios"])
    assert same["forget_quality"] == 1 and same["ks_d"] == 0 and same["truth_ratio_difference"] == 0
    assert "forget_quality" not in ours


def test_the_ends_of_the_interval_are_those_of_the_audit():
    rng = np.random.default_rng(1)
    true, wrong = rng.exponential(1, 30), rng.exponential(1.5, (30, 3))
    results = load_metric("truth_ratio").compute(paraphrased=true, perturbed=wrong, seed=5)
    expected = forget_truth_ratio_aggregate(np.array(results["truth_ratios"]), seed=5)
    assert (results["truth_ratio_low"], results["truth_ratio_high"]) == (expected.low, expected.high)


@pytest.mark.skipif(DATA is None, reason="needs the published logs beside the repository")
def test_published_losses_give_the_published_aggregates():
    logs = [
        json.loads((DATA / "tofu_eval_logs" / f"llama-3.2-1b_{name}.json").read_text())
        for name in ("full_forget10", "retain90")
    ]
    module = load_metric("truth_ratio")

    def inputs(log):
        true, wrong = (log[f"forget_Q_A_{kind}_Prob"]["value_by_index"] for kind in ("PARA", "PERT"))
        return {
            "paraphrased": [row["avg_loss"] for row in true.values()],
            "perturbed": [wrong[index]["avg_loss"] for index in true],
        }

    retrained = module.compute(**inputs(logs[1]))["truth_ratios"]
    results = module.compute(**inputs(logs[0]), retrained=retrained)
    assert results["truth_ratio"] == pytest.approx(logs[0]["forget_truth_ratio"]["agg_value"], abs=2e-6)
    assert results["log10_forget_quality"] == pytest.approx(np.log10(logs[0]["forget_quality"]["agg_value"]), abs=0.1)
    assert results["n"] == 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perturbed_completions": None}, "has no perturbed_completions. Every row needs the columns prompt"),
        ({"prompt": None, "completion": None}, "has no prompt and no completion. Every row needs"),
        ({"perturbed_completions": "Zyxwv"}, "has one string as perturbed_completions. Give a list"),
    ],
)
def test_a_row_without_a_column_is_named_by_its_index(model, tokenizer, change, message):
    broken = {name: value for name, value in {**ROWS[1], **change}.items() if value is not None}
    for rows in ([ROWS[0], broken], [ROWS[0], ROWS[1] | change]):
        with pytest.raises(ValueError, match=f"^Row 1 of the examples {message}") as error:
            load_metric("truth_ratio").compute(examples=rows, model=model, processing_class=tokenizer)
        assert "Zyxwv" not in str(error.value) and "dog" not in str(error.value)
    with pytest.raises(
        ValueError, match="^Row 0 of the examples has no prompt and no perturbed_completions and no compl"
    ):
        load_metric("truth_ratio").compute(examples=["Zyxwv"], model=model, processing_class=tokenizer)
