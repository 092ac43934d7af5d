"""Learned masks: gates in the model equal gates in the weights, and what is saved is a plain model."""

import copy

import numpy as np
import pytest
import torch
from cases import MODELS, image_rows, make_trainer, text_rows, weights
from tiny import tiny_tokenizer
from torch import nn
from transformers import SwinConfig, SwinForImageClassification
from transformers.pytorch_utils import Conv1D

from hf_unlearn.data import UnlearningCollator, encode_dataset
from hf_unlearn.methods.head_mask import NAME
from hf_unlearn.training.gates import Gates, find_gate_points, hard_concrete, probability_open


KINDS = ["llama", "gpt2", "vit"]
OUTPUT = {"llama": "o_proj", "gpt2": "attn.c_proj", "vit": "attention.o_proj"}


def inputs_of(kind: str, n: int = 6) -> dict:
    rows = image_rows(n) if kind == "vit" else text_rows(n)
    return UnlearningCollator(0)(encode_dataset(rows, None if kind == "vit" else tiny_tokenizer()))


def logits_of(model, kind: str) -> torch.Tensor:
    inputs = {key: value for key, value in inputs_of(kind).items() if key != "labels"}
    dtype = next(model.parameters()).dtype
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    with torch.no_grad():
        return model(**inputs).logits


def gated(kind: str, neurons: bool = False, dtype=torch.float64, model=None) -> tuple[nn.Module, Gates]:
    """A model with gates, of which some are closed, some half open, some open; all biases and norms are random."""
    model = (model or MODELS[kind]()).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    gates = Gates(find_gate_points(model, neurons))
    with torch.no_grad():
        gates.log_alpha.copy_(4 * torch.randn(gates.log_alpha.shape, generator=generator, dtype=dtype))
        gates.log_alpha[:5] = torch.tensor([-4.0, -4.0, 0.5, 4.0, -4.0])  # of a Llama: the first group is off
    return model, gates


@pytest.mark.parametrize("kind", KINDS)
def test_gate_points_by_role_and_shape(kind):
    model = MODELS[kind]()
    heads, both = find_gate_points(model), find_gate_points(model, neurons=True)
    assert [point.n for point in heads] == [4, 4]
    assert all(point.name.endswith(OUTPUT[kind]) for point in heads)
    assert sorted(point.n for point in both) == [4, 4, 64 if kind != "gpt2" else 128, 64 if kind != "gpt2" else 128]
    ending = {"llama": "mlp.down_proj", "gpt2": "mlp.c_proj", "vit": "mlp.fc2"}[kind]
    assert {point.name for point in both} - {point.name for point in heads} == {
        point.name for point in both if point.name.endswith(ending)
    }
    assert all(point.feeding for point in both)


