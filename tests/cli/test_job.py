"""A job: everything is checked for all roles before a model is loaded, and what `erase` leaves."""

import json
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from cases import text_rows
from datasets import Dataset, DatasetDict
from tiny import tiny_llama, tiny_tokenizer
from transformers import MambaConfig, MambaForCausalLM

from hf_unlearn import ErasureRequest
from hf_unlearn.audit.config import AuditConfig
from hf_unlearn.audit.run import audit
from hf_unlearn.cli.job import Job
from hf_unlearn.cli.options import option_of, parse_audit
from hf_unlearn.cli.unlearning import parse_unlearning
from hf_unlearn.methods import METHODS


RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    for seed, name in enumerate(("original", "retrained", "shadow")):
        tiny_llama(seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    rows = text_rows(24)
    DatasetDict(train=rows.select(range(12)), holdout=rows.select(range(12, 24))).save_to_disk(folder / "data")
    ErasureRequest.records(rows=[1, 2, 3]).save(folder / "request.json")
    return folder


def arguments(folder, *more) -> list[str]:
    given = {
        "model_name_or_path": folder / "original",
        "dataset_name": folder / "data",
        "holdout_split": "holdout",
        "request": folder / "request.json",
        "output_dir": folder / "out",
    }
    return [*(str(text) for name, value in given.items() for text in (f"--{name}", value)), *map(str, more)]


def unlearning(folder, *more) -> list[str]:
    short = ["--method", "npo", "--max_steps", 1, "--use_cpu", "true", "--seed", 0, "--report_to", "none"]
    return arguments(folder, *short, *more)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("head_mask", "No attention output projection was found in MambaForCausalLM.* Choose a method"),
        ("lora_edit", "lora_edit reaches .* of this MambaForCausalLM only"),
    ],
)
def test_a_method_that_lacks_its_parts_is_refused_before_a_model_is_loaded(
    method, message, folder, monkeypatch, tmp_path
):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    MambaForCausalLM(MambaConfig(vocab_size=len(tiny_tokenizer()), **sizes)).save_pretrained(tmp_path / "mamba")
    tiny_tokenizer().save_pretrained(tmp_path / "mamba")
    monkeypatch.setattr("hf_unlearn.models.load.load_model", lambda *_, **__: pytest.fail("A model was loaded."))
    more = ["--model_name_or_path", tmp_path / "mamba", "--method", method, "--output_dir", tmp_path / "out"]
    with pytest.raises(ValueError, match=message):
        Job.from_arguments(unlearning(folder, *more))


