"""Methods that edit the weights: dampening (SSD), projections (SVD) and negated task vectors."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from cases import image_rows, make_trainer, text_rows, weights
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from torch import nn
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D

from hf_unlearn.curvature.covariance import input_covariances
from hf_unlearn.data import encode_dataset
from hf_unlearn.methods import METHODS, SSDConfig, SVDForgetConfig, TaskVectorConfig
from hf_unlearn.methods.ssd import dampening
from hf_unlearn.methods.svd_forget import removal, soft_projection
from hf_unlearn.models.weights import weight_matrices


MODELS = {
    "llama": tiny_llama,
    "tied llama": partial(tiny_llama, tie_word_embeddings=True),
    "gpt2": partial(tiny_gpt2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "vit": tiny_vit,
}
EDITS = ["ssd", "svd_forget"]
CLOSE = {"rtol": 1e-8, "atol": 1e-10}
POSITIVE = st.floats(1e-12, 1e12)


def make(method, folder, kind="llama", **arguments):
    """A trainer with 8 rows to forget and 20 to keep, and the start of its model."""
    if kind == "tied llama":
        kind = MODELS[kind]().double()
    trainer = make_trainer(method, folder, kind, **arguments)
    return trainer, deepcopy(trainer.model)


def encoded(kind, n, offset=0):
    return encode_dataset(image_rows(n, offset) if kind == "vit" else text_rows(n, offset), tiny_tokenizer())


def loss_of_row(model, row):
    """-ln p(answer) of one row without padding: for text the sum over its tokens."""
    if "pixel_values" in row:
        return -model(pixel_values=row["pixel_values"][None]).logits[0].log_softmax(-1)[row["labels"]]
    log_p = model(input_ids=torch.as_tensor(row["input_ids"])[None]).logits[0].log_softmax(-1)
    return -sum(log_p[i - 1, y] for i, y in enumerate(row["labels"]) if y != -100)


def targets_of_row(row):
    return 1 if "pixel_values" in row else sum(int(y) != -100 for y in row["labels"])


def key_bias(name):
    return name.endswith(("c_attn.bias", "k_proj.bias"))


# What they have in common


class Events(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.seen.append(("begin", weights(model)))

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.seen.append(("end", weights(model)))


@pytest.mark.parametrize("kind", ["llama", "vit"])
@pytest.mark.parametrize("method", EDITS)
def test_train_and_save_as_ever(method, kind, tmp_path):
    events = Events()
    arguments = {"disable_tqdm": False} if kind == "llama" else {}
    trainer, start = make(method, tmp_path, kind, callbacks=[events], **arguments)
    output = trainer.train()
    assert output.global_step == 0 and "train_runtime" in output.metrics and not trainer.is_in_train
    assert [name for name, _ in events.seen] == ["begin", "end"]
    (_, before), (_, after) = events.seen
    assert all(torch.equal(value, before[name]) for name, value in weights(start).items())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    trainer.save_model(str(tmp_path / "model"))
    saved = type(trainer.model).from_pretrained(tmp_path / "model", dtype="auto")
    assert all(torch.equal(value, after[name]) for name, value in weights(saved).items())


@pytest.mark.parametrize("method", EDITS)
def test_refused(method, tmp_path):
    with pytest.raises(ValueError, match="update_rule='project'"):
        make(method, tmp_path, update_rule="project")
    for nothing in ({"retain_loss": "none"}, {"retain_weight": 0.0}):
        with pytest.raises(ValueError, match="compares the forget set with the retain set"):
            make(method, tmp_path, **nothing)
    with pytest.raises(ValueError, match="Leave peft_config out"):
        make(method, tmp_path, peft_config=LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(ValueError, match="max_rows=0"):
        METHODS[method].config_class(output_dir=str(tmp_path), max_rows=0)
    trainer, start = make(method, tmp_path)
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        trainer.train(resume_from_checkpoint=True)
    assert all(torch.equal(value, weights(start)[name]) for name, value in weights(trainer.model).items())


@pytest.mark.parametrize("method", EDITS)
def test_what_a_saliency_mask_holds_stays(method, tmp_path):
    trainer, start = make(method, tmp_path, saliency=0.3)
    trainer.train()
    free, _ = make(method, tmp_path)
    free.train()
    held = {id(p): mask for p, _, mask in trainer.constraints[0]._held}
    moved = 0
    for name, p in trainer.model.named_parameters():
        expected = torch.where(held[id(p)], free.model.get_parameter(name), start.get_parameter(name))
        assert torch.equal(p, expected), name
        moved += int((p != start.get_parameter(name)).sum())
    assert moved


# Selective synaptic dampening


@given(POSITIVE, POSITIVE, st.floats(0.1, 100), st.floats(0.01, 10))
def test_dampening(forget, everything, alpha, lambda_):
    factor = dampening(*(torch.tensor(x, dtype=torch.float64) for x in (forget, everything)), alpha, lambda_).item()
    expected = min(lambda_ * everything / forget, 1) if forget > alpha * everything else 1
    assert factor == pytest.approx(expected, rel=1e-12) and factor <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dampening_at_its_limits(dtype):
    tensor = partial(torch.tensor, dtype=dtype)
    forget = tensor([0.0, 0.0, 1.0, 1e-30, 1e-40])
    everything = tensor([0.0, 1.0, 0.0, 0.5e-30, 0.5e-40])  # the last is below the smallest normal float32
    expected = tensor([1, 1, 0, 0.5, 0.5])
    torch.testing.assert_close(dampening(forget, everything, 1.0, 1.0), expected, rtol=1e-4, atol=0)
    for alpha in (1e38, float("inf")):
        assert (dampening(forget, everything.clamp(min=1e-37), alpha, 1.0) == 1).all()


@pytest.mark.parametrize("kind", ["llama", "tied llama", "gpt2", "vit"])
def test_ssd(kind, tmp_path):
    trainer, model = make("ssd", tmp_path, kind, alpha=1.2, lambda_=0.7)
    trainer.train()
    names = [name for name, _ in model.named_parameters()]

    def importance(rows):
        squares = []
        for row in rows:
            squares.append([g**2 for g in torch.autograd.grad(loss_of_row(model, row), list(model.parameters()))])
        return {name: torch.stack(values).mean(0) for name, values in zip(names, zip(*squares), strict=True)}  # noqa: B905

    forget = importance(encoded(kind, 8))
    everything = importance([*encoded(kind, 8), *encoded(kind, 20, 100)])  # the forget set is a part of all data
    dampened = 0
    for name, p in model.named_parameters():
        f, d = forget[name], everything[name]
        factor = torch.where((f > 1.2 * d) & (f > 0), (0.7 * d / f).clamp(max=1), 1)
        dampened += int((factor < 1).sum())
        torch.testing.assert_close(trainer.model.get_parameter(name), p * factor, rtol=1e-6, atol=1e-12)
    n = sum(p.numel() for p in model.parameters())
    assert 0 < dampened < n
    # But for biases of keys: an equal shift of all scores changes no attention, so their gradients are rounding alone.
    (logged,) = [log["dampened"] for log in trainer.state.log_history if "dampened" in log]
    keys = sum(p.shape[0] // (3 if "c_attn" in name else 1) for name, p in model.named_parameters() if key_bias(name))
    assert abs(logged * n - dampened) <= keys + 1e-6
    if kind in ("tied llama", "gpt2"):
        assert trainer.model.get_output_embeddings().weight is trainer.model.get_input_embeddings().weight


def test_ssd_changes_what_may_move_alone(tmp_path):
    trainer, start = make("ssd", tmp_path, trainable_layers=[1])
    trainer.train()
    for name, value in weights(start).items():
        assert torch.equal(value, trainer.model.get_parameter(name)) == (".layers.1." not in name), name


def test_ssd_measures_on_rows_spread_evenly(tmp_path):
    trainer, _ = make("ssd", tmp_path, max_rows=4)
    rows = [len(batch["labels"]) for batch in trainer.batches(trainer.train_dataset.retain, limit=4)]
    trainer.train()
    # As if these rows were all there are, with the sets weighed by what they were.
    few, start = make("ssd", tmp_path)
    share = few._share
    few.train_dataset.forget = [few.train_dataset.forget[i] for i in (0, 2, 4, 6)]
    few.train_dataset.retain = [few.train_dataset.retain[i] for i in (0, 5, 10, 15)]
    few.train()
    assert sum(rows) == 4 and share == 8 / 28
    assert all(torch.equal(value, weights(few.model)[name]) for name, value in weights(trainer.model).items())
    assert any(not torch.equal(value, weights(start)[name]) for name, value in weights(trainer.model).items())


def test_ssd_that_cannot_dampen_anything_is_refused(tmp_path):
    # 8 of 28 rows: a weight that matters to these alone matters 3.5 times as much to them as to all.
    make("ssd", tmp_path, alpha=3.4)
    with pytest.raises(ValueError, match="28.6% of all data.*3.5 times"):
        make("ssd", tmp_path, alpha=3.6)
    for name in ("alpha", "lambda_"):
        with pytest.raises(ValueError, match=f"{name}=0.0"):
            SSDConfig(output_dir=str(tmp_path), **{name: 0.0})


# Projections


def orthonormal(n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64)).Q


@pytest.mark.parametrize("alpha", [1.0, 7.0, 1e3])
def test_soft_projection(alpha):
    x = torch.randn(9, 5, dtype=torch.float64)  # rows are inputs
    u, s, _ = torch.linalg.svd(x.T, full_matrices=False)
    q = s**2 / (s**2).sum()
    expected = u @ torch.diag(alpha * q / ((alpha - 1) * q + 1)) @ u.T
    torch.testing.assert_close(soft_projection(x.T @ x, alpha), expected, rtol=1e-10, atol=1e-12)
    if alpha == 1:
        torch.testing.assert_close(expected, x.T @ x / x.square().sum())


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_large_alpha_projects_on_the_span_and_nothing_else(scale):
    u = orthonormal(8, 3, 0)
    x = scale * torch.randn(20, 3, dtype=torch.float64) @ u.T
    torch.testing.assert_close(soft_projection(x.T @ x, 1e12), u @ u.T, rtol=1e-8, atol=1e-8)


def test_nothing_is_projected_on_without_inputs():
    assert (soft_projection(torch.zeros(3, 3, dtype=torch.float64), 100.0) == 0).all()


def test_each_order_keeps_what_it_promises():
    w = torch.randn(4, 10, dtype=torch.float64)
    u_f, u_r = orthonormal(10, 3, 1), orthonormal(10, 4, 2)
    p_f, p_r = u_f @ u_f.T, u_r @ u_r.T
    forget, retain = u_f @ torch.randn(3, 2, dtype=torch.float64), u_r @ torch.randn(4, 2, dtype=torch.float64)
    other = torch.randn(10, 2, dtype=torch.float64)
    other -= (q := torch.linalg.qr(torch.cat([u_f, u_r], 1)).Q) @ (q.T @ other)
    exact, reference = w @ removal(p_f, p_r, "retain_exact"), w @ removal(p_f, p_r, "reference")
    torch.testing.assert_close(exact @ retain, w @ retain)
    torch.testing.assert_close(exact @ forget, w @ p_f @ p_r @ forget)
    torch.testing.assert_close(reference @ forget, w @ p_r @ forget)
    assert (reference @ retain - w @ retain).abs().max() > 0.01
    for new in (exact, reference):
        torch.testing.assert_close(new @ other, w @ other)


def inputs_of(model, kind, rows):
    """Inputs of every linear layer, row by row without padding: `(d_in, tokens)`; of a text head those it scores."""
    model, seen, scored = model.eval(), {}, {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            module.register_forward_hook(
                lambda m, i, o, name=name: seen.setdefault(name, []).append(i[0].detach().flatten(0, -2)[scored[name]])
            )
            seen[name] = []
    with torch.no_grad():
        for row in rows:
            everything = slice(None)
            scored = dict.fromkeys(seen, everything)
            if kind == "vit":
                model(pixel_values=row["pixel_values"][None])
                continue
            scored["lm_head"] = [i - 1 for i, y in enumerate(row["labels"]) if y != -100]
            model(input_ids=torch.as_tensor(row["input_ids"])[None])
    return {name: torch.cat(values).T for name, values in seen.items()}


@pytest.mark.parametrize("kind", ["llama", "tied llama", "gpt2", "vit"])
@pytest.mark.parametrize("order", ["reference", "retain_exact"])
def test_svd_forget(kind, order, tmp_path):
    trainer, model = make(
        "svd_forget", tmp_path, kind, retain_alpha=30.0, forget_alpha=3.0, order=order, per_device_eval_batch_size=3
    )
    trainer.train()
    forget = inputs_of(deepcopy(model), kind, encoded(kind, 8))
    retain = inputs_of(deepcopy(model), kind, encoded(kind, 20, 100))
    tied = kind in ("tied llama", "gpt2")

    def projection(x, alpha):
        u, s, _ = torch.linalg.svd(x, full_matrices=True)
        q = torch.zeros(len(x), dtype=torch.float64)
        q[: len(s)] = s**2 / (s**2).sum()
        return u @ torch.diag(alpha * q / ((alpha - 1) * q + 1)) @ u.T

    moved = set()
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, Conv1D)) or tied and name == "lm_head":
            continue
        p_f, p_r = projection(forget[name], 3.0), projection(retain[name], 30.0)
        change = p_f - p_f @ p_r
        w = module.weight.T if isinstance(module, Conv1D) else module.weight  # (out, in)
        new = w - w @ (change.T if order == "reference" else change)
        found = trainer.model.get_submodule(name).weight
        torch.testing.assert_close(found, new.T if isinstance(module, Conv1D) else new, **CLOSE)
        moved.add(f"{name}.weight")
    # Embeddings, those of patches too, norms and biases are as they were.
    same = {name for name, value in weights(model).items() if torch.equal(value, trainer.model.get_parameter(name))}
    assert same == set(weights(model)) - moved
    assert any("embed" in name or "wte" in name for name in same)


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        ("llama", [("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")]),
        ("vit", [("attention.q_proj", "attention.k_proj", "attention.v_proj")]),
    ],
)
def test_layers_with_one_input_share_its_projection(kind, groups, tmp_path):
    trainer, start = make("svd_forget", tmp_path, kind)
    matrices = weight_matrices(start, head=True)
    found = input_covariances(start, matrices, trainer.batches(trainer.train_dataset.forget))
    modules = [matrix.name.removesuffix(".weight") for matrix in matrices]
    sums = {name.removesuffix(".weight"): parts[0] for name, parts in found.items()}
    shared = sum(len(group) - 1 for group in groups) * 2  # layers
    assert len({id(value) for value in sums.values()}) == len(modules) - shared
    trainer.train()
    layer = next(name for name in modules if name.endswith(groups[0][0])).removesuffix(groups[0][0])
    for first, *others in groups:
        assert all(sums[layer + first] is sums[layer + other] for other in others)
        # W' = W F with one F for all, which a W of full column rank tells.
        old, new = (m.get_submodule(layer + first).weight for m in (start, trainer.model))
        factor = torch.linalg.pinv(old) @ new
        for other in others:
            old, new = (m.get_submodule(layer + other).weight for m in (start, trainer.model))
            torch.testing.assert_close(old @ factor, new, rtol=1e-6, atol=1e-8)


def test_retain_rows_pass_unchanged_where_their_inputs_leave_room(tmp_path):
    # The tokens of one retain row span less than the 64 directions: with hard projections they are kept exactly.
    trainer, model = make(
        "svd_forget", tmp_path, retain=1, order="retain_exact", retain_alpha=1e12, forget_alpha=1e12, max_rows=1
    )
    kept = inputs_of(deepcopy(model), "llama", encoded("llama", 1, 100))["model.layers.0.mlp.down_proj"]
    assert kept.shape[1] < kept.shape[0]
    trainer.train()
    old, new = (m.get_submodule("model.layers.0.mlp.down_proj").weight for m in (model, trainer.model))
    torch.testing.assert_close(new @ kept, old @ kept, rtol=1e-4, atol=1e-5)
    assert (new - old).abs().max() > 0.01


def test_svd_forget_in_half_precision(tmp_path):
    trainer, start = make("svd_forget", tmp_path)
    half = deepcopy(start).bfloat16()
    other = make_trainer("svd_forget", tmp_path, half)
    trainer.train()
    other.train()
    for name, value in weights(other.model).items():
        assert value.dtype == torch.bfloat16
        torch.testing.assert_close(value.double(), weights(trainer.model)[name], rtol=0.1, atol=0.05)


def test_svd_forget_refuses(tmp_path):
    with pytest.raises(ValueError, match="order='last'"):
        SVDForgetConfig(output_dir=str(tmp_path), order="last")
    with pytest.raises(ValueError, match="retain_alpha=0.0"):
        SVDForgetConfig(output_dir=str(tmp_path), retain_alpha=0.0)
    with pytest.raises(ValueError, match="works on weight matrices, but none that it reaches may move"):
        make("svd_forget", tmp_path, trainable=".*norm.*")


# Task vectors


class AtTheEnd(TrainerCallback):
    """Keeps the weights that were learned, before they are negated."""

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.model = deepcopy(model)


@pytest.mark.parametrize("kind", ["llama", "tied llama", "gpt2", "vit"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_task_vector(kind, scale, tmp_path):
    trainer, start = make("task_vector", tmp_path, kind, scale=scale, max_grad_norm=0.0, learning_rate=0.02)
    trainer.train()
    learned, rows = deepcopy(start), encoded(kind, 8)
    n = sum(targets_of_row(row) for row in rows)
    for _ in range(2):
        loss = sum(loss_of_row(learned, row) for row in rows) / n
        gradients = torch.autograd.grad(loss, list(learned.parameters()))
        with torch.no_grad():
            for p, gradient in zip(learned.parameters(), gradients, strict=True):
                p -= 0.02 * gradient
    for name, value in weights(trainer.model).items():
        theta_0 = start.get_parameter(name)
        if scale == 0:
            assert torch.equal(value, theta_0), name
        torch.testing.assert_close(value, theta_0 - scale * (learned.get_parameter(name) - theta_0), **CLOSE)
    if kind in ("tied llama", "gpt2"):
        assert trainer.model.get_output_embeddings().weight is trainer.model.get_input_embeddings().weight


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_task_vector_of_an_adapter(scale, tmp_path):
    adapter = LoraConfig(r=2, lora_alpha=8, target_modules="all-linear")
    end = AtTheEnd()
    trainer, start = make("task_vector", tmp_path, peft_config=adapter, scale=scale, callbacks=[end], max_steps=4)
    trainer.train()
    base, learned, negated = (weights(m.merge_and_unload()) for m in (start, end.model, trainer.model))
    for name, theta_0 in base.items():
        if scale == 0:
            assert torch.equal(negated[name], theta_0), name
        torch.testing.assert_close(negated[name], theta_0 - scale * (learned[name] - theta_0), **CLOSE)
    assert any(not torch.equal(learned[name], theta_0) for name, theta_0 in base.items())


def test_task_vector_is_taken_in_float32_and_rounded_once(tmp_path):
    end = AtTheEnd()
    network = tiny_llama().bfloat16()
    start = deepcopy(network)
    trainer = make_trainer("task_vector", tmp_path, network, scale=0.3, callbacks=[end])
    trainer.train()
    coarse = 0
    for name, value in weights(trainer.model).items():
        theta_0, theta = start.get_parameter(name), end.model.get_parameter(name)
        expected = (theta_0.float() - 0.3 * (theta.float() - theta_0.float())).bfloat16()
        assert value.dtype == torch.bfloat16 and torch.equal(value, expected), name
        coarse += int((theta_0 - 0.3 * (theta - theta_0) != expected).sum())
    assert coarse  # in bfloat16 it would have been another result


def test_what_is_not_a_weight_is_left_alone(tmp_path):
    network = tiny_llama().double()
    network.register_buffer("steps", torch.arange(3))
    trainer = make_trainer("task_vector", tmp_path, network, scale=5.0)
    before = {name: value.clone() for name, value in trainer.model.named_buffers()}
    trainer.train()
    assert "steps" in before and all(torch.equal(v, before[n]) for n, v in trainer.model.named_buffers())


def test_a_negated_mask_holds_the_same_entries(tmp_path):
    trainer, start = make("task_vector", tmp_path, scale=5.0, saliency=0.3)
    trainer.train()
    held = {id(p): mask for p, _, mask in trainer.constraints[0]._held}
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p != start.get_parameter(name), held[id(p)]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1.0}, "would teach the forget set"),
        ({"retain_loss": "nll"}, 'Set it to "none"'),
        ({"update_rule": "project"}, "no two gradients"),
        ({"eval_strategy": "epoch"}, "stop_when_forgotten=False"),
    ],
)
def test_task_vector_refuses(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        TaskVectorConfig(output_dir=str(tmp_path), **options)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"init_lora_weights": False}, "not a new one"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding_A"),
        ({"use_dora": True}, "lora_magnitude_vector"),
    ],
)
def test_task_vector_refuses_adapters_that_do_not_negate(adapter, message, tmp_path):
    adapter = LoraConfig(**({"r": 2, "target_modules": ["q_proj"]} | adapter))
    with pytest.raises(ValueError, match=message):
        make("task_vector", tmp_path, peft_config=adapter)
