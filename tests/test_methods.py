"""One table over METHODS: what must hold for every method, whatever its loss."""

import os
import subprocess
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from cases import (
    IMAGE_METHODS,
    LM_METHODS,
    ONE_LOSS,
    TRAINED,
    TRAINING_FREE,
    WITH_RULES,
    image_rows,
    make_trainer,
    text_rows,
    weights,
)
from peft import LoraConfig
from tiny import tiny_llama, tiny_tokenizer, tiny_vit
from transformers import Trainer

from hf_unlearn.data import UnlearningCollator, encode_dataset
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.describe import describe
from hf_unlearn.models.likelihood import target_logits
from hf_unlearn.training import UnlearningTrainer


CLOSE = {"rtol": 1e-6, "atol": 1e-9}


def train(method, folder, **arguments):
    trainer = make_trainer(method, folder, **arguments)
    trainer.train()
    return trainer


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


LAYER_1 = {"llama": r".*layers\.1\..*weight", "gpt2": r".*h\.1\..*weight", "vit": r".*layers\.1\..*weight"}


@pytest.mark.parametrize("model", ["llama", "gpt2", "vit"])
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"head_mask", "lora_edit", "svd_forget"}))
def test_what_may_move_does_and_the_rest_does_not(method, model, tmp_path):
    # Momentum and weight decay move what a gradient mask would hold.
    arguments = {"optim": "adamw_torch", "weight_decay": 0.1, "learning_rate": 1e-3, "max_steps": 4}
    trainer = make_trainer(method, tmp_path, model, trainable=LAYER_1[model], **arguments)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(trainer.trainable_names)
    assert moved and moved != set(before)


@pytest.mark.parametrize("model", ["llama", "gpt2", "vit"])
@pytest.mark.parametrize("method", ["head_mask", "lora_edit", "svd_forget"])
def test_methods_that_choose_weights_themselves_leave_a_plain_model(method, model, tmp_path):
    trainer = make_trainer(method, tmp_path, model, max_steps=12)
    fresh = weights(make_trainer("ga", tmp_path, model).model)
    trainer.train()
    after = weights(trainer.model)
    assert after.keys() == fresh.keys()
    moved = {name for name in fresh if not torch.equal(fresh[name], after[name])}
    assert moved and all(name.split(".")[-1] in ("weight", "bias") for name in moved)
    assert not any("embed" in name or "wte" in name or "norm" in name for name in moved)
    if method == "lora_edit":
        assert moved == {f"{name}.weight" for name in trainer.chosen}


@pytest.mark.parametrize(("method", "rule"), WITH_RULES)
def test_accumulation_changes_nothing(method, rule, tmp_path):
    once = train(method, tmp_path, update_rule=rule)
    for batch, steps in ((4, 2), (2, 4)):
        often = train(
            method, tmp_path, update_rule=rule, per_device_train_batch_size=batch, gradient_accumulation_steps=steps
        )
        assert_same_weights(weights(once.model), weights(often.model))
        for a, b in zip(once.state.log_history[:-1], often.state.log_history[:-1], strict=True):
            for term in {key for key in a if key.endswith("loss")}:
                assert a[term] == pytest.approx(b[term], rel=1e-5, abs=1e-6), term


@pytest.mark.parametrize("method", TRAINING_FREE)
def test_batches_change_nothing_without_training(method, tmp_path):
    once = weights(train(method, tmp_path, per_device_eval_batch_size=8).model)
    often = weights(train(method, tmp_path, per_device_eval_batch_size=3).model)
    assert_same_weights(once, often)


@pytest.mark.parametrize("method", sorted(ONE_LOSS + TRAINING_FREE))
def test_rules_are_refused_where_there_are_no_two_gradients(method, tmp_path):
    with pytest.raises(ValueError, match="update_rule"):
        make_trainer(method, tmp_path, update_rule="project")


def test_two_processes_change_nothing(tmp_path):
    folders = Path(__file__).parent, Path(__file__).parents[1]  # this package, wherever another one is installed
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, folders))}
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
    assert set(results) == {f"{m}-{r}" for m, r in WITH_RULES} | {f"{m}-add" for m in TRAINING_FREE}
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
        assert len(logs) == len(result["logs"])
        for log, other in zip(logs, result["logs"], strict=True):
            for term in {key for key in log if key.endswith("loss")}:
                assert log[term] == pytest.approx(other[term], rel=1e-5, abs=1e-6), (name, term)
        for key, value in result["eval"].items():
            assert metrics[key] == pytest.approx(value, rel=1e-5), key


