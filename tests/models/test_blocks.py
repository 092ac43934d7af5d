"""Blocks of backbones with stages: the order in which a pass runs them is the order of their layers."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_gpt2, tiny_llama
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BitConfig,
    BitForImageClassification,
    CLIPConfig,
    CLIPForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    FocalNetConfig,
    FocalNetForImageClassification,
    LevitConfig,
    LevitForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileViTConfig,
    MobileViTForImageClassification,
    PoolFormerConfig,
    PoolFormerForImageClassification,
    PvtConfig,
    PvtForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerForImageClassification,
    SwiftFormerConfig,
    SwiftFormerForImageClassification,
    Swinv2Config,
    Swinv2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_unlearn.models.blocks import all_blocks, as_tokens, find_blocks, layers_of, states_of
from hf_unlearn.models.likelihood import reading_positions
from hf_unlearn.training.gates import find_gate_points
from hf_unlearn.training.where import freeze_except


STAGES = {"hidden_sizes": [8, 16], "depths": [2, 3]}
STAGES |= {"num_labels": 4}
PATCHED = STAGES | {"num_encoder_blocks": 2, "strides": [4, 2], "mlp_ratios": [2, 2]}
WINDOWS = {"embed_dim": 8, "depths": [2, 3], "num_heads": [1, 2], "window_size": 2, "patch_size": 2, "image_size": 16}
NECK = {"hidden_sizes": [8, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16]}
# The classes, their configs, the side of an image, and the number of blocks.
STAGED = {
    "resnet": (
        ResNetForImageClassification,
        ResNetConfig(embedding_size=8, layer_type="basic", **STAGES),
        16,
        5,
    ),
    "bit": (BitForImageClassification, BitConfig(embedding_size=8, num_groups=2, **STAGES), 32, 5),
    "convnext": (ConvNextForImageClassification, ConvNextConfig(num_stages=2, image_size=16, **STAGES), 16, 5),
    "swinv2": (Swinv2ForImageClassification, Swinv2Config(num_labels=4, **WINDOWS), 16, 5),
    "focalnet": (
        FocalNetForImageClassification,
        FocalNetConfig(image_size=16, patch_size=2, embed_dim=8, focal_levels=[1, 1], focal_windows=[3, 3], **STAGES),
        16,
        5,
    ),
    "pvt": (
        PvtForImageClassification,
        PvtConfig(
            image_size=32,
            sequence_reduction_ratios=[2, 1],
            patch_sizes=[4, 2],
            num_attention_heads=[1, 2],
            **PATCHED,
        ),
        32,
        5,
    ),
    "segformer": (
        SegformerForImageClassification,
        SegformerConfig(sr_ratios=[2, 1], patch_sizes=[7, 3], num_attention_heads=[1, 2], **PATCHED),
        32,
        5,
    ),
    "poolformer": (
        PoolFormerForImageClassification,
        PoolFormerConfig(
            patch_sizes=[7, 3], padding=[2, 1], **{k: v for k, v in PATCHED.items() if k != "mlp_ratios"}
        ),
        32,
        5,
    ),
    "levit": (
        LevitForImageClassification,
        LevitConfig(
            image_size=64,
            hidden_sizes=[8, 16, 16],
            depths=[1, 1, 1],
            num_attention_heads=[2, 2, 2],
            key_dim=[4, 4, 4],
            num_labels=4,
        ),
        64,
        10,  # attention and MLP are blocks of their own, and so are those between two stages
    ),
    "swiftformer": (
        SwiftFormerForImageClassification,
        SwiftFormerConfig(depths=[1, 1, 1, 1], embed_dims=[4, 4, 8, 8], num_labels=4),
        64,
        4,
    ),
    "mobilevit": (MobileViTForImageClassification, MobileViTConfig(image_size=64, num_labels=4, **NECK), 64, 13),
    "mobilenet_v2": (
        MobileNetV2ForImageClassification,
        MobileNetV2Config(depth_multiplier=0.1, num_labels=4),
        32,
        16,
    ),
}
VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
VIT |= {"image_size": 16, "patch_size": 8}
CLIP_TEXT = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
PLAIN = {
    "vit": (ViTForImageClassification, ViTConfig(num_labels=4, **VIT)),
    "deit": (DeiTForImageClassification, DeiTConfig(num_labels=4, **VIT)),
    "deit with teacher": (DeiTForImageClassificationWithTeacher, DeiTConfig(num_labels=4, **VIT)),
    "beit": (BeitForImageClassification, BeitConfig(num_labels=4, **VIT)),
    "dinov2": (
        Dinov2ForImageClassification,
        Dinov2Config(num_labels=4, **{k: v for k, v in VIT.items() if k != "intermediate_size"}),
    ),
    "clip": (
        CLIPForImageClassification,
        CLIPConfig(num_labels=4, vision_config=VIT, text_config=CLIP_TEXT),
    ),
}


def built(model_class, config):
    torch.manual_seed(0)
    return model_class(config).eval()


@pytest.mark.parametrize("name", STAGED)
def test_layers_count_through_the_stages_in_the_order_of_a_pass(name):
    model_class, config, side, n = STAGED[name]
    model = built(model_class, config)
    blocks, order = all_blocks(model), []
    assert len(blocks) == n
    hooks = [block.register_forward_hook(lambda *_, i=i: order.append(i)) for i, block in enumerate(blocks)]
    inputs = {"pixel_values": torch.randn(2, 3, side, side), "labels": torch.tensor([0, 1])}
    states = states_of(model, blocks, inputs)
    assert order == list(range(n))
    for hook in hooks:
        hook.remove()
    assert all(as_tokens(state, 2).shape[0] == 2 for state in states)
    # The first and the last layer are these blocks, and nothing else.
    for layer in (0, -1):
        own = {id(parameter) for parameter in blocks[layer].parameters()}
        model.requires_grad_(True)
        chosen = freeze_except(model, layers=[layer])
        assert {id(model.get_parameter(key)) for key in chosen} == own
    model.requires_grad_(True)
    with pytest.raises(ValueError, match=f"the model has {n} layers"):
        freeze_except(model, layers=[n])


@pytest.mark.parametrize("name", STAGED)
def test_what_needs_blocks_of_one_width_refuses_stages(name):
    model_class, config, _, n = STAGED[name]
    with torch.device("meta"):
        model = model_class(config)
    with pytest.raises(ValueError, match=f"The {n} blocks of {model_class.__name__} differ in width, so .* Leave"):
        find_blocks(model)


@pytest.mark.parametrize("name", PLAIN)
def test_blocks_and_heads_of_vision_transformers(name):
    model = built(*PLAIN[name])
    parent, key = find_blocks(model)
    assert len(getattr(parent, key)) == 3 and len(find_gate_points(model)) == 3
    assert {point.n for point in find_gate_points(model)} == {2}
    assert set(layers_of(model).values()) == {0, 1, 2}


@pytest.mark.parametrize("name", PLAIN)
def test_positions_that_the_head_reads_are_those_that_move_its_answer(name):
    model = built(*PLAIN[name])
    blocks, images = all_blocks(model), torch.randn(2, 3, 16, 16)
    states = []

    def keep(module, args, output):
        states.append(output.detach().requires_grad_())
        return states[-1]

    with blocks[-1].register_forward_hook(keep):
        logits = model(pixel_values=images).logits
    logits.square().sum().backward()
    moves = states[0].grad.abs().sum(-1) > 0
    read = reading_positions(model, {"labels": torch.tensor([0, 1])}, states[0].shape[1])
    # No position that is read is left out. All count where more than the class token is read, if only by mean.
    assert bool((read | ~moves).all()) and (bool(read.all()) or bool(torch.equal(read, moves)))


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_layers_of_language_models_with_and_without_an_adapter(build):
    plain = layers_of(build())
    assert set(plain.values()) == {0, 1} and all(f".{layer}." in name for name, layer in plain.items())
    model = get_peft_model(build(), LoraConfig(target_modules="all-linear", fan_in_fan_out=build is tiny_gpt2))
    adapted = {name for name, p in model.named_parameters() if p.requires_grad}
    assert adapted and {layers_of(model)[name] for name in adapted} == {0, 1}


def test_layers_that_cannot_be_counted():
    model = tiny_llama()
    model.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match="No list of 7 blocks was found in LlamaForCausalLM, so trainable_layers"):
        freeze_except(model, layers=[0])


STAGED_HIDDEN = ["resnet", "convnext", "swinv2"]


@pytest.mark.parametrize("name", STAGED_HIDDEN)
def test_states_of_stages_are_the_hidden_states_that_the_model_returns(name):
    model_class, config, side, n = STAGED[name]
    model = built(model_class, config)
    inputs = {"pixel_values": torch.randn(2, 3, side, side), "labels": torch.tensor([0, 1])}
    with torch.no_grad():
        states = states_of(model, all_blocks(model), inputs)
        hidden = model(pixel_values=inputs["pixel_values"], output_hidden_states=True).hidden_states
    shown = [as_tokens(state, 2) for state in hidden]
    # The model returns the state at the ends of stages; the second stage has three of the five blocks.
    assert torch.equal(as_tokens(states[0], 2), shown[0]) and torch.equal(as_tokens(states[n], 2), shown[-1])
    assert states[0].shape[0] == 2 and len({as_tokens(state, 2).shape[2] for state in states}) == 2
