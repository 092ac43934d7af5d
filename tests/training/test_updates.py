"""Update rules: on flat vectors against their definition, and in runs where accumulation and resuming change nothing."""

from types import SimpleNamespace

import pytest
import torch
from cases import make_trainer, weights
from hypothesis import given
from hypothesis import strategies as st

from hf_unlearn.training.checkpoints import load_state
from hf_unlearn.training.updates import GRU, Orthogonal, Project, dot


VECTOR = st.lists(st.floats(-10, 10), min_size=6, max_size=6).map(lambda x: torch.tensor(x, dtype=torch.float64))
# Far enough from zero for a tolerance that does not depend on the example.
NONZERO = VECTOR.filter(lambda x: x.norm() > 0.1)
MODELS = ["llama", "gpt2", "vit"]


def cut(x):
    return [x[:1], x[1:3].reshape(2, 1), x[3:]]


def joined(xs):
    return torch.cat([x.flatten() for x in xs])


def step(rule, f, r):
    return joined(rule(cut(f), cut(r)))


def gru(gamma):
    return GRU(SimpleNamespace(gru_gamma=gamma))


# Formulas.


@given(NONZERO, NONZERO)
def test_project_against_flat_vectors(f, r):
    result = step(Project(None), f, r)
    expected = f - (f @ r) / (r @ r) * r + r if f @ r < 0 else f + r
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)
    # To first order, the forget part of a descent step does not raise the retain loss.
    assert ((result - r) @ r).item() >= -1e-9 * (1 + f @ f + r @ r).item()


@given(NONZERO, NONZERO)
def test_orthogonal_parts_do_not_meet_the_other_gradient(f, r):
    result = step(Orthogonal(None), f, r)
    # Least squares as an independent projection: the residual of each on the other.
    residual = lambda a, b: a - b * torch.linalg.lstsq(b[:, None], a[:, None]).solution.item()  # noqa: E731
    forget, retain = residual(f, r), residual(r, f)
    torch.testing.assert_close(result, forget + retain, rtol=1e-9, atol=1e-9)
    scale = 1e-9 * (1 + f @ f + r @ r)
    # retain - r lies along f, forget - f along r: so each inner product of the result shows one part alone.
    assert abs((result - retain) @ r) < scale and abs((result - forget) @ f) < scale


@given(NONZERO, st.floats(-3, 3).filter(lambda x: abs(x) > 0.1))
def test_orthogonal_cancels_parallel_gradients(r, scale):
    assert step(Orthogonal(None), scale * r, r).abs().max() < 1e-9


@given(VECTOR, st.sampled_from([Project, Orthogonal, GRU]))
def test_without_one_gradient_the_other_is_the_step(x, rule_class):
    zero, args = torch.zeros_like(x), SimpleNamespace(gru_gamma=0.5)
    assert torch.equal(step(rule_class(args), x, zero), x)
    assert torch.equal(step(rule_class(args), zero, x), x)


def test_project_leaves_agreeing_gradients_and_removes_all_of_an_opposite_one():
    r = torch.tensor([3.0, 4.0])
    assert torch.equal(Project(None)([2 * r], [r])[0], 3 * r)
    assert torch.allclose(Project(None)([-2 * r], [r])[0], r)


@given(st.lists(st.tuples(NONZERO, NONZERO), min_size=1, max_size=4))
def test_gru_of_gamma_1_is_project(steps):
    rule = gru(1.0)
    for f, r in steps:
        torch.testing.assert_close(step(rule, f, r), step(Project(None), f, r), rtol=1e-12, atol=1e-12)


@given(st.lists(st.tuples(NONZERO, NONZERO), min_size=2, max_size=5), st.floats(0.05, 0.95))
def test_gru_projects_on_the_running_average(steps, gamma):
    rule = gru(gamma)
    for t, (f, r) in enumerate(steps):
        # Written out: the first gradient has what the later ones leave.
        shares = [(1 - gamma) ** t] + [gamma * (1 - gamma) ** (t - i) for i in range(1, t + 1)]
        assert sum(shares) == pytest.approx(1)
        m = sum(share * steps[i][1] for i, share in enumerate(shares))
        if abs(f @ m) < 1e-6 or m.norm() < 1e-3:
            step(rule, f, r)  # the sign, or the direction, is rounding
            continue
        expected = f - (f @ m) / (m @ m) * m + r if f @ m < 0 else f + r
        torch.testing.assert_close(step(rule, f, r), expected, rtol=1e-7, atol=1e-7)


