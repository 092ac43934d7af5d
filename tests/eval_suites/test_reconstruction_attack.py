import copy

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from hf_unlearn.evaluate_modules.base import load_metric


def test_reconstructions_agree_with_scikit_image():
    rng = np.random.default_rng(0)
    images = rng.random((6, 3, 20, 16))
    guesses = np.clip(images + rng.normal(0, 0.2, images.shape), 0, 1)
    guesses[4] = images[4] + 1e-3
    guesses[5] = np.nan
    others = rng.random((4, 3, 20, 16))
    results = load_metric("reconstruction_attack").compute(predictions=guesses, references=images, retain=others)
    expected = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(images[:5], guesses[:5], strict=True)]
    np.testing.assert_allclose(results["records"]["psnr"], [*expected, np.nan])
    assert results["psnr"] == pytest.approx(np.mean(expected)) and results["psnr_low"] < results["psnr"]
    options = {"data_range": 1, "channel_axis": 0, "gaussian_weights": True, "use_sample_covariance": False}
    likeness = [structural_similarity(a, b, **options) for a, b in zip(images[:5], guesses[:5], strict=True)]
    assert results["ssim"] == pytest.approx(np.mean(likeness), abs=2e-3)  # scikit-image reflects at the border
    assert results["recovered_rate"] == 1 / 5 and results["outcome"] == "recovered"
    assert (results["n"], results["n_missing"]) == (5, 1)
    color = [
        peak_signal_noise_ratio(a, np.broadcast_to(a.mean((1, 2), keepdims=True), a.shape), data_range=1)
        for a in images
    ]
    assert results["psnr_mean_color"] == pytest.approx(np.mean(color))
    nearest = [max(peak_signal_noise_ratio(a, b, data_range=1) for b in others) for a in images]
    assert results["psnr_nearest_retained"] == pytest.approx(np.mean(nearest))
    assert not {"psnr_non_members", "found_rate", "status"} & set(results)
    results = load_metric("reconstruction_attack").compute(
        predictions=guesses[:5], references=images[:5], non_members=others
    )
    nearest = [max(peak_signal_noise_ratio(a, b, data_range=1) for b in guesses[:5]) for a in others]
    assert results["psnr_non_members"] == pytest.approx(np.mean(nearest))


def test_images_of_several_shapes_are_refused():
    with pytest.raises(ValueError, match="different shapes"):
        load_metric("reconstruction_attack").compute(
            predictions=[np.zeros((1, 2, 2)), np.zeros((1, 3, 2))], references=[np.zeros((1, 2, 2))] * 2
        )


def test_images_with_their_channels_last_are_told_from_a_likeness_of_nan():
    module, images = load_metric("reconstruction_attack"), np.random.default_rng(0).random((2, 16, 14, 3))
    first = images.transpose(0, 3, 1, 2)
    for inputs in (
        {"predictions": images, "references": images},
        {"predictions": first, "references": first, "retain": images},
        {"examples": images, "original": object(), "model": object()},
    ):
        with pytest.raises(ValueError, match=r"shape \(16, 14, 3\).*Give \(channels, height, width\)"):
            module.compute(**inputs)
    assert module.compute(predictions=first, references=first)["ssim"] == 1


def test_decibels_that_are_all_alike_have_no_interval():
    black = np.zeros((12, 1, 16, 16))
    results = load_metric("reconstruction_attack").compute(predictions=black, references=black + 1)
    assert results["psnr"] == 0 and np.isnan(results["psnr_low"]) and np.isnan(results["psnr_high"])
    assert "psnr: no spread" in results["reason"] and results["recovered_rate_high"] < 0.3


def vit():
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        num_labels=3,
    )
    torch.manual_seed(0)
    return ViTForImageClassification(config).double().eval()


@pytest.mark.parametrize("by_name", [False, True])
def test_an_image_is_read_off_the_weights_and_not_off_those_of_a_frozen_layer(by_name, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.random((2, 3, 16, 16))
    before = vit()
    after = copy.deepcopy(before)
    pixels = torch.from_numpy(images[:1])
    optimizer = torch.optim.SGD(after.parameters(), lr=0.5)
    for _ in range(2):
        (-after(pixel_values=pixels, labels=torch.tensor([1])).loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    frozen = copy.deepcopy(before)
    torch.nn.init.normal_(frozen.classifier.weight)
    models = {"before": before, "after": after, "frozen": frozen}
    if by_name:
        for name, model in models.items():
            model.save_pretrained(tmp_path / name)
            ViTImageProcessorPil(size={"height": 16, "width": 16}, do_normalize=False).save_pretrained(tmp_path / name)
        models = {name: str(tmp_path / name) for name in models}
    module = load_metric("reconstruction_attack")
    results = module.compute(examples=images, original=models["before"], model=models["after"])
    assert results["records"]["psnr"][0] > 60 and results["records"]["psnr"][1] < 15
    assert results["recovered_rate"] == 0.5 and results["outcome"] == "recovered" and results["status"] == "applicable"
    assert results["rank"] == results["n_patches"] == 16 and results["residual"] < 1e-6
    results = module.compute(examples=images, original=models["before"], model=models["frozen"])
    assert results["status"] == "nothing_changed" and results["outcome"] == "not_applicable"
    assert (results["n"], results["n_missing"]) == (0, 2) and np.isnan(results["psnr"])
    assert "bit for bit the same" in results["reason"] and "no proof" in results["finding"]
    with pytest.raises(ValueError, match="no model or no original"):
        module.compute(examples=images, model=models["after"])


def test_a_reconstruction_is_looked_for_among_the_retained_images():
    rng = np.random.default_rng(1)
    faces = rng.integers(20, 236, (4, 16, 16, 3), dtype=np.uint8)
    again = [np.clip(face.astype(int) + rng.integers(-5, 6, face.shape), 0, 255).astype(np.uint8) for face in faces]
    forget = [{"image": Image.fromarray(faces[0]), "label": 0}]
    retain = [{"image": Image.fromarray(face), "label": label} for label, face in enumerate(again)]
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    pixels = processor(forget[0]["image"], return_tensors="pt")["pixel_values"].double()
    before = vit()
    after = copy.deepcopy(before)
    (-after(pixel_values=pixels, labels=torch.tensor([0])).loss).backward()
    torch.optim.SGD(after.parameters(), lr=0.5).step()
    results = load_metric("reconstruction_attack").compute(
        examples=forget,
        original=before,
        model=after,
        processing_class=processor,
        retain=retain,
        non_members=retain[1:],
    )
    assert results["psnr"] > 60 and results["found_rate"] == 1 and results["chance"] == 1 / 4
    assert results["psnr_nearest_retained"] < 40 and results["psnr_non_members"] < 20
