"""Dropout of every kind is off for a while, and as before afterwards, in the modules and in the config."""

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tiny import tiny_gpt2, tiny_llama, tiny_vit

from hf_unlearn.models.dropout import Dropout


TEXT = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE = {"image_size": 16, "patch_size": 8} | {name: size for name, size in TEXT.items() if name != "vocab_size"}
KINDS = {
    "modules": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "attributes": ("LlamaForCausalLM", "LlamaConfig", TEXT | {"attention_dropout": 0.3}),
    "config": ("FalconForCausalLM", "FalconConfig", TEXT | {"hidden_dropout": 0.3, "attention_dropout": 0.3}),
    "layers": ("OPTForCausalLM", "OPTConfig", TEXT | {"ffn_dim": 16, "word_embed_proj_dim": 16, "layerdrop": 0.5}),
    "router": ("MixtralForCausalLM", "MixtralConfig", TEXT | {"num_key_value_heads": 2, "num_local_experts": 4, "router_jitter_noise": 0.5}),
    "depth": ("BeitForImageClassification", "BeitConfig", IMAGE | {"drop_path_rate": 0.5, "initializer_range": 0.5}),
    "vision": ("ViTForImageClassification", "ViTConfig", IMAGE | {"hidden_dropout_prob": 0.3}),
}  # fmt: skip


def passes(model, n: int) -> list[torch.Tensor]:
    image = model.main_input_name == "pixel_values"
    inputs = {"pixel_values": torch.ones(4, 3, 16, 16)} if image else {"input_ids": torch.arange(1, 33).reshape(4, 8)}
    with torch.no_grad():
        return [model(**inputs).logits for _ in range(n)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_dropout_is_off_and_put_back(kind):
    name, config, size = KINDS[kind]
    model = getattr(transformers, name)(getattr(transformers, config)(**size)).train()
    settings = model.config.to_dict()
    dropout = Dropout(model)
    assert dropout
    different = passes(model, 8)
    assert any(not torch.equal(different[0], other) for other in different[1:])
    dropout.off()
    found = passes(model, 4)
    torch.testing.assert_close(found, passes(model.eval(), 1) * 4)
    dropout.on()
    model.train()
    different = passes(model, 8)
    assert any(not torch.equal(different[0], other) for other in different[1:])
    assert model.config.to_dict() == settings


def test_that_of_an_adapter_is_off_too():
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5)).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    assert not torch.equal(*passes(model, 2))
    Dropout(model).off()
    assert torch.equal(*passes(model, 2))


def test_a_model_without_any_has_none():
    assert not Dropout(tiny_llama()) and not Dropout(tiny_vit())
    assert Dropout(tiny_gpt2())