@pytest.mark.parametrize("recipe", ["unlearn", "hybrid"])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--retrained", "{0}/retrained", "{0}/./retrained"], "retrained and retrained_2 are the same one"),
        (["--retrained", "{0}/retrained", "--shadows", "{0}/shadow"], "1 shadows and 0 retrained models"),
        (["--retrained", "{0}/none"], "There is no model"),
        (["--shadows", "{0}/none"], "There is no model"),
        (["--guidance_weights", "2", "--audit_n_samples", "0"], "n_samples=0"),
        (["--max_length", "5"], "Row 0 of the forget set: A text has"),
    ],
)
def test_a_recipe_checks_all_roles_before_a_model_is_loaded(recipe, more, message, folder, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.setattr("hf_unlearn.models.load.load_model", lambda *_, **__: pytest.fail("A model was loaded."))
    given = unlearning(folder, "--output_dir", tmp_path / "out", *(text.format(folder) for text in more))
    if recipe == "hybrid":
        (tmp_path / "empty.yaml").write_text("seed: 0\n")
        stages = ["--edit", tmp_path / "empty.yaml", "--repair", tmp_path / "empty.yaml"]
        given = [*map(str, stages), *given]
    monkeypatch.setattr(sys, "argv", ["recipe.py", *given])
    with pytest.raises(ValueError, match=message):
        __import__(recipe).main()


@pytest.mark.parametrize("parse", [parse_audit, parse_unlearning])
def test_every_field_of_the_audit_config_is_an_option(parse, folder):
    config, given = AuditConfig(), []
    other = {
        "weight_attacks": ("noise 1%",),
        "stability": False,
        "truncate": True,
        "max_length": 77,
        **{name: (1.0, 3.0) for name in ("relearning_rates", "guidance_weights")},
        "relearning_steps": (0, 3),
    }
    for one in fields(AuditConfig):
        default = getattr(config, one.name)
        other.setdefault(one.name, default + 1 if isinstance(default, int) else None)
        assert other[one.name] not in (None, default), f"Give {one.name} another value here."
        value = other[one.name]
        given += [f"--{option_of(one.name)}", *map(str, value if isinstance(value, tuple) else [value])]
    parsed = parse(arguments(folder, *given))
    found = parsed[0].audit_config(parsed[1] if parse is parse_unlearning else parsed[0])
    for name, value in other.items():
        assert getattr(found, name) == (list(value) if isinstance(value, tuple) else value), name


@pytest.mark.parametrize("parse", [parse_audit, parse_unlearning])
def test_the_defaults_are_those_of_the_audit_config(parse, folder):
    parsed = parse(arguments(folder, "--seed", "0"))
    found = parsed[0].audit_config(parsed[1] if parse is parse_unlearning else parsed[0])
    for one in fields(AuditConfig):
        default = one.default
        assert getattr(found, one.name) == (list(default) if isinstance(default, tuple) else default), one.name


@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_option_of_a_method_is_one_of_the_audit(method, folder, capsys):
    with pytest.raises(SystemExit, match="0"):  # where two options have the same name, the parser cannot be built
        parse_unlearning(["--method", method, "--help"])
    assert "--audit_n_samples" in capsys.readouterr().out


def test_a_job_erases_audits_and_writes(folder, capsys):
    job = Job.from_arguments(unlearning(folder, "--retrained", folder / "retrained", "--threat_model", "membership"))
    assert {name: len(rows) for name, rows in job.sets.items()} == {"forget": 3, "retain": 9, "holdout": 12}
    erased = job.erase()
    assert erased.model == f"{folder}/out/model" and (Path(erased.model) / "model.safetensors").exists()
    assert erased.steps == {"steps": 1, "best_checkpoint_step": None} and erased.guarantee == {"kind": "empirical"}
    assert erased.cost["optimizer_updates"] == 1
    assert erased.cost == json.loads((folder / "out/cost.json").read_text())
    with pytest.raises(FrozenInstanceError):
        erased.model = "other"
    asked = job.audit_of(erased)
    report = audit(**asked)
    job.write_result(report, erased)
    run = json.loads((folder / "out/result.json").read_text())["run"]
    assert {"method", "request", "seed", "steps", "best_checkpoint_step", "config", "models", "data"} < set(run)
    assert run["models"] == {
        "original": str(folder / "original"),
        "unlearned": erased.model,
        "retrained": [str(folder / "retrained")],
    }
    assert run["steps"] == 1 and run["guarantee"] == {"kind": "empirical"} and "model" not in run
    assert report.models == ["original", "unlearned", "retrained"]
    # The command audits the same checkpoint, and finds the same.
    compared = ["--original", folder / "original", "--retrained", folder / "retrained", "--use_cpu", "true"]
    again = Job(
        *parse_audit(
            arguments(folder, "--model_name_or_path", erased.model, "--threat_model", "membership", *compared)
        )
    )
    assert again.audit_of().keys() == asked.keys() and again.models == job.models
    found, same = (
        json.dumps(r.as_dict(), default=str) for r in (report, audit(**again.audit_of()))
    )  # NaN is not itself
    assert found == same


def test_code_of_a_checkpoint_runs_only_where_that_is_asked_for(folder):
    assert not parse_audit(arguments(folder))[1].trust_remote_code
    assert parse_audit(arguments(folder, "--trust_remote_code"))[1].trust_remote_code


@pytest.fixture
def of_a_person(folder, tmp_path):
    """Rows of which only those trained on name the person, and a copy of one of them under another id."""
    rows = [{**row, "id": i} for i, row in enumerate(text_rows(24))]
    rows[11] = {**rows[1], "id": 11}
    data = DatasetDict(
        train=Dataset.from_list(rows[:12]),
        holdout=Dataset.from_list(rows[12:]),
        validation=Dataset.from_list(rows[8:12]),
    )
    data.save_to_disk(tmp_path / "people")
    name = rows[1]["prompt"].split()[3]
    ErasureRequest.attribute("prompt", "contains", f"{name} 1 ").save(tmp_path / "contains.json")
    ErasureRequest.records(mentions=[f"{name} 1"], columns=["prompt", "completion"]).save(tmp_path / "mentions.json")
    ErasureRequest.records([1]).save(tmp_path / "id.json")
    return tmp_path


def of_request(folder, of_a_person, name, *more):
    given = ["--dataset_name", of_a_person / "people", "--request", of_a_person / f"{name}.json", "--use_cpu", "true"]
    return arguments(folder, *given, "--output_dir", of_a_person / "out", "--threat_model", "membership", *more)


def test_names_that_no_holdout_row_holds_are_said_in_the_result(folder, of_a_person):
    with pytest.warns(UserWarning, match="0 of 12 holdout rows fit"):
        job = Job(*parse_audit(of_request(folder, of_a_person, "contains")))
    report = audit(**job.audit_of())
    job.write_result(report)
    notes = [note for note in report.notes if "holdout" in note]
    assert (
        len(notes) == 1
        and notes[0].startswith("None of the 12 holdout rows fits the request")
        and "`mentions`" in notes[0]
    )
    assert notes[0] in (of_a_person / "out/RESULT.md").read_text()
    assert (
        audit(model=job.models["unlearned"], split=job.parts, threat_model="membership", device="cpu").notes
        == report.notes
    )
    # The same rows by the names that they mention are compared with the whole holdout.
    job = Job(*parse_audit(of_request(folder, of_a_person, "mentions")))
    assert {name: len(rows) for name, rows in job.sets.items()} == {"forget": 2, "retain": 10, "holdout": 12}
    job.write_result(audit(**job.audit_of()))
    written = (of_a_person / "out/result.json").read_text()
    request = json.loads(written)["run"]["request"]
    assert request["selects"] == "rows by any of their columns prompt, completion (mentions; names: 1, not shown)"


def test_copies_of_the_forget_set_are_chosen_about_and_are_no_validation_rows(folder, of_a_person):
    with pytest.raises(ValueError, match="1 rows that the request does not match have the content.*--duplicates"):
        Job(*parse_audit(of_request(folder, of_a_person, "id")))
    job = Job(*parse_audit(of_request(folder, of_a_person, "id", "--duplicates", "forget")))
    assert [len(job.sets[name]) for name in ("forget", "retain")] == [2, 10]
    short = [
        "--method",
        "npo",
        "--max_steps",
        1,
        "--seed",
        0,
        "--report_to",
        "none",
        "--validation_split",
        "validation",
    ]
    with pytest.raises(ValueError, match="1 row is in the forget set and in the validation split"):
        Job.from_arguments(of_request(folder, of_a_person, "id", "--duplicates", "forget", *short))


def test_a_job_says_before_a_model_is_loaded_what_is_read_and_what_nothing_reaches(folder, capsys, monkeypatch):
    monkeypatch.setattr("hf_unlearn.models.load.load_model", lambda *_, **__: pytest.fail("A model was loaded."))
    parts = Job.from_arguments(unlearning(folder)).parts
    said = capsys.readouterr().out
    assert "Rows read 12, erased 3, kept 9.\n" in said
    n = sum(len(row["prompt"]) for row in parts.forget)
    assert f"forget set: 3 rows; no loss and no score reaches prompt (3 rows, {n} characters)" in said
    assert "retain set: 9 rows" in said and "holdout set: 12 rows" in said
