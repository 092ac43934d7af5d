"""Ratios of costs: by hand, and never without a note on unlike machines."""

import json

import pytest

from hf_unlearn.audit.cost import MACHINE, WORK, cost_ratios


CPU = {"cpu": "Some CPU", "threads": 2, "accelerator": None, "accelerators": 0}
GPU = {"cpu": "Some CPU", "threads": 2, "accelerator": "Some GPU", "accelerators": 4}


def a_cost(scale, hardware=(CPU,), **changes):
    cost = {name: scale * (i + 1) for i, name in enumerate((*WORK, *MACHINE))}
    return cost | {"processes": 1, "hardware": list(hardware)} | changes


def test_each_part_is_divided_by_that_of_retraining():
    found = cost_ratios(a_cost(2.0), a_cost(8.0))
    assert found["ratios"] == dict.fromkeys((*WORK, *MACHINE), 0.25)
    assert not any("hardware" in note for note in found["notes"])
    assert any("Energy is an estimate" in note for note in found["notes"])
    assert json.loads(json.dumps(found)) == found


def test_unknown_and_absent_parts_have_no_ratio():
    cost = a_cost(1.0, accelerator_hours=0.0, energy_kwh_estimate=None, optimizer_updates=0)
    retraining = a_cost(2.0, accelerator_hours=0.0, tokens=None)
    ratios = cost_ratios(cost, retraining)["ratios"]
    assert [ratios[name] for name in ("accelerator_hours", "energy_kwh_estimate", "tokens")] == [None] * 3
    assert ratios["optimizer_updates"] == 0 and ratios["examples"] == 0.5
    del cost["cpu_seconds"]
    assert cost_ratios(cost, retraining)["ratios"]["cpu_seconds"] is None


@pytest.mark.parametrize("other", [(GPU,), (CPU, GPU), (CPU | {"threads": 8},), (CPU | {"cpu": "Another"},)])
def test_unlike_machines_are_told(other):
    for pair in ((a_cost(1.0), a_cost(2.0, other)), (a_cost(1.0, other), a_cost(2.0))):
        (note,) = [note for note in cost_ratios(*pair)["notes"] if "unlike hardware" in note]
        assert "do not depend on the machine" in note and "Some CPU, 2 threads" in note


def test_unknown_machines_and_other_numbers_of_processes_are_told():
    unknown = a_cost(1.0)
    del unknown["hardware"]
    assert any("not known what" in note for note in cost_ratios(unknown, a_cost(1.0))["notes"])
    notes = cost_ratios(a_cost(1.0, processes=4), a_cost(1.0))["notes"]
    assert any("4 and 1 processes" in note for note in notes)


def test_it_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, hf_unlearn.audit.cost; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
