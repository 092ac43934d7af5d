"""The linear layers of a network."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers.pytorch_utils import Conv1D


def linear_modules(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Linear layers (and GPT-2's Conv1D) whose weight is among the named parameters, without embeddings tied to them."""
    wanted = set(names)
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    tied = getattr(embedding, "weight", None)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and f"{name}.weight" in wanted and module.weight is not tied
    }


def weight_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers (and GPT-2's `Conv1D`) by name, without the head and what is tied to an embedding.

    These are the layers that quantization and pruning libraries change. A weight that several layers share counts once.

    Raises:
        ValueError: there are none.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = set()
    for module in (model.get_output_embeddings(), getattr(model, "classifier", None)):
        head |= set() if module is None else {id(part) for part in module.modules()}
    found, seen = {}, set(embeddings)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and id(module) not in head and id(module.weight) not in seen:
            seen.add(id(module.weight))
            found[name] = module
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no linear layer but its head, so there is nothing to change. Leave this attack out."
        )
    return found
