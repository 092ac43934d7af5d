"""Tiny models whose weights are not all in linear layers: mixtures of experts, a state space model, convolutions."""

import torch
import transformers as hf
from tiny import VOCAB_SIZE


_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}


def _built(model_class, config, seed):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return model_class(config).eval()


def in_double(model):
    """The model in float64, with a loop over its experts: the other kernels know 32 and 16 bit alone."""
    model.config._experts_implementation = "eager"
    return model.double()


def mixtral(seed=0, **sizes):
    return _built(hf.MixtralForCausalLM, hf.MixtralConfig(**_SIZES, **({"num_local_experts": 4} | sizes)), seed)


def qwen2_moe(seed=0):
    config = hf.Qwen2MoeConfig(**_SIZES, **_ROUTED, num_experts=4, shared_expert_intermediate_size=16)
    return _built(hf.Qwen2MoeForCausalLM, config, seed)


def qwen3_moe(seed=0):
    return _built(hf.Qwen3MoeForCausalLM, hf.Qwen3MoeConfig(**_SIZES, **_ROUTED, num_experts=4, head_dim=8), seed)


def deepseek(seed=0):
    sizes = _SIZES | {"num_key_value_heads": 4}
    routing = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
    config = hf.DeepseekV3Config(**sizes, **_ROUTED, **_LATENT, **routing)
    return _built(hf.DeepseekV3ForCausalLM, config, seed)


def gpt_oss(seed=0):
    """Its experts are stored as (experts, inputs, outputs), and have biases."""
    config = hf.GptOssConfig(
        **_SIZES, num_local_experts=4, head_dim=8, num_experts_per_tok=2, layer_types=["full_attention"] * 2
    )
    return _built(hf.GptOssForCausalLM, config, seed)


def llama4(seed=0):
    """Its experts are stored as (experts, inputs, outputs) too, and their module does not say so."""
    config = hf.Llama4TextConfig(**_SIZES, intermediate_size_mlp=48, num_local_experts=4, head_dim=8)
    return _built(hf.Llama4ForCausalLM, config, seed)


def mamba(seed=0):
    config = hf.MambaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.2
    )
    return _built(hf.MambaForCausalLM, config, seed)


def convnext(seed=0):
    config = hf.ConvNextConfig(
        hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, num_labels=5, image_size=16, patch_size=2
    )
    return _built(hf.ConvNextForImageClassification, config, seed)


def efficientnet(seed=0):
    """Its convolutions name their padding."""
    one = {"kernel_sizes": [3], "in_channels": [32], "out_channels": [32], "strides": [1], "expand_ratios": [2]}
    more = {"width_coefficient": 0.25, "hidden_dim": 320, "num_block_repeats": [1], "depthwise_padding": []}
    config = hf.EfficientNetConfig(**one, **more, image_size=16, num_labels=5, initializer_range=0.2)
    return _built(hf.EfficientNetForImageClassification, config, seed)


def falcon(seed=0):
    """Its linear layers are a class of their own, derived from torch's."""
    config = hf.FalconConfig(vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    return _built(hf.FalconForCausalLM, config, seed)


def levit(seed=0):
    """Its attention keeps biases in evaluation mode."""
    sizes = {"hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 1, 1], "depths": [1, 1, 1], "key_dim": [8, 8, 8]}
    config = hf.LevitConfig(**sizes, image_size=64, drop_path_rate=0, num_labels=5, initializer_range=0.2)
    return _built(hf.LevitForImageClassification, config, seed)


def resnet(seed=0):
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5, layer_type="basic")
    return _built(hf.ResNetForImageClassification, config, seed)


EXPERTS = {
    "mixtral": mixtral,
    "qwen2_moe": qwen2_moe,
    "qwen3_moe": qwen3_moe,
    "deepseek": deepseek,
    "gpt_oss": gpt_oss,
}
CONVOLUTIONS = {"convnext": convnext, "resnet": resnet, "efficientnet": efficientnet}
ALL = EXPERTS | CONVOLUTIONS | {"llama4": llama4, "mamba": mamba}
