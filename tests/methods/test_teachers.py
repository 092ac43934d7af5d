"""Methods that learn from a teacher: Bad Teacher, SCRUB and distillation."""

import math
from copy import deepcopy
from functools import cache, partial

import pytest
import torch
from cases import image_rows, make_trainer, text_rows, weights
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit

from hf_unlearn.data import UnlearningCollator, encode_dataset
from hf_unlearn.methods import METHODS, BadTeacherConfig, DistillationConfig, SCRUBConfig, SCRUBTrainer
from hf_unlearn.methods.teachers import fresh_copy, kl_divergence, kl_from_uniform, without_target
from hf_unlearn.models.likelihood import TargetLogits, target_logits


LOGITS = st.lists(st.floats(-30, 30), min_size=3, max_size=3)
TEMPERATURE = st.floats(0.5, 5)
MODELS = {
    "llama": tiny_llama,
    "tied llama": partial(tiny_llama, tie_word_embeddings=True),
    "gpt2": partial(tiny_gpt2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "vit": tiny_vit,
}


ONE_STEP = {"max_steps": 1, "max_grad_norm": 0.0}


def trained(kind):
    """A model whose every tensor is unlike any initialisation: norms and biases have moved, too."""
    model = MODELS[kind]().double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def rows_of(kind, n, offset=0):
    return image_rows(n, offset) if kind == "vit" else text_rows(n, offset)


def answers(model, rows):
    """Logits and targets of the answers, one row after the other and without padding."""
    logits, targets = [], []
    for row in encode_dataset(rows, tiny_tokenizer()):
        if "pixel_values" in row:
            logits.append(model(pixel_values=row["pixel_values"][None]).logits)
            targets.append(row["labels"])
            continue
        out = model(input_ids=torch.as_tensor(row["input_ids"])[None]).logits[0]
        for i, label in enumerate(row["labels"]):
            if label != -100:
                logits.append(out[i - 1 : i])
                targets.append(int(label))
    return torch.cat(logits), torch.tensor(targets)


def mean_kl(p, q, temperature=1.0):
    """Mean over the rows of T^2 KL(p_T || q_T), from logits, written with probabilities."""
    p, q = (p.detach() / temperature).softmax(-1), (q / temperature).softmax(-1)
    return temperature**2 * (p * (p / q).log()).sum(-1).mean()


def stepped(model, loss, rate):
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return {name: p.detach() - rate * g for (name, p), g in zip(model.named_parameters(), gradients, strict=True)}


def make(method, folder, kind="llama", **arguments):
    model = arguments.pop("network", None)
    if model is None:
        model = trained(kind)
    if kind != "vit":
        return make_trainer(method, folder, model, **arguments)
    # By its name, so that the rows are images; then with the weights of the model that was asked for.
    ref_model = arguments.pop("ref_model", None)
    options = {"output_dir": str(folder), "use_cpu": True, "report_to": "none", "optim": "sgd", "disable_tqdm": True}
    options |= {"learning_rate": 0.05, "lr_scheduler_type": "constant", "per_device_train_batch_size": 8, "seed": 3}
    options |= {"max_steps": 2, "save_strategy": "no"}
    forget, retain = arguments.pop("forget", 8), arguments.pop("retain", 20)
    config = METHODS[method].config_class(**(options | arguments))
    return METHODS[method](model, config, image_rows(forget), image_rows(retain, 100), ref_model=ref_model)


# The divergence


@given(LOGITS, LOGITS, TEMPERATURE)
def test_kl_divergence(p_logits, q_logits, temperature):
    p, q = (torch.tensor([z], dtype=torch.float64) for z in (p_logits, q_logits))
    q.requires_grad_()
    loss = kl_divergence(p, q, temperature)

    def log_softmax(z):
        z = [x / temperature for x in z]
        return [x - max(z) - math.log(sum(math.exp(y - max(z)) for y in z)) for x in z]

    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    expected = temperature**2 * sum(math.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True))
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-11)
    # T^2 dKL / dz = T (q - p): towards the teacher, of the same size at any temperature.
    slope = [temperature * (math.exp(b) - math.exp(a)) for a, b in zip(log_p, log_q, strict=True)]
    assert torch.autograd.grad(loss, q)[0][0].tolist() == pytest.approx(slope, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("nothing", [-torch.inf, -1e9])
def test_classes_without_probability_change_nothing(nothing):
    p, q = torch.randn(2, 4, 5, dtype=torch.float64)
    more = torch.full((4, 7), nothing, dtype=torch.float64)
    short, long = q.clone().requires_grad_(), torch.cat([q, more], -1).requires_grad_()
    few = kl_divergence(p, short, 1.5)
    many = kl_divergence(torch.cat([p, more], -1), long, 1.5)
    torch.testing.assert_close(many, few, rtol=1e-13, atol=0)
    (g,) = torch.autograd.grad(few.sum(), short)
    (g_long,) = torch.autograd.grad(many.sum(), long)
    torch.testing.assert_close(g_long[:, :5], g, rtol=1e-12, atol=1e-15)
    assert (g_long[:, 5:] == 0).all()


def test_what_the_teacher_rules_out_is_unlearned_with_a_finite_gradient():
    p = torch.tensor([[0.0, math.log(3), -torch.inf]], dtype=torch.float64)
    q = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    loss = kl_divergence(p, q)
    assert loss.item() == pytest.approx(0.25 * math.log(0.75) + 0.75 * math.log(2.25), rel=1e-12)
    assert torch.autograd.grad(loss, q)[0][0].tolist() == pytest.approx([1 / 3 - 0.25, 1 / 3 - 0.75, 1 / 3])


@given(LOGITS, TEMPERATURE)
def test_kl_from_uniform(logits, temperature):
    q = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
    loss = kl_from_uniform(q, temperature)
    expected = -math.log(3) - (q / temperature).log_softmax(-1).mean().item()
    assert loss.item() == pytest.approx(temperature**2 * expected, rel=1e-10, abs=1e-11)
    slope = temperature * ((q / temperature).softmax(-1) - 1 / 3)
    torch.testing.assert_close(torch.autograd.grad(loss, q)[0], slope.detach(), rtol=1e-9, atol=1e-12)


@given(LOGITS, st.integers(0, 2))
def test_a_teacher_without_the_target_is_a_distribution(logits, target):
    # Also where the target had all of the probability: 30 against -30 leaves 1e-26 for the rest.
    z = torch.tensor([logits], dtype=torch.float64)
    p = without_target(z, torch.tensor([target])).softmax(-1)[0]
    assert p[target] == 0 and p.sum().item() == pytest.approx(1, rel=1e-12)
    a, b = (i for i in range(3) if i != target)
    assert (p[a].log() - p[b].log()).item() == pytest.approx(logits[a] - logits[b], rel=1e-9, abs=1e-9)


# Bad Teacher


@pytest.mark.parametrize("kind", ["llama", "gpt2", "vit"])
@pytest.mark.parametrize("teacher", ["random", "uniform", "given"])
def test_a_step_of_bad_teacher(kind, teacher, tmp_path):
    model, bad = trained(kind), MODELS[kind](seed=9).double()
    options = {"ref_model": deepcopy(bad)} if teacher == "given" else {"bad_teacher": teacher}
    trainer = make("bad_teacher", tmp_path, kind, network=deepcopy(model), temperature=2.0, **ONE_STEP, **options)
    forget = rows_of(kind, 8)
    q, _ = answers(model, forget)
    if teacher == "uniform":
        p = torch.zeros_like(q)
        assert trainer.teacher is None
    else:
        assert (trainer.teacher is bad) is False and not trainer.teacher.training
        p, _ = answers(trainer.teacher if teacher == "random" else bad, forget)
    # The good teacher is the start, also where a bad one was given: at the start it asks for nothing.
    expected = stepped(model, mean_kl(p, q, 2.0), 0.05)
    teacher_before = None if trainer.teacher is None else weights(trainer.teacher)
    trainer.train()
    for name, value in weights(trainer.model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-7, atol=1e-10)
    if teacher_before is not None:
        assert all(torch.equal(value, teacher_before[name]) for name, value in weights(trainer.teacher).items())
        assert not any(p.requires_grad or p.grad is not None for p in trainer.teacher.parameters())
        assert not trainer.teacher.training


def test_who_the_bad_teacher_is_unless_one_says(tmp_path):
    assert make("bad_teacher", tmp_path).teacher is None
    images = make("bad_teacher", tmp_path, "vit")
    again = make("bad_teacher", tmp_path, "vit")
    other = make("bad_teacher", tmp_path, "vit", seed=4)
    teachers = [weights(trainer.teacher) for trainer in (images, again, other)]
    drawn = [name for name, value in teachers[0].items() if value.std() > 0]
    assert drawn and all(torch.equal(teachers[0][name], teachers[1][name]) for name in drawn)
    assert not any(torch.equal(teachers[0][name], teachers[2][name]) for name in drawn)
    given = tiny_llama(seed=9).double()
    assert make("bad_teacher", tmp_path, ref_model=given).teacher is given


def test_bad_teacher_refuses(tmp_path):
    with pytest.raises(ValueError, match="which is a bad teacher too"):
        make("bad_teacher", tmp_path, ref_model=tiny_llama().double(), bad_teacher="uniform")
    with pytest.raises(ValueError, match="bad_teacher='worst'"):
        BadTeacherConfig(output_dir=str(tmp_path), bad_teacher="worst")
    with pytest.raises(ValueError, match="temperature"):
        BadTeacherConfig(output_dir=str(tmp_path), temperature=0.0)


def test_bad_teacher_on_an_adapter_given_a_teacher_keeps_to_the_base(tmp_path):
    adapter = LoraConfig(r=2, target_modules="all-linear")
    trainer = make("bad_teacher", tmp_path, ref_model=tiny_llama(seed=9).double(), peft_config=adapter)
    assert trainer._reference is not None and trainer._ref_model is None
    trainer.train()
    row = UnlearningCollator(0)(list(encode_dataset(text_rows(3, 100), tiny_tokenizer())))
    expected = target_logits(trained("llama"), row).logits
    torch.testing.assert_close(trainer._reference.target_logits(trainer.model, row).logits, expected)


# SCRUB


def test_scrub_losses():
    p, q = torch.randn(2, 3, 5, dtype=torch.float64)
    q.requires_grad_()
    labels, rows = torch.tensor([0, 2, 1]), torch.tensor([0, 0, 1])
    model, teacher = (TargetLogits(z, labels, rows, 2) for z in (q, p))
    arguments = {"temperature": 2.0, "kl_weight": 0.5, "nll_weight": 0.25}
    trainer = type("T", (), {"args": type("A", (), arguments)})
    loss = SCRUBTrainer.forget_loss(trainer, model, teacher)
    assert loss.item() == pytest.approx(-mean_kl(p, q, 2.0).item(), rel=1e-12)
    p2, q2 = (p / 2).softmax(-1), (q / 2).softmax(-1).detach()
    torch.testing.assert_close(torch.autograd.grad(loss, q)[0], 2 * (p2 - q2) / 3)  # away from the teacher
    loss = SCRUBTrainer.retain_loss(trainer, model, teacher)
    nll = -q.detach().softmax(-1)[torch.arange(3), labels].log().mean().item()
    assert loss.item() == pytest.approx(0.5 * mean_kl(p, q, 2.0).item() + 0.25 * nll, rel=1e-12)
    one_hot, q1 = torch.eye(5, dtype=torch.float64)[labels], q.detach().softmax(-1)
    torch.testing.assert_close(torch.autograd.grad(loss, q)[0], (0.5 * 2 * (q2 - p2) + 0.25 * (q1 - one_hot)) / 3)


@pytest.mark.parametrize("kind", ["llama", "vit"])
def test_scrub_alternates_and_ends_on_the_retain_set(kind, tmp_path):
    trainer = make("scrub", tmp_path, kind, max_steps=-1, num_train_epochs=6, max_phases=2, logging_steps=1)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    seen = ["forget" if "forget_loss" in log else "retain" for log in logs]
    assert seen == ["forget", "retain", "forget", "retain", "retain", "retain"]
    assert not any({"forget_loss", "retain_loss"} <= set(log) for log in logs)
    assert logs[0]["forget_loss"] == pytest.approx(0, abs=1e-12)  # the model is its teacher still
    assert logs[2]["forget_loss"] < 0


def test_scrub_refuses_to_end_on_the_forget_set(tmp_path):
    with pytest.raises(ValueError, match="at least 6 epochs"):
        SCRUBConfig(output_dir=str(tmp_path), num_train_epochs=5)
    for steps in (1, 3, 5):
        with pytest.raises(ValueError, match=f"epoch {steps}, which is on the forget set"):
            make("scrub", tmp_path, max_steps=steps)
    for steps in (2, 4, 6, 7):
        make("scrub", tmp_path, max_steps=steps)
    # 3 batches of 2 in 2 steps, the last of which is short: an epoch has 4 rows in one step and 2 in the other.
    short = {"forget": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    make("scrub", tmp_path, max_steps=3, **short)
    with pytest.raises(ValueError, match="epoch 3, which"):
        make("scrub", tmp_path, max_steps=5, **short)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retain_loss": "none"}, "every second phase"),
        ({"retain_weight": 0.0}, "every second phase"),
        ({"kl_weight": -1.0}, "not be negative"),
        ({"stop_when_forgotten": True}, "rewind=True"),
        ({"update_rule": "project"}, "one loss at a time"),
    ],
)
def test_scrub_refuses(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SCRUBConfig(output_dir=str(tmp_path), **options)


def test_scrub_in_micro_batches(tmp_path):
    kind = "gpt2"
    options = {"max_steps": -1, "num_train_epochs": 4, "max_phases": 1}
    once = make("scrub", tmp_path, kind, **options)
    twice = make("scrub", tmp_path, kind, per_device_train_batch_size=4, gradient_accumulation_steps=2, **options)
    once.train()
    twice.train()
    assert_same_weights(weights(once.model), weights(twice.model))


def assert_same_weights(first, second):
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-6, atol=1e-9)


