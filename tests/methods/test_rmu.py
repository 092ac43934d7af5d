"""RMU: its forward pass that ends early, its loss, and what moves."""

import copy

import pytest
import torch
from cases import MODELS, make_trainer, weights
from peft import LoraConfig
from transformers import BloomConfig, BloomForCausalLM

from hf_unlearn.models.blocks import find_blocks, run_to_block
from hf_unlearn.models.likelihood import target_logits


KINDS = ["llama", "gpt2", "vit"]


def first_batch(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    return batch, trainer._count([batch], trainer.args.device)


def full_hidden(model, batch, rows, layer):
    """The output of a block in a whole pass. (The last of the hidden states that a model returns is after its norm.)"""
    inputs = {key: batch[key][rows] for key in ("input_ids", "attention_mask", "pixel_values") if key in batch}
    if "attention_mask" in inputs:
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    parent, name = find_blocks(model)
    seen = []
    hook = getattr(parent, name)[layer].register_forward_hook(lambda module, args, output: seen.append(output))
    model(**inputs)
    hook.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_pass_that_ends_early_is_the_whole_one(kind, tmp_path):
    trainer = make_trainer("rmu", tmp_path, kind, layer=0)
    model = trainer.model.eval()
    batch, _ = first_batch(trainer)
    batch = {key: value for key, value in batch.items() if key not in ("parts", "reference_log_probs")}
    ran = []
    parent, name = find_blocks(model)
    hooks = [
        block.register_forward_hook(lambda *a, i=i: ran.append(i)) for i, block in enumerate(getattr(parent, name))
    ]
    seen = run_to_block(model, model, batch, 0, 0)
    assert ran == [0]  # and no block after it
    for hook in hooks:
        hook.remove()
    assert torch.equal(seen.output, full_hidden(model, batch, slice(None), 0))
    assert torch.equal(seen.replay(), seen.output)  # from what came in


def test_blocks_that_get_one_line_for_each_head_are_run_again():
    model = BloomForCausalLM(BloomConfig(vocab_size=320, hidden_size=16, n_layer=3, n_head=2)).eval()
    ids = torch.randint(5, 320, (4, 7))
    seen = run_to_block(model, model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}, 1, 1)
    assert torch.equal(seen.replay(), seen.output) and seen.output.shape == (4, 7, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_whole_again_after_an_error(kind):
    model = MODELS[kind]().double()
    parent, name = find_blocks(model)
    before = list(getattr(parent, name))
    with pytest.raises((ValueError, TypeError, AttributeError, KeyError)):  # there are no inputs
        run_to_block(model, model, {"labels": torch.zeros(2, 3, dtype=torch.long)}, 0, 0)
    assert list(getattr(parent, name)) == before


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("scope", ["all", "answer"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_by_another_route(kind, scope, adaptive, tmp_path):
    options = {"token_scope": scope, "adaptive": adaptive, "steering": 3.0, "retain_weight": 2.0, "forget_weight": 0.7}
    trainer = make_trainer("rmu", tmp_path, kind, layer=1, **options)
    start = copy.deepcopy(trainer.model).eval()
    with torch.no_grad():  # away from the start, so that the retain loss is not 0
        for name, parameter in trainer.model.named_parameters():
            if name in trainer.trainable_names:
                parameter += 0.05 * torch.randn_like(parameter)
    batch, counts = first_batch(trainer)
    n = batch["parts"]["forget"]
    total = sum(trainer.losses(trainer.model, dict(batch), counts))
    total.backward()
    ours = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert set(ours) == set(trainer.trainable_names)

    model = copy.deepcopy(trainer.model).eval()
    model.zero_grad()
    forget, retain = (full_hidden(model, batch, rows, 1) for rows in (slice(0, n), slice(n, None)))
    with torch.no_grad():
        forget_0, retain_0 = (full_hidden(start, batch, rows, 1) for rows in (slice(0, n), slice(n, None)))
    if kind == "vit":
        mask = torch.ones(len(batch["labels"]), forget.shape[1], dtype=torch.float64)
    else:
        mask = (batch["labels"] != -100 if scope == "answer" else batch["attention_mask"]).double()
    target = 3.0 * trainer._direction
    target = forget_0.norm(dim=-1, keepdim=True) * target if adaptive else target

    def mean(x, m):
        return (x.pow(2) * m[..., None]).sum() / (m.sum() * x.shape[-1])

    expected = 0.7 * mean(forget - target, mask[:n]) + 2.0 * mean(retain - retain_0, mask[n:])
    expected.backward()
    # The norms of a Llama are computed in float32.
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-9)
    for name, parameter in model.named_parameters():
        if name in ours:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-5, atol=1e-7)


def test_adaptive_with_activations_of_length_one_is_plain(tmp_path):
    plain, adaptive = (make_trainer("rmu", tmp_path, "gpt2", adaptive=a, steering=2.0) for a in (False, True))
    batch, counts = first_batch(plain)

    class OfLengthOne(type(torch.nn.Identity())):
        def replay(self):
            h = torch.randn(16, batch["input_ids"].shape[1], 32, dtype=torch.float64)
            return h / h.norm(dim=-1, keepdim=True)

    import hf_unlearn.methods.rmu as module

    real = module.run_to_block

    def with_unit_reference(*args):
        seen = real(*args)
        seen.replay = OfLengthOne().replay
        return seen

    module.run_to_block = with_unit_reference
    try:
        a, b = (trainer.losses(trainer.model, dict(batch), counts)[0] for trainer in (plain, adaptive))
    finally:
        module.run_to_block = real
    torch.testing.assert_close(a, b)


def test_the_direction_is_drawn_once_and_survives_a_resume(tmp_path):
    arguments = {"max_steps": 4, "optim": "adamw_torch", "learning_rate": 1e-3}
    first = make_trainer("rmu", tmp_path / "a", save_strategy="steps", save_steps=2, **arguments)
    direction = first._direction.clone()
    assert direction.norm().item() == pytest.approx(1) and (direction >= 0).all()
    first.train()
    assert torch.equal(first._direction, direction)
    resumed = make_trainer("rmu", tmp_path / "b", **arguments)
    resumed._direction = torch.zeros_like(direction)  # what the checkpoint holds counts
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert torch.equal(resumed._direction, direction)
    for name, value in weights(first.model).items():
        assert torch.equal(value, weights(resumed.model)[name])
    other = make_trainer("rmu", tmp_path, seed=5)
    assert not torch.equal(other._direction, direction)


@pytest.mark.parametrize("kind", KINDS)
def test_by_default_the_second_mlp_projections_near_the_layer_move(kind, tmp_path):
    trainer = make_trainer("rmu", tmp_path, kind)
    ending = {"llama": "mlp.down_proj.weight", "gpt2": "mlp.c_proj.weight", "vit": "mlp.fc2.weight"}[kind]
    assert trainer.trainable_names and all(name.endswith(ending) for name in trainer.trainable_names)


def test_the_frozen_part_runs_without_dropout_and_the_rest_keeps_it(tmp_path):
    from tiny import tiny_gpt2

    model = tiny_gpt2(resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.0).double()
    trainer = make_trainer("rmu", tmp_path, model, layer=1, trainable_layers=[1])
    trainer.model.train()
    batch, counts = first_batch(trainer)
    # The reference has no dropout, so with it in the first block the retain loss at the start is not exactly 0; but the
    # embedding and block 0, which are frozen, give both the same.
    inputs = []
    hook = trainer.model.transformer.h[1].register_forward_pre_hook(
        lambda module, args: inputs.append(args[0].clone())
    )
    trainer.losses(trainer.model, dict(batch), counts)
    trainer.losses(trainer.model, dict(batch), counts)
    hook.remove()
    assert all(torch.equal(inputs[0][-8:], x[-8:]) for x in inputs)
    assert trainer.model.transformer.h[0].mlp.dropout.training  # as it was


def test_on_a_lora_adapter(tmp_path):
    lora = LoraConfig(r=2, target_modules=["down_proj"])
    trainer = make_trainer("rmu", tmp_path, "llama", peft_config=lora, max_steps=3)
    before = weights(trainer.model)
    trainer.train()
    moved = {name for name, value in weights(trainer.model).items() if not torch.equal(before[name], value)}
    assert moved == set(trainer.trainable_names) and all("lora_" in name for name in moved)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="the model has 2 blocks"):
        make_trainer("rmu", tmp_path, layer=2)
    with pytest.raises(ValueError, match="outside the blocks up to it"):
        make_trainer("rmu", tmp_path, layer=0, trainable_layers=[0, 1])
    with pytest.raises(ValueError, match="outside the blocks up to it"):
        make_trainer("rmu", tmp_path, trainable=".*")
    with pytest.raises(ValueError, match="none of all, answer"):
        make_trainer("rmu", tmp_path, token_scope="prompt")
    with pytest.raises(ValueError, match="none of activations, none"):
        make_trainer("rmu", tmp_path, retain_loss="kl")


def test_the_rest_of_the_model_still_answers(tmp_path):
    trainer = make_trainer("rmu", tmp_path, "llama")
    before = target_logits(trainer.model.eval(), trainer.data_collator(trainer.train_dataset.forget[:4])).logits
    trainer.train()
    after = target_logits(trainer.model.eval(), trainer.data_collator(trainer.train_dataset.forget[:4])).logits
    assert after.shape == before.shape and not torch.equal(after, before)
