"""Inversion of gradients by optimization: finds what can be found, and its mismatch is the cosine of the gradients."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_vit
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from hf_unlearn.audit.attacks import gradient_inversion
from hf_unlearn.audit.attacks.gradient_inversion import (
    invert_gradient,
    optimize_pixels,
    random_pixels,
    total_variation,
)
from hf_unlearn.audit.measures.image_similarity import psnr


PROCESSOR = ViTImageProcessorPil(size={"height": 8, "width": 8})


def one_patch():
    """A model that reads an image as one patch: the change of its patch weights is the image, but for a factor."""
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            image_size=8,
            patch_size=8,
            num_labels=5,
        )
    ).eval()


def an_image(seed=0):
    # Smooth, as portraits are.
    corners = np.random.default_rng(seed).random((1, 3, 2, 2))
    return torch.nn.functional.interpolate(torch.tensor(corners), size=(8, 8), mode="bilinear").numpy()


def gradient(model, image, label):
    model = copy.deepcopy(model)
    pixels = torch.tensor(image * 2 - 1, dtype=torch.float32)
    torch.nn.functional.cross_entropy(model(pixels).logits, torch.tensor([label])).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def stepped(model, image, label, rate):
    after = copy.deepcopy(model)
    for name, step in gradient(model, image, label).items():
        after.get_parameter(name).data.add_(rate * step)
    return after


def test_finds_an_image_that_is_one_patch_and_its_label(monkeypatch):
    monkeypatch.setattr(gradient_inversion, "TV_WEIGHT", 0.0)
    model, image = one_patch(), an_image()
    after = stepped(model, image, label=3, rate=0.1)
    found = invert_gradient(model, after, None, PROCESSOR, n_starts=2)
    assert found.labels.tolist() == [3] and found.images.shape == (1, 3, 8, 8)
    assert psnr(found.images, image)[0] > 30
    assert found.mismatch.shape == (2,) and found.mismatch.min() < 1e-4
    assert 0 <= found.images.min() and found.images.max() <= 1


def test_the_mismatch_is_that_of_the_gradients_and_the_best_start_is_kept():
    model, image = one_patch(), an_image()
    after = stepped(model, image, label=1, rate=0.1)
    found = invert_gradient(model, after, 1, PROCESSOR, n_steps=10, n_starts=3)
    got, wanted = gradient(model, found.images, 1), {}
    for (name, a), b in zip(model.named_parameters(), after.parameters(), strict=True):
        wanted[name] = (b - a).detach()
    got, wanted = (torch.cat([of[name].flatten().double() for name in got]) for of in (got, wanted))
    cosine = torch.nn.functional.cosine_similarity(got, wanted, dim=0)
    assert found.mismatch.min() == pytest.approx(1 - cosine.item(), abs=1e-5)
    again = invert_gradient(model, after, 1, PROCESSOR, n_steps=10, n_starts=3)
    np.testing.assert_array_equal(found.images, again.images)
    alone = [invert_gradient(model, after, 1, PROCESSOR, n_steps=10, n_starts=1, seed=seed) for seed in range(3)]
    np.testing.assert_array_equal(found.mismatch, [of.mismatch[0] for of in alone])
    np.testing.assert_array_equal(found.images, alone[int(found.mismatch.argmin())].images)


def test_only_what_changed_is_compared_and_models_stay_as_they_are():
    model, image = tiny_vit().train(), np.random.default_rng(0).random((2, 3, 16, 16))
    model.classifier.bias.requires_grad_(False)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attention = model.config._attn_implementation
    found = invert_gradient(model, adapted, [0, 4], n_steps=3, n_starts=1)
    assert found.images.shape == image.shape and found.labels.tolist() == [0, 4]
    assert model.training and model.config._attn_implementation == attention
    assert not model.classifier.bias.requires_grad and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert any("lora_A" in name for name, _ in adapted.named_parameters())
    state = torch.random.get_rng_state()
    invert_gradient(model, adapted, [0, 4], n_steps=1, n_starts=1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_weights_that_the_loss_does_not_read_do_no_harm():
    model = tiny_vit()
    model.unread = torch.nn.Parameter(torch.ones(3))
    after = copy.deepcopy(model)
    with torch.no_grad():
        after.unread.mul_(0.9)
        after.classifier.weight.add_(0.1)
    assert np.isfinite(invert_gradient(model, after, 0, n_steps=2, n_starts=1).mismatch).all()


def test_bad_input_is_refused():
    model = tiny_vit()
    with pytest.raises(ValueError, match="No weight differs"):
        invert_gradient(model, copy.deepcopy(model), 0)
    with pytest.raises(ValueError, match="one architecture"):
        invert_gradient(model, tiny_vit(n_classes=6), 0)
    after = copy.deepcopy(model)
    with torch.no_grad():
        after.vit.layernorm.weight.add_(0.1)
    with pytest.raises(ValueError, match="Give labels"):
        invert_gradient(model, after)


def test_pixels_stay_in_the_box_and_the_optimum_is_found():
    model = tiny_vit()
    target = torch.linspace(-3, 3, 3 * 16 * 16).reshape(1, 3, 16, 16)
    for processor, low, high in ((None, 0, 1), (PROCESSOR, -1, 1)):
        pixels = random_pixels(model, 1, processor, seed=0)
        assert low <= pixels.min() and pixels.max() <= high
        optimize_pixels(pixels, lambda x: (x - target).square().sum(), processor, 300, 0.1)
        torch.testing.assert_close(pixels, target.clamp(low, high), rtol=0, atol=1e-2)
        assert not pixels.requires_grad


def test_total_variation_of_known_images():
    stripes = torch.tensor([[0.0, 1.0] * 4] * 8)[None, None]
    assert total_variation(stripes) == 1 and total_variation(stripes.mT) == 1
    assert total_variation(torch.full((2, 3, 8, 8), 0.3)) == 0