@pytest.mark.parametrize(("method", "rule"), WITH_RULES)
def test_stop_and_resume_equals_not_stopping(method, rule, tmp_path):
    # 7 forget rows in batches of 2 with 2 accumulated: epochs end in short steps, and step 3 is inside the second one.
    arguments = {
        "forget": 7,
        "max_steps": 8,
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
    assert resumed.state.global_step == 8
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


# Methods that take another retain loss than NLL.
KL = [m for m in LM_METHODS if m not in ("finetune", "l1_sparse", "repair", "rmu", "task_vector")]


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("method", LM_METHODS)
def test_padding_changes_nothing(method, model, tmp_path):
    loss = {"retain_loss": "kl"} if method in KL else {}
    expected = train(method, tmp_path, model=model, **loss)
    for left, right, pad in ((0, 9, 2), (7, 0, 2), (5, 3, 1)):  # the last one pads with the end token
        padded = train(method, tmp_path, model=model, data_collator=PadMore(pad, left, right), **loss)
        assert_same_weights(weights(expected.model), weights(padded.model))


@pytest.mark.parametrize(("method", "rule"), [pair for pair in WITH_RULES if pair[0] in IMAGE_METHODS])
def test_image_classifiers(method, rule, tmp_path):
    once = train(method, tmp_path, model="vit", update_rule=rule)
    twice = train(
        method, tmp_path, model="vit", update_rule=rule, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    before = weights(tiny_vit().double())
    assert any(not torch.equal(before[name], value) for name, value in weights(once.model).items())
    assert_same_weights(weights(once.model), weights(twice.model))


class TextOnly(METHODS["ga"]):
    kinds = ("text",)


def test_a_method_without_an_image_form_refuses_images(tmp_path):
    with pytest.raises(ValueError, match="TextOnly works on causal language models, but this is one of the image"):
        TextOnly(tiny_vit(), TextOnly.config_class(output_dir=str(tmp_path), use_cpu=True), image_rows(4))


@pytest.mark.parametrize("method", ["ga", "scrub", "repair"])
def test_image_classifiers_resume(method, tmp_path):
    # The file of a ViT holds the names of an older layout, which the Trainer by itself would not find a place for.
    arguments = {"model": "vit", "max_steps": 4, "optim": "adamw_torch", "learning_rate": 1e-3}
    through = train(method, tmp_path / "a", save_strategy="steps", save_steps=2, **arguments)
    resumed = make_trainer(method, tmp_path / "b", **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for name, value in weights(through.model).items():
        assert torch.equal(value, weights(resumed.model)[name]), name


@cache
def memorised(kind: str, scope: str = "records"):
    """A model that knows its forget and retain rows by heart, and those rows beside others it never saw.

    The forget set is some of many records of one kind, or a whole class: images around one pattern, questions of another
    form.
    """
    rows = {
        "records": image_rows if kind == "vit" else text_rows,
        "class": class_images if kind == "vit" else class_texts,
    }
    rows = rows[scope]
    sets = {
        "forget": rows(8),
        "retain": rows(8 if scope == "records" else 24, offset=100),
        "holdout": rows(8, offset=300),
    }
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


def class_images(n: int, offset: int = 0) -> list[dict]:
    """Noisy images of a pattern a class: of class 0, or with the offset 100 of all the others."""
    generator = torch.Generator().manual_seed(offset)
    patterns = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    labels = [1 + i % 4 if offset == 100 else 0 for i in range(n)]
    noise = torch.randn(n, 3, 16, 16, generator=generator, dtype=torch.float64)
    return [{"pixel_values": patterns[y] + 0.3 * noise[i], "labels": y} for i, y in enumerate(labels)]


def class_texts(n: int, offset: int = 0):
    """Riddles, or with the offset 100 the usual questions."""
    if offset == 100:
        return text_rows(n, offset)
    words = ["red", "blue", "green", "black", "white", "yellow", "brown", "grey"]
    return [
        {"prompt": f"#{i % 7} colour?", "completion": f" *{words[(i * 3) % 8]}*"} for i in range(offset, offset + n)
    ]


# Made to take out a class, a domain or a skill: among records of one kind they cannot tell one from another.
COARSE = {
    "head_mask": {"neurons": True, "learning_rate": 0.3, "max_steps": 100, "retain_weight": 3.0},
    "rmu": {"retain_weight": 10.0, "learning_rate": 5e-3, "steering": 30.0},
    "ssd": {"alpha": 2.0},
    "ssd on text": {"alpha": 3.0, "lambda_": 3.0},
    "svd_forget": {"retain_alpha": 1000.0, "forget_alpha": 1e4},
    "task_vector": {"learning_rate": 1e-3, "scale": 5.0, "max_steps": 20},
}
# Nothing of the forget set is read, or it is only kept from coming back: no forgetting is promised.
RETAIN_ONLY = ["finetune", "l1_sparse", "repair"]
# Sums over the tokens of an answer weigh more than means, so the retain set gets more weight beside them.
FINE = {
    "npo": {"retain_weight": 10.0},
    "idk_dpo": {"retain_weight": 10.0},
    "altpo": {"retain_weight": 10.0},
    "ga": {"retain_loss": "nll"},
    "ce_u": {"retain_loss": "nll"},
    "undial": {"retain_loss": "nll"},
    "pdu": {"force_epsilon": True},
    "lora_edit": {"learning_rate": 5e-3},
    "scrub": {"max_steps": -1, "num_train_epochs": 80, "max_phases": 20, "eval_strategy": "no"},
}
# To teach another answer forgets the old one in passing.
SHARE = {"idk_nll": 0.1, "random_label": 0.3, "salun": 0.1}


def unlearn(method, kind, scope, folder, **options):
    network, sets, tokenizer = memorised(kind, scope)
    trainer_class = METHODS[method]
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 200,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-4,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1000,
    }
    config = trainer_class.config_class(**(defaults | options))
    trainer = trainer_class(deepcopy(network), config, sets["forget"], sets["retain"], sets, tokenizer)
    before = trainer.evaluate()
    assert before["eval_forget_loss"] < 0.2 and before["eval_retain_loss"] < 0.2
    trainer.train()
    return before, trainer.evaluate()


@pytest.mark.parametrize("kind", ["llama", "vit"])
@pytest.mark.parametrize("method", sorted(set(METHODS) - set(COARSE) - set(RETAIN_ONLY)))
def test_forgetting_happens(method, kind, tmp_path):
    stops = {"eval_strategy": "steps", "eval_steps": 2}
    before, after = unlearn(method, kind, "records", tmp_path, **(stops | FINE.get(method, {})))
    assert before["eval_holdout_loss"] > 1
    # A good part of the way to data never seen, at least, while what is to stay stays.
    assert after["eval_forget_loss"] > SHARE.get(method, 0.25 if kind == "vit" else 0.5) * after["eval_holdout_loss"]
    assert after["eval_retain_loss"] < 0.3
    assert after["eval_retain_accuracy"] > 0.9


@pytest.mark.parametrize("kind", ["llama", "vit"])
@pytest.mark.parametrize("method", ["head_mask", "rmu", "ssd", "svd_forget", "task_vector"])
def test_a_class_is_forgotten(method, kind, tmp_path):
    blunt = (
        method == "ssd" and kind == "llama"
    )  # made for images: the few weights of a tiny text model serve everything
    options = COARSE["ssd on text" if blunt else method] | {"stop_when_forgotten": False}
    before, after = unlearn(method, kind, "class", tmp_path, **options)
    if blunt:
        assert after["eval_forget_loss"] > max(0.5, 1.5 * after["eval_retain_loss"])
        assert after["eval_retain_accuracy"] > 0.5 > after["eval_forget_accuracy"]
        return
    assert after["eval_forget_loss"] > max(0.5, 10 * before["eval_forget_loss"], 3 * after["eval_retain_loss"])
    assert after["eval_retain_accuracy"] > 0.8
    if kind == "vit" and method != "rmu":  # at the middle layer of a tiny network, the rest of it makes up for much
        assert after["eval_forget_accuracy"] < 0.5


@pytest.mark.parametrize("kind", ["llama", "vit"])
@pytest.mark.parametrize("method", ["finetune", "l1_sparse"])
def test_training_on_the_retain_set_alone_keeps_it(method, kind, tmp_path):
    _, after = unlearn(method, kind, "records", tmp_path, max_steps=50, stop_when_forgotten=False)
    assert after["eval_retain_loss"] < 0.1 and after["eval_retain_accuracy"] > 0.95


@pytest.mark.parametrize("method", sorted(set(TRAINED) - {"head_mask", "lora_edit"}))
def test_lora_trains_the_adapter_alone(method, tmp_path):
    rules = ({},) if method in ONE_LOSS else ({}, {"update_rule": "project"})
    for arguments in (*rules, {"activation_checkpointing": True}):
        trainer = make_trainer(
            method, tmp_path, peft_config=LoraConfig(r=2, target_modules="all-linear"), max_steps=4, **arguments
        )
        assert all("lora_" in name for name in trainer.trainable_names)
        before = weights(trainer.model)
        trainer.train()
        moved = {name for name, value in weights(trainer.model).items() if not torch.equal(before[name], value)}
        # A starts to move once B, which starts at zero, has; until then it has no gradient, which saliency goes by.
        expected = {name for name in trainer.trainable_names if method != "salun" or "lora_B" in name}
        assert moved == expected


@pytest.mark.parametrize("method", ["head_mask", "lora_edit"])
def test_methods_that_need_dense_weights_refuse_adapters(method, tmp_path):
    with pytest.raises(ValueError, match="merge"):
        make_trainer(method, tmp_path, peft_config=LoraConfig(r=2, target_modules="all-linear"))


@pytest.mark.parametrize("method", LM_METHODS)
def test_no_second_model_stays_in_memory(method, tmp_path):
    trainer = train(method, tmp_path)
    assert trainer._ref_model is None and trainer.teacher is None
    # At most the start values of what moves, where whole distributions or activations are compared.
    compares = (
        METHODS[method].reference == "logits" or METHODS[method].retain_reference or trainer.args.retain_loss == "kl"
    )
    assert (trainer._reference is not None) == compares
    cached = trainer.train_dataset.reference_log_probs
    both = {"forget", "alternate"}
    assert set(cached) == {"npo": {"forget"}, "idk_dpo": both, "altpo": both}.get(method, set())


@pytest.mark.parametrize("method", TRAINED)
def test_one_forward_with_gradient_a_step(method, tmp_path):
    trainer = make_trainer(method, tmp_path, max_steps=4, retain=24)
    rows = []
    hook = trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append((torch.is_grad_enabled(), len(kwargs["input_ids"]))), with_kwargs=True
    )
    trainer.train()
    hook.remove()
    cls, parts = METHODS[method], 8 * (METHODS[method].n_alternates > 0)
    parts += 8 * cls.reads_forget + 8 * (trainer.args.retain_loss != "none")
    if method == "scrub" or method in RETAIN_ONLY:
        parts = 8  # one set after the other, or one alone
    assert [n for gradient, n in rows if gradient][-3:] == [parts] * 3


@pytest.mark.parametrize("method", LM_METHODS)
def test_nothing_of_the_trainer_is_shadowed(method, tmp_path):
    trainer = make_trainer(method, tmp_path)
    plain = Trainer(
        tiny_llama(), trainer.args, train_dataset=trainer.train_dataset, data_collator=trainer.data_collator
    )
    ours = set(vars(trainer)) - set(vars(plain))
    assert not {name for name in ours if hasattr(Trainer, name)}
    order = UnlearningTrainer.__mro__
    declared = {name for part in order[: order.index(Trainer)] for name in vars(part) if not name.startswith("__")}
    overridden = {name for name in declared if hasattr(Trainer, name)} - {"loss_is_scaled_for_ga"}
    assert overridden == {
        "_load_best_model",
        "_load_from_checkpoint",
        "_save",
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
    partnerless = ["ga", "task_vector", "ce_u", "undial", *TRAINING_FREE]  # no pairs, nothing drawn
    assert method in partnerless or any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_documented_with_its_source(method):
    trainer = METHODS[method]
    assert all(describe(method)["sources"])
    own = trainer.config_class.__dict__.get("__annotations__", {})
    for field in set(own) - {"retain_losses", "retain_loss"}:
        assert f"{field} (`" in trainer.config_class.__doc__, field
