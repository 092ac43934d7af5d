"""Networks that know nothing: the same architecture with new weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


def fresh_copy(model: nn.Module, seed: int) -> nn.Module:
    """A model of the same class and config with weights drawn anew from the seed, on the same device and in its dtype.

    Raises:
        ValueError: the model has an adapter or is quantized, so that its class and config do not say what it is.
    """
    if hasattr(model, "peft_config") or getattr(model, "is_quantized", False):
        raise ValueError(
            "The model has an adapter or is quantized, and a network with new weights cannot be made of it. Merge the "
            "adapter first (merge_and_unload) and load the model without quantization."
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        fresh = type(model)(copy.deepcopy(model.config))
    return fresh.to(model.device, model.dtype)
