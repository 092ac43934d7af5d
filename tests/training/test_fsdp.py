"""FSDP 2 in two processes gives the weights of one process: real accelerate and Trainer, gloo on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import make_trainer, weights
from fsdp_worker import CASES

from hf_unlearn.models.load import load_model


TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run(
        [*command, str(TESTS / "fsdp_worker.py"), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS.parent)))},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(folder / "results.pt")


@pytest.mark.parametrize("name", sorted(CASES))
def test_sharded_training_is_that_of_one_process(name, sharded, tmp_path):
    method, arguments = CASES[name]
    alone = make_trainer(method, tmp_path, **arguments)
    before = weights(alone.model)
    alone.train()
    found = sharded["weights"][name]
    for key, value in weights(alone.model).items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")
    assert any(not torch.equal(value, found[key]) for key, value in before.items())


def test_a_resumed_run_finds_its_running_average(sharded):
    for key, value in sharded["weights"]["gru"].items():
        torch.testing.assert_close(sharded["weights"]["gru, resumed"][key], value, rtol=1e-9, atol=1e-12)


def test_the_whole_trained_model_is_saved(sharded):
    name = "gru, tied weights"
    found = load_model(f"{sharded['folder']}/{name}/model", dtype="auto")
    assert found.lm_head.weight is found.transformer.wte.weight
    for key, value in found.state_dict().items():
        assert torch.equal(value, sharded["weights"][name][key]), key


def test_a_trained_adapter_is_saved_merged(sharded):
    found, trained = load_model(f"{sharded['folder']}/adapter/model", dtype="auto").state_dict(), sharded["adapter"]
    adapted = [key for key in trained if ".lora_A." in key]
    assert len(adapted) == 14
    for key in adapted:
        start, b = key.replace("lora_A.default", "base_layer"), key.replace("lora_A", "lora_B")
        expected = trained[start] + 8 / 2 * trained[b] @ trained[key]
        name = start.removeprefix("base_model.model.").replace(".base_layer", "")
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12)
        assert not torch.equal(found[name], trained[start])


def test_a_gradient_that_is_not_finite_in_one_part_stops_every_process(sharded):
    assert all("gradient is nan" in message for message in sharded["poisoned"])


def test_what_needs_whole_weights_is_refused(sharded):
    assert len(sharded["refusals"]) == 2
    assert all("Either" in message and "run under DDP" in message for message in sharded["refusals"])
