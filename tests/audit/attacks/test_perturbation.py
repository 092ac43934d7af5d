"""Pruning against torch's own, noise and averages against their definitions; the model itself never changes."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from torch import nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from hf_unlearn.audit import score
from hf_unlearn.audit.attacks.perturbation import noised, pruned
from hf_unlearn.audit.attacks.quantization import WEIGHT_ATTACKS
from hf_unlearn.models.modes import plain_copy
from hf_unlearn.models.weights import weight_matrices


MODELS = {
    "llama": tiny_llama,
    "tied llama": lambda: tiny_llama(tie_word_embeddings=True),
    "gpt2": tiny_gpt2,
    "vit": tiny_vit,
    "double": lambda: tiny_llama().double(),
    "bfloat16": lambda: tiny_llama().bfloat16(),
}


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def linear_weights(model):
    return [matrix.parameter for matrix in weight_matrices(model)]


@pytest.mark.parametrize("name", MODELS)
def test_every_linear_layer_is_changed_but_not_the_head(name):
    model = MODELS[name]()
    found = {id(matrix.module) for matrix in weight_matrices(model)}
    expected = {
        id(module)
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and path not in ("lm_head", "classifier")
    }
    assert found == expected and len(found) >= 8


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("attack", [lambda m: pruned(m, 0.3), lambda m: noised(m, 0.1)])
def test_the_model_stays_and_only_linear_weights_of_the_copy_change(name, attack):
    model = MODELS[name]().train()
    before = state(model)
    changed = attack(model)
    assert same(before, state(model)) and model.training and not changed.training
    assert type(changed) is type(model) and changed.dtype == model.dtype
    linear = {matrix.name for matrix in weight_matrices(model)}
    after = state(changed)
    assert {path for path in before if not torch.equal(before[path], after[path])} == linear
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit", "double"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.37, 1.0])
def test_pruning_is_that_of_torch(name, fraction):
    model = MODELS[name]()
    reference = copy.deepcopy(model)
    parameters = [(matrix.module, "weight") for matrix in weight_matrices(reference)]
    prune.global_unstructured(parameters, pruning_method=prune.L1Unstructured, amount=fraction)
    for ours, (module, _) in zip(linear_weights(pruned(model, fraction)), parameters, strict=True):
        assert torch.equal(ours, module.weight)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 2 / 3])
def test_the_fraction_is_exact_among_equal_weights(fraction):
    model = tiny_llama()
    with torch.no_grad():
        for weight in linear_weights(model):
            weight.copy_(weight.sign() * 0.5)
    entries = torch.cat([weight.flatten() for weight in linear_weights(pruned(model, fraction))])
    assert int((entries == 0).sum()) == round(fraction * len(entries))
    assert set(entries.abs().unique().tolist()) == {0.0, 0.5}


def test_noise_has_the_size_asked_for_and_follows_the_seed():
    model = tiny_llama(hidden_size=128, intermediate_size=256)
    for before, after in zip(linear_weights(model), linear_weights(noised(model, 0.2, seed=1)), strict=True):
        noise, before = (after - before).flatten().double().detach(), before.detach()
        assert noise.std() == pytest.approx(0.2 * float(before.std()), rel=0.05)
        assert abs(float(noise.mean())) < 4 * float(noise.std()) / len(noise) ** 0.5
    first, again, other = (linear_weights(noised(model, 0.2, seed=seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert same(state(noised(model, 0.0)), state(model))
    # Two models get the same noise, in units of their own weights.
    drawn = []
    for seed in (0, 1):
        base = tiny_llama(seed=seed)
        old, new = linear_weights(base)[3], linear_weights(noised(base, 0.1))[3]
        drawn.append(((new - old) / old.std()).detach().numpy())
    np.testing.assert_allclose(*drawn, atol=1e-5)


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    noised(tiny_llama(), 0.1)
    assert torch.equal(before, torch.get_rng_state())


def test_an_adapter_is_merged_in_the_copy():
    adapted = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    before = state(adapted)
    copied = plain_copy(adapted)
    assert not hasattr(copied, "peft_config") and same(before, state(adapted))
    text = ["Ada lives in Paris."]
    expected, found = (score(model, tiny_tokenizer(), text).log_prob for model in (adapted, copied))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert not np.allclose(expected, score(tiny_llama(), tiny_tokenizer(), text).log_prob, atol=1e-2)


def test_what_cannot_be_done_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        pruned(tiny_llama(), 30)
    with pytest.raises(ValueError, match="negative"):
        noised(tiny_llama(), -0.1)
    model = tiny_llama()
    model.model.layers = nn.ModuleList()
    with pytest.raises(ValueError, match="no weight matrix"):
        pruned(model, 0.1)
    with torch.device("meta"):
        empty = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="not all weights|Not all weights"):
        plain_copy(empty)


def test_stronger_perturbations_of_the_table_change_more():
    model, text = tiny_gpt2(), ["Ada lives in Paris."]
    before = score(model, tiny_tokenizer(), text, sampling=()).log_prob
    sizes = {
        name: np.abs(score(WEIGHT_ATTACKS[name](model), tiny_tokenizer(), text, sampling=()).log_prob - before).max()
        for name in ("pruned 10%", "pruned 50%", "noise 1%", "noise 30%")
    }
    assert 0 < sizes["pruned 10%"] < sizes["pruned 50%"] and 0 < sizes["noise 1%"] < sizes["noise 30%"]
