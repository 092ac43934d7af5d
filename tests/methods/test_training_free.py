"""Methods that compute the new weights in one go, and task vectors: against their definitions."""

import pytest
import torch
from cases import MODELS, make_trainer, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from transformers.pytorch_utils import Conv1D

from hf_unlearn.likelihood import target_logits
from hf_unlearn.methods.ssd import dampening
from hf_unlearn.methods.svd_forget import removal, soft_projection
from hf_unlearn.training.covariance import input_covariances, linear_modules
from hf_unlearn.training.importance import squared_gradients


IMPORTANCE = st.lists(st.one_of(st.just(0.0), st.floats(1e-8, 1e3)), min_size=4, max_size=4)
KINDS = ["llama", "gpt2", "vit"]


@settings(deadline=None)
@given(IMPORTANCE, IMPORTANCE, st.floats(0.1, 50), st.floats(0.05, 3))
def test_dampening_by_its_definition(f, d, alpha, lambda_):
    factor = dampening(*(torch.tensor(x, dtype=torch.float64) for x in (f, d)), alpha, lambda_).tolist()
    for ours, i_f, i_d in zip(factor, f, d, strict=True):
        expected = min(lambda_ * i_d / i_f, 1.0) if i_f > alpha * i_d else 1.0
        assert ours == pytest.approx(expected, rel=1e-12)
        assert 0 <= ours <= 1


def test_what_the_forget_set_does_not_use_stays():
    assert dampening(torch.zeros(3), torch.tensor([0.0, 1.0, 2.0]), 1.0, 1.0).tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_ssd_by_hand(kind, tmp_path):
    trainer = make_trainer("ssd", tmp_path, kind, alpha=1.1, forget=5, retain=9)
    model, data = trainer.model, trainer.train_dataset
    names = trainer.trainable_names
    of = [squared_gradients(model, trainer.batches(rows), names) for rows in (data.forget, data.retain)]
    everything = squared_gradients(
        model, trainer.batches([*data.forget, *data.retain]), names
    )  # D has the forget set too
    before = weights(model)
    trainer.train()
    for name, value in weights(trainer.model).items():
        expected = before[name] * dampening(of[0][name], everything[name], 1.1, 1.0)
        torch.testing.assert_close(value, expected)
    assert any(not torch.equal(before[name], value) for name, value in weights(trainer.model).items())


def test_a_large_alpha_changes_nothing(tmp_path):
    trainer = make_trainer("ssd", tmp_path, "vit", alpha=1e12)
    before = weights(trainer.model)
    trainer.train()
    assert all(torch.equal(before[name], value) for name, value in weights(trainer.model).items())


# SVD


def orthonormal(d, k):
    return torch.linalg.qr(torch.randn(d, k, dtype=torch.float64)).Q


