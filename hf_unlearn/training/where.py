"""Which weights may move: those of a new adapter, or a selection of the model's own."""

from __future__ import annotations

import re

from torch import nn

from hf_unlearn.models.blocks import layer_of
from hf_unlearn.models.linear import linear_modules


def freeze_except(model: nn.Module, pattern: str | None = None, layers: list[int] | None = None) -> list[str]:
    """Freeze every parameter but those selected; return the names of those that may move.

    Frozen parameters get no gradient and are not given to the optimizer, so neither momentum nor weight decay moves
    them. Parameters that were frozen before (a quantised base under an adapter) stay so.

    Args:
        model (`nn.Module`): changed in place.
        pattern (`str`, *optional*): regular expression that the whole name of a parameter must match. A tied weight
            has one name, that of the embedding.
        layers (`list[int]`, *optional*): indices of transformer layers; negative ones count from the last.

    Raises:
        ValueError: nothing is selected, or a layer does not exist.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        raise ValueError(
            "No parameter of the model may move: all are frozen. Load an adapter with is_trainable=True, give a "
            "peft_config, or unfreeze what may move."
        )
    chosen = names
    if layers is not None:
        n_layers = 1 + max((layer_of(name) for name in names if layer_of(name) is not None), default=-1)
        outside = [layer for layer in layers if not -n_layers <= layer < n_layers]
        if outside:
            raise ValueError(f"You set trainable_layers={layers}, but the model has {n_layers} layers.")
        wanted = {layer % n_layers for layer in layers}
        chosen = [name for name in chosen if layer_of(name) in wanted]
    if pattern is not None:
        chosen = [name for name in chosen if re.fullmatch(pattern, name)]
    if not chosen:
        raise ValueError(
            f"You set trainable={pattern!r} and trainable_layers={layers}, but no parameter that could move is "
            f"selected. Names look like {', '.join(names[:2] + names[-1:])}."
        )
    selected = set(chosen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in selected)
    return chosen


def freeze_except_linear(model: nn.Module, setting: str) -> None:
    """Freeze what is not the weight of a linear layer, for a setting that says something of these weights alone.

    Raises:
        ValueError: the model has an adapter, or no linear layer may move.
    """
    if hasattr(model, "peft_config"):
        raise ValueError(
            f"You set {setting} on a model with an adapter, but it is about the weights of the layers themselves. Either "
            "leave out the adapter, or leave it unset."
        )
    movable = [name for name, p in model.named_parameters() if p.requires_grad]
    keep = {f"{name}.weight" for name in linear_modules(model, movable)}
    if not keep:
        raise ValueError(f"You set {setting}, but no weight of a linear layer may move.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in keep)


def attach_adapter(model: nn.Module, peft_config=None, checkpointing: bool = False) -> nn.Module:
    """Put a new adapter on the model, whose base is then frozen; without `peft_config` the model stays as it is.

    Args:
        model (`PreTrainedModel`): possibly quantized (QLoRA).
        peft_config (`PeftConfig`, *optional*): the adapter.
        checkpointing (`bool`, *optional*, defaults to `False`): activations will be recomputed in the backward pass.

    Raises:
        ValueError: a quantized model without an adapter, or an adapter on an adapter.
    """
    quantized = getattr(model, "is_quantized", False)
    if quantized:
        _keep_differentiable(model)
    if peft_config is None:
        if quantized and not hasattr(model, "peft_config"):
            raise ValueError(
                "The model is quantized and its weights cannot be trained. Either give a peft_config (QLoRA), or load "
                "it without quantization."
            )
        return model
    if hasattr(model, "peft_config"):
        raise ValueError(
            "The model has an adapter already and you gave a peft_config. Either train the one it has (no "
            "peft_config), or merge it first: model = model.merge_and_unload()."
        )
    if getattr(peft_config, "is_prompt_learning", False):
        raise ValueError(
            f"{type(peft_config).__name__} learns a prompt, which anyone can leave out: the weights would not forget. "
            "Give a LoraConfig or another adapter of the weights."
        )
    from peft import get_peft_model, prepare_model_for_kbit_training

    if quantized:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    elif checkpointing:
        # Without it no input of a recomputed block needs a gradient, and the adapter would get none.
        model.enable_input_require_grads()
    return get_peft_model(model, peft_config)


def _keep_differentiable(model: nn.Module) -> None:
    # On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a 4-bit weight in the first pass in evaluation mode, for a kernel
    # without a backward: a gradient that should go through the layer is lost from then on, with no error.
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            module.state_dict()  # puts a weight that was repacked before back into the layout for training
