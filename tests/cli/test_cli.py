"""The command `hf-unlearn`, and the descriptions of the methods that it prints."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import text_rows
from datasets import DatasetDict
from tiny import tiny_llama, tiny_tokenizer

from hf_unlearn import ErasureRequest
from hf_unlearn.cli.main import main
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.describe import describe


ROOT = Path(__file__).resolve().parents[2]


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
    assert description["summary"].endswith((".", ")")) or len(description["summary"]) > 20
    assert description["models"] and set(description["models"]) <= {"text", "image"}
    assert description["architecture"] in ("agnostic", "specific")
    assert description["guarantee"] in ("empirical", "certified", "by construction")
    assert description["granularity"] in ("single", "batch", "both")
    assert "forget" in description["needs"] or "retain" in description["needs"]
    json.dumps(description)


def test_the_recipe_for_curves_names_those_that_there_are(tmp_path):
    point = {"value": 0.5, "low": 0.4, "high": 0.6}
    curve = {"name": "logit lens", "axis": "layer", "x": [0], "unlearned": [point]}
    (tmp_path / "result.json").write_text(json.dumps({"audit": {"curves": [curve]}}))
    command = [sys.executable, str(ROOT / "recipes/curves.py"), str(tmp_path / "result.json"), "--only"]
    run = subprocess.run([*command, "zzz"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and "There are: logit lens." in run.stderr and "Traceback" not in run.stderr
    run = subprocess.run([*command, "lens"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and "0.500" in run.stdout


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Models that know nothing of the rows, one of them broken, the rows, and a request for three of them."""
    folder = tmp_path_factory.mktemp("audited")
    for name, seed in (("model", 0), ("retrained", 1), ("broken", 0)):
        model = tiny_llama(seed=seed)
        if name == "broken":
            with torch.no_grad():
                model.lm_head.weight.fill_(float("nan"))
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    rows = text_rows(24)
    rows = rows.add_column("person", [f"p{i // 2}" for i in range(24)])
    data = DatasetDict(train=rows.select(range(12)), holdout=rows.select(range(12, 24)))
    data.save_to_disk(folder / "data")
    DatasetDict(train=data["train"], holdout=data["train"]).save_to_disk(folder / "mixed")
    questions = data.rename_columns({"prompt": "question", "completion": "answer"})
    questions.save_to_disk(folder / "questions")
    ErasureRequest.records(ids=["p1", "p3"], column="person").save(folder / "request.json")
    ErasureRequest.attribute("person", "==", "p1").save(folder / "attribute.json")
    return folder


def audit(folder, *more, model="model"):
    arguments = {
        "model_name_or_path": folder / model,
        "original": folder / "model",
        "retrained": folder / "retrained",
        "dataset_name": folder / "data",
        "holdout_split": "holdout",
        "request": folder / "request.json",
        "threat_model": "membership",
        "output_dir": folder / "out",
    }
    given = [str(x) for name, value in arguments.items() for x in (f"--{name}", value)]
    return main(["audit", *given, *map(str, more)])  # what is given twice counts as given last


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--threat_model", "telepathy"], "There is no threat model 'telepathy'"),
        (["--betta", "1"], "--betta"),
        (["--dataset_name", "none.jsonl"], "There is no none.jsonl"),
        (["--request", "none.json"], "none.json"),
        (["--model_name_or_path", "runs/none"], "There is no model 'runs/none'"),
        (["--group_column", "author"], "Its columns are prompt, completion, person"),
        (["--weight_attacks", "int3"], "weight_attacks to 'int3'"),
        (["--audit_max_rows", "0"], "max_rows=0"),
        (["--max_length", "5"], "Row 0 of the forget set: A text has"),
    ],
)
def test_a_wrong_request_ends_with_2_and_without_a_traceback(more, message, audited, capsys, monkeypatch):
    monkeypatch.setattr("hf_unlearn.models.load.load_model", pytest.fail)
    assert audit(audited, *more) == 2
    error = capsys.readouterr().err
    assert (
        message in error and "Traceback" not in error and error.splitlines()[-1].startswith("hf-unlearn audit: error:")
    )


def test_rows_that_cannot_be_audited_end_with_2(audited, capsys, monkeypatch):
    monkeypatch.setattr("hf_unlearn.models.load.load_model", pytest.fail)
    assert main(["audit"]) == 2 and "No data set was given" in capsys.readouterr().err
    assert audit(audited, "--dataset_name", audited / "mixed") == 2
    assert "4 rows are in the forget set and in the holdout" in capsys.readouterr().err
    assert audit(audited, "--dataset_name", audited / "questions") == 2
    error = capsys.readouterr().err
    assert "no known format" in error and "--prompt_template 'Question: {question}" in error


def test_an_error_on_the_way_ends_with_2_and_its_traceback(audited, capsys, monkeypatch):
    def fails(**arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("hf_unlearn.audit.run.audit", fails)
    assert audit(audited) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and error.endswith("RuntimeError: out of memory\n")
    # ... while 1 says that something was found.
    monkeypatch.setattr("hf_unlearn.audit.run.audit", lambda **arguments: SimpleNamespace(exit_code=1))
    monkeypatch.setattr("hf_unlearn.cli.job.Job.write_result", lambda job, report: None)
    assert audit(audited) == 1


def test_what_shows_nothing_ends_with_3_and_says_what_was_audited(audited, capsys):
    assert audit(audited) == 3
    out = capsys.readouterr().out
    assert "forget=4, retain=8, holdout=12" in out and "membership       no baseline" in out
    page = (audited / "out" / "RESULT.md").read_text()
    for text in (
        f"| audited model | `{audited / 'model'}` |",
        f"| retrained model | `{audited / 'retrained'}` |",
        f"| data set | `{audited / 'data'}` |",
        "| splits | train `train`, holdout `holdout` |",
        "| request, kind | record |",
        "| request, selects | rows by their column person (in; values: 2, not shown) |",
        "| request, holdout | 12 of 12 rows fit it |",
    ):
        assert text in page, text
    assert "p3" not in page and "p3" not in (audited / "out" / "result.json").read_text()


def test_a_model_of_nans_ends_with_3(audited):
    with pytest.warns(UserWarning):
        assert audit(audited, "--threat_model", "extraction", model="broken") == 3


def test_a_holdout_of_which_nothing_fits_is_said_with_the_counts(audited, capsys):
    with pytest.warns(UserWarning, match="0 of 12 holdout rows fit the request"):
        assert audit(audited, "--request", audited / "attribute.json") == 3
    assert "holdout=0 of 12" in capsys.readouterr().out
    assert "| request, holdout | 0 of 12 rows fit it |" in (audited / "out" / "RESULT.md").read_text()


def test_the_help_of_the_audit_lists_the_exit_codes_and_imports_little():
    code = "import sys; from hf_unlearn.cli.main import main\ntry: main(['audit', '--help'])\nfinally: print(sorted(sys.modules))"
    environment = os.environ | {"COLUMNS": "120"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("usage: hf-unlearn audit ") and "Audit a model: what an adversary finds" in run.stdout
    for start in (
        "0  every surface",
        "1  something was found",
        "2  the audit did not run",
        "3  nothing was found and",
    ):
        assert f"\n  {start}" in run.stdout
    assert "lora" not in run.stdout.split("exit codes")[0]
    assert not any(f"'{name}'" in run.stdout for name in ("torch", "peft", "datasets", "accelerate"))
