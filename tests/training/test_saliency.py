"""Saliency masks: exactly a share of the entries moves, whatever the optimizer, and it is the right one."""

import math

import pytest
import torch
from cases import image_rows, make_trainer, text_rows, weights
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_tokenizer
from transformers import TrainerCallback

from hf_unlearn.data import encode_dataset
from hf_unlearn.training.constraints import SaliencyMask, largest


SHARE = 0.1
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 0.1, "max_steps": 4}


def flat(values):
    return torch.cat([value.flatten() for value in values])


def moved(before, after):
    return flat([before[name] != after[name] for name in before])


# The choice of entries.


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.floats(0.01, 1.0), st.integers(0, 40))
def test_largest_takes_exactly_a_share(values, share, at):
    # Few different values: ties are the rule.
    x = torch.tensor(values, dtype=torch.float64)
    parts = [x[:at], x[at:]]
    masks = largest(parts, share)
    assert [mask.shape for mask in masks] == [part.shape for part in parts]
    mask = flat(masks)
    assert mask.sum() == math.floor(share * len(x))
    if 0 < mask.sum() < len(x):
        assert x[mask].min() >= x[~mask].max()


def test_largest_of_equal_values_and_of_zeros():
    for fill in (1.0, 0.0):
        masks = largest([torch.full((3, 5), fill), torch.full((7,), fill)], 0.5)
        assert sum(mask.sum() for mask in masks) == 11


def expected_mask(model, rows):
    """The definition, row by row without padding: |gradient of the NLL of all forget answers|, largest first."""
    model = model.eval()
    for parameter in model.parameters():
        parameter.grad = None
    for row in rows:
        if "pixel_values" in row:
            loss = model(pixel_values=row["pixel_values"][None], labels=torch.tensor([row["labels"]])).loss
        else:
            ids, labels = torch.as_tensor(row["input_ids"]), torch.as_tensor(row["labels"])
            log_p = model(input_ids=ids[None]).logits[0].log_softmax(-1)
            places = [i for i in range(1, len(ids)) if labels[i] != -100]
            loss = -sum(log_p[i - 1, labels[i]] for i in places)
        loss.backward()
    size = flat([p.grad.abs() for p in model.parameters()])
    order = size.argsort(descending=True, stable=True)
    mask = torch.zeros(len(size), dtype=torch.bool)
    mask[order[: math.floor(SHARE * len(size))]] = True
    return mask


@pytest.mark.parametrize("model", ["llama", "vit"])
@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_exactly_the_share_moves_and_the_rest_is_bit_equal(optimizer, model, tmp_path):
    trainer = make_trainer("graddiff", tmp_path, model=model, saliency=SHARE, **ADAMW)
    if optimizer == "momentum":
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    rows = image_rows(8) if model == "vit" else encode_dataset(text_rows(8), tiny_tokenizer())
    before = weights(trainer.model)
    expected = expected_mask(trainer.model, rows)
    trainer.model.zero_grad()
    trainer.train()
    mask = moved(before, weights(trainer.model))
    assert mask.sum() == math.floor(SHARE * len(mask)) > 0
    assert torch.equal(mask, expected)


def test_held_entries_do_not_count_in_the_gradient_norm(tmp_path):
    norms = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            masks = [mask for _, _, mask in trainer.constraints[0]._held]
            norms.append(
                flat([p.grad * ~mask for p, mask in zip(model.parameters(), masks, strict=True)]).norm().item()
            )
            norms.append(flat([p.grad for p in model.parameters()]).norm().item())

    trainer = make_trainer("graddiff", tmp_path, saliency=SHARE, callbacks=[Look()], max_grad_norm=1e-3)
    trainer.train()
    assert norms[0::2] == [0.0, 0.0]
    # Clipped to the norm of what moves: none of the allowance goes to what is held.
    assert norms[1::2] == pytest.approx([1e-3, 1e-3], rel=1e-2)


@pytest.mark.parametrize("sizes", [(1, 8), (3, 5)])
def test_the_mask_does_not_depend_on_the_batches(sizes, tmp_path):
    masks = []
    for size in sizes:
        trainer = make_trainer("graddiff", tmp_path, per_device_eval_batch_size=size)
        mask = SaliencyMask(0.5)
        mask.prepare(trainer.model, trainer.batches(trainer.train_dataset.forget))
        masks.append(flat([m for _, _, m in mask._held]))
        assert all(p.grad is None for p in trainer.model.parameters())  # nothing is left for the first step
    assert torch.equal(*masks)


def test_accumulation_and_an_update_rule(tmp_path):
    runs = []
    for batch, steps in ((8, 1), (4, 2)):
        trainer = make_trainer(
            "graddiff",
            tmp_path,
            saliency=0.3,
            update_rule="orthogonal",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
        )
        before = weights(trainer.model)
        trainer.train()
        runs.append(weights(trainer.model))
        mask = moved(before, runs[-1])
        assert 0 < mask.sum() <= math.floor(0.3 * len(mask))
    for name, value in runs[0].items():
        torch.testing.assert_close(value, runs[1][name], rtol=1e-6, atol=1e-9)


def test_a_share_of_1_changes_nothing(tmp_path):
    runs = []
    for saliency in (None, 1.0):
        trainer = make_trainer("graddiff", tmp_path, saliency=saliency, **ADAMW)
        trainer.train()
        runs.append(weights(trainer.model))
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


def test_resuming_finds_the_same_mask(tmp_path):
    arguments = ADAMW | {"saliency": SHARE}
    through = make_trainer("graddiff", tmp_path / "a", save_strategy="steps", save_steps=2, **arguments)
    before = weights(through.model)
    through.train()
    resumed = make_trainer("graddiff", tmp_path / "b", **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for name, value in weights(through.model).items():
        assert torch.equal(value, weights(resumed.model)[name]), name
    # The mask is that of the start, not that of the checkpoint, which held the same entries.
    mask = moved(before, weights(resumed.model))
    assert mask.sum() == math.floor(SHARE * len(mask))


@pytest.mark.parametrize("other", [{"update_rule": "subspace"}, {"singular_rank": 2}])
def test_two_ways_to_hold_weights_are_refused(other, tmp_path):
    with pytest.raises(ValueError, match="Choose one of them"):
        make_trainer("graddiff", tmp_path, saliency=0.5, **other)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_outside_0_and_1_is_refused(share, tmp_path):
    with pytest.raises(ValueError, match="You set saliency"):
        make_trainer("graddiff", tmp_path, saliency=share)