def test_rewind_ends_with_the_checkpoint_nearest_to_data_never_trained_on(tmp_path):
    network, sets = memorised("llama")
    config = SCRUBConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        num_train_epochs=8,
        max_phases=3,
        rewind=True,
        learning_rate=4e-3,
        per_device_train_batch_size=8,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SCRUBTrainer(
        deepcopy(network), config, sets["forget"], sets["retain"], sets, processing_class=tiny_tokenizer()
    )
    trainer.train()
    gaps = {log["step"]: log["eval_forget_gap"] for log in trainer.state.log_history if "eval_forget_gap" in log}
    # One step an epoch: ends of phases on the retain set alone are looked at and kept.
    assert sorted(gaps) == [2, 4, 6, 7, 8]
    assert sorted(int(folder.name.split("-")[1]) for folder in tmp_path.glob("checkpoint-*")) == sorted(gaps)
    best = min(gaps, key=gaps.get)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    saved = type(network).from_pretrained(tmp_path / f"checkpoint-{best}", dtype="auto")
    assert all(torch.equal(value, weights(saved)[name]) for name, value in weights(trainer.model).items())
    # From what is evaluated, not from what was logged: the gap of the model that was kept.
    losses = {}
    for name in ("forget", "holdout"):
        logits, targets = answers(trainer.model.eval(), sets[name])
        losses[name] = torch.nn.functional.cross_entropy(logits, targets).item()
    assert abs(losses["forget"] - losses["holdout"]) == pytest.approx(gaps[best], rel=1e-5)


