"""Which weights may move."""

from __future__ import annotations

import re

from torch import nn


_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """Index of the transformer layer that a parameter belongs to, by its name; `None` outside the layers."""
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


def freeze_except(model: nn.Module, pattern: str | None = None, layers: list[int] | None = None) -> list[str]:
    """Freeze every parameter but those selected; return the names of those that may move.

    Frozen parameters get no gradient and are not given to the optimizer, so neither momentum nor weight decay moves
    them. Parameters that were frozen before (a quantised base under an adapter) stay so.

    Args:
        model (`nn.Module`): changed in place.
        pattern (`str`, *optional*): regular expression that the whole name of a parameter must match. A tied weight
            has one name, that of the embedding.
        layers (`list[int]`, *optional*): indices of transformer layers; negative ones count from the last.

    Raises:
        ValueError: nothing is selected, or a layer does not exist.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        raise ValueError(
            "No parameter of the model may move: all are frozen. Load an adapter with is_trainable=True, give a "
            "peft_config, or unfreeze what may move."
        )
    chosen = names
    if layers is not None:
        n_layers = 1 + max((layer_of(name) for name in names if layer_of(name) is not None), default=-1)
        outside = [layer for layer in layers if not -n_layers <= layer < n_layers]
        if outside:
            raise ValueError(f"You set trainable_layers={layers}, but the model has {n_layers} layers.")
        wanted = {layer % n_layers for layer in layers}
        chosen = [name for name in chosen if layer_of(name) in wanted]
    if pattern is not None:
        chosen = [name for name in chosen if re.fullmatch(pattern, name)]
    if not chosen:
        raise ValueError(
            f"You set trainable={pattern!r} and trainable_layers={layers}, but no parameter that could move is "
            f"selected. Names look like {', '.join(names[:2] + names[-1:])}."
        )
    selected = set(chosen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in selected)
    return chosen
