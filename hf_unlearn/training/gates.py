"""Learned gates on attention heads and MLP neurons, and baking them into the weights.

A gate stands at the input of an attention output projection (one a query head) or of the second MLP projection (one a
neuron) and multiplies what comes in. In the end it is multiplied into the weight instead, so that no gate is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


NAME = "unlearning_gates"  # of the module that holds them, in the model
# Stretch and temperature of the hard-concrete distribution, Louizos et al., arXiv 1712.01312.
LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3
OPEN = 3.0  # ln alpha of a gate that is open: its deterministic value is 1


@dataclass(frozen=True)
class GatePoint:
    """A projection with gates at its input.

    Attributes:
        projection (`Linear` or `Conv1D`): the gated one.
        feeding (`tuple[tuple[module, offset, size], ...]`): projections whose outputs `offset ... offset + size` make what
            comes in, `size` being a multiple of the number of gates, or a divisor of it (grouped-query attention).
        n (`int`): number of gates; each covers `in_features / n` neighbouring inputs.
    """

    name: str
    projection: nn.Module
    feeding: tuple[tuple[nn.Module, int, int], ...]
    n: int


def find_gate_points(model: nn.Module, neurons: bool = False) -> list[GatePoint]:
    """The attention output projections of a transformer and, with `neurons`, its second MLP projections.

    They are found by their role: in an attention module the projection that is not for queries, keys or values, in an
    MLP the one back to the width of the model.

    Raises:
        ValueError: the model has none that is known.
    """
    heads = getattr(model.config.get_text_config(), "num_attention_heads", None)
    points = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        linears = {key: child for key, child in module.named_children() if isinstance(child, (nn.Linear, Conv1D))}
        if kind.endswith("Attention") and heads:
            feeding = {key: linear for key, linear in linears.items() if re_query(key)}
            output = [key for key in linears if key not in feeding]
            if len(output) == 1 and feeding:
                projection = linears[output[0]]
                points.append(GatePoint(f"{name}.{output[0]}", projection, _split_fused(feeding, projection), heads))
        elif kind.endswith("MLP") and neurons and len(linears) > 1:
            key, projection = list(linears.items())[-1]
            n = in_features(projection)
            feeding = tuple((linear, 0, n) for linear in linears.values() if linear is not projection)
            if all(out_features(linear) == n for linear, _, _ in feeding):
                points.append(GatePoint(f"{name}.{key}", projection, feeding, n))
    if not points or any(in_features(point.projection) % point.n for point in points):
        raise ValueError(
            f"No attention output projection was found in {type(model).__name__}, so there is nothing to gate. Choose "
            "a method that changes the weights themselves (graddiff, npo), or a LoRA adapter."
        )
    return points


def re_query(key: str) -> bool:
    """Whether a projection of an attention module makes queries, keys or values, by its name."""
    return key in ("q_proj", "k_proj", "v_proj", "c_attn", "qkv", "qkv_proj", "query", "key", "value", "query_key_value")


def _split_fused(feeding: dict[str, nn.Module], projection: nn.Module):
    if len(feeding) > 1:
        return tuple((linear, 0, out_features(linear)) for linear in feeding.values())
    (linear,) = feeding.values()
    size = out_features(linear) // 3
    if size != in_features(projection):
        return ()  # fused and grouped: the layout is not known, so there is nothing to purge
    return tuple((linear, part * size, size) for part in range(3))


def in_features(linear: nn.Module) -> int:
    """Width of the input; a Conv1D of GPT-2 holds its weight transposed."""
    return linear.weight.shape[0 if isinstance(linear, Conv1D) else 1]


def out_features(linear: nn.Module) -> int:
    """Width of the output."""
    return linear.weight.shape[1 if isinstance(linear, Conv1D) else 0]


def hard_concrete(log_alpha: Tensor, uniform: Tensor | None = None) -> Tensor:
    """Values of gates in [0, 1], one a `log_alpha`: a sample where `uniform` noise in (0, 1) is given, else the
    deterministic value. Louizos et al., arXiv 1712.01312."""
    if uniform is None:
        s = log_alpha.sigmoid()
    else:
        s = ((uniform.log() - (-uniform).log1p() + log_alpha) / TEMPERATURE).sigmoid()
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def probability_open(log_alpha: Tensor) -> Tensor:
    """Probability that a sampled gate is not exactly 0."""
    return (log_alpha - TEMPERATURE * math.log(-LOW / HIGH)).sigmoid()


class Gates(nn.Module):
    """The gates of all points, as one parameter.

    In training mode their values are sampled, with noise that [`draw`] fixes for a step; in evaluation mode they are
    deterministic.

    Args:
        points (sequence of [`GatePoint`])
    """

    def __init__(self, points: Sequence[GatePoint]):
        super().__init__()
        self.points = list(points)
        weight = points[0].projection.weight
        n = sum(point.n for point in points)
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.log_alpha = nn.Parameter(torch.full((n,), OPEN, dtype=dtype, device=weight.device))
        self._noise: Tensor | None = None
        self._values: Tensor | None = None  # given ones, (rows, n), in place of the learned
        start, self._hooks = 0, []
        for point in points:
            hook = self._hook(slice(start, start + point.n))
            self._hooks.append(point.projection.register_forward_pre_hook(hook))
            start += point.n

    def _hook(self, here: slice) -> Callable:
        def multiply(module, inputs):
            x = inputs[0]
            z = self.values(here)
            if z.dim() == 2:  # (rows, n)
                z = z.view(len(z), *[1] * (x.dim() - 2), -1)
            return (x * z.to(x.dtype).repeat_interleave(x.shape[-1] // z.shape[-1], -1), *inputs[1:])

        return multiply

    def values(self, here: slice = slice(None)) -> Tensor:
        """Values of the gates, `(n,)`."""
        if self._values is not None:
            return self._values[:, here]
        noise = self._noise[here] if self.training and self._noise is not None else None
        return hard_concrete(self.log_alpha[here], noise)

    def draw(self, seed: int, step: int) -> None:
        """Fix the noise of a step: the same for all its micro-batches and on every process."""
        generator = torch.Generator().manual_seed(hash((seed, step)) % 2**63)
        noise = torch.rand(len(self.log_alpha), generator=generator, dtype=torch.float64)
        self._noise = noise.clamp(1e-6, 1 - 1e-6).to(self.log_alpha)

    @contextmanager
    def given(self, values: Tensor):
        """Use these values for a while, `(rows, n)`: each row of a batch has gates of its own."""
        self._values = values
        try:
            yield
        finally:
            self._values = None

    def remove(self) -> None:
        """Take the gates off the model, without baking them."""
        for hook in self._hooks:
            hook.remove()

    def baked(self, purge: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
        """The parameters that baking changes, with their new values.

        Args:
            purge (`bool`, *optional*, defaults to `True`): also zero what only a closed gate reads: the rows of its query
                (key and value where all query heads of a group are closed), or of the first MLP projections. The outputs
                are the same, and there is nothing left to be switched on again.
        """
        new: dict[Tensor, Tensor] = {}
        values = hard_concrete(self.log_alpha.detach())
        for point, z in zip(self.points, values.split([point.n for point in self.points]), strict=True):
            weight = point.projection.weight
            column = z.to(weight).repeat_interleave(in_features(point.projection) // point.n)
            new[weight] = weight.detach() * (column[:, None] if isinstance(point.projection, Conv1D) else column)
            for linear, offset, size in point.feeding if purge else ():
                # One value an output: with fewer groups than gates, a group is needed if one of its gates is open.
                width = in_features(point.projection) // point.n
                needed = z.view(size // width, -1).amax(-1) if point.n * width != size else z
                keep = torch.ones(out_features(linear), device=weight.device)
                keep[offset : offset + size] = (needed != 0).float().repeat_interleave(size // len(needed))
                for parameter in (linear.weight, linear.bias):
                    if parameter is not None:
                        before = new.get(parameter, parameter.detach())
                        rows = keep if parameter.dim() == 1 or isinstance(linear, Conv1D) else keep[:, None]
                        new[parameter] = before * rows.to(before)
        yield from new.items()

    def bake(self, purge: bool = True) -> None:
        """Multiply the gates into the weights and take them off; what is left is a plain model."""
        with torch.no_grad():
            for parameter, value in self.baked(purge):
                parameter.copy_(value)
        self.remove()
