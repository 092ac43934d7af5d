"""Changing linear layers only where the retain set does not look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from hf_unlearn.curvature.covariance import input_covariances
from hf_unlearn.models.linear import linear_modules


logger = logging.get_logger(__name__)


def principal_directions(covariance: Tensor, energy: float) -> Tensor:
    """The fewest directions that hold this share of the energy of the inputs: `float64 (d, k)`, orthonormal."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.clamp(min=0).flip(0), vectors.flip(1)
    share = values.cumsum(0) / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    k = int((share < energy - 1e-12).sum()) + 1
    return vectors[:, :k]


class Subspace:
    """Project every step off the principal directions of the retain set's inputs, layer by layer.

    For the weight W of a linear layer and the directions M of its inputs, `dW <- dW (I - M M^T)`: then the layer answers
    inputs in the span of M as it did. It is the step that is projected, not the gradient, so it holds with Adam, momentum
    and weight decay as well. Only weights of linear layers move; biases, norms and embeddings, which no input direction
    protects, stay. A retain loss has next to no effect, since its gradient lies in the directions that are protected.

    Source: Saha et al., Gradient Projection Memory, arXiv 2103.09762; it takes 0.95 to 0.99 of the energy.

    Args:
        energy (`float`): share of the energy of the retain set's inputs that is protected, in (0, 1].
    """

    reads = "retain"
    linear_only = True

    def __init__(self, energy: float):
        self.energy = energy
        self._layers: list[tuple[nn.Module, Tensor, Tensor]] = []  # module, its weight at the start, directions

    def prepare(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Find the directions on batches of the retain set, with the model at its start."""
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        modules = linear_modules(model, names)
        covariances = input_covariances(model, modules, batches)
        found: dict[int, Tensor] = {}
        full = []
        for name, covariance in covariances.items():
            if id(covariance) not in found:
                found[id(covariance)] = principal_directions(covariance, self.energy)
            directions = found[id(covariance)]
            if directions.shape[1] == len(directions):
                full.append(name)
            self._layers.append((modules[name], modules[name].weight.detach().clone(), directions))
        if full:
            logger.warning(
                f"The retain set uses every input direction of {len(full)} of {len(modules)} layers, which therefore cannot "
                f"move. Lower subspace_energy (it is {self.energy}) to let them."
            )

    def after_backward(self) -> None:
        """The step is what is held, not the gradient."""

    @torch.no_grad()
    def after_step(self) -> None:
        """Project what the weights have changed since the start."""
        for module, start, directions in self._layers:
            weight = module.weight
            change = (weight - start).double()
            if isinstance(module, Conv1D):  # (d_in, d_out)
                change -= directions @ (directions.T @ change)
            else:
                change -= (change @ directions) @ directions.T
            weight.copy_(start + change.to(weight.dtype))
