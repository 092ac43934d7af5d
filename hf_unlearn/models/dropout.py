"""The dropout of a model, switched off for a while.

A training that compares a model with what it was before must compare the same function: with dropout in one of the two,
their ratio is noise at the start, and the likelihoods that are trained are not those that an audit reads.
"""

from __future__ import annotations

from typing import Any

from torch import nn


# In the names of probabilities: attention_dropout, resid_pdrop, drop_path, layerdrop, router_jitter_noise (noise on the
# input of a router).
_NAMES = ("drop", "jitter")


class Dropout:
    """Every probability of dropout, stochastic depth and router noise in a model that is above 0.

    Modules keep theirs as `p` of an `nn.Dropout`, or as attributes that a functional dropout reads; some read the config in
    each pass. `lora_dropout` is among them.

    Args:
        model (`nn.Module`): on any device.

    Example:
        >>> dropout = Dropout(model)
        >>> dropout.off()  # train
        >>> dropout.on()
    """

    def __init__(self, model: nn.Module):
        self._found: list[tuple[dict, str, float]] = []
        seen: set[int] = set()
        for module in model.modules():
            is_dropout = isinstance(module, nn.modules.dropout._DropoutNd) or "drop" in type(module).__name__.lower()
            self._collect(vars(module), ("p", "prob") if is_dropout else ())
            config = getattr(module, "config", None)
            self._collect_config(config, seen)
        self.is_off = False

    def _collect_config(self, config: Any, seen: set[int]) -> None:
        if not hasattr(config, "model_type") or id(config) in seen:
            return
        seen.add(id(config))
        self._collect(vars(config))
        for name in getattr(config, "sub_configs", {}):
            self._collect_config(getattr(config, name, None), seen)

    def _collect(self, values: dict, also: tuple[str, ...] = ()) -> None:
        for name, value in values.items():
            if not (name in also or any(part in name.lower() for part in _NAMES)):
                continue
            if isinstance(value, dict):  # of an adapter: one for each adapter by its name
                self._collect(value, tuple(value))
            elif isinstance(value, float) and value > 0:
                self._found.append((values, name, value))

    def __bool__(self) -> bool:
        return bool(self._found)

    def off(self) -> None:
        """Set every probability to 0."""
        self.is_off = True
        for values, name, _ in self._found:
            values[name] = 0.0

    def on(self) -> None:
        """Put every probability back."""
        self.is_off = False
        for values, name, value in self._found:
            values[name] = value