@pytest.mark.parametrize("purge", [False, True])
@pytest.mark.parametrize("neurons", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_gates_in_the_weights_answer_as_gates_in_the_model(kind, neurons, purge, dtype, close):
    model, gates = gated(kind, neurons, dtype)
    before = weights(model)
    hooked = logits_of(model, kind)
    gates.bake(purge)
    baked = logits_of(model, kind)
    torch.testing.assert_close(baked, hooked, rtol=close, atol=close)
    reference = copy.deepcopy(model)
    reference.load_state_dict(before, strict=False)
    assert not torch.allclose(logits_of(reference, kind), hooked, atol=1e-2)  # the gates do something

    # What a gated projection adds by itself stays, and without purging nothing but their weights moves.
    after = weights(model)
    points = {point.name for point in gates.points}
    for name, value in before.items():
        owner = name.rpartition(".")[0]
        if owner in points and name.endswith("bias"):
            assert torch.equal(value, after[name]), name
        if not purge:
            assert torch.equal(value, after[name]) == (owner not in points or name.endswith("bias")), name


@pytest.mark.parametrize("kind", KINDS)
def test_open_gates_change_no_bit(kind):
    model = MODELS[kind]().double()
    expected, before = logits_of(model, kind), weights(model)
    gates = Gates(find_gate_points(model, neurons=True))
    assert torch.equal(gates.values(), torch.ones(len(gates.log_alpha)))
    assert torch.equal(logits_of(model, kind), expected)
    gates.bake()
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def rows_of(linear, first: int, size: int) -> torch.Tensor:
    """What makes the outputs `first ... first + size`, weight and bias beside each other: `(size, in_features + 1)`."""
    weight = linear.weight.T if isinstance(linear, Conv1D) else linear.weight
    bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias
    return torch.cat([weight, bias[:, None]], dim=1)[first : first + size].detach()


@pytest.mark.parametrize("kind", KINDS)
def test_purging_leaves_nothing_of_closed_heads(kind):
    model, gates = gated(kind)
    model.double()
    first = gates.points[0].projection
    column = first.weight[0 if not isinstance(first, Conv1D) else slice(None), 0].detach().clone()
    assert (column != 0).any()
    gates.bake(purge=True)
    # Heads 0 and 1 of layer 0 are closed, head 2 is half open, head 3 open; width 8. Head 0 of layer 1 is closed.
    layer = {
        "llama": lambda m: m.model.layers[0].self_attn,
        "gpt2": lambda m: m.transformer.h[0].attn,
        "vit": lambda m: m.vit.layers[0].attention,
    }[kind](model)
    if kind == "gpt2":
        q, k, v = ((layer.c_attn, part * 32) for part in range(3))
    else:
        q, k, v = ((linear, 0) for linear in (layer.q_proj, layer.k_proj, layer.v_proj))
    for linear, start in (q,) if kind == "llama" else (q, k, v):
        assert not rows_of(linear, start, 16).any()
        assert rows_of(linear, start + 16, 16).any(1).all()
    if (
        kind == "llama"
    ):  # two query heads share a head of keys and values: the first two are off, of the others none is
        for linear, _ in (k, v):
            assert not rows_of(linear, 0, 8).any()
            assert rows_of(linear, 8, 8).any(1).all()
    weight = first.weight.T if isinstance(first, Conv1D) else first.weight
    assert not weight[:, :16].any() and not torch.signbit(weight[:, :16]).any()  # no sign of a weight is left either


def test_keys_and_values_stay_while_one_query_head_needs_them():
    model, gates = gated("llama")
    attention = model.model.layers[0].self_attn
    k, v = attention.k_proj.weight.clone(), attention.v_proj.weight.clone()
    with torch.no_grad():
        gates.log_alpha[:4] = torch.tensor([-4.0, 4.0, 4.0, -4.0])
    gates.bake()
    assert torch.equal(attention.k_proj.weight, k) and torch.equal(attention.v_proj.weight, v)
    assert not attention.q_proj.weight[:8].any() and not attention.q_proj.weight[24:].any()
    assert attention.q_proj.weight[8:24].any(1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_purging_leaves_nothing_of_closed_neurons(kind):
    model, gates = gated(kind, neurons=True)
    closed = [z == 0 for z in hard_concrete(gates.log_alpha.detach()).split([point.n for point in gates.points])]
    gates.bake()
    for point, off in zip(gates.points, closed, strict=True):
        if point.n == 4:
            continue
        assert off.any() and not off.all()
        for linear, first, size in point.feeding:
            assert torch.equal(~rows_of(linear, first, size).any(1), off)


def test_the_hard_concrete_distribution_by_simulation():
    log_alpha = torch.tensor([-3.0, -0.5, 0.0, 1.3, 3.0], dtype=torch.float64)
    u = np.random.default_rng(0).uniform(size=(400_000, 5))
    # In numpy, from the paper: a binary concrete variable, stretched to (-0.1, 1.1) and clipped.
    s = 1 / (1 + np.exp(-(np.log(u / (1 - u)) + log_alpha.numpy()) / (2 / 3)))
    z = np.clip(s * 1.2 - 0.1, 0, 1)
    np.testing.assert_allclose(hard_concrete(log_alpha, torch.from_numpy(u)).numpy(), z, atol=1e-9)
    np.testing.assert_allclose(probability_open(log_alpha).numpy(), (z > 0).mean(0), atol=3e-3)
    # Without noise it is the value at s = sigmoid(ln alpha): exactly 0 and 1 at the ends.
    expected = np.clip(1.2 / (1 + np.exp(-log_alpha.numpy())) - 0.1, 0, 1)
    np.testing.assert_allclose(hard_concrete(log_alpha).numpy(), expected, atol=1e-12)
    assert hard_concrete(log_alpha)[0] == 0 and hard_concrete(log_alpha)[-1] == 1


def test_gradients_reach_gates_that_are_not_at_an_end():
    log_alpha = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    uniform = torch.tensor([0.7, 0.4, 0.3], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: hard_concrete(x, uniform), (log_alpha,))
    assert torch.autograd.gradcheck(probability_open, (log_alpha,))
    assert (torch.autograd.grad(hard_concrete(log_alpha, uniform).sum(), log_alpha)[0] > 0).all()


@pytest.mark.parametrize("neurons", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_a_function_of_seed_and_step(kind, neurons):
    model, gates = gated(kind, neurons)
    model.train()
    gates.draw(3, 7)
    first = gates.values()
    gates.draw(3, 8)
    assert not torch.equal(gates.values(), first)
    torch.manual_seed(99)
    gates.draw(3, 7)
    assert torch.equal(gates.values(), first)
    gates.draw(4, 7)
    assert not torch.equal(gates.values(), first)
    gates.eval()
    assert torch.equal(gates.values(), hard_concrete(gates.log_alpha))


def test_a_copy_of_the_model_has_gates_of_its_own():
    model, gates = gated("llama")
    model.add_module(NAME, gates)
    other = copy.deepcopy(model)
    with torch.no_grad():
        getattr(other, NAME).log_alpha.fill_(4.0)
    model.unlearning_gates.log_alpha.requires_grad_(False).fill_(-4.0)
    plain = gated("llama")[0]
    for hook in plain.modules():
        hook._forward_pre_hooks.clear()
    assert torch.equal(logits_of(other, "llama"), logits_of(plain, "llama"))
    assert not torch.allclose(logits_of(model, "llama"), logits_of(plain, "llama"))


def test_the_warm_start_sees_every_person_of_rows_sorted_by_person(tmp_path):
    trainer = make_trainer("head_mask", tmp_path, warm_start_rows=4)
    first, second = encode_dataset(text_rows(2), tiny_tokenizer())
    effects = trainer._effects([first] * 4 + [second] * 4)
    torch.testing.assert_close(effects, trainer._effects([first, second]))
    assert not torch.allclose(effects, trainer._effects([first]))


def test_each_image_has_its_own_gates_where_attention_is_in_windows():
    torch.manual_seed(0)
    sizes = {
        "embed_dim": 8,
        "depths": [1, 2],
        "num_heads": [1, 2],
        "window_size": 2,
        "patch_size": 2,
        "image_size": 16,
    }
    model = SwinForImageClassification(SwinConfig(num_labels=3, initializer_range=0.2, **sizes)).double().eval()
    gates = Gates(find_gate_points(model))
    assert [point.n for point in gates.points] == [1, 2, 2]  # the heads of each stage
    pixels, values = torch.randn(3, 3, 16, 16, dtype=torch.float64), torch.rand(3, 5, dtype=torch.float64)
    with torch.no_grad():
        with gates.given(values):
            together = model(pixel_values=pixels).logits
        for i in range(3):
            with gates.given(values[i : i + 1]):
                alone = model(pixel_values=pixels[i : i + 1]).logits[0]
            torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-12)
