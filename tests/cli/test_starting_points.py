"""What people start from: models, adapters, quantized models, by name or in memory. Each works, or one line says what to do."""

import json

import pytest
import torch
from cases import text_rows
from datasets import DatasetDict
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from hf_unlearn import ErasureRequest
from hf_unlearn.audit.run import audit
from hf_unlearn.cli.job import Job
from hf_unlearn.examples.registry_model import make_base
from hf_unlearn.methods import METHODS, NPOConfig, NPOTrainer
from hf_unlearn.models.adapters import merged
from hf_unlearn.models.load import load_model
from hf_unlearn.models.saved import save_whole


LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
QUANTIZED = BitsAndBytesConfig(load_in_4bit=True)
GIVE_PEFT, LEAVE_PEFT = "Either give a peft_config", "Either leave peft_config out"
# What each start leads to without and with a new adapter: what is saved, or the error.
STARTS = {
    "model": ("model", "model"),
    "adapter": ("model", "model"),
    "adapter beside its base": ("model", "model"),
    "adapter on an adapter": ("model", "model"),
    "quantized": (GIVE_PEFT, "adapter"),
    "load_in_4bit": (GIVE_PEFT, "adapter"),
    "adapter and load_in_4bit": ("adapter", LEAVE_PEFT),
    "adapter on quantized": ("adapter", LEAVE_PEFT),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starts")
    tokenizer = tiny_tokenizer()

    def save(model, name):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    def adapter(base, name):
        generator = torch.Generator().manual_seed(len(name))
        model = get_peft_model(load_model(str(folder / base)), LoraConfig(**LORA))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(folder / name)  # without a tokenizer: that of the base is taken
        return folder / name / "adapter_config.json"

    save(make_base(tokenizer), "model")
    adapter("model", "adapter")
    settings = adapter("model", "adapter beside its base")
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "../model"}))
    (folder / "merged").mkdir()
    save(load_model(str(folder / "adapter")).merge_and_unload(), "merged")
    settings = adapter("merged", "adapter on an adapter")
    on_top = {"base_model_name_or_path": str(folder / "adapter")}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | on_top))
    save(load_model(str(folder / "model"), quantization_config=QUANTIZED), "quantized")
    adapter("quantized", "adapter on quantized")
    rows = text_rows(16)
    DatasetDict(train=rows.select(range(8)), holdout=rows.select(range(8, 16))).save_to_disk(folder / "data")
    ErasureRequest.records(rows=[1, 2]).save(folder / "request.json")
    return folder


def recipe(folder, start, peft, out, options=None):
    given = {
        "model_name_or_path": folder / start.removesuffix(" and load_in_4bit").replace("load_in_4bit", "model"),
        "dataset_name": folder / "data",
        "holdout_split": "holdout",
        "request": folder / "request.json",
        "output_dir": out,
        "max_steps": 1,
        "use_cpu": "true",
        "report_to": "none",
        "save_strategy": "no",
    }
    given |= {"load_in_4bit": "true"} if "load_in_4bit" in start else {}
    given |= {"use_peft": "true", "lora_r": 2, "lora_target_modules": "q_proj"} if peft else {}
    given |= options or {}
    return (
        Job.from_arguments([str(text) for name, value in given.items() for text in (f"--{name}", value)]).erase().model
    )


def trainer(folder, start, peft, out):
    """In memory where a name is not enough."""
    name = str(folder / start.removesuffix(" and load_in_4bit").replace("load_in_4bit", "model"))
    model = load_model(name, quantization_config=QUANTIZED) if "load_in_4bit" in start else name
    config = NPOConfig(str(out), max_steps=1, use_cpu=True, report_to="none", save_strategy="no")
    rows = text_rows(16)
    new = LoraConfig(r=2, target_modules=["q_proj"]) if peft else None
    made = NPOTrainer(
        model,
        config,
        rows.select(range(2)),
        rows.select(range(2, 8)),
        processing_class=tiny_tokenizer(),
        peft_config=new,
    )
    made.train()
    save_whole(made.model, tiny_tokenizer(), str(out / "model"))
    return str(out / "model")


@pytest.mark.parametrize("door", [recipe, trainer])
@pytest.mark.parametrize("peft", [False, True], ids=["whole", "new adapter"])
@pytest.mark.parametrize("start", STARTS)
def test_every_start_works_or_one_line_says_what_to_do(start, peft, door, folder, tmp_path):
    expected = STARTS[start][peft]
    out = tmp_path / "out"
    out.mkdir()
    if expected not in ("model", "adapter"):
        with pytest.raises(ValueError, match=expected) as caught:
            door(folder, start, peft, out)
        assert "\n" not in str(caught.value)
        return
    saved = door(folder, start, peft, out)
    if expected == "model":
        whole = AutoModelForCausalLM.from_pretrained(saved)
        assert not any("lora" in name for name in whole.state_dict())
        assert whole.state_dict().keys() == load_model(str(folder / "model")).state_dict().keys()
    else:
        assert (out / "model" / "adapter_model.safetensors").exists()


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(5, 15)[None]).logits


