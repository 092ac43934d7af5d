"""Methods that learn from a teacher: the divergences, the teachers, the phases."""

import math

import pytest
import torch
from cases import MODELS, make_trainer, text_rows, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unlearn.likelihood import TargetLogits
from hf_unlearn.methods import DistillationConfig, SCRUBConfig
from hf_unlearn.methods.divergence import kl_divergence, kl_from_uniform, without_target
from hf_unlearn.methods.fresh import fresh_copy


LOGITS = st.lists(st.floats(-8, 8), min_size=3, max_size=3)


def softmax(z):
    e = [math.exp(x - max(z)) for x in z]
    return [x / sum(e) for x in e]


@settings(deadline=None)
@given(LOGITS, LOGITS, st.floats(0.5, 4))
def test_the_divergence_and_its_gradient(a, b, t):
    p_logits = torch.tensor([a], dtype=torch.float64)
    q_logits = torch.tensor([b], dtype=torch.float64, requires_grad=True)
    value = kl_divergence(p_logits, q_logits, t)
    p, q = softmax([x / t for x in a]), softmax([x / t for x in b])
    expected = t * t * sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert value.item() >= -1e-12
    (gradient,) = torch.autograd.grad(value.sum(), q_logits)
    # In closed form T (q - p): it keeps its size whatever the temperature.
    assert gradient[0].tolist() == pytest.approx([t * (y - x) for x, y in zip(p, q, strict=True)], rel=1e-8, abs=1e-12)


def test_classes_that_neither_gives_any_probability_change_nothing():
    p, q = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    more = torch.full((4, 5), -1e4, dtype=torch.float64)
    torch.testing.assert_close(kl_divergence(torch.cat([p, more], 1), torch.cat([q, more], 1)), kl_divergence(p, q))


def test_from_uniform_in_closed_form():
    q = torch.randn(5, 7, dtype=torch.float64)
    torch.testing.assert_close(kl_from_uniform(q), -math.log(7) - q.log_softmax(-1).mean(-1))


def test_a_target_is_ruled_out_and_the_rest_is_a_distribution():
    logits = torch.randn(6, 5, dtype=torch.float64)
    targets = torch.randint(5, (6,))
    q = without_target(logits, targets).softmax(-1)
    torch.testing.assert_close(q.sum(-1), torch.ones(6, dtype=torch.float64))
    p = logits.softmax(-1)
    for row, y in enumerate(targets.tolist()):
        assert q[row, y] == 0
        others = [v for v in range(5) if v != y]
        torch.testing.assert_close(q[row, others], p[row, others] / (1 - p[row, y]))
    student = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    loss = kl_divergence(without_target(logits, targets), student).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, student.softmax(-1) - q)  # finite: 0 ln 0 is 0 in the gradient too


def part(logits, targets):
    rows = torch.arange(len(targets))
    return TargetLogits(logits, targets, rows, len(targets))


@pytest.mark.parametrize("kind", ["llama", "vit"])
def test_the_bad_teacher_knows_nothing_and_does_not_learn(kind, tmp_path):
    trainer = make_trainer("bad_teacher", tmp_path, kind, bad_teacher="random", max_steps=2)
    start = weights(trainer.model)
    trainer.prepare()
    teacher = trainer.teacher
    before = weights(teacher)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    random = [name for name in before if before[name].std() > 0]
    assert random and all(not torch.equal(before[name], start[name]) for name in random)
    trainer._is_prepared = True
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in weights(teacher).items())


def test_text_needs_no_second_network_and_images_get_one(tmp_path):
    text = make_trainer("bad_teacher", tmp_path, "llama", max_steps=1)
    text.train()
    assert text.teacher is None
    images = make_trainer("bad_teacher", tmp_path, "vit", max_steps=1)
    images.train()
    assert images.teacher is not None
    logits = torch.randn(3, 4, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2])
    torch.testing.assert_close(
        text.forget_loss(part(logits, targets)), kl_from_uniform(logits).mean(), rtol=1e-12, atol=0
    )


def test_a_fresh_network_shares_nothing_and_is_a_function_of_the_seed():
    from tiny import tiny_gpt2

    model = tiny_gpt2(seed=3)
    state = torch.get_rng_state()
    a, b, c = fresh_copy(model, 1), fresh_copy(model, 1), fresh_copy(model, 2)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in weights(a).items():
        assert torch.equal(value, weights(b)[name])
        if value.std() > 0:  # norms and biases start at constants
            assert not torch.equal(value, weights(c)[name]) and not torch.equal(value, weights(model)[name])
    assert a.lm_head.weight is a.transformer.wte.weight  # tied as it was


# SCRUB


