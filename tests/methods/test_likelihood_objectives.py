"""Objectives written in likelihoods: each formula and its gradient by another route in float64, then in a trainer."""

import math
import re
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from cases import image_rows, make_trainer, text_rows, weights
from hypothesis import given
from hypothesis import strategies as st

from hf_unlearn.data import UnlearningCollator, encode_dataset
from hf_unlearn.methods import METHODS, GradientAscentTrainer, WGATrainer
from hf_unlearn.methods import pdu as pdu_module
from hf_unlearn.methods.ceu import CEUConfig, CEUTrainer, ceu_loss, skip_tokens
from hf_unlearn.methods.finetune import FineTuneConfig, FineTuneTrainer
from hf_unlearn.methods.ihl import InvertedHingeTrainer, inverted_hinge_loss
from hf_unlearn.methods.l1_sparse import L1SparseConfig, L1SparseTrainer
from hf_unlearn.methods.pdu import PDUConfig, PDUTrainer, flatness_loss
from hf_unlearn.methods.satimp import SatImpConfig, SatImpTrainer, satimp_loss
from hf_unlearn.methods.undial import UNDIALConfig, UNDIALTrainer, undial_loss
from hf_unlearn.models.likelihood import TargetLogits, target_logits


LOGIT = st.floats(-30, 30)
TRAINERS = [
    CEUTrainer,
    FineTuneTrainer,
    InvertedHingeTrainer,
    L1SparseTrainer,
    PDUTrainer,
    SatImpTrainer,
    UNDIALTrainer,
]


def make(trainer_class, folder, model="llama", **arguments):
    if trainer_class is PDUTrainer:
        arguments = {"force_epsilon": True, "dual_warmup": 0.0} | arguments
    with patch.dict(METHODS.registered, {"this": trainer_class}):
        return make_trainer("this", folder, model, **arguments)


