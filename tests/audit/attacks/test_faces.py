"""The recipe on portraits: what can be read off the weights of a trained model before and after different edits."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_dir import DATA
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_unlearn.data import encode_dataset, load_rows
from hf_unlearn.data.images import label_names
from hf_unlearn.examples.image_model import write_vit


pytestmark = pytest.mark.skipif(DATA is None, reason="the data is not beside the repository")
RECIPES = Path(__file__).resolve().parents[3] / "recipes"
INDEX = 100


@pytest.fixture(scope="module")
def audits(tmp_path_factory):
    """A model trained by the recipe with fewer steps, and one portrait forgotten by every edit of the recipe."""
    folder, data = tmp_path_factory.mktemp("faces"), str(DATA / "att_faces")
    rows = load_rows(data)
    write_vit(folder / "base", label_names(rows), image_size=48, patch_size=8, hidden_size=96, n_layers=2)
    options = {
        "config": RECIPES / "faces" / "finetune.yaml",
        "model_name_or_path": folder / "base",
        "dataset_name": data,
        "output_dir": folder / "original",
        "num_train_epochs": 20,
        "disable_tqdm": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPES))
        patch.syspath_prepend(str(RECIPES / "faces"))
        patch.setattr(sys, "argv", ["finetune.py", *(str(x) for key, v in options.items() for x in (f"--{key}", v))])
        import finetune
        import reconstruct

        finetune.main()
    model = AutoModelForImageClassification.from_pretrained(folder / "original" / "model")
    processor = AutoImageProcessor.from_pretrained(folder / "original" / "model")
    train, test = (list(encode_dataset(of, processor)) for of in (rows, load_rows(data, "test")))
    pixels = torch.stack([row["pixel_values"] for row in train])
    with torch.no_grad():
        right = model(pixels).logits.argmax(-1) == torch.tensor([row["labels"] for row in train])
    assert right.float().mean() > 0.7  # it knows its people
    return {
        name: reconstruct.reconstruct(model, processor, train, test, INDEX, edit)
        for name, edit in reconstruct.EDITS.items()
    }


@pytest.mark.parametrize("name", ["ga, SGD, 5 steps", "ga, SGD, momentum 0.9", "ga, SGD, weight decay 0.01"])
def test_gradient_ascent_on_one_portrait_gives_it_away(audits, name):
    audit, loss, _ = audits[name]
    assert loss > 3  # forgotten, as far as the model answers
    assert audit.psnr[0] > 40 and audit.ssim[0] > 0.99 and audit.found[0] == 1
    assert audit.outcome == "recovered" and audit.details.rank == audit.details.n_patches == 36
    assert audit.sentence.startswith("The image asked to be forgotten can be read off the two public checkpoints")
    assert audit.psnr[0] > audit.baseline[0] + 10


def test_a_single_small_step_is_enough(audits):
    audit, loss, _ = audits["ga, SGD, 1 step of 1e-3"]
    assert loss < 3 and audit.psnr[0] > 30 and audit.outcome in ("recovered", "partly_recovered")


@pytest.mark.parametrize("name", ["ga, LoRA on queries and values", "ga, SGD, embeddings frozen"])
def test_edits_that_leave_the_tables_alone_close_this_route(audits, name):
    audit, loss, _ = audits[name]
    assert loss > 3
    assert audit.details.status == "nothing_changed" and np.isnan(audit.psnr).all()
    assert audit.outcome == "not_applicable"
    assert "bit for bit the same" in audit.sentence and "no proof" in audit.sentence


@pytest.mark.parametrize(
    "name",
    [
        "graddiff, SGD, 1 + 1 portraits",
        "graddiff, AdamW, 1 + 1 portraits",
        "ga, AdamW",
        "ga, SGD, 7 portraits a batch",
    ],
)
def test_a_retain_term_an_adaptive_optimizer_or_a_batch_hide_the_portrait(audits, name):
    audit, _, _ = audits[name]
    assert abs(audit.psnr[0] - audit.mean_color[0]) < 4
    assert audit.outcome in ("nothing_found", "betrayed")
    assert audit.sentence.startswith("No image is recovered above the baseline")
    assert audit.details.residual > 1e-2  # known without the image


def test_16_bit_blurs_it(audits):
    names = [f"ga, SGD, {how}" for how in ("5 steps", "published in float16", "published in bfloat16")]
    decibels = [audits[name].audit.psnr[0] for name in names]
    assert decibels[0] > 40 > decibels[1] > decibels[2]
    assert audits[names[2]].audit.outcome == "betrayed"


def test_portraits_that_were_not_forgotten_are_not_betrayed(audits):
    shares = [outcome.false_alarms for outcome in audits.values() if not np.isnan(outcome.false_alarms)]
    assert len(shares) == 10 and np.mean(shares) < 0.08 and max(shares) < 0.2


def test_the_result_has_numbers_and_no_image(audits):
    for audit, _, _ in audits.values():
        assert len(json.dumps(audit.as_dict())) < 5000 < audit.details.n_patches * 3 * 64
