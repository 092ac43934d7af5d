"""What is written is what was trained, whatever adapter it was trained with; and a difference keeps both from harm."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, ViTImageProcessorPil

from hf_unlearn.models.adapters import is_switched_off, merged
from hf_unlearn.models.load import load_model
from hf_unlearn.models.modes import plain_copy
from hf_unlearn.models.saved import NotAsTrainedError, save_whole


IDS = torch.arange(5, 25).reshape(2, 10)
TEXT = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
IMAGE = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16), "labels": torch.tensor([0, 1])}
ADAPTERS = {
    "attention": {"target_modules": ["q_proj"]},
    "head": {"target_modules": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "whole embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "dora": {"target_modules": ["q_proj"], "use_dora": True},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [7, 8]},
}


def logits(model, batch=TEXT):
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        return model.eval()(**inputs).logits


def trained(model):
    """Every weight that may move has moved."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "not tied"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_is_merged_without_a_difference(kind, tied, tmp_path):
    model = trained(get_peft_model(tiny_llama(tie_word_embeddings=tied), LoraConfig(r=2, **ADAPTERS[kind])))
    expected = logits(model)
    save_whole(model, tiny_tokenizer(), str(tmp_path / "model"), TEXT)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), expected)


def test_the_active_one_of_several_adapters_is_merged_and_one_that_is_off_is_not(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(tiny_llama(), config)
    model.add_adapter("second", config)
    for name in ("default", "second"):
        model.set_adapter(name)
        expected = logits(model)
        save_whole(copy.deepcopy(model), tiny_tokenizer(), str(tmp_path / name), TEXT)
        torch.testing.assert_close(logits(load_model(str(tmp_path / name))), expected)
    assert not is_switched_off(model)
    model.base_model.disable_adapter_layers()
    assert is_switched_off(model)
    torch.testing.assert_close(logits(merged(model)), logits(tiny_llama()))


def test_an_adapter_that_transformers_put_on_is_merged_too(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    adapter = trained(get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config))
    adapter.save_pretrained(tmp_path / "adapter")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert not isinstance(model, PeftModel)
    torch.testing.assert_close(logits(model), logits(adapter))
    torch.testing.assert_close(logits(plain_copy(model)), logits(adapter))
    save_whole(model, tiny_tokenizer(), str(tmp_path / "model"), TEXT)
    whole = load_model(str(tmp_path / "model"))
    assert not any("lora" in name for name in whole.state_dict())
    torch.testing.assert_close(logits(whole), logits(adapter))


def test_whole_models_of_every_kind_are_written_as_they_are(tmp_path):
    tiny_llama().save_pretrained(folder := str(tmp_path / "base"))
    for name, model, batch in (
        ("gpt2", tiny_gpt2(), TEXT),
        ("double", tiny_llama().double(), TEXT),
        ("16 bit", load_model(folder, dtype=torch.bfloat16), TEXT),
        ("eager", tiny_llama(attn_implementation="eager"), TEXT),
        ("training", trained(tiny_llama()).train(), TEXT),
    ):
        save_whole(model, tiny_tokenizer(), str(tmp_path / name), batch)
        torch.testing.assert_close(logits(load_model(str(tmp_path / name), dtype="auto")), logits(model))
    vit, processor = tiny_vit(), ViTImageProcessorPil(size={"height": 16, "width": 16})
    save_whole(
        get_peft_model(vit, LoraConfig(r=2, target_modules=["q_proj"])), processor, str(tmp_path / "vit"), IMAGE
    )
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "vit")
    torch.testing.assert_close(logits(loaded, IMAGE), logits(tiny_vit(), IMAGE))


def other_outputs(model):
    """A hook that no file can hold, as of gates that were not multiplied into the weights."""
    model.register_forward_hook(lambda module, inputs, out: setattr(out, "logits", out.logits * 3))
    return model


def test_a_difference_is_an_error_and_both_models_are_kept(tmp_path):
    place = tmp_path / "model"
    save_whole(tiny_llama(seed=1), tiny_tokenizer(), str(place), TEXT)
    model = other_outputs(tiny_llama())
    with pytest.raises(NotAsTrainedError, match=r"differs from the trained model by [\d.]+ nats a target") as caught:
        save_whole(model, tiny_tokenizer(), str(place), TEXT)
    kept = tmp_path / "model-as-trained"
    assert str(kept) in str(caught.value) and "\n" not in str(caught.value)
    weights = torch.load(kept / "weights.pt")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(logits(load_model(str(place))), logits(tiny_llama(seed=1)))  # the older one stays
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model-as-trained"]


def test_of_an_adapter_that_cannot_be_written_the_adapter_is_kept(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    expected = logits(model)
    other_outputs(model.get_base_model())
    with pytest.raises(NotAsTrainedError, match="differs"):
        save_whole(model, tiny_tokenizer(), str(tmp_path / "model"), TEXT)
    torch.testing.assert_close(logits(load_model(str(tmp_path / "model-as-trained"))), expected)


class Unreadable(type(tiny_llama())):
    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        raise KeyError("of another library")


def test_a_checkpoint_that_cannot_be_loaded_is_an_error(tmp_path):
    with pytest.raises(NotAsTrainedError, match=r"that was written cannot be loaded \(KeyError\)"):
        save_whole(Unreadable(tiny_llama().config), tiny_tokenizer(), str(tmp_path / "model"), TEXT)


def test_on_a_quantized_base_the_adapter_is_written(tmp_path):
    from transformers import BitsAndBytesConfig

    tiny_llama(hidden_size=64).save_pretrained(tmp_path / "base")
    base = load_model(str(tmp_path / "base"), quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    save_whole(model, tiny_tokenizer(), str(tmp_path / "model"), TEXT)
    assert (tmp_path / "model" / "adapter_model.safetensors").exists()
    loaded = load_model(str(tmp_path / "model"), quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    torch.testing.assert_close(logits(loaded), logits(model))