def test_rewind_needs_data_never_trained_on(tmp_path):
    with pytest.raises(ValueError, match='"forget" and "holdout"'):
        make("scrub", tmp_path, max_steps=-1, num_train_epochs=6, rewind=True)


# Distillation


@pytest.mark.parametrize("kind", ["llama", "gpt2", "vit"])
@pytest.mark.parametrize("on_forget", ["suppressed", "uniform", "random", "none"])
def test_a_step_of_distillation(kind, on_forget, tmp_path):
    # From new weights, so that the retain loss has a gradient at the first step too.
    model = trained(kind)
    options = {"on_forget": on_forget, "fresh_student": True, "temperature": 1.5, "retain": 8} | ONE_STEP
    trainer = make("distillation", tmp_path, kind, network=deepcopy(model), **options)
    student = fresh_copy(model, seed=3)
    assert all(torch.equal(value, weights(student)[name]) for name, value in weights(trainer.model).items())
    loss = mean_kl(answers(model, rows_of(kind, 8, 100))[0], answers(student, rows_of(kind, 8, 100))[0], 1.5)
    q, targets = answers(student, rows_of(kind, 8))
    p = answers(model, rows_of(kind, 8))[0].detach()
    if on_forget == "suppressed":
        p = (p / 1.5).softmax(-1)
        p[torch.arange(len(p)), targets] = 0
        p, q = p / p.sum(-1, keepdim=True), (q / 1.5).log_softmax(-1)
        loss = loss + 1.5**2 * (torch.special.xlogy(p, p) - p * q).sum(-1).mean()
    elif on_forget != "none":
        p = torch.zeros_like(p) if on_forget == "uniform" else answers(trainer.teacher, rows_of(kind, 8))[0]
        loss = loss + mean_kl(p, q, 1.5)
    expected = stepped(student, loss, 0.05)
    trainer.train()
    for name, value in weights(trainer.model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", list(MODELS))
def test_a_fresh_student_has_nothing_of_the_teacher(kind, tmp_path):
    model = trained(kind)
    trainer = make("distillation", tmp_path, kind, network=deepcopy(model), fresh_student=True)
    before, student = weights(model), weights(trainer.model)
    assert before.keys() == student.keys()
    for name, value in student.items():
        assert (value != before[name]).all(), name
    if kind in ("tied llama", "gpt2"):
        assert trainer.model.get_output_embeddings().weight is trainer.model.get_input_embeddings().weight
    # What the teacher says is what the model said.
    batch = UnlearningCollator(0)(list(encode_dataset(rows_of(kind, 3), tiny_tokenizer())))
    said = trainer._reference.target_logits(trainer.model, batch).logits
    assert torch.equal(said, target_logits(model, batch).logits)
    assert all(torch.equal(value, weights(trainer.model)[name]) for name, value in student.items())
    other = weights(make("distillation", tmp_path, kind, fresh_student=True, seed=4).model)
    assert any(not torch.equal(student[name], other[name]) for name in student)


@pytest.mark.parametrize("kind", ["llama", "vit"])
def test_a_student_that_never_sees_the_forget_set(kind, tmp_path):
    trainer = make("distillation", tmp_path, kind, on_forget="none", max_steps=-1, num_train_epochs=1, retain=20)
    encoded = encode_dataset(rows_of(kind, 28), tiny_tokenizer())
    key = "pixel_values" if kind == "vit" else "input_ids"
    retain = [torch.as_tensor(row[key]) for row in encode_dataset(rows_of(kind, 20, 100), tiny_tokenizer())]
    forget = [torch.as_tensor(encoded[i][key]) for i in range(8)]
    seen = []

    def look(module, args, kwargs):
        for i, row in enumerate(kwargs[key]):
            seen.append(row if kind == "vit" else row[kwargs["attention_mask"][i].bool()])

    hook = trainer.model.register_forward_pre_hook(look, with_kwargs=True)
    trainer.train()
    hook.remove()
    assert trainer.state.global_step == 3  # 20 rows in batches of 8

    def among(row, rows):
        return sum(row.shape == other.shape and torch.equal(row, other) for other in rows)

    assert not any(among(row, seen) for row in forget)
    assert [among(row, seen) for row in retain] == [2] * 20  # by the student and by the teacher


@pytest.mark.parametrize(("on_forget", "kind"), [("uniform", "vit"), ("random", "llama"), ("none", "gpt2")])
def test_distillation_in_micro_batches(kind, on_forget, tmp_path):
    options = {"on_forget": on_forget, "fresh_student": on_forget == "none"}
    once = make("distillation", tmp_path, kind, **options)
    twice = make(
        "distillation", tmp_path, kind, per_device_train_batch_size=4, gradient_accumulation_steps=2, **options
    )
    once.train()
    twice.train()
    assert_same_weights(weights(once.model), weights(twice.model))


def test_a_fresh_student_resumes(tmp_path):
    options = {"fresh_student": True, "max_steps": 4, "optim": "adamw_torch", "learning_rate": 1e-3}
    through = make("distillation", tmp_path / "a", save_strategy="steps", save_steps=2, **options)
    through.train()
    resumed = make("distillation", tmp_path / "b", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert all(torch.equal(value, weights(resumed.model)[name]) for name, value in weights(through.model).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_forget": "silence"}, "on_forget='silence'"),
        ({"retain_loss": "nll"}, "learns from the teacher"),
        ({"retain_weight": 0.0}, "learns from the teacher"),
        ({"temperature": -1.0}, "temperature"),
        ({"on_forget": "none", "update_rule": "project"}, "no two gradients"),
        ({"fresh_student": True, "saliency": 0.5}, "near those of the teacher"),
        ({"fresh_student": True, "singular_rank": 2}, "near those of the teacher"),
        ({"fresh_student": True, "update_rule": "subspace"}, "near those of the teacher"),
        ({"fresh_student": True, "eval_strategy": "epoch"}, "stop_when_forgotten=False"),
    ],
)
def test_distillation_refuses(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        DistillationConfig(output_dir=str(tmp_path), **options)


@pytest.mark.parametrize(
    "options", [{"trainable_layers": [1]}, {"peft_config": LoraConfig(r=2, target_modules="all-linear")}]
)
def test_a_fresh_student_is_fresh_as_a_whole(options, tmp_path):
    model = trained("llama")
    before = weights(model)
    with pytest.raises(ValueError, match="would stay the teacher's"):
        make("distillation", tmp_path, network=model, fresh_student=True, **options)
    if "trainable_layers" in options:  # refused before anything was drawn anew
        assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


# Forgetting


@cache
def memorised(kind):
    """A model that knows its forget and retain rows by heart, and those rows beside others it never saw."""
    network = MODELS[kind]().double()
    sets = {"forget": rows_of(kind, 8), "retain": rows_of(kind, 8, 100), "holdout": rows_of(kind, 8, 300)}
    inputs = UnlearningCollator(0)(list(encode_dataset([*sets["forget"], *sets["retain"]], tiny_tokenizer())))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(120):
        out = target_logits(network, inputs)
        out.token_mean(-out.log_probs).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.eval(), sets


# Beside the defaults, which tests/test_methods.py has.
FORGETTING = {
    "bad_teacher given": {},
    "distillation": {"on_forget": "uniform"},
    "distillation random": {"on_forget": "random"},
    "distillation fresh": {"fresh_student": True, "on_forget": "none", "learning_rate": 3e-3},
    "distillation fresh suppressed": {"fresh_student": True, "learning_rate": 3e-3},
}
CASES = [(case, "vit") for case in FORGETTING] + [
    (case, "llama") for case in ("bad_teacher given", "distillation fresh")
]


@pytest.mark.parametrize(("case", "kind"), CASES)
def test_forgetting_happens(case, kind, tmp_path):
    network, sets = memorised(kind)
    trainer_class = METHODS[case.split()[0]]
    options = {"learning_rate": 1e-3} | FORGETTING[case]
    config = trainer_class.config_class(
        output_dir=str(tmp_path),
        use_cpu=True,
        max_steps=60,
        per_device_train_batch_size=8,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1000,
        stop_when_forgotten=False,
        **options,
    )
    trainer = trainer_class(
        deepcopy(network),
        config,
        sets["forget"],
        sets["retain"],
        sets,
        tiny_tokenizer(),
        ref_model=MODELS[kind](seed=9).double() if "given" in case else None,
    )
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_holdout_loss"] > 1
    assert after["eval_forget_loss"] > 0.5 * after["eval_holdout_loss"]
    assert after["eval_retain_loss"] < 0.3 and after["eval_retain_accuracy"] > 0.9
