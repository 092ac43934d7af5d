"""The recipes as a user runs them: real processes, real files, no network."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_unlearn.cli.unlearning import parse_unlearning
from hf_unlearn.methods import METHODS


ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "1"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


# The audits of tests generate little: what they find is not looked at here.
BRIEF = ["--audit_max_rows", 8, "--audit_max_new_tokens", 8]


def run(launcher, recipe, *arguments, cwd, ok=True):
    arguments = [*arguments, *([] if recipe in ("finetune", "compare") else BRIEF)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [*launcher, str(RECIPES / f"{recipe}.py"), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert (done.returncode == 0) == ok, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A registry with a target and a retrained reference, both trained for a few steps only."""
    folder = tmp_path_factory.mktemp("registry")
    generate = [sys.executable, "-m", "hf_unlearn.examples.registry", "runs/registry/data"]
    subprocess.run(generate, cwd=folder, check=True, capture_output=True)
    config = RECIPES / "registry" / "finetune.yaml"
    short = ["--max_steps", 40, "--disable_tqdm", "true"]
    run([sys.executable], "finetune", "--config", config, *short, cwd=folder)
    request = "runs/registry/data/requests/person.json"
    output = run(
        [sys.executable],
        "finetune",
        "--config",
        config,
        *short,
        "--request",
        request,
        "--output_dir",
        "runs/registry/retrained",
        cwd=folder,
    )
    assert "forget=84, retain=588" in output
    return folder


@pytest.fixture(scope="module")
def unlearned(registry):
    return run(
        ACCELERATE,
        "unlearn",
        "--config",
        RECIPES / "registry" / "npo.yaml",
        "--max_steps",
        4,
        "--eval_steps",
        2,
        "--save_strategy",
        "steps",
        "--save_steps",
        2,
        "--report_to",
        "tensorboard",
        cwd=registry,
    )


def forget_texts(registry) -> list[str]:
    request = json.loads((registry / "runs/registry/data/requests/person.json").read_text())
    people = request["extensions"]["hf-unlearn"]["scope"]["selector"]["values"]
    rows = map(json.loads, (registry / "runs/registry/data/train.jsonl").read_text().splitlines())
    rows = [row for row in rows if row["person"] in people]
    assert len(rows) == 84
    return sorted({row[column] for row in rows for column in ("name", "email", "phone")})


def test_the_result(registry, unlearned):
    folder = registry / "runs/registry/npo"
    result = json.loads((folder / "result.json").read_text())
    assert result["audit"]["models"] == ["original", "unlearned", "retrained"]
    assert result["run"]["config"]["beta"] == yaml.safe_load((RECIPES / "registry/npo.yaml").read_text())["beta"]
    assert result["run"]["seed"] == 0 and result["run"]["method"] == "npo" and result["run"]["steps"] == 4
    assert {"torch", "transformers", "hf-unlearn"} <= set(result["environment"]["versions"])
    assert "commit" in result["environment"]
    rows = {(row["measure"], row["set"]): row for row in result["audit"]["rows"]}
    for row in rows.values():
        assert row["direction"]
        for model in result["audit"]["models"]:
            if row[model] is not None:
                assert row[model]["n"] and "value" in row[model]
    extraction = rows["verbatim_extraction", "forget"]
    assert extraction["unlearned"]["n"] == [84] and extraction["unlearned"]["high"] > 0
    assert rows["membership_auc_loss", "forget against holdout"]["unlearned"]["n"] == [84, 168]
    page = (folder / "RESULT.md").read_text()
    assert "| verbatim extraction | forget | 84 |" in page and "Lower than retrained is a failure too" in page
    assert "verbatim extraction" in unlearned  # the table in the terminal


def test_the_checkpoint_is_plain(registry, unlearned):
    folder = registry / "runs/registry/npo/model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert not hasattr(model, "peft_config") and tokenizer("x")["input_ids"]
    assert {file.name for file in folder.iterdir()} <= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_no_forget_text_leaves_the_data(registry, unlearned):
    texts = forget_texts(registry)
    written = [file for file in (registry / "runs/registry/npo").rglob("*") if file.is_file()]
    assert any("events.out.tfevents" in file.name for file in written)  # tensorboard was written, and is looked at
    for file in written:
        content = file.read_bytes()
        assert not [text for text in texts if text.encode() in content], file
    assert not [text for text in texts if text in unlearned]


def test_audit_recipe_gives_the_same_numbers(registry, unlearned):
    run(
        [sys.executable],
        "audit",
        "--dataset_name",
        "runs/registry/data",
        "--holdout_split",
        "holdout",
        "--request",
        "runs/registry/data/requests/person.json",
        "--model_name_or_path",
        "runs/registry/npo/model",
        "--original",
        "runs/registry/original/model",
        "--retrained",
        "runs/registry/retrained/model",
        "--group_column",
        "person",
        "--output_dir",
        "runs/audit",
        cwd=registry,
    )
    first, second = (json.loads((registry / f"runs/{x}/result.json").read_text()) for x in ("registry/npo", "audit"))
    assert first["audit"] == second["audit"]


