"""What a loss compares with has no dropout, so the training has none either, unless it is asked for."""

import math

import pytest
import torch
from cases import LM_METHODS, TRAINING_FREE, make_trainer
from tiny import tiny_gpt2, tiny_tokenizer
from transformers import AutoConfig

from hf_unlearn.examples.image_model import make_vit
from hf_unlearn.examples.registry_model import make_base
from hf_unlearn.methods import METHODS
from hf_unlearn.models.dropout import Dropout
from hf_unlearn.models.likelihood import target_logits


WITH_DROPOUT = {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}
TRAINED = sorted(set(LM_METHODS) - set(TRAINING_FREE))
COMPARED = [name for name in TRAINED if METHODS[name].reference in ("log_probs", "logits") or name in ("rmu", "scrub")]


def first_terms(trainer):
    trainer.train()
    return trainer.state.log_history[0]


def test_the_first_loss_of_npo_is_its_value_at_a_ratio_of_one(tmp_path):
    logged = first_terms(make_trainer("npo", tmp_path, model=tiny_gpt2(**WITH_DROPOUT).double(), beta=1.0))
    assert logged["forget_loss"] == pytest.approx(2 * math.log(2), abs=1e-6)


@pytest.mark.parametrize("method", ["idk_dpo", "altpo"])
def test_the_first_loss_of_methods_like_dpo_is_2_ln_2_over_beta(method, tmp_path):
    trainer = make_trainer(method, tmp_path, model=tiny_gpt2(**WITH_DROPOUT).double(), beta=0.5)
    assert first_terms(trainer)["forget_loss"] == pytest.approx(2 / 0.5 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("method", COMPARED)
def test_the_first_ratio_to_the_reference_is_one(method, tmp_path):
    """Of the answers of every method that compares with the model at its start, in whichever form it has that."""
    trainer = make_trainer(method, tmp_path, model=tiny_gpt2(**WITH_DROPOUT).double())
    found, losses = [], trainer.losses

    def watched(model, inputs, counts):
        if not found:
            assert model.training
            plain = {name: value for name, value in inputs.items() if name not in ("parts", "reference_log_probs")}
            now = target_logits(model, plain)
            for name, cached in inputs["reference_log_probs"].items():
                found.append((now.split(inputs["parts"])[name].sequence_log_probs, cached.double()))
            if trainer._reference is not None:
                found.append((now.log_probs, trainer._reference.target_logits(model, plain).log_probs))
            if trainer.teacher is not None:
                found.append((now.log_probs, target_logits(trainer.teacher, plain).log_probs))
        return losses(model, inputs, counts)

    trainer.losses = watched
    trainer.train()
    assert found
    for now, before in found:
        torch.testing.assert_close(now.detach(), before.detach(), rtol=1e-5, atol=1e-5)  # caches are in float32


@pytest.mark.parametrize("method", TRAINED)
def test_which_methods_keep_the_dropout_of_the_model(method, tmp_path):
    kept = method in ("finetune", "l1_sparse", "repair")  # plain training
    trainer = make_trainer(method, tmp_path, model=tiny_gpt2(**WITH_DROPOUT).double())
    assert trainer.args.disable_dropout is not kept

    def probabilities(model):
        return {module.p for name, module in model.named_modules() if name.endswith("transformer.drop")}

    seen, training_step = [], trainer.training_step
    trainer.training_step = lambda model, *args: seen.append(probabilities(model)) or training_step(model, *args)
    trainer.train()
    assert seen == [{0.3 if kept else 0.0}] * 2
    assert probabilities(trainer.model) == {0.3}  # afterwards as before


def test_the_models_of_the_recipes_have_none():
    assert not Dropout(make_base(tiny_tokenizer())) and not Dropout(make_vit(["a", "b"])[0])


def test_a_config_that_is_saved_keeps_it(tmp_path):
    trainer = make_trainer(
        "npo", tmp_path, model=tiny_gpt2(**WITH_DROPOUT), max_steps=2, save_strategy="steps", save_steps=1
    )
    trainer.train()
    trainer.save_model(tmp_path / "end")
    for folder in ("checkpoint-1", "checkpoint-2", "end"):
        config = AutoConfig.from_pretrained(tmp_path / folder)
        assert {name: getattr(config, name) for name in WITH_DROPOUT} == WITH_DROPOUT


def test_it_stays_on_where_it_is_asked_for_and_after_an_error(tmp_path):
    model = tiny_gpt2(**WITH_DROPOUT)
    trainer = make_trainer("npo", tmp_path, model=model, disable_dropout=False, beta=1.0)
    assert abs(first_terms(trainer)["forget_loss"] - 2 * math.log(2)) > 1e-3
    trainer = make_trainer("npo", tmp_path, model=model)

    def fails(*_):
        raise KeyError("broken")

    trainer.losses = fails
    with pytest.raises(KeyError):
        trainer.train()
    assert model.transformer.drop.p == 0.3
