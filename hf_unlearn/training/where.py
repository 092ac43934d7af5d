"""Which weights may move: those of a new adapter, or a selection of the model's own."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn
from transformers.utils import logging

from hf_unlearn.models.adapters import has_adapter, is_switched_off, merged, require_weights_of_the_model
from hf_unlearn.models.blocks import all_blocks, layers_of
from hf_unlearn.models.weights import ENOUGH, WeightMatrix, share_of_weights, weight_matrices


logger = logging.get_logger(__name__)

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
        ValueError: see [`selected`].
    """
    chosen = selected(model, pattern, layers)
    _keep_movable(model, set(chosen))
    return chosen


def selected(model: nn.Module, pattern: str | None = None, layers: list[int] | None = None) -> list[str]:
    """The names that [`freeze_except`] would leave movable; nothing is frozen, and the model needs no weights.

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
    return chosen


def _keep_movable(model: nn.Module, names: set[str]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def movable_matrices(model: nn.Module) -> list[WeightMatrix]:
    """The weight matrices that may move, the head among them."""
    return weight_matrices(model, [name for name, p in model.named_parameters() if p.requires_grad], head=True)


def reached_matrices(
    model: nn.Module,
    args,
    what: str,
    reached: Callable[[WeightMatrix], bool] = lambda _: True,
) -> list[WeightMatrix]:
    """The movable weight matrices that a method or setting works on.

    Args:
        args ([`UnlearningConfig`]): only what its `trainable` and `trainable_layers` select counts, and whoever sets them
            has chosen a part of the weights.
        what (`str`): the method or the setting, as a user writes it.
        reached (`Callable`, *optional*): whether it can work on a matrix; by default on all.

    Raises:
        ValueError: nothing is selected (see [`selected`]), it reaches none of what is, or less than 95 % of the movable
            weights and the user has not chosen which may move.
    """
    names = selected(model, args.trainable, args.trainable_layers)
    share = share_of_weights(model, reached, names, head=True)
    found = [matrix for matrix in weight_matrices(model, names, head=True) if reached(matrix)]
    if not found:
        raise ValueError(f"{what} works on weight matrices, but none that it reaches may move. {other_weights(args)}")
    if share < ENOUGH:
        said = f"{what} reaches {share:.1%} of the weights of this {type(model).__name__}"
        if args.trainable is None and args.trainable_layers is None:
            left = next(m.name for m in weight_matrices(model, names, head=True) if not reached(m))
            raise ValueError(
                f"{said} only: not {left} and what is like it. Either choose a method or setting that moves all weights (npo, "
                "graddiff, ssd), or set trainable to name the weights that shall move."
            )
        logger.warning(f"{said} that may move.")
    return found


def other_weights(args) -> str:
    """What to do where a method reaches none of the weights that may move."""
    if args.trainable is None and args.trainable_layers is None:
        return "Choose a method that changes all weights (npo, graddiff)."
    return (
        "Either set trainable and trainable_layers to other weights, or choose a method that changes all weights (npo, "
        "graddiff)."
    )


def freeze_except_matrices(
    model: nn.Module, args, setting: str, reached: Callable[[WeightMatrix], bool] = lambda _: True
) -> list[str]:
    """Freeze all but weight matrices, for a setting that concerns these weights alone, and say how many are left.

    Returns the names of those that may move.

    Raises:
        ValueError: the model has an adapter, or see [`reached_matrices`].
    """
    if hasattr(model, "peft_config"):
        raise ValueError(
            f"You set {setting} on a model with an adapter, but it concerns the weights of the layers themselves. Either "
            "leave out the adapter, or leave it unset."
        )
    total = sum(p.numel() for p in model.parameters())
    names = [matrix.name for matrix in reached_matrices(model, args, setting, reached)]
    _keep_movable(model, set(names))
    left = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.warning(f"{setting} moves weight matrices alone, here {left / total:.1%} of all parameters.")
    return names


def attach_adapter(model: nn.Module, peft_config, checkpointing: bool) -> nn.Module:
    """Put a new adapter on the model, whose base is then frozen; without `peft_config` the model stays as it is.

    An adapter that is there already is merged into the base before: what it holds is to be unlearned too, and the new one
    starts from it.

    Args:
        model (`PreTrainedModel` or `PeftModel`): possibly quantized (QLoRA).
        checkpointing (`bool`): whether activations will be recomputed in the backward pass.

    Raises:
        ValueError: a quantized model without an adapter, or an adapter that can be neither trained nor merged.
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
        if has_adapter(model):
            _require_trainable_adapter(model, quantized)
            if checkpointing:
                model.enable_input_require_grads()
        elif quantized:
            raise ValueError(
                "The model is quantized, so its weights cannot be trained. Either give a peft_config (QLoRA; use_peft in a "
                "recipe), or load it without quantization."
            )
        return model
    require_weights_of_the_model(peft_config)
    if has_adapter(model):
        if quantized:
            raise ValueError(
                "You gave a peft_config, but the model has an adapter on a quantized base, which cannot be merged without "
                "loss. Either leave peft_config out (use_peft in a recipe) and train that adapter, or load the base without "
                "quantization."
            )
        logger.info("The adapter of the model is merged into its base, and a new one is trained.")
        model = merged(model)
    from peft import get_peft_model, prepare_model_for_kbit_training

    if quantized:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    elif checkpointing:
        # Without it no input of a recomputed block needs a gradient, and the adapter would get none.
        model.enable_input_require_grads()
    in_layers = layers_of(model)
    matrices = [matrix for matrix in weight_matrices(model) if matrix.name in in_layers]
    model = get_peft_model(model, peft_config)
    _say_what_stays_frozen(model, matrices)
    return model


