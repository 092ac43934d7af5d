"""A model by its name: what is loaded, with which options, and what is said where it cannot be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tiny import tiny_llama, tiny_vit
from torch import nn

from hf_unlearn.models.kinds import kind_of
from hf_unlearn.models.load import load_config, load_model, load_processing_class, require_model


@pytest.fixture
def names(tmp_path):
    """Folders of a language model, an image classifier, and an adapter of each."""
    from peft import LoraConfig, get_peft_model

    for kind, model in (("text", tiny_llama()), ("image", tiny_vit())):
        model.save_pretrained(tmp_path / kind)
        base = type(model).from_pretrained(tmp_path / kind)
        adapter = get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
        adapter.save_pretrained(tmp_path / f"{kind} adapter")
    return {path.name: str(path) for path in tmp_path.iterdir()}


@pytest.fixture
def calls(monkeypatch):
    """What the auto classes are asked for: pairs of the class and the options."""
    found = []
    for auto in ("AutoModelForCausalLM", "AutoModelForImageClassification", "AutoTokenizer", "AutoImageProcessor"):

        def from_pretrained(name, auto=auto, **options):
            found.append((auto, name, options))
            if "output_loading_info" in options:
                return nn.Identity(), {"missing_keys": (), "mismatched_keys": (), "unexpected_keys": ()}
            return auto

        monkeypatch.setattr(getattr(transformers, auto), "from_pretrained", from_pretrained)
    return found


@pytest.mark.parametrize(
    ("kind", "auto", "of_processing"),
    [
        ("text", "AutoModelForCausalLM", "AutoTokenizer"),
        ("image", "AutoModelForImageClassification", "AutoImageProcessor"),
    ],
)
def test_nothing_is_asked_for_that_the_user_did_not_ask_for(names, calls, kind, auto, of_processing):
    name = names[kind]
    load_model(name)
    assert load_processing_class(name) == load_processing_class(names[f"{kind} adapter"]) == of_processing
    of_model = {"revision": None, "dtype": "float32", "attn_implementation": None, "trust_remote_code": False}
    of_model |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # for our own errors about them
    of_either = {"revision": None, "trust_remote_code": False}
    assert calls == [(auto, name, of_model)] + [(of_processing, name, of_either)] * 2


def test_the_options_reach_the_model_and_its_config(names, calls, monkeypatch):
    configs, from_pretrained = [], transformers.AutoConfig.from_pretrained
    monkeypatch.setattr(
        transformers.AutoConfig,
        "from_pretrained",
        lambda name, **options: configs.append((name, options)) or from_pretrained(name),
    )
    quantization, options = object(), {"revision": "v2", "trust_remote_code": True}
    load_model(names["text"], dtype="auto", attn_implementation="eager", quantization_config=quantization, **options)
    load_processing_class(names["text"], **options)
    load_config(names["text adapter"], **options)
    rest = {"dtype": "auto", "attn_implementation": "eager", "quantization_config": quantization}
    rest |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    assert [of for _, _, of in calls] == [{**options, **rest}, options]
    # A revision is one of the repository that was named, which the base of an adapter is not.
    of_base = {"revision": None, "trust_remote_code": True}
    assert configs == [(names["text"], options), (names["text"], options), (names["text"], of_base)]


def test_weights_in_16_bit_are_loaded_in_32(tmp_path):
    tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).dtype == torch.float32
    assert load_model(str(tmp_path), dtype="auto").dtype == torch.bfloat16


def test_an_adapter_is_loaded_onto_its_base(names):
    for kind in ("text", "image"):
        model, base = load_model(names[f"{kind} adapter"]), load_model(names[kind])
        assert kind_of(load_config(names[f"{kind} adapter"])) == kind
        adapted = {name for name, _ in model.named_parameters() if "lora" in name}
        assert adapted and not any("lora" in name for name, _ in base.named_parameters())


def test_a_model_that_is_not_there_is_missed_early(names, tmp_path):
    for name in names.values():
        require_model(name)
    with pytest.raises(ValueError, match=f"There is no model '{tmp_path}/nothing'. Give a folder with a checkpoint"):
        require_model(f"{tmp_path}/nothing")
    tiny_llama().save_pretrained(tmp_path / "run" / "model")
    with pytest.raises(ValueError, match=f"Did you mean {tmp_path}/run/model?"):
        require_model(str(tmp_path / "run"))
    settings = tmp_path / "text adapter" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "gone"}))
    with pytest.raises(ValueError, match="its adapter_config.json names a base that was not found: .gone"):
        require_model(names["text adapter"])


def test_code_of_a_checkpoint_does_not_run_unasked(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig"}, "architectures": ["Mine"]})
    )
    (tmp_path / "mine.py").write_text("raise RuntimeError('it ran')\n")
    with pytest.raises(ValueError, match="comes with Python code of its own.*Either read that code"):
        require_model(str(tmp_path))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    "command",
    [
        ["-c", "import hf_unlearn, peft"],
        ["recipes/finetune.py", "--help"],
        ["recipes/unlearn.py", "--help"],
        ["recipes/faces/reconstruct.py", "--help"],
    ],
    ids=lambda command: command[0],
)
def test_no_other_library_warns_where_nobody_quantizes(command):
    """On some CPUs bitsandbytes, which peft imports, misses a kernel for 4 bit."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True, check=True)
    assert done.stderr == ""