def random_logits(n=6, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(classes, (n,), generator=generator)


def one_hot(targets, classes):
    return torch.eye(classes, dtype=torch.float64)[targets]


def gradient(values, logits):
    return torch.autograd.grad(values.sum(), logits)[0]


# SatImp


@given(st.floats(-40, -1e-6), st.floats(0, 6), st.floats(0, 3))
def test_satimp_is_ascent_with_a_constant_weight(log_p, beta1, beta2):
    x = torch.tensor([log_p], dtype=torch.float64, requires_grad=True)
    weight = math.exp(log_p) ** beta1 * (-math.expm1(log_p)) ** beta2
    loss = satimp_loss(x, beta1, beta2)
    assert loss.item() == pytest.approx(weight * log_p, rel=1e-9, abs=1e-300)
    assert gradient(loss, x).item() == pytest.approx(weight, rel=1e-9, abs=1e-300)


def test_satimp_is_weighted_ascent_without_beta2_and_ascent_without_both():
    logits, targets = random_logits()
    out = TargetLogits(logits, targets, torch.tensor([0, 0, 0, 1, 1, 2]), 3)

    def loss(trainer, **options):
        value = trainer.forget_loss(SimpleNamespace(args=SimpleNamespace(**options)), out)
        return value.item(), torch.autograd.grad(value, logits, retain_graph=True)[0]

    for options, other in (
        ({"beta1": 1.7, "beta2": 0.0}, loss(WGATrainer, beta=1.7)),
        ({"beta1": 0.0, "beta2": 0.0}, loss(GradientAscentTrainer)),
    ):
        value, g = loss(SatImpTrainer, **options)
        assert value == pytest.approx(other[0], rel=1e-12)
        torch.testing.assert_close(g, other[1])


def test_satimp_leaves_sure_and_unlikely_tokens_alone():
    assert satimp_loss(torch.tensor([-0.0, -60.0], dtype=torch.float64), 5.0, 1.0).abs().max() < 1e-100


# UNDIAL


@given(LOGIT, LOGIT, LOGIT, LOGIT, st.floats(0, 30))
def test_undial_on_two_classes(own, other, own_ref, other_ref, beta):
    logits = torch.tensor([[own, other]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[own_ref, other_ref]], dtype=torch.float64)
    loss = undial_loss(logits, reference, torch.tensor([0]), beta)
    q = 1 / (1 + math.exp(other_ref + beta - own_ref))
    p = 1 / (1 + math.exp(other - own))
    expected = q * math.log1p(math.exp(other - own)) + (1 - q) * math.log1p(math.exp(own - other))
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert gradient(loss, logits)[0].tolist() == pytest.approx([p - q, q - p], rel=1e-6, abs=1e-12)


def test_undial_gradient_is_p_minus_q():
    logits, targets = random_logits()
    reference, _ = random_logits(seed=1)
    reference = reference.detach()
    q = (reference - 4.0 * one_hot(targets, 5)).exp()
    q = q / q.sum(-1, keepdim=True)
    g = gradient(undial_loss(logits, reference, targets, 4.0), logits)
    torch.testing.assert_close(g, logits.detach().softmax(-1) - q)


def test_undial_with_beta_0_teaches_nothing_at_the_start():
    logits, targets = random_logits()
    assert gradient(undial_loss(logits, logits.detach(), targets, 0.0), logits).abs().max() < 1e-15


def test_undial_at_the_start_in_a_trainer_does_nothing_without_beta(tmp_path):
    trainer = make(UNDIALTrainer, tmp_path, beta=0.0, max_steps=1)
    before = weights(trainer.model)
    trainer.train()
    for name, value in weights(trainer.model).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", [lambda z, y: undial_loss(z, z.detach(), y, 10.0), ceu_loss])
def test_classes_that_cannot_be_change_nothing(loss):
    # A head padded to a round size has logits of -inf, and 0 ln 0 is 0.
    logits, targets = random_logits()
    padded = torch.cat([logits, torch.full((6, 2), -torch.inf, dtype=torch.float64)], 1)
    values = loss(padded, targets)
    torch.testing.assert_close(values, loss(logits, targets))
    assert gradient(values, logits).isfinite().all()


# CE-U


def test_ceu_against_renormalised_probabilities():
    logits, targets = random_logits()
    p = logits.detach().softmax(-1)
    q = p * (1 - one_hot(targets, 5))
    q = q / q.sum(-1, keepdim=True)
    values = ceu_loss(logits, targets)
    torch.testing.assert_close(values.detach(), -(q * p.log()).sum(-1))
    torch.testing.assert_close(gradient(values, logits), p - q)  # q is a constant


@given(LOGIT, LOGIT)
def test_ceu_on_two_classes_teaches_the_other(own, other):
    logits = torch.tensor([[own, other]], dtype=torch.float64, requires_grad=True)
    loss = ceu_loss(logits, torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log1p(math.exp(own - other)), rel=1e-9, abs=1e-13)
    p = 1 / (1 + math.exp(other - own))
    assert gradient(loss, logits)[0].tolist() == pytest.approx([p, -p], rel=1e-9, abs=1e-15)


def test_ceu_of_a_model_that_is_sure_is_finite():
    logits = torch.tensor([[1e4, 0.0, 0.0], [0.0, 1e4, 0.0]], requires_grad=True)
    values = ceu_loss(logits, torch.tensor([0, 0]))
    assert values.isfinite().all() and gradient(values, logits).isfinite().all()


def test_skipped_tokens_are_those_of_the_answer():
    row = {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9], "n_end": 1}
    assert skip_tokens(row, 1)["labels"] == [-100, -100, -100, 8, 9]
    assert skip_tokens(row, 0) == row
    assert row["labels"] == [-100, -100, 7, 8, 9]
    with pytest.raises(ValueError, match="n_skip=3, but the answer of row 4"):
        skip_tokens(row, 3, 4)