def test_gru_keeps_its_average_when_gradients_are_reused():
    rule, gradient = gru(0.5), [torch.ones(3)]
    rule([torch.ones(3)], gradient)
    gradient[0].zero_()  # as an optimizer that clears gradients in place would
    assert torch.equal(rule.state()["gru.0"], torch.ones(3))


def test_dot_accumulates_in_float64():
    # 1e8 + 1 - 1e8 is 0 in float32.
    x = torch.tensor([1e4, 1.0, 1e4])
    y = torch.tensor([1e4, 1.0, -1e4])
    assert dot([x], [y]).item() == 1.0


@pytest.mark.parametrize("rule_class", [Project, Orthogonal, GRU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rules_keep_the_dtype(dtype, rule_class):
    rule = rule_class(SimpleNamespace(gru_gamma=0.8))
    assert rule([torch.ones(2, dtype=dtype)], [-torch.ones(2, dtype=dtype)])[0].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 0.01, 1e-4])
def test_a_small_retain_gradient_is_respected_in_every_dtype(size, dtype):
    """Next to one that forgets, the gradient of a loss near its minimum is small, but it has a direction."""
    f, r = torch.randn(2, 4000, dtype=torch.float64)
    f, r = (f - r).to(dtype), (size * r).to(dtype)
    cosine = lambda a, b: torch.cosine_similarity(a.double(), b.double(), dim=0).item()  # noqa: E731
    assert cosine(f, r) < -0.5
    assert abs(cosine(Project(None)([f], [r])[0].double() - r.double(), r)) < (
        0.01 if dtype == torch.bfloat16 else 1e-5
    )


# Runs.


def train(folder, **arguments):
    trainer = make_trainer("graddiff", folder, **arguments)
    trainer.train()
    return trainer


@pytest.mark.parametrize("rule", ["project", "orthogonal", "gru", "subspace"])
@pytest.mark.parametrize("model", MODELS)
def test_accumulation_changes_nothing(model, rule, tmp_path):
    arguments = {"model": model, "update_rule": rule, "gru_gamma": 0.5, "subspace_energy": 0.8}
    once = weights(train(tmp_path, **arguments).model)
    often = weights(train(tmp_path, **arguments, per_device_train_batch_size=4, gradient_accumulation_steps=2).model)
    for name, value in once.items():
        torch.testing.assert_close(value, often[name], rtol=1e-6, atol=1e-9)
    # Nor is it the plain sum, as it would be for a rule that is not called.
    plain = weights(train(tmp_path, model=model).model)
    assert any((value - plain[name]).abs().max() > 1e-5 for name, value in once.items())


@pytest.mark.parametrize("model", MODELS)
def test_the_rule_sees_the_gradients_of_the_whole_step(model, tmp_path):
    """One step of SGD, against gradients of two separate passes."""
    for rule, combine in (("project", Project(None)), ("orthogonal", Orthogonal(None))):
        trainer = make_trainer(
            "graddiff", tmp_path, model=model, update_rule=rule, max_steps=1, max_grad_norm=0.0, retain_weight=0.5
        )
        start = [p.detach().clone() for p in trainer.model.parameters()]
        batch = next(iter(trainer.get_train_dataloader()))
        apart = []
        for index in (0, 1):
            loss = trainer.losses(trainer.model, batch, None)[index]
            apart.append([g.detach() for g in torch.autograd.grad(loss, list(trainer.model.parameters()))])
        trainer.begin_run(0)
        trainer.train()
        for before, g, after in zip(start, combine(*apart), trainer.model.parameters(), strict=True):
            torch.testing.assert_close(after.detach(), before - 0.05 * g, rtol=1e-6, atol=1e-9)


def test_gru_stopped_and_resumed_equals_not_stopped(tmp_path):
    arguments = {
        "update_rule": "gru",
        "gru_gamma": 0.3,
        "max_steps": 6,
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    through = train(tmp_path / "a", save_strategy="steps", save_steps=3, **arguments)
    checkpoint = tmp_path / "a" / "checkpoint-3"
    assert len(load_state(checkpoint)) == len(list(through.model.parameters()))
    resumed = make_trainer("graddiff", tmp_path / "b", **arguments)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 6
    for name, value in weights(through.model).items():
        assert torch.equal(value, weights(resumed.model)[name]), name
    # The average is needed for that: without it the resumed run is another one.
    (checkpoint / "unlearning_state.safetensors").unlink()
    without = make_trainer("graddiff", tmp_path / "c", **arguments)
    without.train(resume_from_checkpoint=str(checkpoint))
    assert any(not torch.equal(value, weights(without.model)[name]) for name, value in weights(through.model).items())