def test_a_new_adapter_starts_from_what_the_old_one_learned(folder, tmp_path):
    """By the name of an adapter, as a PeftModel, and as transformers loads it."""
    expected = logits(load_model(str(folder / "adapter")))
    assert not torch.allclose(expected, logits(load_model(str(folder / "model"))), atol=1e-3)
    rows = text_rows(8)
    for model in (
        str(folder / "adapter"),
        PeftModel.from_pretrained(load_model(str(folder / "model")), folder / "adapter"),
        AutoModelForCausalLM.from_pretrained(folder / "adapter"),
    ):
        config = NPOConfig(str(tmp_path), use_cpu=True)
        options = {"processing_class": tiny_tokenizer(), "peft_config": LoraConfig(r=2, target_modules=["q_proj"])}
        made = NPOTrainer(model, config, rows.select([0]), rows, **options)
        torch.testing.assert_close(logits(made.model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda base, adapter: PeftModel.from_pretrained(base, adapter), "The adapter of the model is frozen"),
        (lambda base, adapter: AutoModelForCausalLM.from_pretrained(adapter), "by transformers, not by peft"),
    ],
)
def test_an_adapter_that_would_not_be_trained_has_one_remedy_that_works(make, message, folder, tmp_path):
    rows = text_rows(8)

    def start(**options):
        model = make(load_model(str(folder / "model")), folder / "adapter")
        config = NPOConfig(str(tmp_path), use_cpu=True)
        return NPOTrainer(model, config, rows.select([0]), rows, processing_class=tiny_tokenizer(), **options)

    with pytest.raises(ValueError, match=f"{message}.*or give a peft_config"):
        start()
    assert start(peft_config=LoraConfig(r=2, target_modules=["q_proj"])).trainable_names


@pytest.mark.parametrize("method", ["head_mask", "lora_edit"])
def test_a_method_on_dense_weights_starts_from_the_merged_adapter(method, folder, tmp_path):
    expected = merged(load_model(str(folder / "adapter"))).state_dict()
    trainer, rows, config = METHODS[method], text_rows(8), METHODS[method].config_class(str(tmp_path), use_cpu=True)
    for model in (
        str(folder / "adapter"),
        PeftModel.from_pretrained(load_model(str(folder / "model")), folder / "adapter"),  # frozen
        AutoModelForCausalLM.from_pretrained(folder / "adapter"),
    ):
        made = trainer(model, config, rows.select([0]), rows, processing_class=tiny_tokenizer())
        found = (merged(made.model) if method == "lora_edit" else made.model).state_dict()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("head_mask", {}),
        ("lora_edit", {}),
        ("bad_teacher", {"bad_teacher": "random"}),
        ("distillation", {"on_forget": "random"}),
        ("task_vector", {"use_peft": "true", "lora_r": 2, "lora_target_modules": "q_proj"}),
    ],
)
def test_a_command_line_unlearns_an_adapter_with_every_method(method, options, folder, tmp_path):
    saved = recipe(folder, "adapter", False, tmp_path / "out", {"method": method} | options)
    assert load_model(saved).state_dict().keys() == load_model(str(folder / "model")).state_dict().keys()


@pytest.mark.parametrize("method", ["head_mask", "lora_edit", "bad_teacher"])
def test_what_needs_dense_weights_says_what_to_leave_out(method, folder, tmp_path):
    random = {"bad_teacher": "random"} if method == "bad_teacher" else {}
    peft = {"use_peft": "true", "lora_r": 2, "lora_target_modules": "q_proj"} if method == "bad_teacher" else {}
    with pytest.raises(ValueError, match="without quantization .no load_in_4bit"):
        recipe(folder, "load_in_4bit", False, tmp_path / "out", {"method": method} | random | peft)
    if not random:
        with pytest.raises(ValueError, match="Leave peft_config out .use_peft"):
            recipe(folder, "model", True, tmp_path / "out", {"method": method})


def test_an_adapter_that_is_off_is_said_to_be(folder, tmp_path):
    model = load_model(str(folder / "adapter"))
    model.base_model.disable_adapter_layers()
    rows = text_rows(8)
    with pytest.raises(ValueError, match="is switched off, so that it would not be trained"):
        NPOTrainer(model, NPOConfig(str(tmp_path), use_cpu=True), rows, rows, processing_class=tiny_tokenizer())


@pytest.mark.parametrize("start", ["adapter", "adapter beside its base", "adapter on an adapter", "quantized"])
def test_the_audit_takes_them_by_name(start, folder):
    rows = text_rows(8)
    split = {"forget": rows.select(range(4)), "holdout": rows.select(range(4, 8))}
    report = audit(str(folder / start), split=split, threat_model="membership")
    assert report.rows and report.models == ["unlearned"]
