"""A model without its wrappers, in evaluation mode, or as a copy whose weights can be changed or are new."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hf_unlearn.models.adapters import has_adapter, merged
from hf_unlearn.models.processes import is_divided


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, which is without dropout; then every module has the mode from before.

    What a module would keep of its weights from one pass in this mode to the next, it computes anew from here on.
    """
    for model in models:
        _keep_nothing(model)
    in_training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


def unwrapped(model: nn.Module, run: bool = True) -> nn.Module:
    """The model inside DDP, `DataParallel` and `torch.compile`.

    Args:
        run (`bool`, *optional*, defaults to `True`): whether passes will go through the result. The wrapper of FSDP 1 then
            stays, since weights are whole only while its own forward runs. FSDP 2 has no wrapper.
    """
    while not (run and type(model).__name__ == "FullyShardedDataParallel"):
        # A compiled model passes on what it is asked for, `module` too, so its own wrapper comes first.
        name = next((name for name in ("_orig_mod", "module") if hasattr(model, name)), None)
        if name is None:
            break
        model = getattr(model, name)
    return model


def fresh_copy(model: nn.Module, seed: int) -> nn.Module:
    """A model of the same class, config, device and dtype with new random weights from the seed, in evaluation mode.

    An adapter is left out.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        fresh = type(base)(copy.deepcopy(base.config))
    return fresh.to(model.device, model.dtype).eval()


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose weights can be changed: no wrapper, adapters merged into what they adapt.

    Raises:
        ValueError: the weights are quantized already, or are not all in the memory of this process.
    """
    model = unwrapped(model)
    if getattr(model, "is_quantized", False):
        raise ValueError(
            "The model is quantized, so its weights cannot be changed or trained. Load it without quantization; an "
            "adapter beside it is merged here."
        )
    if is_divided(model) or any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "Not all weights of the model are in the memory of this process (they are divided by FSDP or ZeRO-3, or "
            "offloaded). Load the model without that."
        )
    _keep_nothing(model)
    model = copy.deepcopy(model)
    return (merged(model) if has_adapter(model) else model).eval()


class _Nothing(dict):
    """A cache that looks empty at all times, so that what it is asked for is computed anew."""

    def __contains__(self, key):
        return False

    def __bool__(self):
        return False


def _keep_nothing(model: nn.Module) -> None:
    """Have attention compute its biases in every pass. LeViT keeps those of its first pass in evaluation mode: with the
    values from before a change of its weights, and with a graph that has only one backward pass."""
    for module in model.modules():
        if hasattr(module, "attention_bias_cache"):
            module.attention_bias_cache = _Nothing()