def test_phases_alternate_and_end_on_the_retain_set(tmp_path):
    trainer = make_trainer("scrub", tmp_path, max_steps=8, max_phases=2)
    assert [trainer.phase(epoch) for epoch in range(6)] == ["forget", "retain", "forget", "retain", "retain", "retain"]
    trainer.train()
    terms = [{key for key in log if key in ("forget_loss", "retain_loss")} for log in trainer.state.log_history[:-1]]
    expected = ["forget", "retain", "forget", "retain", "retain", "retain", "retain", "retain"]
    assert terms == [{f"{name}_loss"} for name in expected]


def test_a_run_that_would_end_away_from_the_teacher_is_refused(tmp_path):
    with pytest.raises(ValueError, match="followed by one on the retain set"):
        SCRUBConfig(str(tmp_path), use_cpu=True, num_train_epochs=3, max_phases=2)
    with pytest.raises(ValueError, match="would end in epoch 3"):
        make_trainer("scrub", tmp_path, max_steps=3, max_phases=2).train()
    with pytest.raises(ValueError, match="stop_when_forgotten"):
        make_trainer("scrub", tmp_path, stop_when_forgotten=True)


def test_the_losses_of_scrub(tmp_path):
    trainer = make_trainer("scrub", tmp_path, kl_weight=0.5, nll_weight=2.0, temperature=3.0)
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    teacher, targets = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 4, 2, 2])
    p, log_p, log_q = ((teacher / 3).softmax(-1), (teacher / 3).log_softmax(-1), (logits / 3).log_softmax(-1))
    kl = 9 * (p * (log_p - log_q)).sum(-1).mean()
    nll = torch.nn.functional.cross_entropy(logits, targets)
    ours = trainer.forget_loss(part(logits, targets), part(teacher, targets))
    torch.testing.assert_close(ours, -kl)
    ours = trainer.retain_loss(part(logits, targets), part(teacher, targets))
    torch.testing.assert_close(ours, 0.5 * kl + 2 * nll)
    grads = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (ours, 0.5 * kl + 2 * nll)]
    torch.testing.assert_close(*grads)


def test_rewind_ends_with_the_epoch_nearest_to_data_never_trained_on(tmp_path):
    sets = {"forget": text_rows(8), "holdout": text_rows(8, offset=200)}
    options = {"max_steps": -1, "num_train_epochs": 6, "max_phases": 2, "eval_dataset": sets, "learning_rate": 0.2}
    trainer = make_trainer("scrub", tmp_path, rewind=True, **options)
    assert trainer.args.load_best_model_at_end and trainer.args.metric_for_best_model == "forget_gap"
    trainer.train()
    gaps = {log["step"]: log["eval_forget_gap"] for log in trainer.state.log_history if "eval_forget_gap" in log}
    best = min(gaps, key=gaps.get)
    saved = type(trainer.model).from_pretrained(tmp_path / f"checkpoint-{best}", dtype="auto")
    assert all(torch.equal(value, weights(saved)[name]) for name, value in weights(trainer.model).items())
    with pytest.raises(ValueError, match="forget_gap"):
        make_trainer("scrub", tmp_path, rewind=True, num_train_epochs=6, max_steps=-1)


# Distillation


@pytest.mark.parametrize("on_forget", ["suppressed", "uniform"])
def test_the_losses_of_distillation(on_forget, tmp_path):
    trainer = make_trainer("distillation", tmp_path, on_forget=on_forget, temperature=1.0)
    logits, teacher = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    targets = torch.tensor([0, 4, 2, 2])
    if on_forget == "uniform":
        q = torch.full((4, 5), 0.2, dtype=torch.float64)
    else:
        q = teacher.softmax(-1).scatter(1, targets[:, None], 0.0)
        q = q / q.sum(-1, keepdim=True)
    expected = (torch.special.xlogy(q, q) - q * logits.log_softmax(-1)).sum(-1).mean()
    asked = {} if on_forget == "uniform" else {"reference": part(teacher, targets)}
    torch.testing.assert_close(trainer.forget_loss(part(logits, targets), **asked), expected)
    p = teacher.softmax(-1)
    expected = (p * (teacher.log_softmax(-1) - logits.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(trainer.retain_loss(part(logits, targets), part(teacher, targets)), expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "vit"])
def test_a_fresh_student_starts_anew_and_the_teacher_is_the_model_as_it_was(kind, tmp_path):
    trainer = make_trainer("distillation", tmp_path, kind, fresh_student=True, max_steps=1)
    start = weights(MODELS[kind]().double())
    student = weights(trainer.model)
    for name, value in start.items():
        if student[name].std() > 0 or value.std() > 0:
            assert not torch.equal(student[name], value), name
        assert torch.equal(trainer._reference._start[name], value), name


def test_a_fresh_student_has_no_weight_of_the_teacher(tmp_path):
    with pytest.raises(ValueError, match="fresh_student"):
        make_trainer("distillation", tmp_path, fresh_student=True, trainable_layers=[1]).train()
    with pytest.raises(ValueError, match="learns from the teacher on the retain set"):
        DistillationConfig(str(tmp_path), use_cpu=True, retain_loss="nll")
