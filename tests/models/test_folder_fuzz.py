"""Folders that were changed: the model is the same, or one line says what is wrong, or the change is one of those that make
another model on purpose. Three folders are shared, and each example changes a copy."""

import copy
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer

from hf_unlearn.models.load import load_model, load_processing_class, require_model


IDS = torch.arange(5, 13)[None]
TEXT = "Ada lives in Paris, Rome or a small village."
MODELS = {
    "llama": lambda: tiny_llama(num_hidden_layers=3, attention_bias=True),
    "tied": lambda: tiny_llama(tie_word_embeddings=True),
    "gpt2": tiny_gpt2,
}
# Keys of a config that say how the same weights are used, in ways that no file can contradict.
LEGAL = {
    "num_attention_heads", "n_head", "num_key_value_heads", "head_dim", "hidden_act", "activation_function", "rms_norm_eps",
    "layer_norm_epsilon", "rope_parameters", "max_position_embeddings", "scale_attn_weights", "reorder_and_upcast_attn",
    "scale_attn_by_inverse_layer_idx", "add_cross_attention",
}  # fmt: skip
VALUES = st.one_of(
    st.integers(-2, 400), st.booleans(), st.none(), st.floats(0, 1), st.sampled_from(["", "x", "llama", "gpt2", "gemma", "bert"]),
    st.lists(st.sampled_from(["LlamaForCausalLM", "GPT2Model", "BertForMaskedLM", "Mine"]), max_size=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """By name: the folder, and what the model and the tokenizer in it answer."""
    found = {}
    for name, make in MODELS.items():
        folder, model = tmp_path_factory.mktemp(name), make()
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        with torch.no_grad():
            found[name] = folder, model(IDS).logits, tiny_tokenizer()(TEXT)["input_ids"]
    return found


def examine(saved, name: str, change) -> str:
    """Change a copy of a folder. Returns "same", "other" or the error."""
    folder, logits, ids = saved[name]
    with tempfile.TemporaryDirectory() as copied:
        place = Path(copied) / "model"
        shutil.copytree(folder, place)
        change(place)
        try:
            require_model(str(place))
            model = load_model(str(place))
            tokenizer = load_processing_class(str(place))
            with torch.no_grad():
                found = model(IDS).logits
        except (ValueError, OSError) as error:
            message = str(error)
            assert "\n" not in message and message.rstrip().endswith((".", "?")), message
            assert type(error).__module__.split(".")[0] in ("builtins", "hf_unlearn")
            return message
        same = found.shape == logits.shape and torch.allclose(found, logits, atol=1e-4)
        return "same" if same and tokenizer(TEXT)["input_ids"] == ids else "other"


FUZZ = settings(max_examples=126, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@FUZZ
@given(data=st.data())
def test_a_config_with_another_value(saved, data):
    name = data.draw(st.sampled_from(sorted(MODELS)))
    config = json.loads((saved[name][0] / "config.json").read_text())
    key = data.draw(st.sampled_from(sorted(config)))
    remove, value = data.draw(st.booleans()), data.draw(VALUES)

    def change(place):
        changed = copy.deepcopy(config)
        changed.pop(key) if remove else changed.update({key: value})
        (place / "config.json").write_text(json.dumps(changed))

    assert examine(saved, name, change) != "other" or key in LEGAL, (name, key, "removed" if remove else value)


@FUZZ
@given(data=st.data())
def test_weights_that_are_dropped_renamed_reshaped_or_added(saved, data):
    name = data.draw(st.sampled_from(sorted(MODELS)))
    with safe_open(saved[name][0] / "model.safetensors", framework="pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}
    key = data.draw(st.sampled_from(sorted(weights)))
    how = data.draw(st.sampled_from(["drop", "rename", "reshape", "transpose", "cut", "add"]))

    def change(place):
        value = weights[key]
        changed = {other: tensor for other, tensor in weights.items() if other != key or how == "add"}
        if how == "rename":
            changed[f"{key}_"] = value
        elif how == "reshape":
            changed[key] = value[None].clone()
        elif how == "transpose":
            changed[key] = value.T.contiguous() if value.dim() == 2 else value[:-1]
        elif how == "cut":
            changed[key] = value[: len(value) // 2].clone()
        elif how == "add":
            changed[f"{key}.more"] = value.clone()
        (place / "model.safetensors").write_bytes(save(changed, metadata={"format": "pt"}))

    result = examine(saved, name, change)
    square = how == "transpose" and weights[key].dim() == 2 and weights[key].shape[0] == weights[key].shape[1]
    assert result != "other" or square, (name, key, how)
    if result == "same":
        assert how == "add" or key == "lm_head.weight", (name, key, how)  # nothing that was saved is missing


@FUZZ
@given(data=st.data())
def test_files_that_are_cut_short_emptied_or_gone(saved, data):
    name = data.draw(st.sampled_from(sorted(MODELS)))
    file = data.draw(st.sampled_from(sorted(path.name for path in saved[name][0].iterdir())))
    share = data.draw(st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.999, None]))

    def change(place):
        content = (place / file).read_bytes().rstrip()
        (place / file).unlink() if share is None else (place / file).write_bytes(content[: int(share * len(content))])

    result = examine(saved, name, change)
    assert result != "other", (name, file, share)
    if file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert result != "same", (name, file, share)


@FUZZ
@given(data=st.data())
def test_bytes_that_are_flipped_in_text_files(saved, data):
    """In numbers and names of a config, or in the words of a tokenizer, a flip can be another valid value."""
    name = data.draw(st.sampled_from(sorted(MODELS)))
    file = data.draw(
        st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
    )
    content = bytearray((saved[name][0] / file).read_bytes())
    place_of, value = data.draw(st.integers(0, len(content) - 1)), data.draw(st.sampled_from(b'{}[]",:x\xff\x00'))

    def change(place):
        content[place_of] = value
        (place / file).write_bytes(bytes(content))

    examine(saved, name, change)