def test_soft_projection_at_its_limits():
    u, energies = orthonormal(6, 6), torch.tensor([4.0, 2.0, 1.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    covariance = u * energies @ u.T
    share = energies / energies.sum()
    torch.testing.assert_close(soft_projection(covariance, 1.0), u * share @ u.T)
    span = u[:, :4]
    torch.testing.assert_close(soft_projection(covariance, 1e6), span @ span.T, atol=1e-4, rtol=0)
    # In between, direction by direction, by the formula.
    scale = torch.linalg.eigvalsh(soft_projection(covariance, 7.0)).flip(0)
    torch.testing.assert_close(scale, 7 * share / (6 * share + 1), atol=1e-12, rtol=0)


def test_what_each_order_promises():
    p_r = (r := orthonormal(8, 3)) @ r.T
    p_f = (f := orthonormal(8, 2)) @ f.T
    weight = torch.randn(5, 8, dtype=torch.float64)
    x_r, x_f = r @ torch.randn(3, dtype=torch.float64), f @ torch.randn(2, dtype=torch.float64)
    exact = weight @ removal(p_f, p_r, "retain_exact")
    torch.testing.assert_close(exact @ x_r, weight @ x_r)
    torch.testing.assert_close(exact @ x_f, weight @ p_f @ p_r @ x_f)
    reference = weight @ removal(p_f, p_r, "reference")
    torch.testing.assert_close(reference @ x_f, weight @ p_r @ x_f)
    assert (reference @ x_r - weight @ x_r).norm() > 1e-3  # it does not keep the retain inputs


@pytest.mark.parametrize("order", ["reference", "retain_exact"])
@pytest.mark.parametrize("kind", KINDS)
def test_svd_forget_by_hand(kind, order, tmp_path):
    trainer = make_trainer("svd_forget", tmp_path, kind, order=order, retain_alpha=5.0, forget_alpha=20.0)
    model, data = trainer.model, trainer.train_dataset
    modules = linear_modules(model, trainer.trainable_names)
    of = [input_covariances(model, modules, trainer.batches(rows)) for rows in (data.forget, data.retain)]
    before = weights(model)
    trainer.train()
    after = weights(trainer.model)
    for name, module in modules.items():
        factor = removal(soft_projection(of[0][name], 20.0), soft_projection(of[1][name], 5.0), order)
        w = before[f"{name}.weight"]
        expected = (w.T @ factor).T if isinstance(module, Conv1D) else w @ factor
        torch.testing.assert_close(after[f"{name}.weight"], expected)
    untouched = set(before) - {f"{name}.weight" for name in modules}
    assert untouched and all(torch.equal(before[name], after[name]) for name in untouched)


# Task vectors


@pytest.mark.parametrize("kind", KINDS)
def test_the_task_vector_is_negated(kind, tmp_path):
    ends = {}
    for scale in (0.0, -1.0, 2.5):
        trainer = make_trainer("task_vector", tmp_path, kind, scale=scale, max_steps=3)
        trainer.train()
        ends[scale] = weights(trainer.model)
    start = weights(MODELS[kind]().double())
    for name, value in start.items():
        assert torch.equal(ends[0.0][name], value), name  # bit for bit
        tuned = ends[-1.0][name]  # theta_0 + (theta_ft - theta_0)
        torch.testing.assert_close(ends[2.5][name], value - 2.5 * (tuned - value))
    assert any(not torch.equal(ends[2.5][name], value) for name, value in start.items())


def test_tied_weights_are_negated_once(tmp_path):
    trainer = make_trainer("task_vector", tmp_path, "gpt2", scale=1.0, max_steps=1)
    trainer.train()
    assert trainer.model.lm_head.weight is trainer.model.transformer.wte.weight
    start = make_trainer("task_vector", tmp_path, "gpt2", scale=0.0, max_steps=1)
    start.prepare()
    assert sum("wte" in name or "lm_head" in name for name in start._start) == 1


def test_the_update_of_an_adapter_is_negated(tmp_path):
    outcome = {}
    for scale in (-1.0, 3.0):
        lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
        torch.manual_seed(0)
        trainer = make_trainer("task_vector", tmp_path, peft_config=lora, scale=scale, max_steps=4)
        base = MODELS["llama"]().double()
        trainer.train()
        outcome[scale] = weights(trainer.model.merge_and_unload())
    for name, value in weights(base).items():
        torch.testing.assert_close(
            outcome[3.0][name] - value, -3.0 * (outcome[-1.0][name] - value), atol=1e-10, rtol=0
        )


def test_half_precision_is_computed_in_single(tmp_path):
    model = MODELS["llama"]().bfloat16()
    start = weights(model)
    trainer = make_trainer("task_vector", tmp_path, model, scale=3.0, max_steps=1, learning_rate=1.0)
    finish, tuned = trainer.finish, {}

    def keep():
        tuned.update(weights(trainer.model))
        finish()

    trainer.finish = keep
    trainer.train()
    for name, value in weights(trainer.model).items():
        expected = (start[name].float() - 3.0 * (tuned[name].float() - start[name].float())).bfloat16()
        assert torch.equal(value, expected), name


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        make_trainer("ssd", tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="alpha=0"):
        make_trainer("ssd", tmp_path, alpha=0.0)
    with pytest.raises(ValueError, match="none of reference, retain_exact"):
        make_trainer("svd_forget", tmp_path, order="both")
    with pytest.raises(ValueError, match="until it ends this method learns the forget set"):
        make_trainer("task_vector", tmp_path, eval_strategy="steps", eval_steps=1)
    with pytest.raises(ValueError, match="what is learned here is then negated"):
        make_trainer("task_vector", tmp_path, retain_loss="nll")


@pytest.mark.parametrize("method", ["ssd", "svd_forget"])
def test_the_same_call_as_any_method(method, tmp_path):
    trainer = make_trainer(method, tmp_path, "llama")
    output = trainer.train()
    assert output.global_step == 0 and output.metrics["train_runtime"] > 0
    trainer.save_model(tmp_path / "saved")
    saved = type(trainer.model).from_pretrained(tmp_path / "saved", dtype="auto").eval()
    batch = trainer.data_collator(trainer.train_dataset.forget[:4])
    with torch.no_grad():
        assert torch.equal(target_logits(saved, batch).logits, target_logits(trainer.model.eval(), batch).logits)
