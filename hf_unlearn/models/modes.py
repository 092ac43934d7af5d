"""A model without its wrappers, in evaluation mode, or as a copy whose weights can be changed."""

from __future__ import annotations

import copy
from contextlib import contextmanager

from torch import nn

from hf_unlearn.models.processes import is_divided


@contextmanager
def dropout_off(model: nn.Module):
    """Evaluation mode for a while, then the mode from before."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose weights can be changed: no wrapper, adapters merged into what they adapt.

    Raises:
        ValueError: the weights are quantized already, or are not all in the memory of this process.
    """
    while inner := getattr(model, "module", None) or getattr(model, "_orig_mod", None):  # DDP, torch.compile
        model = inner
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
    model = copy.deepcopy(model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    return model.eval()
