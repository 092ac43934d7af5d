"""Each loss and its gradient against its definition, worked out by another route in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_unlearn.methods import GradDiffTrainer, GradientAscentTrainer, IdkNLLTrainer, WGATrainer
from hf_unlearn.methods.idk import dpo_loss
from hf_unlearn.methods.npo import npo_loss
from hf_unlearn.methods.simnpo import simnpo_loss
from hf_unlearn.models.likelihood import TargetLogits
from hf_unlearn.training import UnlearningTrainer


LOG_PROB = st.floats(-80, 0)
BETA = st.floats(0.01, 5)


def float64(*values):
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]


def gradient(loss, *inputs):
    return [g.item() for g in torch.autograd.grad(loss, inputs)]


@given(LOG_PROB, LOG_PROB, BETA)
def test_npo(log_p, log_ref, beta):
    x, ref = float64(log_p, log_ref)
    loss = npo_loss(x, ref, beta)
    # The paper's other form: (2 / beta) ln(1 + (p / p_ref) ** beta).
    z = beta * (log_p - log_ref)
    assert loss.item() == pytest.approx(2 / beta * (max(z, 0) + math.log1p(math.exp(-abs(z)))), rel=1e-12, abs=1e-300)
    # Its gradient is ascent weighed by 2 p^beta / (p^beta + p_ref^beta).
    weight = 2 / (1 + math.exp(min(700, beta * (log_ref - log_p))))
    assert gradient(loss, x)[0] == pytest.approx(weight, rel=1e-9, abs=1e-12)


@given(BETA)
def test_npo_at_the_start(beta):
    (x,) = float64(-12.5)
    loss = npo_loss(x, x.detach(), beta)
    assert loss.item() == pytest.approx(2 / beta * math.log(2), rel=1e-12)
    assert gradient(loss, x)[0] == pytest.approx(1.0, rel=1e-12)  # that of the summed log-likelihood: plain ascent


def test_npo_tends_to_gradient_ascent_as_beta_vanishes():
    (x,) = float64(-3.0)
    ref = torch.tensor(-7.0, dtype=torch.float64)
    assert gradient(npo_loss(x, ref, 1e-6), x)[0] == pytest.approx(1.0, abs=1e-5)


@given(LOG_PROB, st.integers(1, 60), BETA, st.floats(0, 5))
def test_simnpo(log_p, length, beta, delta):
    (x,) = float64(log_p)
    loss = simnpo_loss(x, torch.tensor(length), beta, delta)
    # As the paper writes it, with its margin gamma = beta * delta: -(2 / beta) ln sigmoid(-(beta / T) ln p - gamma).
    u = -beta / length * log_p - beta * delta
    assert loss.item() == pytest.approx(2 / beta * (max(-u, 0) + math.log1p(math.exp(-abs(u)))), rel=1e-12, abs=1e-300)
    assert gradient(loss, x)[0] == pytest.approx(2 / length / (1 + math.exp(min(700, u))), rel=1e-9, abs=1e-12)


@given(LOG_PROB, LOG_PROB, LOG_PROB, LOG_PROB, BETA)
def test_dpo(w, w_ref, l, l_ref, beta):  # noqa: E741
    winner, winner_ref, loser, loser_ref = float64(w, w_ref, l, l_ref)
    loss = dpo_loss(winner, winner_ref, loser, loser_ref, beta)
    z = beta * ((w - w_ref) - (l - l_ref))
    assert loss.item() == pytest.approx(2 / beta * (max(-z, 0) + math.log1p(math.exp(-abs(z)))), rel=1e-12, abs=1e-300)
    slope = 2 / (1 + math.exp(min(700, z)))
    assert gradient(loss, winner, loser) == pytest.approx([-slope, slope], rel=1e-9, abs=1e-12)


def test_dpo_with_the_answer_as_its_own_alternate_teaches_nothing():
    (x,) = float64(-5.0)
    ref = torch.tensor(-4.0, dtype=torch.float64)
    assert gradient(dpo_loss(x, ref, x, ref, 0.1), x) == [0.0]


def targets(logits, rows):
    return TargetLogits(logits, torch.tensor([0, 2, 1]), torch.tensor(rows), max(rows) + 1)


def test_ascent_is_the_negated_mean_nll_over_tokens():
    # Two classes of logits are enough for a closed form: p = sigmoid of their difference.
    logits = torch.tensor(
        [[1.0, 0.0, -1e9], [-1e9, 2.0, 0.5], [0.0, 3.0, -1e9]], dtype=torch.float64, requires_grad=True
    )
    out = targets(logits, [0, 0, 1])
    nll = [math.log1p(math.exp(-1)), math.log1p(math.exp(1.5)), math.log1p(math.exp(-3))]
    for trainer in (GradientAscentTrainer, GradDiffTrainer):
        loss = trainer.forget_loss(None, out)
        assert loss.item() == pytest.approx(-sum(nll) / 3, rel=1e-12)
    g = torch.autograd.grad(loss, logits)[0]
    p = torch.tensor([1, -1.5, 3], dtype=torch.float64).sigmoid()
    own = g[torch.arange(3), [0, 2, 1]]
    torch.testing.assert_close(own, (1 - p) / 3)
    torch.testing.assert_close(g.sum(-1), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 2.5])
def test_weighted_ascent(beta):
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    out = targets(logits, [0, 0, 1])
    trainer = type("T", (), {"args": type("A", (), {"beta": beta})})
    loss = WGATrainer.forget_loss(trainer, out)
    p = logits.detach().softmax(-1)
    own = p[torch.arange(3), [0, 2, 1]]
    assert loss.item() == pytest.approx((own**beta * own.log()).sum().item() / 3, rel=1e-12)
    # The weight is a constant: the gradient is that of ascent, token by token, times p ** beta.
    one_hot = torch.eye(5, dtype=torch.float64)[[0, 2, 1]]
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], own[:, None] ** beta * (one_hot - p) / 3)
    if beta == 0:
        assert loss.item() == GradientAscentTrainer.forget_loss(None, out).item()


def test_refusal_loss_is_that_of_the_refusal_alone():
    refusal = targets(torch.zeros(3, 4, dtype=torch.float64), [0, 0, 1])
    assert IdkNLLTrainer.forget_loss(None, refusal).item() == pytest.approx(math.log(4))


class Arguments:
    retain_loss = "kl"


def test_kl_retain_loss():
    torch.manual_seed(0)
    model = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(5, 7, dtype=torch.float64)
    labels, rows = torch.arange(5), torch.tensor([0, 0, 1, 1, 1])
    trainer = type("T", (), {"args": Arguments})
    loss = UnlearningTrainer.retain_loss(
        trainer, TargetLogits(model, labels, rows, 2), TargetLogits(reference, labels, rows, 2)
    )
    p, q = reference.softmax(-1), model.softmax(-1)
    assert loss.item() == pytest.approx((p * (p / q).log()).sum().item() / 5, rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss, model)[0], (q - p) / 5)


def test_kl_retain_loss_is_zero_at_the_start():
    logits = torch.randn(5, 7, dtype=torch.float64)
    out = TargetLogits(logits, torch.arange(5), torch.tensor([0, 0, 1, 1, 1]), 2)
    trainer = type("T", (), {"args": Arguments})
    assert UnlearningTrainer.retain_loss(trainer, out, out).item() == 0
