"""Images drawn for a class: what is optimized, what another model makes of them, and who is compared with whom."""

import numpy as np
import pytest
import torch
from tiny import tiny_vit
from transformers import ViTImageProcessorPil

from hf_unlearn.audit.attacks import class_inversion
from hf_unlearn.audit.attacks.class_inversion import invert_class
from hf_unlearn.audit.attacks.gradient_inversion import random_pixels
from hf_unlearn.audit.measures.image_similarity import psnr


PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16})


def probabilities(model, images):
    with torch.no_grad():
        return model(torch.tensor(images * 2 - 1, dtype=torch.float32)).logits.double().softmax(-1).numpy()


def test_the_class_becomes_likely_and_the_evaluator_judges_the_same_images(monkeypatch):
    monkeypatch.setattr(class_inversion, "TV_WEIGHT", 0.1)
    model, evaluator = tiny_vit(), tiny_vit(seed=1)
    found = invert_class(model, 2, PROCESSOR, evaluator=evaluator, n_starts=3, n_steps=60)
    start = probabilities(model, random_pixels(model, 3, PROCESSOR).double().numpy() / 2 + 0.5)[:, 2]
    assert (found.confidence > 0.9).all() and (start < 0.9).all()
    np.testing.assert_allclose(found.confidence, probabilities(model, found.images)[:, 2], rtol=1e-4)
    np.testing.assert_allclose(found.evaluator_confidence, probabilities(evaluator, found.images)[:, 2], rtol=1e-4)
    assert found.images.shape == (3, 3, 16, 16) and 0 <= found.images.min() and found.images.max() <= 1
    assert np.isnan(found.nearest_psnr).all() and np.isnan(found.nearest_ssim).all()


def test_a_start_depends_on_its_seed_alone():
    model = tiny_vit().train()
    many = invert_class(model, 0, PROCESSOR, n_starts=4, n_steps=10)
    few = invert_class(model, 0, PROCESSOR, n_starts=2, n_steps=10)
    np.testing.assert_allclose(many.images[:2], few.images, atol=1e-4)
    other = invert_class(model, 0, PROCESSOR, n_starts=2, n_steps=10, seed=1)
    assert np.abs(few.images - other.images).max() > 0.1
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert np.isnan(few.evaluator_confidence).all()


def test_smoother_with_a_larger_weight(monkeypatch):
    model, images = tiny_vit(), []
    for weight in (0, 50):
        monkeypatch.setattr(class_inversion, "TV_WEIGHT", weight)
        images.append(invert_class(model, 1, PROCESSOR, n_starts=2, n_steps=80).images)
    rough, smooth = images
    assert np.abs(np.diff(smooth, axis=-1)).mean() < 0.5 * np.abs(np.diff(rough, axis=-1)).mean()


def test_the_nearest_image_of_the_class():
    model = tiny_vit()
    plain = invert_class(model, 1, PROCESSOR, n_starts=2, n_steps=5).images
    forget = np.stack([np.zeros((3, 16, 16)), plain[1] * 0.9 + 0.05, np.ones((3, 16, 16))])
    found = invert_class(model, 1, PROCESSOR, forget, n_starts=2, n_steps=5)
    expected = [max(psnr(image, forget)) for image in plain]
    np.testing.assert_allclose(found.nearest_psnr, expected)
    assert found.nearest_ssim[1] > 0.9 > found.nearest_ssim[0]


def test_a_class_that_the_model_does_not_have():
    with pytest.raises(ValueError, match="no class 5"):
        invert_class(tiny_vit(), 5)
