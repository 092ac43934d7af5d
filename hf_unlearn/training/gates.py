"""Gates on attention heads and MLP neurons, and multiplying them into the weights.

A gate stands at the input of an attention output projection (one per query head) or of the second MLP projection (one
per neuron) and multiplies what comes in. In the end it is multiplied into the weight instead, so that no gate is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_unlearn.models.blocks import backbone_config, block_lists
from hf_unlearn.models.projections import makes_queries, second_projections


# Stretch and temperature of the hard-concrete distribution, Louizos et al., arXiv 1712.01312.
LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3


@dataclass(frozen=True)
class GatePoint:
    """A projection with gates at its input.

    Attributes:
        name (`str`): of the projection in the model.
        projection (`nn.Linear` or `Conv1D`): the gated one.
        n (`int`): number of gates; each covers `in_features / n` neighboring inputs.
        feeding (`tuple` of `(module, first, size)`): only the gated inputs read the outputs `first ... first + size` of
            these projections, in the same order; where outputs are fewer than inputs, neighboring gates share them
            (grouped-query attention). Empty where the layout is not known.
    """

    name: str
    projection: nn.Module
    n: int
    feeding: tuple[tuple[nn.Module, int, int], ...] = ()


def in_features(linear: nn.Module) -> int:
    """Width of the input; the Conv1D of a GPT-2 holds its weight transposed."""
    return linear.weight.shape[0 if isinstance(linear, Conv1D) else 1]


def out_features(linear: nn.Module) -> int:
    """Width of the output."""
    return linear.weight.shape[1 if isinstance(linear, Conv1D) else 0]


def find_gate_points(model: nn.Module, neurons: bool = False) -> list[GatePoint]:
    """The attention output projections in the layers of a transformer and, with `neurons`, its second MLP projections.

    They are found by role and shape: in a module that makes queries, keys and values, the one projection that does not;
    in a module of projections from width `h` to `m`, the one from `m` to `h`.

    Raises:
        ValueError: there is no attention output projection with a known number of heads; or neurons are asked for, but those
            of fused experts have no layer that a gate could stand before.
    """
    if neurons and any(matrix.is_stack for matrix in second_projections(model)):
        raise ValueError(
            f"You set neurons=True, but the experts of {type(model).__name__} are fused into one parameter, and no gate "
            "reaches their neurons. Either leave it out, to gate attention heads alone, or choose a method that changes the "
            "weights themselves (graddiff, npo)."
        )
    heads = getattr(backbone_config(model), "num_attention_heads", None)
    lists, points = tuple(f"{name}." for name in block_lists(model)), []
    for name, module in model.named_modules():
        if not name.startswith(lists):
            continue
        linears = {key: child for key, child in module.named_children() if isinstance(child, (nn.Linear, Conv1D))}
        inner = {key: x for key, x in linears.items() if makes_queries(key)}
        point = None
        if inner:
            n = getattr(module, "num_heads", None) or getattr(module, "num_attention_heads", None) or heads
            point = _attention_point(name, module, linears, inner, n)
        elif neurons:
            point = _mlp_point(name, module, linears)
        if point is not None:
            points.append(point)
    if not any(point.n != in_features(point.projection) for point in points):
        raise ValueError(
            f"No attention output projection was found in {type(model).__name__}, so there is nothing to gate. Choose "
            "a method that changes the weights themselves (graddiff, npo), or a LoRA adapter."
        )
    return points


def _attention_point(name, module, linears, inner, n) -> GatePoint | None:
    outer = [key for key in linears if key not in inner]
    if len(outer) != 1 or not isinstance(n, int) or in_features(linears[outer[0]]) % n:
        return None
    projection = linears[outer[0]]
    d = in_features(projection)
    sizes = sorted(out_features(linear) for linear in inner.values())
    first = next(iter(inner.values()))
    feeding = ()
    if _nothing_between(module, width=d // n):
        # The layout of a fused projection differs from model to model: only that of GPT-2 is a Conv1D.
        if sizes == [3 * d] and isinstance(first, Conv1D):
            feeding = tuple((first, part * d, d) for part in range(3))
        grouped = len(sizes) == 3 and sizes[0] == sizes[1] and sizes[2] == d
        if grouped and d % sizes[0] == 0 and sizes[0] % (d // n) == 0:
            feeding = tuple((linear, 0, out_features(linear)) for linear in inner.values())
    return GatePoint(f"{name}.{outer[0]}", projection, n, feeding)


def _mlp_point(name, module, linears) -> GatePoint | None:
    for key in reversed(linears):
        projection = linears[key]
        m, h = in_features(projection), out_features(projection)
        others = [linear for other, linear in linears.items() if other != key]
        if others and all(in_features(linear) == h and out_features(linear) in (m, 2 * m) for linear in others):
            known = _nothing_between(module) and all(out_features(linear) == m for linear in others)
            return GatePoint(f"{name}.{key}", projection, m, tuple((x, 0, m) for x in others) if known else ())
    return None


def _nothing_between(module: nn.Module, width: int | None = None) -> bool:
    """Whether no norm mixes the inputs of different gates; one over a single head (`width` features) does not."""
    rest = [child for child in module.children() if not isinstance(child, (nn.Linear, Conv1D))]
    return all(parameter.numel() == width for child in rest for parameter in child.parameters())


def hard_concrete(log_alpha: Tensor, uniform: Tensor | None = None) -> Tensor:
    """Values of gates in [0, 1], one per entry of `log_alpha`: a sample where `uniform` noise in (0, 1) is given, else the
    deterministic value. Louizos et al., arXiv 1712.01312."""
    if uniform is not None:
        log_alpha = (uniform.log() - (-uniform).log1p() + log_alpha) / TEMPERATURE
    return (log_alpha.sigmoid() * (HIGH - LOW) + LOW).clamp(0, 1)


def probability_open(log_alpha: Tensor) -> Tensor:
    """Probability that a sampled gate is not exactly 0."""
    return (log_alpha - TEMPERATURE * math.log(-LOW / HIGH)).sigmoid()


class Gates(nn.Module):
    """The gates of all points, as one parameter `log_alpha` `(n,)`.

    In training mode their values are sampled with the noise of the last call of [`~Gates.draw`]; in evaluation mode, and
    before any noise is drawn, they are the deterministic ones. At the start these are exactly 1.
    """

    def __init__(self, points: Sequence[GatePoint]):
        super().__init__()
        self.points = list(points)
        weight = points[0].projection.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        n = sum(point.n for point in points)
        # From 2.4 on the deterministic value is exactly 1.
        self.log_alpha = nn.Parameter(torch.full((n,), 3.0, dtype=dtype, device=weight.device))
        self._noise: Tensor | None = None
        self._given: Tensor | None = None
        self._hooks, start = [], 0
        for point in points:
            # A partial and no closure: a deep copy of the model then has its own gates.
            hook = partial(self._multiply, slice(start, start + point.n))
            self._hooks.append(point.projection.register_forward_pre_hook(hook))
            start += point.n

    def _multiply(self, here: slice, module: nn.Module, inputs: tuple) -> tuple:
        x = inputs[0]
        if self._given is None:
            z = self.values(here)
        else:
            z = self._given[:, here]
            # The windows of an image, and the tokens of a flat batch, are rows of their own in the order of the batch.
            z = z.repeat_interleave(len(x) // len(z), 0).view(len(x), *[1] * (x.dim() - 2), -1)
        z = z.to(x).repeat_interleave(x.shape[-1] // z.shape[-1], -1)
        return (x * z, *inputs[1:])

    def values(self, here: slice = slice(None)) -> Tensor:
        """The factors of the gates: `(n,)`."""
        noise = self._noise[here] if self.training and self._noise is not None else None
        return hard_concrete(self.log_alpha[here], noise)

    def draw(self, seed: int, step: int) -> None:
        """Fix the noise of a step: the same for all its micro-batches and on every process."""
        noise = np.random.default_rng([seed, step]).uniform(1e-6, 1 - 1e-6, len(self.log_alpha))
        self._noise = torch.from_numpy(noise).to(self.log_alpha)

    @contextmanager
    def given(self, values: Tensor):
        """Use these values for a while, `(rows, n)`: each row of a batch has its own gates."""
        self._given = values
        try:
            yield
        finally:
            self._given = None

    def baked(self, purge: bool = True) -> dict[nn.Parameter, Tensor]:
        """The parameters that the gates change, with their values when the gates are multiplied into them.

        Args:
            purge (`bool`, *optional*, defaults to `True`): also zero what only closed gates read: the rows of queries (of
                keys and values where all query heads of the group are closed) and of first MLP projections, with their
                biases. The outputs stay the same, and nothing is left that could be switched on again.
        """
        new: dict[nn.Parameter, Tensor] = {}
        values = hard_concrete(self.log_alpha.detach())
        for point, z in zip(self.points, values.split([point.n for point in self.points]), strict=True):
            width = in_features(point.projection) // point.n
            _scale(new, point.projection.weight, z.repeat_interleave(width), isinstance(point.projection, Conv1D))
            for linear, first, size in point.feeding if purge else ():
                needed = (z != 0).view(size // width, -1).any(-1)  # gates that share an output need it if one does
                keep = z.new_ones(out_features(linear))
                keep[first : first + size] = needed.repeat_interleave(width)
                _scale(new, linear.weight, keep, not isinstance(linear, Conv1D))
                if linear.bias is not None:
                    _scale(new, linear.bias, keep, True)
        return new

    def bake(self, purge: bool = True) -> None:
        """Multiply the gates into the weights and take the hooks off; what is left is a plain model."""
        with torch.no_grad():
            for parameter, value in self.baked(purge).items():
                parameter.copy_(value)
        for hook in self._hooks:
            hook.remove()


def _scale(new: dict, parameter: nn.Parameter, factor: Tensor, rows: bool) -> None:
    before = new.get(parameter, parameter.detach())
    factor = factor.to(before)
    if rows and before.dim() == 2:
        factor = factor[:, None]
    # Not a plain product: 0 times a negative weight is -0, and the signs of erased weights would be left.
    new[parameter] = torch.where(factor == 0, torch.zeros_like(before), before * factor)
