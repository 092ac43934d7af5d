"""Changing linear layers only within a chosen subspace of their singular directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from hf_unlearn.models.linear import linear_modules


class SingularSubspace:
    """Holds the change of each linear weight to `U_k M V_k^T`: k of its singular directions, on both sides.

    With `W = U S V^T` of the start, every step is followed by `dW <- U_k U_k^T dW V_k V_k^T`, so that `k^2` numbers of a
    weight move, whatever its size. The top directions are those the layer uses most, the bottom ones those it uses least.
    Only weights of linear layers move.

    Args:
        rank (`int`): k, at most the smaller side of a weight; for a smaller one all its directions are taken.
        part (`str`): `"top"` or `"bottom"` of the singular values.
    """

    reads = None
    linear_only = True

    def __init__(self, rank: int, part: str = "top"):
        self.rank, self.part = rank, part
        self._layers: list[tuple[nn.Module, Tensor, Tensor, Tensor]] = []  # module, weight at the start, left, right

    @torch.no_grad()
    def prepare(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]] = ()) -> None:
        """Decompose the weights of the model at its start."""
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        for module in linear_modules(model, names).values():
            u, _, vh = torch.linalg.svd(module.weight.double(), full_matrices=False)
            k = min(self.rank, len(vh))
            left, right = (u[:, :k], vh[:k]) if self.part == "top" else (u[:, -k:], vh[-k:])
            self._layers.append((module, module.weight.detach().clone(), left, right))

    def after_backward(self) -> None:
        """The step is what is held, not the gradient."""

    @torch.no_grad()
    def after_step(self) -> None:
        """Project what the weights have changed since the start."""
        for module, start, left, right in self._layers:
            change = (module.weight - start).double()
            change = left @ (left.T @ change @ right.T) @ right
            module.weight.copy_(start + change.to(start.dtype))
