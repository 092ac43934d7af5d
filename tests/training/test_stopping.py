"""Where the training stops, and which weights it keeps."""

import numpy as np
import pytest
import torch
from cases import make_trainer, text_rows, weights
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from hf_unlearn.training.stopping import compare_losses


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_the_auc_is_that_of_scikit_learn(forget, holdout):
    expected = roc_auc_score([1] * len(forget) + [0] * len(holdout), forget + holdout)
    assert compare_losses(np.array(forget), np.array(holdout))["auc"] == pytest.approx(expected)


def test_the_p_value_is_small_while_the_set_is_remembered():
    rng = np.random.default_rng(0)
    low, high = rng.normal(0, 1, 60), rng.normal(1, 1, 60)
    assert compare_losses(low, high)["p_value"] < 1e-4
    assert compare_losses(high, low)["p_value"] > 0.99
    # By permutation: the share of relabelings with an AUC at least as low.
    a, b = rng.normal(0, 1, 12), rng.normal(0.5, 1, 15)
    found = compare_losses(a, b)
    everything, count = np.concatenate([a, b]), 0
    for _ in range(4000):
        shuffled = rng.permutation(everything)
        count += compare_losses(shuffled[:12], shuffled[12:])["auc"] <= found["auc"]
    assert found["p_value"] == pytest.approx(count / 4000, abs=0.03)


def sets():
    return {"holdout": text_rows(8, offset=200), "forget": text_rows(8)}


@pytest.mark.parametrize(("learning_rate", "goes_back"), [(0.05, False), (0.12, True)])
def test_it_stops_there_and_keeps_the_nearest(learning_rate, goes_back, tmp_path):
    arguments = {"max_steps": 30, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": learning_rate}
    trainer = make_trainer("ga", tmp_path, eval_dataset=sets(), **arguments)
    trainer.evaluate()
    trainer.stopping.never_trained = trainer.eval_losses["forget"] + 2
    seen = {}
    judge = trainer.stopping.judge

    def watch(losses):
        result = judge(losses)
        seen[trainer.state.global_step] = (result, weights(trainer.model))
        return result

    trainer.stopping.judge = watch
    trainer.train()
    last = trainer.state.global_step
    assert 1 < last < 30
    assert [step for step, (result, _) in seen.items() if result["p_value"] >= 0.5] == [last]
    nearest = min(seen, key=lambda step: abs(seen[step][0]["auc"] - 0.5))
    assert (nearest < last) == goes_back
    kept = weights(trainer.model)
    assert all(torch.equal(kept[name], value) for name, value in seen[nearest][1].items())
    logged = [log["eval_forget_auc"] for log in trainer.state.log_history if "eval_forget_auc" in log]
    assert logged == [result["auc"] for result, _ in seen.values()]


def test_it_can_be_switched_off_or_given_other_losses(tmp_path):
    arguments = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.1}
    trainer = make_trainer("ga", tmp_path, eval_dataset=sets(), stop_when_forgotten=False, **arguments)
    trainer.train()
    assert trainer.state.global_step == 6
    trainer = make_trainer("ga", tmp_path, eval_dataset=sets(), **arguments)
    trainer.stopping.never_trained = np.zeros(8)  # every model has a higher loss
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_level_is_between_zero_and_one(tmp_path):
    with pytest.raises(ValueError, match="between 0 and 1"):
        make_trainer("ga", tmp_path, stop_level=1.0)


def test_a_repair_goes_no_further_than_the_forget_set_stays_forgotten(tmp_path):
    retain = text_rows(20, offset=100)
    evaluation = sets() | {"retain": retain}
    arguments = {"max_steps": 40, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.05}
    trainer = make_trainer("repair", tmp_path, eval_dataset=evaluation, **arguments)
    trainer.evaluate()
    trainer.stopping.never_trained = trainer.eval_losses["forget"] - 0.3  # training on others lowers it by and by
    seen = {}
    judge = trainer.stopping.judge

    def watch(losses):
        result = judge(losses)
        seen[trainer.state.global_step] = (result["p_value"], losses["retain"].mean(), weights(trainer.model))
        return result

    trainer.stopping.judge = watch
    trainer.train()
    last = trainer.state.global_step
    assert 1 < last < 40 and seen[last][0] < 0.05
    assert all(p >= 0.05 for step, (p, _, _) in seen.items() if step < last)
    # Kept are the weights with the lowest retain loss while the forget set was forgotten.
    best = min((step for step in seen if step < last), key=lambda step: seen[step][1])
    assert all(torch.equal(value, seen[best][2][name]) for name, value in weights(trainer.model).items())


def test_a_repair_that_would_bring_it_back_at_once_leaves_the_edit_as_it_is(tmp_path):
    evaluation = sets() | {"retain": text_rows(8, offset=100)}
    trainer = make_trainer(
        "repair", tmp_path, eval_dataset=evaluation, max_steps=5, eval_strategy="steps", eval_steps=1
    )
    trainer.evaluate()
    trainer.stopping.never_trained = trainer.eval_losses["forget"] + 5
    before = weights(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 1
    assert all(torch.equal(before[name], value) for name, value in weights(trainer.model).items())
