"""One table over METHODS: what must hold for every method, whatever its loss."""

import inspect
import os
import subprocess
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from cases import IMAGE_METHODS, LM_METHODS, image_rows, make_trainer, text_rows, weights
from peft import LoraConfig
from tiny import tiny_llama, tiny_tokenizer, tiny_vit
from transformers import Trainer

from hf_unlearn.data import UnlearningCollator, encode_dataset
from hf_unlearn.likelihood import target_logits
from hf_unlearn.methods import METHODS
from hf_unlearn.training import UnlearningTrainer


RULES = ("add", "project")
CLOSE = {"rtol": 1e-6, "atol": 1e-9}


def train(method, folder, **arguments):
    trainer = make_trainer(method, folder, **arguments)
    trainer.train()
    return trainer


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("method", LM_METHODS)
def test_what_may_move_does_and_the_rest_does_not(method, model, tmp_path):
    # Momentum and weight decay move what a gradient mask would hold.
    pattern = r".*layers\.1\..*weight" if model == "llama" else r".*h\.1\..*weight"
    trainer = make_trainer(
        method,
        tmp_path,
        model,
        trainable=pattern,
        optim="adamw_torch",
        weight_decay=0.1,
        learning_rate=1e-3,
        max_steps=3,
    )
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(trainer.trainable_names)
    assert moved and moved != set(before)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", LM_METHODS)
def test_accumulation_changes_nothing(method, rule, tmp_path):
    once = train(method, tmp_path, update_rule=rule)
    for batch, steps in ((4, 2), (2, 4)):
        often = train(
            method, tmp_path, update_rule=rule, per_device_train_batch_size=batch, gradient_accumulation_steps=steps
        )
        assert_same_weights(weights(once.model), weights(often.model))
        for a, b in zip(once.state.log_history[:-1], often.state.log_history[:-1], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5, abs=1e-6)
            assert a["forget_loss"] == pytest.approx(b["forget_loss"], rel=1e-5, abs=1e-6)