def test_skipped_tokens_count_nowhere(tmp_path):
    trainer = make(CEUTrainer, tmp_path, n_skip=2, max_steps=1)
    out = target_logits(trainer.model, trainer.data_collator(encode_dataset(text_rows(8), trainer.processing_class)))
    late = torch.cat([torch.arange(n) >= 2 for n in out.lengths.tolist()])
    expected = ceu_loss(out.logits, out.targets)[late].mean().item()
    trainer.train()
    assert trainer.state.log_history[0]["forget_loss"] == pytest.approx(expected, rel=1e-6)


def test_a_classifier_skips_nothing(tmp_path):
    rows = image_rows(8)
    trainer = make(CEUTrainer, tmp_path, "vit", n_skip=1, max_steps=1)
    out = target_logits(trainer.model, UnlearningCollator()(rows))
    expected = ceu_loss(out.logits, out.targets).mean().item()
    trainer.train()
    assert trainer.state.log_history[0]["forget_loss"] == pytest.approx(expected, rel=1e-6)


# Inverted hinge


@given(st.lists(LOGIT, min_size=3, max_size=3, unique=True), st.integers(0, 2))
def test_inverted_hinge(values, target):
    logits = torch.tensor([values], dtype=torch.float64, requires_grad=True)
    loss = inverted_hinge_loss(logits, torch.tensor([target]))
    exp = [math.exp(z) for z in values]
    p = [e / sum(exp) for e in exp]
    rival = max((v for v in range(3) if v != target), key=p.__getitem__)
    assert 0 <= loss.item() <= 2
    assert loss.item() == pytest.approx(1 + p[target] - p[rival], rel=1e-9)
    if sorted(p)[-1] > sorted(p)[-2] > sorted(p)[-3]:
        expected = [
            p[target] * ((k == target) - p[k]) - p[rival] * ((k == rival) - p[k])
            for k in range(3)  # p_y (1_y - p) - p_v (1_v - p)
        ]
        assert gradient(loss, logits)[0].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_inverted_hinge_of_logits_that_look_like_probabilities():
    logits = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    p = logits.softmax(-1)[0]
    assert inverted_hinge_loss(logits, torch.tensor([0])).item() == pytest.approx((1 + p[0] - p[1]).item())


# PDU


@given(st.lists(LOGIT, min_size=4, max_size=4, unique=True), st.floats(-50, 50))
def test_flatness(values, shift):
    logits = torch.tensor([values], dtype=torch.float64, requires_grad=True)
    loss = flatness_loss(logits)
    excess = max(values) - sum(values) / 4
    assert loss.item() == pytest.approx(excess**2, rel=1e-9, abs=1e-12)
    assert flatness_loss(logits + shift).item() == pytest.approx(loss.item(), rel=1e-9, abs=1e-9)
    expected = [2 * excess * ((value == max(values)) - 1 / 4) for value in values]
    assert gradient(loss, logits)[0].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def multipliers(trainer):
    return [log["multiplier"] for log in trainer.state.log_history if "multiplier" in log]


