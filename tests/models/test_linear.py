"""Which linear layers there are: what methods change with the head, what attacks on the weights change without it."""

import pytest
import torch
from tiny import tiny_gpt2, tiny_llama, tiny_vit

from hf_unlearn.models.linear import linear_modules


def names(model, part="weight"):
    return [name for name, _ in model.named_parameters() if name.endswith(part)]


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (tiny_llama(tie_word_embeddings=False), "lm_head"),
        (tiny_llama(tie_word_embeddings=True), None),  # its head is the embedding
        (tiny_gpt2(), None),
        (tiny_vit(), "classifier"),
    ],
    ids=["llama", "tied llama", "gpt2", "vit"],
)
def test_the_head_is_an_option(model, head):
    found, inner = linear_modules(model), linear_modules(model, head=False)
    assert set(found) - set(inner) == ({head} if head else set())
    assert linear_modules(model, names(model)) == found and linear_modules(model, names(model), head=False) == inner
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    assert not embeddings & {id(module.weight) for module in found.values()}


def test_only_layers_of_the_named_parameters():
    model = tiny_llama()
    chosen = names(model, "q_proj.weight")
    assert [f"{name}.weight" for name in linear_modules(model, chosen)] == chosen
    assert linear_modules(model, names(model, "norm.weight")) == {}


def test_a_weight_of_several_layers_counts_once():
    model = tiny_llama()
    first, second = (layer.mlp.up_proj for layer in model.model.layers)
    second.weight = first.weight
    for found in (linear_modules(model), linear_modules(model, names(model)), linear_modules(model, head=False)):
        assert first in found.values() and second not in found.values()


def test_without_a_layer_there_is_nothing_to_attack():
    model = tiny_llama(num_hidden_layers=0, tie_word_embeddings=False)
    assert list(linear_modules(model)) == ["lm_head"]
    with pytest.raises(ValueError, match="has no linear layer but its head"):
        linear_modules(model, head=False)
