"""Warnings before the training: what ends badly, but can be meant."""

import logging

import pytest
from cases import image_rows
from tiny import tiny_vit

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
