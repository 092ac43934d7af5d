"""Which parameters are weight matrices, with and without the head, and how each is seen as (outputs, inputs)."""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_gpt2, tiny_llama, tiny_vit
from tiny_weights import ALL, EXPERTS, llama4, mamba, mixtral, resnet
from torch import nn

from hf_unlearn.models.weights import require_weight_matrices, share_changed, share_of_weights, weight_matrices


# What no attack on the weights touches, by the last parts of the name.
LEFT = ("norm", "bias", "embed_tokens", "embeddings", "embedder", "lm_head", "classifier", "A_log", ".D", "sinks")


def names(model, **options):
    return [matrix.name for matrix in weight_matrices(model, **options)]


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (tiny_llama(tie_word_embeddings=False), "lm_head.weight"),
        (tiny_llama(tie_word_embeddings=True), None),  # its head is the embedding
        (tiny_gpt2(), None),
        (tiny_vit(), "classifier.weight"),
        (resnet(), "classifier.1.weight"),
    ],
    ids=["llama", "tied llama", "gpt2", "vit", "resnet"],
)
def test_the_head_is_an_option(model, head):
    assert set(names(model, head=True)) - set(names(model)) == ({head} if head else set())
    assert len(names(model)) >= 5


@pytest.mark.parametrize("kind", ALL)
def test_every_parameter_with_two_axes_is_one_but_embeddings_head_biases_and_rates(kind):
    model = ALL[kind]()
    found = set(names(model))
    for name, parameter in model.named_parameters():
        is_left = parameter.dim() < 2 or any(part in name for part in LEFT)
        assert (name in found) is not is_left, name
    if kind in EXPERTS:
        fused = sum(m.parameter.numel() for m in weight_matrices(model) if m.is_stack)
        assert fused > 0.3 * sum(m.parameter.numel() for m in weight_matrices(model))


def test_only_the_named_parameters():
    model = mixtral()
    chosen = [name for name, _ in model.named_parameters() if name.endswith(("q_proj.weight", "down_proj"))]
    assert names(model, names=chosen) == chosen and names(model, names=["model.norm.weight"]) == []


def test_a_weight_of_several_layers_counts_once():
    model = tiny_llama()
    first, second = (layer.mlp.up_proj for layer in model.model.layers)
    second.weight = first.weight
    modules = [matrix.module for matrix in weight_matrices(model)]
    assert first in modules and second not in modules


def test_without_a_matrix_there_is_nothing_to_attack():
    model = tiny_llama(num_hidden_layers=0, tie_word_embeddings=False)
    assert names(model, head=True) == ["lm_head.weight"]
    with pytest.raises(ValueError, match="has no weight matrix but its embeddings and its head"):
        require_weight_matrices(model)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "llama4"])
def test_a_slice_is_what_multiplies_the_inputs_of_one_expert(kind):
    """One expert alone, by hand, is what the layer gives if all tokens go to it."""
    model = ALL[kind]()
    layer = model.model.layers[0]
    experts = (layer.feed_forward if kind == "llama4" else layer.mlp).experts
    matrices = {m.name.rpartition(".")[2]: m for m in weight_matrices(model) if m.module is experts}
    x = torch.randn(6, 32)
    for i in range(4):
        up, down = (matrices[name].slices()[i] for name in ("gate_up_proj", "down_proj"))
        assert up.shape == (96, 32) and down.shape == (32, 48)
        inner = F.linear(x, up)
        with torch.no_grad():
            if kind == "llama4":
                found = experts(x.repeat(4, 1)).view(4, 6, 32)[i]
                gate, inner = inner.chunk(2, -1)
                inner = inner * experts.act_fn(gate)
            else:
                found = experts(x, torch.full((6, 1), i), torch.ones(6, 1))
                if kind == "gpt_oss":
                    inner = inner + experts.gate_up_proj_bias[i]
                inner = experts._apply_gate(inner)
            expected = F.linear(inner, down)
            if kind == "gpt_oss":
                expected = expected + experts.down_proj_bias[i]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_kernel_is_what_multiplies_a_patch():
    for groups, kernel in ((1, (3, 3)), (4, (3, 1))):
        module = nn.Conv2d(8, 12, kernel, stride=2, padding=1, groups=groups, bias=False)
        (matrix,) = weight_matrices(nn.Sequential(module))
        x = torch.randn(2, 8, 6, 6)
        patches = F.unfold(x, kernel, padding=1, stride=2).unflatten(1, (groups, -1))
        parts = matrix.by_input()
        assert len(parts) == groups and matrix.slices()[0].shape == (12, 8 // groups * kernel[0] * kernel[1])
        found = torch.cat([part @ patches[:, i] for i, part in enumerate(parts)], 1)
        torch.testing.assert_close(found, module(x).flatten(2))


def test_slices_are_views():
    for model in (mixtral(), tiny_gpt2(), resnet(), llama4(), mamba()):
        for matrix in weight_matrices(model):
            for part in matrix.slices():
                part.zero_()
        assert not any(matrix.parameter.any() for matrix in weight_matrices(model))


def test_the_share_that_changed_is_measured_slice_by_slice():
    model, other = mixtral(), mixtral()
    assert share_changed(model, other) == 0
    with torch.no_grad():
        other.model.layers[1].mlp.experts.down_proj[2] += 1
        other.model.layers[0].self_attn.q_proj.weight[0, 0] += 1
        other.model.embed_tokens.weight += 1
    total = sum(p.numel() for n, p in model.named_parameters() if "layers" in n and "norm" not in n)
    assert share_changed(model, other) == pytest.approx((32 * 48 + 32 * 32) / total)
    assert share_of_weights(model, lambda matrix: matrix.is_stack) == pytest.approx(2 * 4 * 3 * 32 * 48 / total)


def test_weights_that_are_stored_as_integers_count_as_not_reached():
    model = tiny_llama()
    up = model.model.layers[0].mlp.up_proj
    up.codes = nn.Parameter(torch.zeros(64, 32, dtype=torch.uint8), requires_grad=False)
    del up.weight
    assert not any("codes" in name for name in names(model))
    share = share_of_weights(model, lambda matrix: matrix.parameter.is_floating_point())
    total = sum(p.numel() for n, p in model.named_parameters() if "layers" in n and "norm" not in n)
    assert share == pytest.approx(1 - 64 * 32 / total)
