"""Which weights may move, and how far, whatever the optimizer does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_unlearn.curvature.covariance import input_covariances, inputs_are_seen
from hf_unlearn.models.likelihood import target_logits
from hf_unlearn.models.modes import evaluating
from hf_unlearn.models.weights import WeightMatrix
from hf_unlearn.training.where import movable_matrices


logger = logging.get_logger(__name__)


class Constraint:
    """Holds a part of the weights at the start of the run. The trainer calls it at three places.

    Attributes:
        reads (`str` or `None`): rows that `prepare` needs batches of, `"forget"` or `"retain"`; `None` for none.
        matrices_only (`bool`): whether only weight matrices may move, those that it `reaches`; all else is then frozen.
    """

    reads: str | None = None
    matrices_only = False

    def reaches(self, matrix: WeightMatrix) -> bool:
        """Whether it can hold this matrix."""
        return True

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
                for value, gradient in zip(
                    total, torch.autograd.grad(nll, parameters, allow_unused=True), strict=True
                ):
                    if gradient is not None:  # a weight that no row uses matters least
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
    """Projects the change of each weight matrix since the start: the step is held, not the gradient."""

    matrices_only = True

    def __init__(self):
        # A matrix, and for each of its parts by input the start and the directions.
        self._held: list[tuple[WeightMatrix, list[Tensor], list[tuple[Tensor, ...]]]] = []

    def _hold(self, matrix: WeightMatrix, directions: list[tuple[Tensor, ...]]) -> None:
        self._held.append((matrix, [part.clone() for part in matrix.by_input()], directions))

    def _project(self, change: Tensor, *directions: Tensor) -> Tensor:
        """The part of a change `(outputs, inputs)` that may be."""
        raise NotImplementedError

    @torch.no_grad()
    def after_step(self):
        for matrix, starts, directions in self._held:
            for weight, start, chosen in zip(matrix.by_input(), starts, directions, strict=True):
                change = self._project((weight - start).double(), *chosen)
                weight.copy_(start + change.to(start.dtype))


class SingularSubspace(_ProjectedChange):
    """Holds the change of each weight matrix to `U_k M V_k^T`: k of its singular directions, on both sides.

    With `W = U S V^T` of the start, every step is followed by `dW <- U_k U_k^T dW V_k V_k^T`, so that `k^2` numbers of
    a weight move, whatever its size. The top directions are those that the matrix uses most, the bottom ones those that
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
        for matrix in movable_matrices(model):
            held = []
            for part in matrix.by_input():
                u, _, vh = torch.linalg.svd(part.double(), full_matrices=False)
                k = min(self.rank, len(vh))
                chosen = slice(k) if self.part == "top" else slice(-k, None)
                held.append((u[:, chosen], vh[chosen]))
            self._hold(matrix, held)

    def _project(self, change, left, right):
        return left @ (left.T @ change @ right.T) @ right


def principal_directions(covariance: Tensor, energy: float) -> Tensor:
    """The fewest directions that hold this share of the energy of the inputs: `float64 (d, k)`, orthonormal.

    None without any input, as of an expert that no token reaches.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.clamp(min=0).flip(0), vectors.flip(1)
    share = values.cumsum(0) / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    k = int((share < energy - 1e-12).sum()) + 1 if values.any() else 0
    return vectors[:, :k]


class Subspace(_ProjectedChange):
    """Projects every step off the principal directions of the retain set's inputs, matrix by matrix.

    For a weight matrix W and the directions M of its inputs, `dW <- dW (I - M M^T)`: it then answers inputs in the span of M
    as it did, with Adam, momentum and weight decay as well. Each expert of a mixture has the inputs that are routed to it.
    Biases, norms and embeddings, which no input direction protects, stay. A retain loss has next to no effect: its gradient
    lies in the protected directions.

    Source: Saha et al., Gradient Projection Memory, arXiv 2103.09762; it takes 0.95 to 0.99 of the energy.

    Args:
        energy (`float`): share of the energy of the retain set's inputs that is protected, in (0, 1].
    """

    reads = "retain"

    def __init__(self, energy: float):
        super().__init__()
        self.energy = energy

    def reaches(self, matrix):
        return inputs_are_seen(matrix)

    def prepare(self, model, batches):
        matrices = {matrix.name: matrix for matrix in movable_matrices(model)}
        found: dict[int, Tensor] = {}  # matrices with the same input share one covariance
        n_full = n = 0
        for name, covariances in input_covariances(model, matrices.values(), batches).items():
            for covariance in covariances:
                if id(covariance) not in found:
                    found[id(covariance)] = principal_directions(covariance, self.energy)
            held = [found[id(covariance)] for covariance in covariances]
            n_full, n = n_full + sum(m.shape[1] == len(m) for m in held), n + len(held)
            self._hold(matrices[name], [(directions,) for directions in held])
        for name in matrices.keys() - {matrix.name for matrix, *_ in self._held}:
            # Nobody knows what must be protected.
            parts = matrices[name].by_input()
            self._hold(matrices[name], [(torch.eye(w.shape[1], dtype=torch.float64, device=w.device),) for w in parts])
        if n_full:
            logger.warning(
                f"The retain set uses every input direction of {n_full} of {n} weight matrices, which therefore cannot move. "
                f"Lower subspace_energy (it is {self.energy}) to let them."
            )

    def _project(self, change, directions):
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
