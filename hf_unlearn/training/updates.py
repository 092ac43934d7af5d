"""Update rules: how the gradient of the forget loss and that of the retain loss become one step.

A rule takes two lists of gradients of the same parameters, already averaged over micro-batches and processes, and
returns the one that the optimizer gets. Both losses are minimized, so a conflict is a negative inner product. With
momentum, Adam or weight decay the step is not the gradient: what these rules promise then holds for the gradient only.
The rule `"subspace"` is a constraint on the step itself, see [`~hf_unlearn.training.constraints.Subspace`].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hf_unlearn.models.sharding import is_sharded, local, placed_like, whole


def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Inner product over all tensors and all of their shards, accumulated in float64 tensor by tensor."""
    total = torch.stack([local(x).double().mul(local(y).double()).sum() for x, y in zip(a, b, strict=True)]).sum()
    if is_sharded(a[0]):
        # Along a dimension of the mesh that replicates, every process has the same sum already.
        for dim, placement in enumerate(a[0].placements):
            if placement.is_shard():
                torch.distributed.all_reduce(total, group=a[0].device_mesh.get_group(dim))
    return total


def without(a: list[Tensor], b: list[Tensor], always: bool) -> list[Tensor]:
    """`a` without its component along `b`: always, or only where the two conflict."""
    along, norm = dot(a, b), dot(b, b)
    # A gradient that is only rounding (of a divergence from the start, at the start) has no direction to respect. The
    # epsilon of bfloat16 would include gradients that are merely small: float32 is the coarsest that is used.
    eps = min(torch.finfo(a[0].dtype).eps, torch.finfo(torch.float32).eps)
    norm = torch.where(norm > (8 * eps) ** 2 * dot(a, a), norm, 0.0)
    # One number for both cases and no branch, so that nothing waits for the accelerator.
    applies = norm > 0 if always else (along < 0) & (norm > 0)
    scale = torch.where(applies, along / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0.0)
    return [x - scale.to(x.dtype) * y for x, y in zip(a, b, strict=True)]


def add(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    return [x + y for x, y in zip(a, b, strict=True)]


class UpdateRule:
    """Base of the rules that need the two gradients apart; each run has one."""

    def __init__(self, args):
        self.args = args

    def __call__(self, forget: list[Tensor], retain: list[Tensor]) -> list[Tensor]:
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold for the rule."""
        return {}

    def load_state(self, state: dict[str, Tensor], parameters: list[Tensor]) -> None:
        """Take over what `state` returned; the gradients are those of `parameters`."""


class Project(UpdateRule):
    """Remove from the forget gradient what conflicts with the retain gradient, then add the two.

    If <g_f, g_r> < 0: g_f <- g_f - <g_f, g_r> / |g_r|^2 g_r. Then, to first order, the forget part of a step does not
    raise the retain loss. The projection of PCGrad (arXiv 2001.06782), on the forget side only, as in A-GEM (arXiv
    1812.00420).
    """

    def __call__(self, forget, retain):
        return add(without(forget, retain, always=False), retain)


class Orthogonal(UpdateRule):
    """Remove from each gradient its component along the other, in conflict or not, then add the two.

    To first order the forget part of a step leaves the retain loss as it is, and the retain part the forget loss: repair
    does not undo forgetting. Two parallel gradients cancel each other. The forget side is that of OrthoGrad (arXiv
    2503.02312) with the gradient of the whole retain batch.
    """

    def __call__(self, forget, retain):
        return add(without(forget, retain, always=True), without(retain, forget, always=True))


class GRU(UpdateRule):
    """As [`Project`], against a running average of the retain gradient, which is less noisy than that of a batch.

    `m <- gamma g_r + (1 - gamma) m`, with the weight gamma (`gru_gamma`) on the new gradient; if <g_f, m> < 0 the forget
    gradient loses its component along m. Source: Wang et al., GRU, arXiv 2503.09117; gamma 0.8 is that of its code.
    """

    def __init__(self, args):
        super().__init__(args)
        self._average: list[Tensor] | None = None

    def __call__(self, forget, retain):
        gamma = self.args.gru_gamma
        # A checkpoint holds whole tensors, read before the model is sharded.
        old = [placed_like(x, like) for x, like in zip(self._average or retain, retain, strict=True)]
        self._average = [gamma * new + (1 - gamma) * before for new, before in zip(retain, old, strict=True)]
        return add(without(forget, self._average, always=False), retain)

    def state(self):
        return {f"gru.{i}": whole(value) for i, value in enumerate(self._average or ())}

    def load_state(self, state, parameters):
        if "gru.0" in state:
            self._average = [state[f"gru.{i}"].to(p) for i, p in enumerate(parameters)]


# `None`: the losses are added, and the Trainer does the rest.
UPDATE_RULES: dict[str, type[UpdateRule] | None] = {
    "add": None,
    "project": Project,
    "orthogonal": Orthogonal,
    "gru": GRU,
    "subspace": None,
}


class TwoGradients:
    """Accumulates two gradients, with one forward pass per micro-batch, for an update rule that makes one of them.

    A rule is not linear, so both are summed over micro-batches and averaged over processes before it sees them. Under DDP
    they are averaged here, once per step. Under FSDP 2 each backward pass leaves this process its shard of an averaged
    gradient; a sum of means is the mean of the sums, and no process ever holds a whole gradient.
    """

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self._sums: list[list[Tensor] | None] = [None, None]
        self._used: list[
            bool
        ] = []  # whether a pass has used each parameter: without a gradient, weight decay leaves it too

    @contextmanager
    def apart(self, model: nn.Module) -> Iterator[None]:
        """Around the forward pass of a micro-batch and `backward`."""
        if self.accelerator.is_fsdp2:
            # The Trainer turns this off on all but the last micro-batch; FSDP would then add up the gradients of both.
            model.set_requires_gradient_sync(True)
            yield
        else:
            with self.accelerator.no_sync(model):
                yield

    def backward(self, model: nn.Module, losses: tuple[Tensor, Tensor]) -> None:
        """Add the gradients of a micro-batch's forget and retain loss."""
        for i, loss in enumerate(losses):
            self.accelerator.backward(loss, retain_graph=i == 0)
            parameters = movable(model)
            used = self._used or [False] * len(parameters)
            self._used = [before or p.grad is not None for before, p in zip(used, parameters, strict=True)]
            if self._sums[i] is None:
                self._sums[i] = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            else:
                for total, p in zip(self._sums[i], parameters, strict=True):
                    if p.grad is not None:
                        total += p.grad
            for p in parameters:
                p.grad = None

    def combine(self, model: nn.Module, rule) -> None:
        """Give the parameters the gradient that the rule makes of the two of the whole step."""
        forget, retain = self._sums
        used = torch.tensor(self._used, dtype=torch.float32, device=self.accelerator.device)
        used = self.accelerator.reduce(used, "sum").tolist()  # in any process
        if self.accelerator.num_processes > 1 and not self.accelerator.is_fsdp2:
            forget, retain = ([self.accelerator.reduce(g, "mean") for g in part] for part in (forget, retain))
        for p, gradient, n in zip(movable(model), rule(forget, retain), used, strict=True):
            p.grad = gradient if n else None


def movable(model: nn.Module) -> list[nn.Parameter]:
    # Called after a backward pass: before it, FSDP may have whole parameters in the place of its shards.
    return [p for p in model.parameters() if p.requires_grad]