def test_the_multiplier_moves_once_an_optimizer_step(tmp_path):
    options = {"epsilon": 6.7, "dual_lr": 2.0, "retain_weight": 3.0, "max_steps": 3}
    once = make(PDUTrainer, tmp_path, **options)
    often = make(PDUTrainer, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    expected, value = [], 3.0
    for trainer in (once, often):
        trainer.train()
    for log in once.state.log_history[:3]:
        value = max(0.0, value + 2.0 * (log["retain_loss"] - 6.7))
        expected.append(value)
    assert multipliers(once) == pytest.approx(expected, rel=1e-5)
    assert multipliers(often) == pytest.approx(expected, rel=1e-5)
    assert once.retain_weight() == pytest.approx(expected[-1], rel=1e-5)


def test_the_multiplier_rests_and_is_never_negative(tmp_path):
    trainer = make(PDUTrainer, tmp_path, epsilon=1e3, dual_warmup=0.5, max_steps=6)
    trainer.train()
    assert multipliers(trainer) == [100.0] * 3 + [0.0] * 3


def test_the_multiplier_survives_a_resume(tmp_path):
    options = {"epsilon": 6.0, "max_steps": 4, "learning_rate": 1e-4}
    through = make(PDUTrainer, tmp_path / "a", save_strategy="steps", save_steps=2, **options)
    through.train()
    resumed = make(PDUTrainer, tmp_path / "b", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert multipliers(through)[2:] == multipliers(resumed)[2:]
    for name, value in weights(through.model).items():
        assert torch.equal(value, weights(resumed.model)[name]), name


@pytest.mark.parametrize("model", ["llama", "vit"])
def test_a_bound_that_the_start_breaks_is_refused(model, tmp_path, monkeypatch):
    rows = image_rows if model == "vit" else text_rows
    retain = {"eval_dataset": {"retain": rows(20, offset=100)}}
    start = make(PDUTrainer, tmp_path, model, **retain).evaluate()["eval_retain_loss"]
    refused = make(PDUTrainer, tmp_path, model, epsilon=0.999 * start, force_epsilon=False)
    with pytest.raises(ValueError, match=r"the model is ([\d.]+) nats .*force_epsilon=True") as error:
        refused.train()
    assert float(re.search(r"is ([\d.]+) nats", str(error.value))[1]) == pytest.approx(start, rel=1e-3)
    for options in ({"epsilon": 1.001 * start}, {"epsilon": 1e-3, "retain_loss": "kl"}):
        make(PDUTrainer, tmp_path, model, force_epsilon=False, **options).train()

    monkeypatch.setattr(pdu_module, "SAMPLE", 7)
    out = target_logits(refused.model, refused.data_collator([refused.train_dataset.retain[i] for i in range(20)]))
    means = -out.sequence_log_probs / out.lengths
    assert means.min() < refused._start_retain_loss() < means.max()
    assert refused._start_retain_loss() != pytest.approx(start, rel=1e-6)


# Fine-tuning and sparsity


@pytest.mark.parametrize("model", ["llama", "vit"])
def test_fine_tuning_reads_the_retain_set_alone(model, tmp_path):
    trainer = make(FineTuneTrainer, tmp_path, model, forget=3, retain=16, max_steps=-1, num_train_epochs=1)
    other = make(FineTuneTrainer, tmp_path, model, forget=5, retain=16, max_steps=-1, num_train_epochs=1)
    trainer.train(), other.train()
    assert trainer.state.global_step == 2  # 16 retain rows in batches of 8
    for name, value in weights(trainer.model).items():
        assert torch.equal(value, weights(other.model)[name]), name


def test_a_step_of_fine_tuning_by_hand(tmp_path):
    trainer = make(FineTuneTrainer, tmp_path, retain=8, max_steps=1, max_grad_norm=0.0)
    before = weights(trainer.model)
    out = target_logits(trainer.model, trainer.data_collator([trainer.train_dataset.retain[i] for i in range(8)]))
    gradients = torch.autograd.grad(-out.log_probs.mean(), list(trainer.model.parameters()))
    trainer.train()
    for (name, value), g in zip(weights(trainer.model).items(), gradients, strict=True):
        torch.testing.assert_close(value, before[name] - 0.05 * g)


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("batches", [1, 4])
def test_the_penalty_counts_once_a_step(vectors, batches, tmp_path):
    options = {
        "max_steps": 1,
        "max_grad_norm": 0.0,
        "retain": 8,
        "per_device_train_batch_size": 8 // batches,
        "gradient_accumulation_steps": batches,
    }
    plain = make(FineTuneTrainer, tmp_path, **options)
    sparse = make(L1SparseTrainer, tmp_path, gamma=1e-3, penalize_vectors=vectors, **options)
    before = weights(sparse.model)
    plain.train(), sparse.train()
    for name, value in weights(sparse.model).items():
        share = 0.05 * 1e-3 * before[name].sign() * (vectors or value.dim() > 1)
        torch.testing.assert_close(value, weights(plain.model)[name] - share, rtol=1e-6, atol=1e-9)


def test_the_penalty_falls_to_nothing(tmp_path):
    trainer = make(L1SparseTrainer, tmp_path, gamma=1e-3, max_steps=5, learning_rate=0.0)
    trainer.train()
    norm = sum(p.abs().sum().item() for p in trainer.model.parameters() if p.dim() > 1)
    penalties = [log["l1_penalty"] for log in trainer.state.log_history[:5]]
    assert penalties == pytest.approx([1e-3 * norm * share for share in (1, 0.75, 0.5, 0.25, 0)], rel=1e-5)


def test_a_penalty_on_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="penalize_vectors=True"):
        make(L1SparseTrainer, tmp_path, trainable=".*norm.*").train()
    make(L1SparseTrainer, tmp_path, trainable=".*norm.*", penalize_vectors=True).train()


# All of them


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_accumulation_changes_nothing(trainer_class, tmp_path):
    model = "vit" if trainer_class is not CEUTrainer else "llama"  # whose answers lose a token each
    once = make(trainer_class, tmp_path, model)
    often = make(trainer_class, tmp_path, model, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    before = weights(once.model)
    once.train(), often.train()
    assert all(not torch.equal(before[name], value) for name, value in weights(once.model).items())
    for name, value in weights(once.model).items():
        torch.testing.assert_close(value, weights(often.model)[name], rtol=1e-6, atol=1e-9, msg=name)
    for a, b in zip(once.state.log_history[:-1], often.state.log_history[:-1], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("trainer_class", [CEUTrainer, InvertedHingeTrainer, PDUTrainer, SatImpTrainer, UNDIALTrainer])
def test_steps_lower_the_loss_and_the_likelihood(trainer_class, tmp_path):
    rows = image_rows(8)
    options = {"retain_loss": "nll", "epsilon": 1e3} if trainer_class is PDUTrainer else {"retain_loss": "none"}
    if trainer_class is SatImpTrainer:
        options["beta1"] = 1.0  # with 5 a model that knows nothing has next to no gradient
    trainer = make(trainer_class, tmp_path, "vit", max_steps=20, eval_dataset={"forget": rows}, **options)
    before = trainer.evaluate()["eval_forget_loss"]
    trainer.train()
    losses = [log["forget_loss"] for log in trainer.state.log_history if "forget_loss" in log]
    if trainer_class is not SatImpTrainer:  # whose weights change the loss as they go
        assert losses[-1] < losses[0]
    if trainer_class is not PDUTrainer:  # flat logits are likelier than wrong ones
        assert trainer.evaluate()["eval_forget_loss"] > before


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (SatImpConfig, {"beta1": -1}, "beta1=-1"),
        (SatImpConfig, {"beta2": -1}, "beta2=-1"),
        (UNDIALConfig, {"beta": -1}, "beta=-1"),
        (CEUConfig, {"n_skip": -1}, "n_skip=-1"),
        (PDUConfig, {"retain_loss": "none"}, "the retain loss is the constraint"),
        (PDUConfig, {"retain_weight": 0.0}, "a positive retain_weight"),
        (PDUConfig, {"epsilon": 0.0}, "epsilon=0.0"),
        (PDUConfig, {"dual_warmup": 2.0}, "between 0 and 1"),
        (FineTuneConfig, {"retain_loss": "none"}, 'Set retain_loss="nll"'),
        (FineTuneConfig, {"retain_weight": 0.0}, "a positive retain_weight"),
        (L1SparseConfig, {"gamma": -1.0}, "gamma=-1.0"),
    ],
)
def test_options_that_cannot_work_are_refused(config, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config(str(tmp_path), use_cpu=True, **options)
