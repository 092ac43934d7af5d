"""Which weights may move, and how far, whatever the optimizer does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from hf_unlearn.curvature.covariance import input_covariances
from hf_unlearn.models.likelihood import target_logits
from hf_unlearn.models.modes import evaluating
from hf_unlearn.training.where import movable_linear_modules


logger = logging.get_logger(__name__)


class Constraint:
    """Holds a part of the weights at the start of the run. The trainer calls it at three places.

    Attributes:
        reads (`str` or `None`): rows that `prepare` needs batches of, `"forget"` or `"retain"`; `None` for none.
        linear_only (`bool`): whether only the weights of linear layers may move; all others are then frozen.
    """

    reads: str | None = None
    linear_only = False

    def prepare(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Read the model at its very start. Called once, also when a run is resumed."""
        raise NotImplementedError

    def after_backward(self) -> None:
        """Change the gradients of a backward pass, before they are clipped."""

    def after_step(self) -> None:
        """Undo what an optimizer step has done to weights that are held."""
        raise NotImplementedError


def largest(values: list[Tensor], share: float) -> list[Tensor]:
    """Masks of the largest entries over all tensors together: exactly `floor(share * number of entries)` are `True`."""
    flat = torch.cat([value.flatten() for value in values])
    mask = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    mask[flat.topk(math.floor(share * len(flat))).indices] = True
    return [part.view_as(value) for part, value in zip(mask.split([v.numel() for v in values]), values, strict=True)]


class SaliencyMask(Constraint):
    """Holds all entries of the weights but a share of them at their start, bit for bit.

    The entries that may move are chosen once: those with the largest |gradient| of the negative log-likelihood of the
    whole forget set, over all weights together. The others get no gradient, and what momentum or weight decay does to
    them is undone after each step.

    Source: Fan et al., SalUn, arXiv 2310.12508.

    Args:
        share (`float`): share of the entries that may move, in (0, 1].
    """

    reads = "forget"

    def __init__(self, share: float):
        self.share = share
        self._held: list[tuple[nn.Parameter, Tensor, Tensor]] = []  # parameter, its start, which entries may move

    def prepare(self, model, batches):
        parameters = [p for p in model.parameters() if p.requires_grad]
        total = [torch.zeros_like(p) for p in parameters]
        with evaluating(model):
            for batch in batches:
                nll = -target_logits(model, batch).sequence_log_probs.sum()
                for value, gradient in zip(total, torch.autograd.grad(nll, parameters), strict=True):
                    value += gradient
        masks = largest([value.abs() for value in total], self.share)
        self._held = [(p, p.detach().clone(), mask) for p, mask in zip(parameters, masks, strict=True)]

    def after_backward(self):
        for parameter, _, mask in self._held:
            if parameter.grad is not None:
                parameter.grad *= mask

    @torch.no_grad()
    def after_step(self):
        for parameter, start, mask in self._held:
            parameter.copy_(torch.where(mask, parameter, start))


class _ProjectedChange(Constraint):
    """Projects the change of each linear weight since the start: the step is held, not the gradient."""

    linear_only = True

    def __init__(self):
        self._layers: list[tuple[nn.Module, Tensor, tuple[Tensor, ...]]] = []  # module, its start, directions

    def _hold(self, module: nn.Module, *directions: Tensor) -> None:
        self._layers.append((module, module.weight.detach().clone(), directions))

    def _project(self, module: nn.Module, change: Tensor, *directions: Tensor) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def after_step(self):
        for module, start, directions in self._layers:
            change = self._project(module, (module.weight - start).double(), *directions)
            module.weight.copy_(start + change.to(start.dtype))


class SingularSubspace(_ProjectedChange):
    """Holds the change of each linear weight to `U_k M V_k^T`: k of its singular directions, on both sides.

    With `W = U S V^T` of the start, every step is followed by `dW <- U_k U_k^T dW V_k V_k^T`, so that `k^2` numbers of
    a weight move, whatever its size. The top directions are those that the layer uses most, the bottom ones those that
    it uses least.

    Args:
        rank (`int`): k; a weight with a smaller side than that keeps all its directions.
        part (`str`): the `"top"` or the `"bottom"` singular values.
    """

    def __init__(self, rank: int, part: str):
        super().__init__()
        self.rank, self.part = rank, part

    @torch.no_grad()
    def prepare(self, model, batches):
        for module in movable_linear_modules(model).values():
            u, _, vh = torch.linalg.svd(module.weight.double(), full_matrices=False)
            k = min(self.rank, len(vh))
            chosen = slice(k) if self.part == "top" else slice(-k, None)
            self._hold(module, u[:, chosen], vh[chosen])

    def _project(self, module, change, left, right):
        return left @ (left.T @ change @ right.T) @ right


def principal_directions(covariance: Tensor, energy: float) -> Tensor:
    """The fewest directions that hold this share of the energy of the inputs: `float64 (d, k)`, orthonormal."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.clamp(min=0).flip(0), vectors.flip(1)
    share = values.cumsum(0) / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    k = int((share < energy - 1e-12).sum()) + 1
    return vectors[:, :k]


class Subspace(_ProjectedChange):
    """Projects every step off the principal directions of the retain set's inputs, layer by layer.

    For the weight W of a linear layer and the directions M of its inputs, `dW <- dW (I - M M^T)`: the layer then answers
    inputs in the span of M as it did, with Adam, momentum and weight decay as well. Biases, norms and embeddings, which
    no input direction protects, stay. A retain loss has next to no effect: its gradient lies in the protected directions.

    Source: Saha et al., Gradient Projection Memory, arXiv 2103.09762; it takes 0.95 to 0.99 of the energy.

    Args:
        energy (`float`): share of the energy of the retain set's inputs that is protected, in (0, 1].
    """

    reads = "retain"

    def __init__(self, energy: float):
        super().__init__()
        self.energy = energy

    def prepare(self, model, batches):
        modules = movable_linear_modules(model)
        found: dict[int, Tensor] = {}  # layers with the same input share one covariance
        n_full = 0
        for name, covariance in input_covariances(model, modules, batches).items():
            if id(covariance) not in found:
                found[id(covariance)] = principal_directions(covariance, self.energy)
            directions = found[id(covariance)]
            n_full += directions.shape[1] == len(directions)
            self._hold(modules[name], directions)
        if n_full:
            logger.warning(
                f"The retain set uses every input direction of {n_full} of {len(modules)} layers, which therefore cannot "
                f"move. Lower subspace_energy (it is {self.energy}) to let them."
            )

    def _project(self, module, change, directions):
        if isinstance(module, Conv1D):  # (d_in, d_out)
            return change - directions @ (directions.T @ change)
        return change - (change @ directions) @ directions.T


def constraints_of(args) -> dict[str, Constraint]:
    """The constraints that an [`UnlearningConfig`] asks for, by the setting that asks for each, as a user writes it."""
    found: dict[str, Constraint] = {}
    if args.saliency is not None:
        found[f"saliency={args.saliency}"] = SaliencyMask(args.saliency)
    if args.singular_rank is not None:
        found[f"singular_rank={args.singular_rank}"] = SingularSubspace(args.singular_rank, args.singular_part)
    if args.update_rule == "subspace":
        found['update_rule="subspace"'] = Subspace(args.subspace_energy)
    return found
