"""What is said of a reconstruction: beside baselines, with the number of records it rests on, and without an image."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_vit
from transformers import ViTImageProcessorPil

from hf_unlearn.audit.attacks.reconstruction import compare_reconstructions, reconstruction_audit
from hf_unlearn.audit.measures.image_similarity import psnr, ssim
from hf_unlearn.statistics import intervals


SIZE = (3, 16, 16)


def images(n, seed=0):
    """Blurred noise: images that have a structure of their own, but no two the same."""
    coarse = np.random.default_rng(seed).random((n, 3, 5, 5))
    smooth = torch.nn.functional.interpolate(torch.tensor(coarse), size=SIZE[1:], mode="bicubic")
    return smooth.clamp(0, 1).numpy()


def blend(image, other, share):
    return (1 - share) * image + share * other


FORGET, RETAIN, OTHERS = images(3), images(6, seed=1), images(40, seed=2)


def compare(reconstructed, **options):
    options = {"retain": RETAIN, "non_members": OTHERS} | options
    return compare_reconstructions(reconstructed, FORGET, **options)


@pytest.mark.parametrize(
    ("reconstructed", "outcome", "said"),
    [
        (FORGET + 1e-4, "recovered", "The image asked to be forgotten can be read off"),
        (blend(FORGET, 0.5, 0.1), "partly_recovered", "A part of the image asked to be forgotten can be read off"),
        (blend(FORGET, images(3, seed=3), 0.6), "betrayed", "betrays what was forgotten"),
        (images(3, seed=4), "nothing_found", "no proof"),
        (np.nan, "not_applicable", "Nothing is recovered by inversion: the table is gone. This is no proof"),
    ],
)
def test_outcomes(reconstructed, outcome, said):
    audit = compare(reconstructed, reason="the table is gone.")
    assert audit.outcome == outcome
    assert said in audit.sentence
    if outcome in ("betrayed", "nothing_found"):
        assert audit.sentence.startswith("No image is recovered above the baseline by inversion")
    shown = json.loads(json.dumps(audit.as_dict()))
    assert shown["outcome"] == outcome and shown["n"] == 3
    assert shown["recovered"] == ([0, 1, 2] if outcome == "recovered" else [])
    assert shown["psnr"]["n_missing"] == (3 if outcome == "not_applicable" else 0)


def test_values_and_baselines_are_those_of_their_definitions():
    guess = blend(FORGET, OTHERS[:3], 0.3)
    audit = compare(guess)
    np.testing.assert_array_equal(audit.psnr, psnr(guess, FORGET))
    np.testing.assert_array_equal(audit.ssim, ssim(guess, FORGET))
    color = [np.broadcast_to(image.mean(axis=(1, 2), keepdims=True), SIZE) for image in FORGET]
    np.testing.assert_allclose(audit.mean_color, [psnr(c, image)[0] for c, image in zip(color, FORGET, strict=True)])
    # No other single colour is nearer.
    assert (audit.mean_color >= [psnr(c + 0.01, image)[0] for c, image in zip(color, FORGET, strict=True)]).all()
    np.testing.assert_allclose(audit.nearest_retained, [psnr(RETAIN, image).max() for image in FORGET])
    np.testing.assert_allclose(audit.non_members, [max(psnr(guess, other)) for other in OTHERS])
    np.testing.assert_allclose(audit.non_members_ssim, [max(ssim(guess, other)) for other in OTHERS])
    best = np.maximum(np.maximum(audit.mean_color, audit.nearest_retained), audit.non_members.max())
    np.testing.assert_array_equal(audit.baseline, best)
    assert np.isnan(audit.found).all() and np.isnan(audit.chance).all()  # arrays have no labels


def test_without_other_sets_their_baselines_are_missing_and_nothing_is_betrayed():
    audit = compare(blend(FORGET, images(3, seed=3), 0.6), retain=None, non_members=None)
    assert np.isnan(audit.nearest_retained).all() and len(audit.non_members) == 0 and np.isnan(audit.p_value)
    np.testing.assert_array_equal(audit.baseline, audit.mean_color)
    assert audit.outcome != "betrayed" and json.dumps(audit.as_dict())


def test_one_reconstruction_for_all_records():
    audit = compare(FORGET[1:2])
    np.testing.assert_array_equal(audit.recovered, [False, True, False])
    assert "record 1" in audit.sentence and "more" not in audit.sentence
    assert "So can 2 more." in compare(FORGET).sentence


def test_the_p_value_of_one_record_is_its_rank_among_images_never_trained_on():
    guess = blend(FORGET[:1], images(1, seed=3), 0.6)
    audit = compare_reconstructions(guess, FORGET[:1], non_members=OTHERS)
    ahead = (ssim(guess, OTHERS) >= audit.ssim[0]).sum()
    assert audit.p_value == pytest.approx((1 + ahead) / (1 + len(OTHERS)))
    few = compare_reconstructions(guess, FORGET[:1], non_members=OTHERS[:10])
    assert few.p_value >= 1 / 11 and few.outcome == "nothing_found"  # ten are too few to say it


def test_false_alarms_are_as_rare_as_the_level_says():
    pool = images(60, seed=5)
    hits = []
    for seed in range(200):
        order = np.random.default_rng(seed).permutation(60)
        audit = compare_reconstructions(pool[order[:1]], pool[order[1:3]], non_members=pool[order[3:]])
        hits.append(audit.p_value <= 0.05)
    assert 0 < np.mean(hits) < 0.1


def test_people_are_looked_for_among_the_retained_images():
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})

    def rows(arrays, labels):
        pixels = (arrays * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
        return [{"image": Image.fromarray(p), "label": k} for p, k in zip(pixels, labels, strict=True)]

    # The retained images of the first two people are like their forgotten ones; nobody keeps one of the third.
    kept = np.concatenate([blend(FORGET[:2], OTHERS[:2], 0.3), RETAIN[:2]])
    audit = compare_reconstructions(
        np.stack([FORGET[0], RETAIN[0], FORGET[2]]),
        rows(FORGET, [0, 1, 9]),
        processor,
        retain=rows(kept, [0, 1, 2, 2]),
    )
    np.testing.assert_array_equal(audit.found, [1, 0, np.nan])
    np.testing.assert_array_equal(audit.chance, [0.25, 0.25, 0])
    assert audit.as_dict()["found"] == intervals.rate(1, 2).as_dict()


def test_the_closed_form_is_audited_from_models():
    model = tiny_vit()
    audit = reconstruction_audit(model, model, FORGET, non_members=OTHERS)
    assert audit.outcome == "not_applicable" and audit.details.status == "nothing_changed"
    assert "bit for bit the same" in audit.sentence
    assert audit.as_dict()["details"]["n_patches"] == 4
    assert np.isnan(audit.psnr).all() and np.isfinite(audit.mean_color).all()
