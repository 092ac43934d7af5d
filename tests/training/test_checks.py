"""Warnings before the training: what ends badly, but can be meant."""

import logging

import pytest
import torch
from cases import image_rows, make_trainer, weights
from tiny import tiny_llama, tiny_vit

from hf_unlearn.methods import GradDiffConfig, GradDiffTrainer, GradientAscentConfig, GradientAscentTrainer


@pytest.mark.parametrize(
    ("changed", "warned"),
    [({}, True), ({"optim": "adamw_torch"}, False), ({"trainable": r"(?!.*embeddings\.).*"}, False)],
)
def test_sgd_on_one_image_is_warned_of(changed, warned, tmp_path, caplog):
    """The ratio of the changes of two embeddings is the image; with frozen embeddings or another optimizer it is not."""
    arguments = {"optim": "sgd", "report_to": "none", "use_cpu": True, "stop_when_forgotten": False} | changed
    args = GradientAscentConfig(output_dir=str(tmp_path), **arguments)
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):
        GradientAscentTrainer(tiny_vit(), args, forget_dataset=image_rows(1))
    assert ("whoever has the model before and after can compute the image" in caplog.text) is warned


def test_a_retain_loss_or_more_images_hide_it(tmp_path, caplog):
    arguments = {"output_dir": str(tmp_path), "optim": "sgd", "report_to": "none", "use_cpu": True}
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):
        GradDiffTrainer(
            tiny_vit(), GradDiffConfig(**arguments), forget_dataset=image_rows(1), retain_dataset=image_rows(4)
        )
        GradientAscentTrainer(tiny_vit(), GradientAscentConfig(**arguments), forget_dataset=image_rows(2))
    assert "can compute the image" not in caplog.text


@pytest.mark.parametrize("method", ["ssd", "svd_forget", "lora_edit", "head_mask", "task_vector"])
def test_a_method_that_needs_whole_weights_refuses_a_launch_that_spreads_them(method, tmp_path, monkeypatch):
    model = tiny_llama().double()
    start = weights(model)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch --use_fsdp` does
    with pytest.raises(ValueError, match="needs whole weights"):
        make_trainer(method, tmp_path, model=model)
    assert weights(model).keys() == start.keys()
    assert all(torch.equal(value, start[name]) for name, value in weights(model).items())