def test_lora_in_two_processes_is_merged(registry):
    output = run(
        TWO,
        "unlearn",
        "--config",
        RECIPES / "registry" / "npo.yaml",
        "--max_steps",
        2,
        "--eval_steps",
        1,
        "--save_steps",
        1,
        "--save_strategy",
        "steps",
        "--output_dir",
        "runs/lora",
        "--use_peft",
        "true",
        "--lora_target_modules",
        "all-linear",
        "--update_rule",
        "project",
        "--per_device_train_batch_size",
        8,
        cwd=registry,
    )
    assert output.count("Written to") == 1  # by one process
    assert json.loads((registry / "runs/lora/checkpoint-2/trainer_state.json").read_text())["train_batch_size"] == 8
    assert (registry / "runs/lora/model/model.safetensors").exists()
    assert not (registry / "runs/lora/model/adapter_config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output_dir", "runs/registry/data/train.jsonl/x"], "Nothing can be written to output_dir"),
        (["--method", "nope"], "invalid choice: 'nope'"),
        (["--betta", "1"], "betta"),
        (["--request", "runs/none.json"], "runs/none.json"),
        (["--dataset_name", "runs/none"], "runs/none"),
        (["--holdout_split", "nope"], "nope"),
        (["--retrained", "runs/none"], "runs/none"),
        (["--max_length", "20"], "Row 0 of the forget set: A text has"),
        (["--output_dir", "runs/registry/original"], "which this run reads"),
        (["--retrained", *2 * ["runs/registry/retrained/model"]], "retrained and retrained_2 are the same one"),
        (["--push_to_hub", "true"], "uploads the whole output folder"),
    ],
)
def test_bad_input_ends_before_a_model_is_loaded(arguments, message, registry):
    output = run(
        [sys.executable],
        "unlearn",
        "--config",
        RECIPES / "registry" / "npo.yaml",
        "--output_dir",
        "runs/bad",
        *arguments,
        cwd=registry,
        ok=False,
    )
    assert message in output.splitlines()[-1] or message in output[-1500:]
    assert "Loading weights" not in output
    assert not list((registry / "runs").glob("bad/*"))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_recipe_parses(path, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    from finetune import FinetuneArguments
    from transformers import TrainingArguments
    from trl import TrlParser

    from hf_unlearn.cli.model_arguments import ModelArguments

    if path.stem == "finetune":
        parsed = TrlParser((FinetuneArguments, TrainingArguments, ModelArguments)).parse_args_and_config(
            ["--config", str(path)]
        )
        assert parsed[0].dataset_name
        return
    arguments, config, model = parse_unlearning(["--config", str(path), "--seed", "7"])
    assert arguments.method in METHODS and isinstance(config, METHODS[arguments.method].config_class)
    assert config.seed == 7 and model.model_name_or_path


def test_the_help_lists_the_options_of_the_method(tmp_path):
    output = run([sys.executable], "unlearn", "--method", "simnpo", "--help", cwd=tmp_path)
    assert all(f"--{name}" in output for name in ("delta", "learning_rate", "update_rule", "use_peft", "request"))


def test_the_readmes_name_recipes_that_exist():
    for readme in [ROOT / "README.md", *RECIPES.glob("**/README.md")]:
        for name in re.findall(r"recipes/[\w./-]+\.(?:yaml|py|json)", readme.read_text()):
            assert (ROOT / name).exists(), f"{readme.relative_to(ROOT)} names {name}"


def test_a_hybrid_audits_each_stage_against_the_same_original(registry):
    recipes = ["--edit", RECIPES / "registry/npo.yaml", "--repair", RECIPES / "registry/repair.yaml"]
    more = ["--output_dir", "runs/hybrid", "--max_steps", 2, "--eval_steps", 1, "--disable_tqdm", "true"]
    run([sys.executable], "hybrid", *recipes, *more, cwd=registry)
    edit, repair = (
        json.loads((registry / "runs/hybrid" / stage / "result.json").read_text()) for stage in ("edit", "repair")
    )
    assert edit["run"]["method"] == "npo" and repair["run"]["method"] == "repair"
    assert repair["run"]["config"]["model_name_or_path"] == "runs/hybrid/edit/model"
    for a, b in zip(edit["audit"]["rows"], repair["audit"]["rows"], strict=True):
        assert a["original"] == b["original"] and a["retrained"] == b["retrained"]
    table = run([sys.executable], "compare", *sorted((registry / "runs/hybrid").glob("*/result.json")), cwd=registry)
    header, _, *rows = [line for line in table.splitlines() if line.startswith("|")]
    assert header == "| measure | set | original | retrained | edit | repair |"
    assert len(rows) == len(edit["audit"]["rows"])
    AutoModelForCausalLM.from_pretrained(registry / "runs/hybrid/repair/model")


def test_stopping_against_the_retrained_model(registry):
    arguments = [
        "--config",
        RECIPES / "registry/npo.yaml",
        "--max_steps",
        2,
        "--eval_steps",
        1,
        "--eval_on_start",
        "true",
    ]
    output = ["--output_dir", "runs/against", "--stop_when_forgotten", "true", "--stop_against", "retrained"]
    run([sys.executable], "unlearn", *arguments, *output, cwd=registry)
    assert (registry / "runs/against/result.json").exists()
    bad = run([sys.executable], "unlearn", *arguments, *output, "--retrained", "runs/none", cwd=registry, ok=False)
    assert "There is no model 'runs/none'" in bad
