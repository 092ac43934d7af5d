"""The recipes on images: a target, a retrained reference, a class forgotten and audited; in this process."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoModelForImageClassification

from hf_unlearn.examples.digits import write_digits
from hf_unlearn.request import ErasureRequest


RECIPES = Path(__file__).resolve().parents[1] / "recipes"
CLASS = "runs/digits/data/requests/class.json"


def run(folder: Path, name: str, *arguments) -> None:
    """`python recipes/<name>.py <arguments>` in a folder, without starting Python once more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(RECIPES))
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        __import__(name).main()


def finetune(folder: Path, *arguments) -> None:
    config = RECIPES / "digits" / "finetune.yaml"
    run(folder, "finetune", "--config", config, "--max_steps", 300, "--disable_tqdm", "true", *arguments)


def unlearn(folder: Path, *arguments) -> None:
    config = RECIPES / "digits" / "graddiff.yaml"
    short = ["--max_steps", 20, "--eval_steps", 10, "--forget_weight", 0.2, "--disable_tqdm", "true"]
    run(folder, "unlearn", "--config", config, *short, *arguments)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder / "runs" / "digits" / "data")
    finetune(folder)
    finetune(folder, "--request", CLASS, "--output_dir", "runs/digits/retrained")
    unlearn(folder)
    return folder


def result(folder: Path, name: str) -> dict:
    return json.loads((folder / "runs" / name / "result.json").read_text())


def values(audit: dict) -> dict:
    return {
        (row["measure"], row["set"]): {model: row[model]["value"] for model in audit["models"] if row[model]}
        for row in audit["rows"]
    }


def test_a_class_is_forgotten(digits):
    audit = result(digits, "digits/graddiff")["audit"]
    assert audit["models"] == ["original", "unlearned", "retrained"]
    assert audit["sets"] == {"forget": 100, "retain": 797, "holdout": 42, "test": 558, "siblings": 121}
    accuracy = {key: value for (name, key), value in values(audit).items() if name == "next_token_accuracy"}
    for name in ("forget", "holdout"):
        # The retrained model has never seen the class, so it never answers with it; the target knows it.
        assert accuracy[name]["retrained"] == 0 and accuracy[name]["original"] > 0.5
        assert accuracy[name]["unlearned"] < accuracy[name]["original"] - 0.3
    for name in ("retain", "test", "siblings"):
        assert min(accuracy[name].values()) > 0.5


def test_the_checkpoint_is_plain(digits):
    folder = digits / "runs" / "digits" / "graddiff" / "model"
    names = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert names <= {path.name for path in folder.iterdir()} <= names | {"processor_config.json"}
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert model.config.num_labels == 10  # the head keeps its place for the class
    assert AutoImageProcessor.from_pretrained(folder).size["height"] == 8


def test_no_pixels_of_the_forget_rows_are_written(digits):
    from hf_unlearn.data import load_rows
    from hf_unlearn.request import split

    rows = load_rows(str(digits / "runs/digits/data")).with_format("arrow")
    forget = split(rows, ErasureRequest.load(digits / CLASS)).forget.with_format("arrow")
    pictures = [cell["bytes"] for cell in forget[:]["image"].to_pylist()]
    assert len(pictures) == 100
    for path in (digits / "runs" / "digits" / "graddiff").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [picture for picture in pictures if picture in content], path


def test_the_audit_recipe_gives_the_same_numbers(digits):
    arguments = {
        "dataset_name": "runs/digits/data",
        "holdout_split": "holdout",
        "request": CLASS,
        "model_name_or_path": "runs/digits/graddiff/model",
        "original": "runs/digits/original/model",
        "retrained": "runs/digits/retrained/model",
        "output_dir": "runs/again",
        "audit_batch_size": "100",
        "use_cpu": "true",
    }
    flags = [text for key, value in arguments.items() for text in (f"--{key}", value)]
    run(digits, "audit", *flags, "--sibling_values", "3", "9")
    assert result(digits, "again")["audit"] == result(digits, "digits/graddiff")["audit"]


def test_records_have_the_whole_holdout_and_no_siblings(digits):
    request = "runs/digits/data/requests/records.json"
    config = RECIPES / "digits" / "graddiff.yaml"
    own = digits / "records.yaml"
    own.write_text("".join(line for line in config.open() if not line.startswith(("sibling_values", "retrained"))))
    run(digits, "unlearn", "--config", own, "--request", request, "--output_dir", "runs/records", "--max_steps", 2)
    assert result(digits, "records")["audit"]["sets"] == {"forget": 40, "retain": 857, "holdout": 600}


