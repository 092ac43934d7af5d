"""A weight that no pass uses (a mask token, an expert that no token reaches) ends no run, and stays as it is."""

import pytest
import torch
from cases import IMAGE_METHODS, LM_METHODS, make_trainer, weights
from tiny import tiny_llama, tiny_vit
from tiny_weights import in_double, mixtral
from torch import nn


def with_unused(model):
    """A parameter of its own, a matrix and a norm in a block, none of which is read."""
    layer = (model.vit if hasattr(model, "vit") else model.model).layers[1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layer.mask_token = nn.Parameter(torch.randn(1, 1, 32))
        layer.spare = nn.Linear(32, 32)
        layer.post_layernorm = nn.LayerNorm(32)
    return model.double()


def without_its_last_expert(model):
    """A mixture whose router never chooses one of its experts."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight[3] = 0
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(_ban)
    return in_double(model)


def _ban(module, args, output):
    logits, weights_, chosen = output
    chosen = torch.where(chosen == 3, (chosen.flip(-1) + 1) % 3, chosen)
    return logits, weights_, chosen


def unused(name):
    return "mask_token" in name or "spare" in name or "post_layernorm" in name


def check(method, folder, make, **options):
    start = weights(with_unused(make()))
    trainer = make_trainer(method, folder, with_unused(make()), max_steps=2, **options)
    trainer.train()
    after = weights(trainer.model)
    assert after.keys() == start.keys() and all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(after[n], v) for n, v in start.items() if not unused(n))
    if method != "l1_sparse":  # whose penalty reads every weight
        assert all(torch.equal(after[n], v) for n, v in start.items() if unused(n))


@pytest.mark.parametrize("method", LM_METHODS)
def test_every_method_on_a_language_model(method, tmp_path):
    check(method, tmp_path, tiny_llama)


@pytest.mark.parametrize(
    "method", sorted({*IMAGE_METHODS} - {*LM_METHODS} | {"ssd", "svd_forget", "lora_edit", "rmu"})
)
def test_every_method_on_a_classifier(method, tmp_path):
    check(method, tmp_path, tiny_vit)


@pytest.mark.parametrize(
    "options",
    [{"update_rule": rule} for rule in ("project", "orthogonal", "gru", "subspace")]
    + [{"saliency": 0.2}, {"singular_rank": 2}, {"retain_loss": "kl"}, {"max_grad_norm": 0.1}],
    ids=str,
)
def test_every_rule_and_setting(options, tmp_path):
    # Weight decay moves a weight whose gradient is 0, and leaves one that has none.
    check("graddiff", tmp_path, tiny_llama, optim="adamw_torch", weight_decay=0.1, **options)


@pytest.mark.parametrize("method", ["npo", "gradient_projection", "salun", "rmu", "lora_edit", "ssd", "svd_forget"])
def test_an_expert_that_no_token_reaches(method, tmp_path):
    start = weights(without_its_last_expert(mixtral()))
    trainer = make_trainer(method, tmp_path, without_its_last_expert(mixtral()), max_steps=2)
    trainer.train()
    after = weights(trainer.model)
    assert all(value.isfinite().all() for value in after.values())
    for layer in (0, 1):
        for name in ("gate_up_proj", "down_proj"):
            name = f"model.layers.{layer}.mlp.experts.{name}"
            torch.testing.assert_close(after[name][3], start[name][3], rtol=1e-9, atol=1e-12)
