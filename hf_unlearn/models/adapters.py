"""Adapters: where their base is, how they are put on it, and what is left when they are merged into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from hf_unlearn.models.files import CheckpointError


# peft is imported inside the functions: it takes seconds.
if TYPE_CHECKING:
    from torch import nn


def base_of(name: str, revision: str | None = None) -> str | None:
    """The name of the model that an adapter is for, or `None` for what is no adapter.

    A relative path is meant from the working directory, or from the folder of the adapter.

    Raises:
        CheckpointError: the adapter names no base, or its folder holds a whole model too.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        file = find_adapter_config_file(name, revision=revision)
    except OSError:  # neither a folder nor on the Hub, which is said where its config is asked for
        file = None
    if file is None:
        return None
    if (Path(name) / "config.json").exists() and any(Path(name).glob("model*.safetensors*")):
        raise CheckpointError(
            f"{name!r} holds a whole model and an adapter beside it, so it cannot be told which is meant. Move "
            "adapter_config.json with its weights to a folder of its own, or delete it."
        )
    try:
        base = json.loads(Path(file).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{name!r} is an adapter, but its adapter_config.json names no base. Set base_model_name_or_path in it to the "
            "model that the adapter was trained on."
        )
    beside = Path(name) / base
    return str(beside) if not Path(base).exists() and beside.exists() else base


def put_on(base: nn.Module, name: str, revision: str | None = None) -> nn.Module:
    """A `PeftModel` of a base and the adapter of this name, whose weights may move.

    Raises:
        CheckpointError: weights of the adapter are missing, or belong to no part of the model.
    """
    from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    config = PeftConfig.from_pretrained(name, revision=revision)
    require_weights_of_the_model(config)
    model = PeftModel.from_pretrained(base, name, revision=revision, is_trainable=True, torch_device="cpu")
    # Once more, for what is said of it: peft warns of missing weights only, and is silent about others.
    loaded = set_peft_model_state_dict(model, load_peft_weights(name, device="cpu", revision=revision))
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(config.peft_type, "")
    missing = [key for key in loaded.missing_keys if (prefix and prefix in key) or ".modules_to_save." in key]
    for keys, what in (
        (missing, "are missing from its file"),
        (loaded.unexpected_keys, "belong to no part of its base"),
    ):
        if keys:
            raise CheckpointError(
                f"{len(keys)} weights of the adapter {name!r} {what}, such as {sorted(keys)[0]}. Either the base in its "
                "adapter_config.json is another model than it was trained on, or the folder is damaged: save it again."
            )
    return model


def require_weights_of_the_model(peft_config) -> None:
    """Raise a `CheckpointError` for an adapter that is no change of weights."""
    if getattr(peft_config, "is_prompt_learning", False):
        raise CheckpointError(
            f"{type(peft_config).__name__} learns a prompt, which anyone can leave out: the weights would not forget. "
            "Give an adapter of the weights, such as a LoraConfig."
        )


def has_adapter(model: nn.Module) -> bool:
    """Whether a model has an adapter: a `PeftModel`, or one that transformers put an adapter on."""
    return bool(getattr(model, "peft_config", None))


def is_switched_off(model: nn.Module) -> bool:
    """Whether a model has adapters of which none takes part in a pass."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return bool(layers) and all(layer.disable_adapters or not layer.active_adapters for layer in layers)


def merged(model: nn.Module) -> nn.Module:
    """The base with its active adapters merged into it: a plain model with the same outputs. The base changes in place.

    A weight that two layers share is parted first, since the adapter changes only one of them.

    Raises:
        CheckpointError: the adapter cannot be merged.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    off = is_switched_off(model)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if not off:
        _part_shared_weights(inner)
    if isinstance(model, PeftModel):
        if not hasattr(model, "merge_and_unload"):
            raise CheckpointError(
                f"An adapter of type {next(iter(model.peft_config.values())).peft_type.value} cannot be merged into its "
                "base. Give an adapter of the weights, such as a LoraConfig."
            )
        return model.unload() if off else model.merge_and_unload()
    # transformers has no such function for an adapter that it put on. One layer may be around another.
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    for _, layer in reversed(layers):
        if not off:
            layer.merge()
    outer = [(n, layer) for n, layer in layers if not any(n.startswith(f"{other}.") for other, _ in layers)]
    for name, layer in outer:
        _replace(model, name, layer.get_base_layer())
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "modules_to_save") and hasattr(layer, "original_module"):
            active = [one for one in layer.active_adapters if one in layer.modules_to_save]
            _replace(model, name, layer.modules_to_save[active[0]] if active and not off else layer.original_module)
    del model.peft_config
    model._hf_peft_config_loaded = False
    model.__dict__.pop("_weight_conversions", None)  # the names in the file of the adapter
    return model


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _part_shared_weights(model: nn.Module) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    parted = False
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            base = layer.get_base_layer()
            for name, parameter in base._parameters.items():
                if parameter is not None and owners[id(parameter)] > 1:
                    owners[id(parameter)] -= 1
                    base._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                    parted = True
    if parted and getattr(model.config, "tie_word_embeddings", False):
        model.config.tie_word_embeddings = False
