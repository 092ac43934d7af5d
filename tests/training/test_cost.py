"""What a run costs, against counts by hand and the operations that torch itself counts."""

import copy
import json
import logging
import os
import socket
import subprocess
import sys
import time
import weakref

import pytest
import torch
from cases import image_rows, make_trainer, text_rows, weights
from peft import LoraConfig, get_peft_model
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from torch.utils.flop_counter import FlopCounterMode
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_unlearn.data import UnlearningCollator
from hf_unlearn.training.cost import CostCallback, total_cost
from hf_unlearn.training.meters import peak_memory


def token_rows(n, length=12):
    generator = torch.Generator().manual_seed(0)
    return [
        {"input_ids": ids, "labels": ids} for ids in torch.randint(5, 300, (n, length), generator=generator).tolist()
    ]


def plain_trainer(model, rows, folder, cost, **arguments):
    """A trainer of transformers, as the fine-tuning recipe uses it."""
    defaults = {"per_device_train_batch_size": 4, "num_train_epochs": 1, "use_cpu": True, "report_to": "none"}
    defaults |= {"save_strategy": "no", "remove_unused_columns": False, "disable_tqdm": True}
    return Trainer(
        model,
        TrainingArguments(str(folder), **(defaults | arguments)),
        train_dataset=rows,
        data_collator=UnlearningCollator(0),
        callbacks=[cost],
    )


