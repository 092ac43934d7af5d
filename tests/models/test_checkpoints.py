"""What is loaded is what was saved: no weight is random, none is left out, and a damaged folder is said to be one."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from transformers import LlamaForCausalLM, LlamaModel

from hf_unlearn.audit.run import audit
from hf_unlearn.evaluate_modules.base import loaded
from hf_unlearn.methods import NPOConfig, NPOTrainer
from hf_unlearn.models.load import load_config, load_model, load_processing_class, require_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_llama().save_pretrained(folder / "llama")
    tiny_llama().save_pretrained(folder / "shards", max_shard_size="20KB")
    tiny_vit().save_pretrained(folder / "vit")
    base = LlamaForCausalLM.from_pretrained(folder / "llama")
    adapter = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(base, adapter).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    def copy(name: str):
        return shutil.copytree(saved / name, tmp_path / name)

    return copy


def with_config(folder, **changed):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return folder


def with_weights(folder, change, file="model.safetensors"):
    weights = load_file(folder / file)
    change(weights)
    save_file(weights, folder / file, metadata={"format": "pt"})
    return folder


CHANGED = [
    ("llama", lambda f: with_weights(f, lambda w: w.pop("lm_head.weight")), r"1 weights .* such as lm_head.weight, and would be random"),
    ("llama", lambda f: with_config(f, num_hidden_layers=3), r"9 weights .* such as model.layers.2.*would be random"),
    ("llama", lambda f: with_config(f, num_hidden_layers=1), r"9 weights .* such as model.layers.1.*have no place"),
    ("llama", lambda f: with_config(f, vocab_size=330), r"2 weights .* another shape"),
    ("vit", lambda f: with_config(f, id2label={str(i): str(i) for i in range(7)}, label2id={str(i): i for i in range(7)}), r"2 weights .* another shape .*classifier"),
    ("llama", lambda f: with_config(f, tie_word_embeddings="x"), "cannot be loaded"),
    ("adapter", lambda f: with_weights(f, lambda w: w.pop(sorted(w)[0]), "adapter_model.safetensors"), "1 weights of the adapter .* are missing from its file"),
    ("adapter", lambda f: with_weights(f, lambda w: w.update({"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(2, 32)}), "adapter_model.safetensors"), "1 weights of the adapter .* belong to no part of its base"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), CHANGED)
def test_weights_that_do_not_fit_are_an_error_with_their_number_and_a_name(name, change, message, copied):
    folder = str(change(copied(name)))
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_head_that_is_tied_is_not_missing(tmp_path):
    for name, model in (("llama", tiny_llama(tie_word_embeddings=True)), ("gpt2", tiny_gpt2())):
        model.save_pretrained(tmp_path / name)
        found = load_model(str(tmp_path / name)).state_dict()
        assert all(torch.equal(value, found[key]) for key, value in model.state_dict().items())


def test_a_head_less_checkpoint_without_architectures_has_no_head(tmp_path):
    LlamaModel(tiny_llama().config).save_pretrained(tmp_path)
    with_config(tmp_path, architectures=None)
    with pytest.raises(ValueError, match="such as lm_head.weight, and would be random"):
        load_model(str(tmp_path))


def cut(file, size=100):
    file.write_bytes(file.read_bytes()[:-size])


def only_states(folder):
    (folder / "model.safetensors").rename(folder / "optimizer.pt")


DAMAGED = [
    ("llama", lambda f: cut(f / "model.safetensors"), "model.safetensors is cut short or damaged"),
    ("llama", lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "model.safetensors is cut short or damaged"),
    ("llama", only_states, "holds no weights of the model, only optimizer.pt"),
    ("shards", lambda f: sorted(f.glob("model-*"))[0].unlink(), r"1 of the \d+ files with the weights .* are missing"),
    ("shards", lambda f: cut(sorted(f.glob("model-*"))[0]), "is cut short or damaged"),
    ("shards", lambda f: (f / "model.safetensors.index.json").write_text("{}"), "lists no files of weights"),
    ("adapter", lambda f: (f / "adapter_model.safetensors").unlink(), "holds no weights of the adapter"),
    ("adapter", lambda f: cut(f / "adapter_model.safetensors"), "is cut short or damaged"),
    ("adapter", lambda f: (f / "adapter_config.json").write_text("{}"), "names no base"),
    ("llama", lambda f: cut(f / "config.json"), "The config of .* cannot be loaded"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGED)
def test_a_damaged_folder_is_found_before_a_model_is_loaded(name, damage, message, copied):
    folder = copied(name)
    damage(folder)
    for refuses in (require_model, load_model):
        with pytest.raises(ValueError, match=message) as caught:
            refuses(str(folder))
        assert "\n" not in str(caught.value)


def test_every_door_refuses_random_weights(copied, tmp_path):
    folder = str(with_config(copied("llama"), num_hidden_layers=3))
    rows = [{"input_ids": [1, 5, 6, 7], "labels": [-100, 5, 6, 7]}]
    for use in (
        lambda: NPOTrainer(folder, NPOConfig(str(tmp_path / "out"), use_cpu=True), rows, rows),
        lambda: loaded(folder, processing_class="given"),
        lambda: audit(folder, split={"forget": rows}, processing_class="given"),
    ):
        with pytest.raises(ValueError, match="would be random"):
            use()


def test_an_adapter_on_an_adapter_has_both(saved, tmp_path):
    model = load_model(str(saved / "adapter")).merge_and_unload()
    second = LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)
    both = get_peft_model(model, second)
    both.peft_config["default"].base_model_name_or_path = str(saved / "adapter")
    both.save_pretrained(tmp_path / "second")
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        expected, found = both.eval()(ids).logits, load_model(str(tmp_path / "second")).eval()(ids).logits
    torch.testing.assert_close(found, expected)
    settings = tmp_path / "second" / "adapter_config.json"
    settings.write_text(
        json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": str(tmp_path / "second")})
    )
    with pytest.raises(ValueError, match="leads back to it"):
        load_config(str(tmp_path / "second"))


def test_the_base_of_an_adapter_may_be_beside_it(saved, tmp_path):
    shutil.copytree(saved / "llama", tmp_path / "base")
    shutil.copytree(saved / "adapter", tmp_path / "adapter")
    settings = tmp_path / "adapter" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "../base"}))
    expected = load_model(str(saved / "adapter")).state_dict()
    found = load_model(str(tmp_path / "adapter")).state_dict()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_a_model_and_an_adapter_in_one_folder_are_not_told_apart(copied):
    folder = copied("adapter")
    for file in copied("llama").iterdir():
        shutil.copy(file, folder)
    with pytest.raises(ValueError, match="a whole model and an adapter beside it"):
        require_model(str(folder))


def test_nothing_is_said_of_a_checkpoint_that_is_whole(saved, caplog, capfd):
    for name in ("llama", "shards", "vit", "adapter"):
        load_model(str(saved / name))
    assert not caplog.records and "LOAD REPORT" not in capfd.readouterr().err


def test_a_folder_without_a_tokenizer_has_none(saved):
    for name in ("llama", "adapter"):
        with pytest.raises(ValueError, match="The tokenizer of .* cannot be loaded"):
            load_processing_class(str(saved / name))


def test_a_tokenizer_that_cannot_encode_is_damaged(copied):
    """Its compiled code panics at the first text, which is not even an `Exception`."""
    folder = copied("llama")
    tiny_tokenizer().save_pretrained(folder)
    words = json.loads((folder / "tokenizer.json").read_text())
    special = words["post_processor"]["special_tokens"]
    words["post_processor"]["special_tokens"] = {"<x>": special["<s>"] | {"id": "<x>"}}
    (folder / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ValueError, match="The tokenizer of .* cannot be loaded"):
        load_processing_class(str(folder))
