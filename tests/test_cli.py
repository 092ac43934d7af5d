"""The command `hf-unlearn`, and the descriptions of the methods that it prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_unlearn.cli import main
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.describe import describe


ROOT = Path(__file__).resolve().parents[1]


def test_the_installed_command_lists_every_method():
    command = Path(sys.executable).parent / "hf-unlearn"
    run = subprocess.run([command, "methods"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert {line.split()[0] for line in run.stdout.splitlines()[1 : len(METHODS) + 1]} == set(METHODS)


def test_for_machines(capsys):
    assert main(["methods", "--format", "json"]) == 0
    found = {method["name"]: method for method in json.loads(capsys.readouterr().out)}
    assert set(found) == set(METHODS)
    assert found["npo"]["needs"] == ["forget", "retain", "reference", "gradients"]
    assert found["npo"]["defaults"] == {"beta": 0.1}
    assert found["npo"]["sources"] == ["2404.05868"]
    assert found["ga"]["needs"] == ["forget", "gradients"]
    assert found["ga"]["cost"] == "a forward and backward pass of forget rows a step"


def test_one_method(capsys):
    assert main(["methods", "npo"]) == 0
    out = capsys.readouterr().out
    assert "NPOTrainer" in out and "beta=0.1" in out
    assert main(["methods", "nop"]) == 2
    assert "There is no method 'nop'" in capsys.readouterr().err


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_description_says_something(method):
    description = describe(method, METHODS[method])
    assert description.summary.endswith((".", ")")) or len(description.summary) > 20
    assert description.models and set(description.models) <= {"text", "image"}
    assert description.architecture in ("agnostic", "specific")
    assert description.guarantee in ("empirical", "certified", "by construction")
    assert description.granularity in ("single", "batch", "both")
    assert "forget" in description.needs or "retain" in description.needs
    json.dumps(description.as_dict())


def test_the_recipe_for_curves_names_those_that_there_are(tmp_path):
    point = {"value": 0.5, "low": 0.4, "high": 0.6}
    curve = {"name": "logit lens", "axis": "layer", "x": [0], "unlearned": [point]}
    (tmp_path / "result.json").write_text(json.dumps({"audit": {"curves": [curve]}}))
    command = [sys.executable, str(ROOT / "recipes/curves.py"), str(tmp_path / "result.json"), "--only"]
    run = subprocess.run([*command, "zzz"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and "There are: logit lens." in run.stderr and "Traceback" not in run.stderr
    run = subprocess.run([*command, "lens"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and "0.500" in run.stdout
