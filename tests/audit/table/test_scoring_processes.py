"""Two processes share the examples and give the table of one, bit for bit: a real torchrun, gloo on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_unlearn.models.processes import gathered, of_the_first, rank_and_world


HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def worker():
    sys.path.insert(0, str(HERE))
    import scoring_worker

    yield scoring_worker
    sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run(
        [*command, str(HERE / "scoring_worker.py"), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "ACCELERATE_USE_CPU": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    results = [torch.load(folder / f"results-{rank}.pt", weights_only=False) for rank in range(2)]
    results[0]["files"] = sorted(path.name for path in (folder / "cache").iterdir())
    return results


@pytest.fixture(scope="module")
def alone(worker):
    passes = []
    found = worker.tables(lambda model: model.register_forward_pre_hook(lambda *_: passes.append(1)))
    return {"tables": found, "passes": len(passes)}


def assert_identical(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit", "fewer batches than processes", "nothing"])
def test_every_process_has_the_whole_table_of_one_process(name, both, alone):
    for results in both:
        assert_identical(results["tables"][name], alone["tables"][name])


def test_the_passes_are_shared_out(both, alone):
    counts = [results["passes"] for results in both]
    assert sum(counts) == alone["passes"] and max(counts) < 0.7 * alone["passes"]


def test_a_model_in_ddp_is_scored_too(both, alone):
    for results in both:
        assert_identical(results["wrapped"], alone["tables"]["llama"])


def test_a_sharded_model_runs_every_pass_in_every_process(both, alone):
    for results in both:
        assert_identical(results["sharded"], alone["tables"]["llama"])
        assert results["sharded digest is that of the whole"]


def test_the_first_process_writes_the_cache_and_all_read_it(both, alone):
    for results in both:
        for columns in results["cached"]:
            assert_identical(columns, alone["tables"]["llama"])
    (name,) = both[0]["files"]
    assert name.endswith(".safetensors")


def test_errors_stop_every_process_and_other_examples_are_noticed(both, alone):
    assert all("ValueError: The processes were given different examples" in r["errors"][0] for r in both)
    assert both[0]["errors"][1].startswith("RuntimeError: Process 1 of 2 stopped with ZeroDivisionError")
    assert both[1]["errors"][1] == "its own error"
    for results in both:
        assert_identical(results["after the errors"], alone["tables"]["llama"])


def test_one_process_is_nothing_special():
    assert rank_and_world() == (0, 1)
    assert gathered(lambda: 3) == [3] and of_the_first(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        gathered(lambda: 1 / 0)
