"""PSNR and SSIM against scikit-image and torchmetrics; pixels as a viewer shows them; whose image one is."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_vit
from transformers import ViTImageProcessorPil

from hf_unlearn.audit.measures.image_similarity import (
    class_token,
    image_chunks,
    nearest_psnr,
    pixel_scale,
    psnr,
    reidentified,
    ssim,
)
from hf_unlearn.data import encode_dataset


def images(n=4, size=(24, 17), seed=0):
    return np.random.default_rng(seed).random((n, 3, *size))


def noisy(clean, std, seed=1):
    return np.clip(clean + std * np.random.default_rng(seed).normal(size=clean.shape), 0, 1)


@pytest.mark.parametrize("std", [0.001, 0.1, 1.0])
def test_agrees_with_scikit_image(std):
    metrics = pytest.importorskip("skimage.metrics")
    clean = images()
    changed = noisy(clean, std)
    options = {"data_range": 1.0, "channel_axis": 0, "gaussian_weights": True, "sigma": 1.5}
    options["use_sample_covariance"] = False
    expected = [metrics.structural_similarity(a, b, **options) for a, b in zip(clean, changed, strict=True)]
    np.testing.assert_allclose(ssim(changed, clean), expected, rtol=1e-10)
    expected = [metrics.peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(clean, changed, strict=True)]
    np.testing.assert_allclose(psnr(changed, clean), expected, rtol=1e-12)


def test_agrees_with_torchmetrics():
    image = pytest.importorskip("torchmetrics.functional.image")
    clean = images(size=(30, 30))
    changed = noisy(clean, 0.2)
    sides = torch.tensor(changed), torch.tensor(clean)
    options = {"data_range": 1.0, "reduction": "none", "return_full_image": True}
    _, everywhere = image.structural_similarity_index_measure(*sides, **options)
    inside = everywhere[:, :, 5:-5, 5:-5].mean(dim=(1, 2, 3))  # where the window needs no padding
    np.testing.assert_allclose(ssim(changed, clean), inside, atol=1e-6)
    expected = image.peak_signal_noise_ratio(*sides, data_range=1.0, dim=(1, 2, 3), reduction="none")
    np.testing.assert_allclose(psnr(changed, clean), expected, rtol=1e-6)


def test_known_values():
    black, gray = np.zeros((1, 3, 16, 16)), np.full((1, 3, 16, 16), 0.1)
    assert psnr(black, gray)[0] == pytest.approx(20)
    assert psnr(gray, gray)[0] == np.inf and ssim(gray, gray)[0] == pytest.approx(1)
    # Constant images: only the term of the means is left.
    assert ssim(black, gray)[0] == pytest.approx(1e-4 / (0.01 + 1e-4))


def test_one_image_beside_several_and_missing_ones():
    clean = images()
    np.testing.assert_array_equal(psnr(clean[0], clean), psnr(np.stack([clean[0]] * 4), clean))
    broken = clean.copy()
    broken[2] = np.nan
    for similarity in (psnr, ssim):
        values = similarity(broken, noisy(clean, 0.1))
        np.testing.assert_array_equal(np.isnan(values), [False, False, True, False])
    assert np.isnan(ssim(images(size=(10, 40)), images(size=(10, 40)))).all()  # smaller than the window
    with pytest.raises(ValueError, match="cannot be compared"):
        psnr(images(2), images(3))
    with pytest.raises(ValueError, match="cannot be compared"):
        psnr(images(size=(8, 8)), images(size=(8, 9)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
    ],
)
def test_undoes_what_the_processor_does(options):
    pixels = np.random.default_rng(0).integers(256, size=(2, 16, 16, 3), dtype=np.uint8)
    rows = [{"image": Image.fromarray(image), "label": 0} for image in pixels]
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, **options)
    expected = pixels.transpose(0, 3, 1, 2) / 255
    for given in (rows, list(encode_dataset(rows, processor)), encode_dataset(rows, processor), expected):
        (found,) = image_chunks(given, processor)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    mean, std = pixel_scale(processor)
    encoded = encode_dataset(rows, processor)[1]["pixel_values"].numpy()
    np.testing.assert_allclose((expected[1] - mean) / std, encoded, atol=1e-3 if options else 1e-5)


def test_chunks_and_shapes():
    assert [len(chunk) for chunk in image_chunks(np.zeros((513, 1, 2, 2)))] == [256, 256, 1]
    with pytest.raises(ValueError, match="shape"):
        list(image_chunks(np.zeros((3, 8, 8))))
    gallery = images(6, seed=3)
    targets = np.stack([noisy(gallery[4], 0.01), images(1, seed=9)[0]])
    expected = [psnr(gallery, target).max() for target in targets]
    np.testing.assert_array_equal(nearest_psnr(targets, gallery), expected)
    assert np.isnan(nearest_psnr(targets, gallery[:0])).all()


def test_a_person_is_found_by_the_nearest_other_image():
    gallery = images(4)
    labels = [3, 3, 5, 6]
    # Brightness does not count, for it is not what makes a person.
    guesses = np.stack([gallery[0] * 0.5 + 0.4, gallery[2], gallery[3], gallery[3], np.full_like(gallery[0], np.nan)])
    found = reidentified(guesses, [3, 5, 5, 8, 3], gallery, labels)
    np.testing.assert_array_equal(found, [1, 1, 0, np.nan, np.nan])
    # With features, they decide: the second and third image are alike, and like the second of the gallery.
    features = {0.0: [1.0, 0.0], 1.0: [0.0, 1.0]}
    flat = np.zeros((3, 3, 16, 16)) + np.array([0.0, 1.0, 1.0])[:, None, None, None]
    embed = lambda x: np.array([features[image[0, 0, 0]] for image in x])  # noqa: E731
    np.testing.assert_array_equal(reidentified(flat, [5, 5, 3], flat[:2], [3, 5], embed), [0, 1, 0])
    assert np.isnan(reidentified(guesses[4:], [3], gallery, labels)).all()


def test_the_class_token_is_that_of_the_last_layer():
    model = tiny_vit().train()
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    given = images(70, (16, 16))  # more than one batch
    features = class_token(model, processor)(given)
    with torch.no_grad():
        hidden = model.vit(torch.tensor(given * 2 - 1, dtype=torch.float32)).last_hidden_state[:, 0]
    np.testing.assert_allclose(features, hidden, atol=1e-5)
    assert model.training and features.dtype == np.float64
