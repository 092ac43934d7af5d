"""A model in evaluation mode for a while, and without its wrappers."""

import pytest
import torch
from tiny import tiny_gpt2
from tiny_weights import levit
from torch import nn

from hf_unlearn.audit import score
from hf_unlearn.curvature.importance import squared_gradients
from hf_unlearn.models.likelihood import forward_parameters
from hf_unlearn.models.modes import evaluating, plain_copy, unwrapped


def modes(*models):
    return [module.training for model in models for module in model.modules()]


def test_every_module_gets_its_own_mode_back_whatever_happens():
    first, second = tiny_gpt2().train(), tiny_gpt2().eval()
    first.transformer.h[0].eval()
    before = modes(first, second)
    with pytest.raises(KeyError), evaluating(first, second):
        assert not any(modes(first, second))
        raise KeyError
    assert modes(first, second) == before and len(set(before)) == 2
    with evaluating(first), evaluating(first):
        assert not any(modes(first))
    assert modes(first, second) == before


def test_a_pass_in_evaluation_mode_keeps_nothing_of_the_weights():
    """LeViT keeps its attention biases from one pass to the next: without their changes, and with a graph that is used up."""
    model, pixels = levit(), torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    name = "levit.encoder.stages.0.layers.0.module.attention_biases"
    batch = {"pixel_values": pixels, "labels": torch.arange(3)}
    model(pixels)  # somebody else's pass
    expected = torch.zeros_like(model.get_parameter(name))
    for i in range(3):
        fresh = levit()
        loss = fresh(pixels[i : i + 1]).logits.log_softmax(-1)[0, i]
        expected += torch.autograd.grad(loss, fresh.get_parameter(name))[0].square() / 3
    assert expected.any()
    torch.testing.assert_close(squared_gradients(model, [batch], [name])[name], expected)

    for changed in (model, plain_copy(model)):
        other = levit()
        with torch.no_grad():
            for one in (changed, other):
                one.get_parameter(name).add_(torch.arange(16.0))
            with evaluating(changed):
                torch.testing.assert_close(changed(pixels).logits, other(pixels).logits)


def test_the_model_inside_its_wrappers():
    model = tiny_gpt2()
    compiled = torch.compile(model)
    for wrapped in (model, compiled, nn.DataParallel(model, device_ids=[]), nn.DataParallel(compiled, device_ids=[])):
        assert unwrapped(wrapped) is model and unwrapped(wrapped, run=False) is model
        assert score(wrapped, None, [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}]).lengths == [2]


def test_a_wrapper_that_makes_weights_whole_stays_on_for_a_pass():
    class FullyShardedDataParallel(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    model = tiny_gpt2()
    sharded = FullyShardedDataParallel(model)
    assert unwrapped(torch.compile(sharded)) is sharded
    assert unwrapped(sharded, run=False) is model and "logits_to_keep" in forward_parameters(sharded)
