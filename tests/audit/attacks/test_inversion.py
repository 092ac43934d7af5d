"""Faces off the weights before and after an edit: what one-image ascent gives away, and what other edits do not."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from data_dir import DATA
from datasets import load_dataset
from peft import LoraConfig
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from hf_unlearn.audit import audit
from hf_unlearn.audit.attacks.inversion import reconstruct_from_weights
from hf_unlearn.audit.attacks.reconstruction import reconstruction_audit
from hf_unlearn.data import encode_dataset
from hf_unlearn.data.pairing import UnlearningCollator
from hf_unlearn.methods import METHODS
from hf_unlearn.models.likelihood import target_logits


pytestmark = pytest.mark.skipif(DATA is None, reason="needs the portraits of att_faces beside the repository")
PROCESSOR = ViTImageProcessorPil(size={"height": 48, "width": 48})


@pytest.fixture(scope="module")
def faces():
    """A ViT that learned some portraits, and the rows: one to forget, others that stay, others never seen."""
    files = {split: str(DATA / "att_faces" / f"{split}.parquet") for split in ("train", "test")}
    rows = load_dataset("parquet", data_files=files, keep_in_memory=True)
    train, test = rows["train"].select(range(56)), rows["test"].select(range(24))
    config = ViTConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=48,
        patch_size=8,
        num_labels=40,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTForImageClassification(config)
    encoded = list(encode_dataset(train, PROCESSOR))
    inputs, optimizer = UnlearningCollator()(encoded), torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(40):
        out = target_logits(model, inputs)
        out.token_mean(-out.log_probs).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), encoded, list(encode_dataset(test, PROCESSOR)), train, test


def edited(faces, folder, method="ga", peft_config=None, **arguments):
    """The model after the first portrait was forgotten."""
    model, encoded, *_ = faces
    trainer_class = METHODS[method]
    defaults = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_steps": 3}
    defaults |= {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    config = trainer_class.config_class(output_dir=str(folder), **(defaults | arguments))
    retain = None if method == "ga" else encoded[1:]
    trainer = trainer_class(deepcopy(model), config, encoded[:1], retain, peft_config=peft_config)
    trainer.train()
    after = trainer.model
    return after.merge_and_unload() if peft_config is not None else after


def audited(faces, after):
    model, encoded, unseen, *_ = faces
    return reconstruction_audit(model, after, encoded[:1], PROCESSOR, retain=encoded[1:], non_members=unseen)


def test_a_face_is_read_off_the_weights_of_a_one_image_ascent(faces, tmp_path):
    found = audited(faces, edited(faces, tmp_path))
    assert found.psnr[0] > 40 and found.ssim[0] > 0.99 and found.outcome == "recovered"
    assert found.baseline[0] < 30 and "can be read off the two public checkpoints" in found.sentence


def test_the_solution_is_that_of_least_squares(faces, tmp_path):
    """By the definition: each row of the change of the weight is the change of the positions times the patches."""
    model, encoded, *_ = faces
    after = edited(faces, tmp_path).eval()
    (w, p), (w2, p2) = (
        (
            m.vit.embeddings.patch_embeddings.projection.weight.detach().double().flatten(1),
            m.vit.embeddings.position_embeddings.detach().double()[0, 1:],
        )
        for m in (model, after)
    )
    patches = np.linalg.lstsq((p2 - p).T.numpy(), (w2 - w).numpy(), rcond=None)[0]  # (36, 3 * 8 * 8)
    image = patches.reshape(6, 6, 3, 8, 8).transpose(2, 0, 3, 1, 4).reshape(3, 48, 48) * 0.5 + 0.5
    found = reconstruct_from_weights(model, after, PROCESSOR)
    np.testing.assert_allclose(found.image, np.clip(image, 0, 1), atol=1e-3)
    truth = encoded[0]["pixel_values"].double().numpy() * 0.5 + 0.5
    assert np.abs(image - truth).mean() < 0.01


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("graddiff", {"per_device_train_batch_size": 1}),
        ("ga", {"optim": "adamw_torch", "learning_rate": 1e-4}),
    ],
)
def test_a_retain_term_or_adam_shows_no_face(method, arguments, faces, tmp_path):
    found = audited(faces, edited(faces, tmp_path, method, **arguments))
    assert found.psnr[0] < found.baseline[0] + 3 and found.outcome not in ("recovered", "partly_recovered")
    assert found.sentence.startswith(("No image is recovered above the baseline", "Nothing is recovered"))


def test_an_adapter_leaves_the_tables_alone_and_the_audit_says_so(faces, tmp_path):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    after = edited(faces, tmp_path, peft_config=lora, optim="adamw_torch", learning_rate=1e-2)
    found = audited(faces, after)
    assert np.isnan(found.psnr[0]) and found.outcome == "not_applicable"
    assert "Nothing is recovered" in found.sentence and "no proof" in found.sentence


def test_the_whole_audit_reports_it(faces, tmp_path):
    model, _, _, train, test = faces
    report = audit(
        edited(faces, tmp_path),
        model,
        split={"forget": train.select([0]), "retain": train.select(range(1, 56)), "holdout": test},
        threat_model=["both_checkpoints"],
        processing_class=PROCESSOR,
    )
    assert report.verdict("inversion") == "residual" and report.exit_code == 1
    (check,) = [check for check in report.checks if check["check"] == "reconstruction"]
    assert check["psnr"]["value"] > 40 and check["recovered"] == [0]