def test_an_adapter_of_a_classifier_is_merged_and_loads(digits):
    lora = [
        "--use_peft",
        "true",
        "--lora_target_modules",
        "q_proj",
        "v_proj",
        "--lora_task_type",
        "FEATURE_EXTRACTION",
    ]
    unlearn(digits, "--output_dir", "runs/lora", *lora)
    merged = AutoModelForImageClassification.from_pretrained(digits / "runs" / "lora" / "model")
    original = AutoModelForImageClassification.from_pretrained(digits / "runs" / "digits" / "original" / "model")
    changed = {
        name
        for (name, a), b in zip(merged.named_parameters(), original.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed and all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed)


def test_the_kind_of_a_model_is_that_of_its_checkpoint_or_of_its_base(digits, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    from peft import LoraConfig, get_peft_model
    from tiny import tiny_llama

    from hf_unlearn.cli import checkpoints
    from hf_unlearn.cli.model_arguments import ModelArguments
    from hf_unlearn.models.kinds import kind_of

    vit = digits / "runs" / "digits" / "original" / "model"
    tiny_llama().save_pretrained(tmp_path / "llama")
    adapter = get_peft_model(
        AutoModelForImageClassification.from_pretrained(vit), LoraConfig(target_modules=["q_proj"], r=2)
    )
    adapter.save_pretrained(tmp_path / "adapter")
    config = ModelArguments(model_name_or_path=str(vit))
    for name, kind in ((None, "image"), (str(tmp_path / "llama"), "text"), (str(tmp_path / "adapter"), "image")):
        assert kind_of(checkpoints.load_config(config, name)) == kind
    assert type(checkpoints.load_model(config, str(tmp_path / "llama"))).__name__ == "LlamaForCausalLM"
    loaded = checkpoints.load_model(config, str(tmp_path / "adapter"))
    assert type(loaded.get_base_model()).__name__ == "ViTForImageClassification"
    assert any("lora" in name for name, _ in loaded.named_parameters())
    assert isinstance(checkpoints.load_processing_class(config), type(AutoImageProcessor.from_pretrained(vit)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sibling_values", "nope"], "none of its 10 label names"),
        (["--request", "runs/digits/data/requests/records.json"], "the request is not about a class"),
        (
            ["--model_name_or_path", "narrow"],
            "Row 0 of the forget set: The label is not the index of one of 4 classes",
        ),
    ],
)
def test_bad_input_is_refused(arguments, message, digits):
    from hf_unlearn.examples.image_model import write_vit

    if not (digits / "narrow").exists():
        write_vit(digits / "narrow", list("abcd"), image_size=8, patch_size=4, hidden_size=32, n_layers=1)
    with pytest.raises(ValueError, match=message):
        unlearn(digits, "--output_dir", "runs/bad", *arguments)
    assert not list((digits / "runs" / "bad").iterdir())


def test_augmentation_is_for_images(digits, tmp_path):
    from tiny import tiny_llama, tiny_tokenizer

    finetune(digits, "--augment", "true", "--max_steps", 2, "--output_dir", "runs/augmented")
    plain, augmented = (
        AutoModelForImageClassification.from_pretrained(digits / "runs" / name / "model")
        for name in ("digits/original", "augmented")
    )
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), augmented.parameters(), strict=True))
    tiny_llama().save_pretrained(digits / "llama")
    tiny_tokenizer().save_pretrained(digits / "llama")
    (digits / "rows.jsonl").write_text(json.dumps({"text": "Ada lives here"}) + "\n")
    text = ["--model_name_or_path", "llama", "--dataset_name", "rows.jsonl", "--output_dir", "runs/text"]
    with pytest.raises(ValueError, match="augment"):
        finetune(digits, "--augment", "true", *text)
    finetune(digits, "--max_steps", 1, *text)
    assert AutoModelForCausalLM.from_pretrained(digits / "runs" / "text" / "model")


def test_evaluation_compares_rows_of_the_class_with_each_other(digits):
    from datasets import DatasetDict

    from hf_unlearn.cli.sets import evaluation_sets
    from hf_unlearn.data import load_rows
    from hf_unlearn.request import split

    folder = str(digits / "runs/digits/data")
    data = DatasetDict({name: load_rows(folder, name) for name in ("train", "validation", "holdout")})
    request = ErasureRequest.load(digits / CLASS)
    sets = evaluation_sets(data, request, split(data, request), seed=0)
    assert set(sets["holdout"]["label"]) == {8} and len(sets["retain"]) == len(sets["forget"]) == 100
    records = ErasureRequest.records(rows=[1, 2])
    assert len(evaluation_sets(data, records, split(data, records), 0)["holdout"]) == len(data["validation"])
    without = DatasetDict({name: rows for name, rows in data.items() if name != "validation"})
    assert set(evaluation_sets(without, request, split(data, request), 0)) == {"forget", "retain"}