def test_two_processes_change_nothing(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run(
        [*command, str(Path(__file__).parent / "two_processes.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    results = torch.load(tmp_path / "results.pt")
    assert set(results) == {f"{method}-{rule}" for method in LM_METHODS for rule in RULES}
    for name, result in results.items():
        method, rule = name.split("-")
        alone = make_trainer(
            method,
            tmp_path,
            update_rule=rule,
            eval_dataset={"forget": text_rows(8), "holdout": text_rows(7, offset=200)},
        )
        alone.train()
        metrics = alone.evaluate()
        assert_same_weights(weights(alone.model), result["weights"])
        logs = [log for log in alone.state.log_history if "loss" in log]
        assert [log["loss"] for log in logs] == pytest.approx(result["losses"], rel=1e-5, abs=1e-6)
        assert [log["forget_loss"] for log in logs] == pytest.approx(result["terms"], rel=1e-5, abs=1e-6)
        for key, value in result["eval"].items():
            assert metrics[key] == pytest.approx(value, rel=1e-5), key


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", LM_METHODS)
def test_stop_and_resume_equals_not_stopping(method, rule, tmp_path):
    # 7 forget rows in batches of 2 with 2 accumulated: epochs end in short steps, and step 3 is inside the second one.
    arguments = {
        "forget": 7,
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "update_rule": rule,
    }
    model = lambda: tiny_llama(attention_dropout=0.2).double()  # noqa: E731
    through = train(method, tmp_path / "a", model=model(), save_strategy="steps", save_steps=3, **arguments)
    resumed = make_trainer(method, tmp_path / "b", model=model(), **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert resumed.state.global_step == 6
    for name, value in weights(through.model).items():
        assert torch.equal(value, weights(resumed.model)[name]), name


class PadMore(UnlearningCollator):
    """Pads further than needed, on either side."""

    def __init__(self, pad_token_id, left, right):
        super().__init__(pad_token_id)
        self.left, self.right = left, right

    def _stack(self, rows):
        batch = super()._stack(rows)
        fill = {"input_ids": self.pad_token_id, "attention_mask": 0, "labels": -100}
        for key, value in fill.items():
            batch[key] = torch.nn.functional.pad(batch[key], (self.left, self.right), value=value)
        return batch


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("method", LM_METHODS)
def test_padding_changes_nothing(method, model, tmp_path):
    expected = train(method, tmp_path, model=model, retain_loss="kl")
    for left, right, pad in ((0, 9, 2), (7, 0, 2), (5, 3, 1)):  # the last one pads with the end token
        padded = train(method, tmp_path, model=model, retain_loss="kl", data_collator=PadMore(pad, left, right))
        assert_same_weights(weights(expected.model), weights(padded.model))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", IMAGE_METHODS)
def test_image_classifiers(method, rule, tmp_path):
    once = train(method, tmp_path, model="vit", update_rule=rule)
    twice = train(
        method, tmp_path, model="vit", update_rule=rule, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    before = weights(tiny_vit().double())
    assert any(not torch.equal(before[name], value) for name, value in weights(once.model).items())
    assert_same_weights(weights(once.model), weights(twice.model))


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(IMAGE_METHODS)))
def test_methods_without_an_image_form_refuse_images(method, tmp_path):
    with pytest.raises(ValueError, match="choose a method without refusals"):
        make_trainer(method, tmp_path, model="vit")


@cache
def memorised(kind: str):
    """A model that knows its forget and retain rows by heart, and those rows beside others it never saw."""
    rows = image_rows if kind == "vit" else text_rows
    sets = {"forget": rows(8), "retain": rows(8, offset=100), "holdout": rows(8, offset=300)}
    network = (tiny_vit() if kind == "vit" else tiny_llama()).double()
    tokenizer = None if kind == "vit" else tiny_tokenizer()
    inputs = UnlearningCollator(0)(encode_dataset([*sets["forget"], *sets["retain"]], tokenizer))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(120):
        out = target_logits(network, inputs)
        out.token_mean(-out.log_probs).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network, sets, tokenizer


@pytest.mark.parametrize(("method", "kind"), [(m, "llama") for m in LM_METHODS] + [(m, "vit") for m in IMAGE_METHODS])
def test_forgetting_happens(method, kind, tmp_path):
    network, sets, tokenizer = memorised(kind)
    trainer_class = METHODS[method]
    config = trainer_class.config_class(
        output_dir=str(tmp_path),
        use_cpu=True,
        max_steps=200,
        per_device_train_batch_size=8,
        learning_rate=5e-4,
        retain_loss="nll",
        # Sums over the tokens of an answer weigh more than means.
        retain_weight=10.0 if trainer_class.reference == "log_probs" else 1.0,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = trainer_class(deepcopy(network), config, sets["forget"], sets["retain"], sets, tokenizer)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_forget_loss"] < 0.2 and before["eval_holdout_loss"] > 1
    # Half the way to data never seen, at least, while what is to stay stays. To teach a refusal forgets in passing.
    share = 0.1 if method == "idk_nll" else 0.5
    assert after["eval_forget_loss"] > share * after["eval_holdout_loss"]
    assert after["eval_retain_loss"] < 0.3
    assert after["eval_retain_accuracy"] > 0.9


@pytest.mark.parametrize("method", LM_METHODS)
def test_lora_trains_the_adapter_alone(method, tmp_path):
    for arguments in ({}, {"activation_checkpointing": True}, {"update_rule": "project"}):
        trainer = make_trainer(method, tmp_path, peft_config=LoraConfig(r=2, target_modules="all-linear"), **arguments)
        assert all("lora_" in name for name in trainer.trainable_names)
        before = weights(trainer.model)
        trainer.train()
        moved = {name for name, value in weights(trainer.model).items() if not torch.equal(before[name], value)}
        # A starts to move once B, which starts at zero, has.
        assert moved == set(trainer.trainable_names)


@pytest.mark.parametrize("method", LM_METHODS)
def test_no_second_model_stays_in_memory(method, tmp_path):
    trainer = train(method, tmp_path)
    assert trainer._reference is None and trainer._ref_model is None
    cached = trainer.train_dataset.reference_log_probs
    assert set(cached) == {"npo": {"forget"}, "idk_dpo": {"forget", "alternate"}}.get(method, set())


@pytest.mark.parametrize("method", LM_METHODS)
def test_one_forward_a_step(method, tmp_path):
    trainer = make_trainer(method, tmp_path, max_steps=3)
    rows = []
    hook = trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append((module.training, len(kwargs["input_ids"]))), with_kwargs=True
    )
    trainer.train()
    hook.remove()
    parts = 1 + (method.startswith("idk")) + (method != "ga")
    assert [n for training, n in rows if training] == [8 * parts] * 3


@pytest.mark.parametrize("method", LM_METHODS)
def test_nothing_of_the_trainer_is_shadowed(method, tmp_path):
    trainer = make_trainer(method, tmp_path)
    plain = Trainer(
        tiny_llama(), trainer.args, train_dataset=trainer.train_dataset, data_collator=trainer.data_collator
    )
    ours = set(vars(trainer)) - set(vars(plain))
    assert not {name for name in ours if hasattr(Trainer, name)}
    declared = {name for name in vars(UnlearningTrainer) if not name.startswith("__")}
    overridden = {name for name in declared if hasattr(Trainer, name)} - {"loss_is_scaled_for_ga"}
    assert overridden == {
        "_load_best_model",
        "_load_from_checkpoint",
        "_save_checkpoint",
        "compute_loss",
        "evaluate",
        "get_batch_samples",
        "log",
        "prediction_step",
        "train",
        "training_step",
    }


@pytest.mark.parametrize("method", LM_METHODS)
def test_same_seed_same_bytes(method, tmp_path):
    first, second = (weights(train(method, tmp_path).model) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = weights(train(method, tmp_path, seed=4).model)
    assert method == "ga" or any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_documented_with_its_source(method):
    trainer = METHODS[method]
    assert "Source:" in trainer.__doc__ and "arXiv" in trainer.__doc__
    for field in ("beta", "delta"):
        if field in trainer.config_class.__dataclass_fields__ and field in vars(trainer.config_class):
            assert f"{field} (`float`" in trainer.config_class.__doc__