def made_dense(model: nn.Module, peft_config, what: str) -> nn.Module:
    """The model for a method that works on the weights themselves: an adapter that is there already is merged into them.

    Args:
        what (`str`): the method, as a user writes it.

    Raises:
        ValueError: the model is quantized, or a new adapter was asked for.
    """
    if getattr(model, "is_quantized", False):
        raise ValueError(
            f"{what} works on dense weights. Load the model without quantization (no load_in_4bit or load_in_8bit), or choose "
            "a method that trains an adapter (npo, graddiff)."
        )
    if peft_config is not None:
        raise ValueError(
            f"{what} works on dense weights, and not on a new adapter. Leave peft_config out (use_peft in a recipe): an "
            "adapter that the model has already is merged."
        )
    if has_adapter(model):
        logger.info("The adapter of the model is merged into its base.")
        model = merged(model).requires_grad_(True)  # peft froze it
    return model


def _say_what_stays_frozen(model: nn.Module, matrices: list[WeightMatrix]) -> None:
    """Say how much of a mixture of experts an adapter leaves out: `"all-linear"` leaves out what no linear layer has."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = set()
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            adapted.add(id(getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"), None)))
    left = [matrix for matrix in matrices if id(matrix.parameter) not in adapted]
    fused = sorted({matrix.name.rpartition(".")[2] for matrix in left if matrix.is_stack})
    if fused:
        total, out = (sum(matrix.parameter.numel() for matrix in part) for part in (matrices, left))
        logger.warning(
            f"The adapter covers {1 - out / total:.1%} of the weights of the blocks. Fused experts ({', '.join(fused)}) stay "
            "frozen: to adapt them, name them in target_parameters of a LoraConfig."
        )


def _require_trainable_adapter(model: nn.Module, quantized: bool) -> None:
    """Raise a `ValueError` for an adapter that would not be trained."""
    merge = (
        "" if quantized else ", or give a peft_config (use_peft in a recipe): it is then merged, and a new one trained"
    )
    if not hasattr(model, "get_base_model"):
        raise ValueError(
            "The adapter was put on the model by transformers, not by peft. Either load it with "
            f"hf_unlearn.models.load.load_model, or PeftModel.from_pretrained(base, folder, is_trainable=True){merge}."
        )
    if is_switched_off(model):
        raise ValueError(
            "The adapter of the model is switched off, so that it would not be trained. Switch it on: "
            "model.base_model.enable_adapter_layers()."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"The adapter of the model is frozen. Load it with is_trainable=True{merge}.")
