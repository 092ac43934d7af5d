"""The linear layers of a network."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers.pytorch_utils import Conv1D


def linear_modules(model: nn.Module, names: Iterable[str] | None = None, head: bool = True) -> dict[str, nn.Module]:
    """Linear layers (and GPT-2's `Conv1D`) by name, without those whose weight is that of an embedding.

    A weight that several layers share counts once.

    Args:
        names (iterable of `str`, *optional*): only layers whose weight is among these parameters.
        head (`bool`, *optional*, defaults to `True`): `False` leaves the head out, as quantization and pruning libraries do.

    Raises:
        ValueError: without the head there are none.
    """
    seen = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    wanted = None if names is None else set(names)
    heads = () if head else (model.get_output_embeddings(), getattr(model, "classifier", None))
    left_out = {id(part) for module in heads if module is not None for part in module.modules()}
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, Conv1D)) or id(module) in left_out or id(module.weight) in seen:
            continue
        if wanted is None or f"{name}.weight" in wanted:
            seen.add(id(module.weight))
            found[name] = module
    if not found and not head:
        raise ValueError(
            f"{type(model).__name__} has no linear layer but its head, so there is nothing to change. Leave this attack out."
        )
    return found
