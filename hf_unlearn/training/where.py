"""Which weights may move: those of a new adapter, or a selection of the model's own."""

from __future__ import annotations

import re

from torch import nn

from hf_unlearn.models.blocks import all_blocks, layers_of
from hf_unlearn.models.linear import linear_modules


_OTHERWISE = "trainable_layers cannot be counted. Set trainable, a regular expression for names of parameters, instead"


def freeze_except(model: nn.Module, pattern: str | None = None, layers: list[int] | None = None) -> list[str]:
    """Freeze every parameter but those selected; return the names of those that may move.

    Frozen parameters get no gradient and are not given to the optimizer, so neither momentum nor weight decay moves
    them. Parameters that were frozen before (a quantized base under an adapter) stay frozen.

    Args:
        pattern (`str`, *optional*): regular expression that the whole name of a parameter must match. A tied weight
            has one name, that of the embedding.
        layers (`list[int]`, *optional*): indices of layers, in order of depth and through all stages of a backbone with
            stages, see [`~hf_unlearn.models.blocks.layers_of`]; negative ones count from the last.

    Raises:
        ValueError: nothing is selected, a layer does not exist, or there are `layers` and no blocks are found.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        raise ValueError(
            "All parameters of the model are frozen. Load an adapter with is_trainable=True, give a peft_config, or "
            "unfreeze what may move."
        )
    chosen = names
    if layers is not None:
        of_name, n_layers = layers_of(model), len(all_blocks(model, _OTHERWISE))
        if not all(-n_layers <= layer < n_layers for layer in layers):
            raise ValueError(f"You set trainable_layers={layers}, but the model has {n_layers} layers.")
        wanted = {layer % n_layers for layer in layers}
        chosen = [name for name in chosen if of_name.get(name) in wanted]
    if pattern is not None:
        chosen = [name for name in chosen if re.fullmatch(pattern, name)]
    if not chosen:
        raise ValueError(
            f"You set trainable={pattern!r} and trainable_layers={layers}, but no parameter that could move is "
            f"selected. Names look like {', '.join(names[:2] + names[-1:])}."
        )
    _keep_movable(model, set(chosen))
    return chosen


def _keep_movable(model: nn.Module, names: set[str]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def movable_linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers whose weight may move, by name."""
    return linear_modules(model, [name for name, p in model.named_parameters() if p.requires_grad])


def freeze_except_linear(model: nn.Module, setting: str) -> None:
    """Freeze all but the weights of linear layers, for a setting that concerns these weights alone.

    Raises:
        ValueError: the model has an adapter, or no linear layer may move.
    """
    if hasattr(model, "peft_config"):
        raise ValueError(
            f"You set {setting} on a model with an adapter, but it concerns the weights of the layers themselves. Either "
            "leave out the adapter, or leave it unset."
        )
    names = {f"{name}.weight" for name in movable_linear_modules(model)}
    if not names:
        raise ValueError(f"You set {setting}, but no weight of a linear layer may move.")
    _keep_movable(model, names)


def attach_adapter(model: nn.Module, peft_config, checkpointing: bool) -> nn.Module:
    """Put a new adapter on the model, whose base is then frozen; without `peft_config` the model stays as it is.

    Args:
        model (`PreTrainedModel`): possibly quantized (QLoRA).
        checkpointing (`bool`): whether activations will be recomputed in the backward pass.

    Raises:
        ValueError: a quantized model without an adapter, or an adapter on an adapter.
    """
    quantized = getattr(model, "is_quantized", False)
    if quantized:
        # On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a 4-bit weight in the first pass in evaluation mode, for a
        # kernel without a backward pass: from then on every gradient through the layer is lost, with no error.
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
                module.state_dict()  # puts a weight that was repacked before back into the layout for training
    if peft_config is None:
        if quantized and not hasattr(model, "peft_config"):
            raise ValueError(
                "The model is quantized, so its weights cannot be trained. Either give a peft_config (QLoRA), or load it "
                "without quantization."
            )
        return model
    if hasattr(model, "peft_config"):
        raise ValueError(
            "You gave a peft_config, but the model has an adapter already. Either leave peft_config out and train that "
            "one, or merge it first: model = model.merge_and_unload()."
        )
    if getattr(peft_config, "is_prompt_learning", False):
        raise ValueError(
            f"{type(peft_config).__name__} learns a prompt, which anyone can leave out: the weights would not forget. "
            "Give an adapter of the weights, such as a LoraConfig."
        )
    from peft import get_peft_model, prepare_model_for_kbit_training

    if quantized:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    elif checkpointing:
        # Without it no input of a recomputed block needs a gradient, and the adapter would get none.
        model.enable_input_require_grads()
    return get_peft_model(model, peft_config)