def n_parameters(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def hooks_of(model):
    return [hook for module in model.modules() for hook in module._forward_pre_hooks]


def test_updates_rows_and_tokens_are_counted(tmp_path):
    model, cost = tiny_llama(), CostCallback()
    trainer = plain_trainer(
        model, token_rows(10), tmp_path, cost, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    trainer.train()  # without a block: from its start to its end
    found = cost.result
    assert found["optimizer_updates"] == trainer.state.global_step == 3
    assert found["parameter_updates"] == 3 * n_parameters(model)
    assert (found["examples"], found["tokens"]) == (10, 120)
    assert (found["examples_no_gradient"], found["tokens_no_gradient"]) == (0, 0)
    assert found["processes"] == 1 and found["accelerator_hours"] == 0
    assert found["energy_kwh_estimate"] is None and found["peak_accelerator_memory_bytes"] is None
    assert 0 < found["cpu_seconds"] and 0 < found["wall_seconds"] and found["peak_memory_bytes"] > 50e6
    (machine,) = found["hardware"]
    assert machine["cpu"] and machine["threads"] == torch.get_num_threads() and machine["accelerator"] is None
    assert not hooks_of(model)
    cost.save(tmp_path / "cost.json")
    assert json.loads((tmp_path / "cost.json").read_text()) == found


def test_an_unlearning_run_counts_both_sets_the_evaluations_and_the_reference(tmp_path):
    cost = CostCallback()
    sets = {"forget": text_rows(8), "holdout": text_rows(5, offset=200)}
    trainer = make_trainer(
        "npo",
        tmp_path,
        callbacks=[cost],
        eval_dataset=sets,
        per_device_train_batch_size=4,
        max_steps=3,
        eval_strategy="steps",
        eval_steps=2,
        stop_when_forgotten=False,
    )
    with cost:
        trainer.train()
    # Four forget rows and their four partners a step; 8 rows of the reference before, and two evaluations of 8 + 5.
    assert cost.result["examples"] == 3 * 8 and cost.result["examples_no_gradient"] == 8 + 2 * 13
    assert cost.result["optimizer_updates"] == 3
    assert cost.result["parameter_updates"] == 3 * n_parameters(trainer.model)
    assert not hooks_of(trainer.model)


def test_a_method_that_does_not_train_has_a_cost(tmp_path):
    cost = CostCallback()
    trainer = make_trainer("ssd", tmp_path, callbacks=[cost])
    with cost:
        trainer.train()
    assert cost.result["optimizer_updates"] == cost.result["parameter_updates"] == 0
    assert cost.result["cpu_seconds"] > 0 and cost.result["examples"] >= 8 and cost.result["flops_estimate"] > 0


CASES = {
    "llama": (tiny_llama, token_rows),
    "tied gpt2": (tiny_gpt2, token_rows),
    "vit": (tiny_vit, lambda n: [row | {"pixel_values": row["pixel_values"].float()} for row in image_rows(n)]),
    "lora": (
        lambda: get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules="all-linear")),
        token_rows,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_operations_are_those_that_torch_counts(name, tmp_path):
    make, rows = CASES[name]
    model, cost = make(), CostCallback()
    trainer = plain_trainer(model, rows(8), tmp_path, cost)
    counter = FlopCounterMode(display=False)
    with counter:
        trainer.train()
    counted = {str(operation): n for operation, n in counter.get_flop_counts()["Global"].items()}
    matrices = sum(n for operation, n in counted.items() if operation != "aten.bmm")  # that is attention
    # One-dimensional weights multiply nothing. In so small a ViT the patches, which need no gradient, are much of it.
    assert cost.result["flops_estimate"] == pytest.approx(matrices, rel=0.25 if name == "vit" else 0.06)
    if name in ("vit", "lora"):  # why the Trainer's own number is not used
        assert not 0.75 < trainer.state.total_flos / matrices < 1.33


def test_an_evaluation_costs_a_forward_pass(tmp_path):
    cost = CostCallback()
    trainer = plain_trainer(tiny_llama(), token_rows(8), tmp_path, cost)
    with cost:
        trainer.evaluate(token_rows(6))
    found = cost.result
    assert (found["examples"], found["examples_no_gradient"], found["tokens_no_gradient"]) == (0, 6, 72)
    size = sum(p.numel() for p in tiny_llama().parameters()) - 320 * 32
    assert found["flops_estimate"] == 2 * size * 72


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


COUNTS = ("optimizer_updates", "parameter_updates", "examples", "tokens", "examples_no_gradient", "flops_estimate")


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("strategy", ["steps", "best"])
def test_a_resumed_run_goes_on_from_its_cost(tmp_path, strategy, restore):
    arguments = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "save_strategy": strategy,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_dataset": {"forget": text_rows(8), "holdout": text_rows(5, offset=200)},
        "metric_for_best_model": "eval_forget_loss",
        "greater_is_better": True,
        "stop_when_forgotten": False,
        "restore_callback_states_from_checkpoint": restore,
    }

    def run(folder, *callbacks, resume=None, cost=None):
        cost = cost or CostCallback()
        trainer = make_trainer("npo", tmp_path / folder, callbacks=[cost, *callbacks], **copy.deepcopy(arguments))
        with cost:
            trainer.train(resume_from_checkpoint=resume)
        return trainer, cost

    whole, expected = run("whole")
    first, of_first = run("halves", StopAt(2))
    assert of_first.result["optimizer_updates"] == 2
    second, found = run("halves", resume=str(tmp_path / "halves" / "checkpoint-2"))
    # A reference and the log-probabilities of 8 rows are computed anew, which is a cost of the second run.
    again = {"examples_no_gradient": 8}
    for name in COUNTS[:-1]:
        assert found.result[name] == expected.result[name] + again.get(name, 0), name
    assert found.result["flops_estimate"] > expected.result["flops_estimate"]
    for name in ("wall_seconds", "cpu_seconds"):
        assert found.result[name] > 0
    assert all(
        torch.equal(a, b) for a, b in zip(weights(whole.model).values(), weights(second.model).values(), strict=True)
    )
    # The same callback has its past itself; it must not be counted twice.
    _, same = run("halves", resume=str(tmp_path / "halves" / "checkpoint-2"), cost=of_first)
    assert same.result["optimizer_updates"] == 4


def test_blocks_add_up_and_an_error_ends_one(tmp_path):
    cost = CostCallback()
    with cost:
        time.sleep(0.05)
    first = cost.result
    assert first["wall_seconds"] >= 0.05 and first["optimizer_updates"] == 0 and first["cpu_seconds"] < 0.05
    trainer = plain_trainer(tiny_llama(), token_rows(4), tmp_path, cost)
    with cost:
        trainer.train()
    assert cost.result["wall_seconds"] > first["wall_seconds"] and cost.result["optimizer_updates"] == 1
    with pytest.raises(KeyError):
        with cost:
            trainer.train()
            raise KeyError
    assert cost.result["optimizer_updates"] == 2 and not hooks_of(trainer.model)
    with pytest.raises(RuntimeError, match="already"):
        with cost, cost:
            pass
    with pytest.raises(RuntimeError, match="No cost"):
        CostCallback().result  # noqa: B018


def test_it_does_not_keep_the_model_in_memory(tmp_path):
    cost, model = CostCallback(), tiny_llama()
    trainer = plain_trainer(model, token_rows(4), tmp_path, cost)
    with cost:
        trainer.train()
    seen = weakref.ref(model)
    del trainer, model
    import gc

    gc.collect()
    assert seen() is None and cost.result["optimizer_updates"] == 1


def test_what_is_compiled_is_not_counted(tmp_path):
    cost = CostCallback()
    trainer = plain_trainer(tiny_llama(), token_rows(4), tmp_path, cost)
    trainer.args.torch_compile = True
    cost._model = None
    cost._watch(trainer.model, trainer.args)
    with cost:
        pass
    assert cost.result["tokens"] is None and cost.result["flops_estimate"] is None
    assert cost.result["optimizer_updates"] == 0 and not hooks_of(trainer.model)


def a_cost(**changes):
    cost = {
        "wall_seconds": 10.0,
        "cpu_seconds": 20.0,
        "accelerator_hours": 0.5,
        "optimizer_updates": 3,
        "parameter_updates": 30,
        "examples": 6,
        "tokens": 60,
        "examples_no_gradient": 1,
        "tokens_no_gradient": 10,
        "flops_estimate": 1000,
        "energy_kwh_estimate": 0.25,
        "peak_memory_bytes": 5,
        "peak_accelerator_memory_bytes": None,
        "processes": 1,
        "hardware": [{"cpu": "a", "threads": 1, "accelerator": None, "accelerators": 0}],
    }
    return cost | changes


def test_runs_add_up_and_processes_share_time_and_updates():
    other = a_cost(wall_seconds=12.0, peak_memory_bytes=3, peak_accelerator_memory_bytes=7, examples=5)
    runs, processes = total_cost([a_cost(), None, other]), total_cost([a_cost(), other], side_by_side=True)
    assert (runs["wall_seconds"], processes["wall_seconds"]) == (22, 12)
    assert (runs["optimizer_updates"], processes["optimizer_updates"]) == (6, 3)
    assert (runs["parameter_updates"], processes["parameter_updates"]) == (60, 30)
    assert (runs["processes"], processes["processes"]) == (1, 2)
    for total in (runs, processes):
        assert total["cpu_seconds"] == 40 and total["examples"] == 11 and total["accelerator_hours"] == 1
        assert total["peak_memory_bytes"] == 5 and total["peak_accelerator_memory_bytes"] == 7
        assert total["energy_kwh_estimate"] == 0.5 and total["hardware"] == a_cost()["hardware"]
    unlike = total_cost([a_cost(), a_cost(hardware=[{"cpu": "b"}], energy_kwh_estimate=None)])
    assert len(unlike["hardware"]) == 2 and unlike["energy_kwh_estimate"] is None and unlike["tokens"] == 120
    assert total_cost([a_cost()]) == a_cost()


def test_the_processes_of_a_run_are_put_together(monkeypatch):
    def gather(into, outcome):
        mine, error = outcome
        into[:] = [outcome, (mine | {"examples": 7, "wall_seconds": 1e6}, error)]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    cost = CostCallback()
    with cost:
        pass
    assert cost.result["processes"] == 2 and cost.result["examples"] == 7 and cost.result["wall_seconds"] == 1e6


def test_processor_time_of_child_processes_counts():
    cost = CostCallback()
    with cost:
        subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    assert cost.result["cpu_seconds"] > 0.1


def test_peak_memory_is_a_peak():
    before = peak_memory()
    block = torch.ones(2**25)  # 128 MB
    assert peak_memory() >= before and block.sum() > 0
    top = peak_memory()
    del block
    assert peak_memory() >= 0.99 * top  # the kernel counts in lots of pages


def test_energy_is_estimated_offline(tmp_path, monkeypatch):
    pytest.importorskip("codecarbon")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODECARBON_SAVE_TO_API", "true")

    def refuse(*args, **kwargs):
        raise AssertionError("something was sent")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    logger = logging.getLogger("codecarbon")
    level, files = logger.level, set(os.listdir(tmp_path))
    cost = CostCallback(energy=True)
    for _ in range(2):
        with cost:
            torch.randn(400, 400).matmul(torch.randn(400, 400))
            time.sleep(0.1)
    assert 0 < cost.result["energy_kwh_estimate"] < 0.01
    assert logger.level == level and set(os.listdir(tmp_path)) == files
    monkeypatch.setenv("LOCAL_RANK", "1")  # the machine is measured by its first process
    other = CostCallback(energy=True)
    with other:
        pass
    assert other.result["energy_kwh_estimate"] == 0.0


def test_energy_without_codecarbon_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(ImportError, match=r"hf-unlearn\[energy\]"):
        CostCallback(energy=True)
    CostCallback()


def test_the_tokenizer_of_a_text_run_is_padded(tmp_path):
    """Padding goes through the model as well, and so it counts."""
    cost = CostCallback()
    trainer = make_trainer("ga", tmp_path, callbacks=[cost], max_steps=1, retain_loss="none", forget=8)
    with cost:
        trainer.train()
    lengths = [len(tiny_tokenizer()(row["prompt"] + row["completion"])["input_ids"]) + 1 for row in text_rows(8)]
    assert cost.result["examples"] == 8 and cost.result["tokens"] == 8 * max(lengths)
