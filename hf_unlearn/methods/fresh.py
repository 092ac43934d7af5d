"""Networks that know nothing: the same architecture with new weights."""

from __future__ import annotations

from torch import nn

from hf_unlearn.models import modes


def fresh_copy(model: nn.Module, seed: int) -> nn.Module:
    """[`~hf_unlearn.models.modes.fresh_copy`], for a model whose class and config say what it is.

    Raises:
        ValueError: the model has an adapter or is quantized.
    """
    if hasattr(model, "peft_config") or getattr(model, "is_quantized", False):
        raise ValueError(
            "The model has an adapter or is quantized, and a network with new weights cannot be made of it. Merge the "
            "adapter first (merge_and_unload) and load the model without quantization."
        )
    return modes.fresh_copy(model, seed)
