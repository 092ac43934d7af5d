"""Second moments of the inputs of linear layers, streamed: memory is bounded by the layer, not by the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from hf_unlearn.models.likelihood import target_logits
from hf_unlearn.models.modes import evaluating


def input_covariances(
    model: nn.Module, modules: Mapping[str, nn.Module], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Sum over all tokens of `x x^T` for the inputs `x` of each module, not centered. Padding does not count.

    Returns:
        `dict[str, Tensor]`: `float64 (d_in, d_in)` by name of the module; modules with the same input (queries, keys and
        values) share one tensor.
    """
    sums: dict[str, Tensor] = {}
    owner: dict[str, str] = {}  # by module, the first one with the same input, which adds it up
    last: dict[str, Tensor] = {}
    mask: Tensor | None = None

    def hook(name):
        def add(module, inputs):
            x = inputs[0].detach()
            if name not in owner:
                owner[name] = next((other for other, seen in last.items() if seen is inputs[0]), name)
                last[name] = inputs[0]
            if owner[name] != name:
                return
            if mask is not None and x.dim() == 3 and x.shape[:2] == mask.shape:
                x = x[mask]
            x = x.reshape(-1, x.shape[-1]).double()
            sums[name] = sums.get(name, 0.0) + x.T @ x

        return add

    hooks = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        with torch.no_grad(), evaluating(model):
            for batch in batches:
                mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
                target_logits(model, batch)
                last.clear()
    finally:
        for handle in hooks:
            handle.remove()
    return {name: sums[owner[name]] for name in modules if name in owner}
