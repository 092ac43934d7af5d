"""Changes within chosen singular directions of the weights."""

import pytest
import torch
from cases import MODELS, make_trainer, weights
from peft import LoraConfig


KINDS = ["llama", "gpt2", "vit"]


def run(kind, folder, **options):
    trainer = make_trainer("graddiff", folder, kind, max_steps=4, optim="adamw_torch", weight_decay=0.1, **options)
    trainer.train()
    return trainer


@pytest.mark.parametrize("part", ["top", "bottom"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_change_lies_in_the_chosen_directions(kind, part, tmp_path):
    start = weights(MODELS[kind]().double())
    trainer = run(kind, tmp_path, singular_rank=3, singular_part=part, learning_rate=1e-2)
    after = weights(trainer.model)
    moved = {name for name in start if not torch.equal(start[name], after[name])}
    assert moved == set(trainer.trainable_names)
    for name in moved:
        u, _, vh = torch.linalg.svd(start[name], full_matrices=False)
        u, vh = (u[:, :3], vh[:3]) if part == "top" else (u[:, -3:], vh[-3:])
        change = after[name] - start[name]
        assert change.norm() > 1e-4
        torch.testing.assert_close(u @ (u.T @ change @ vh.T) @ vh, change, atol=1e-12, rtol=0)
        assert torch.linalg.matrix_rank(change, tol=1e-9) <= 3


def test_all_directions_of_a_square_weight_are_no_restriction(tmp_path):
    whole = run("llama", tmp_path, singular_rank=10_000, trainable=r".*(q|o)_proj.weight")
    free = run("llama", tmp_path, trainable=r".*(q|o)_proj.weight")
    for name, value in weights(free.model).items():
        torch.testing.assert_close(weights(whole.model)[name], value, atol=1e-9, rtol=0)


def test_the_model_stays_plain_and_a_run_resumes(tmp_path):
    arguments = {"singular_rank": 2, "max_steps": 4, "optim": "adamw_torch", "learning_rate": 1e-3}
    first = make_trainer("npo", tmp_path / "a", save_strategy="steps", save_steps=2, **arguments)
    first.train()
    assert weights(first.model).keys() == weights(MODELS["llama"]()).keys()
    resumed = make_trainer("npo", tmp_path / "b", **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for name, value in weights(first.model).items():
        assert torch.equal(value, weights(resumed.model)[name]), name


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="singular_rank=0"):
        make_trainer("npo", tmp_path, singular_rank=0)
    with pytest.raises(ValueError, match="none of top, bottom"):
        make_trainer("npo", tmp_path, singular_rank=2, singular_part="middle")
    with pytest.raises(ValueError, match="on a model with an adapter"):
        make_trainer("npo", tmp_path, singular_rank=2, peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="saliency=0.5 and singular_rank=2"):
        make_trainer("npo", tmp_path, singular_rank=2, saliency=0.5)
