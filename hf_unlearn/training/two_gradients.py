"""The gradient of the forget loss and that of the retain loss of one step, each apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class TwoGradients:
    """Accumulates two gradients, with one forward pass per micro-batch, for an update rule that makes one of them.

    A rule is not linear, so both are summed over micro-batches and averaged over processes before it sees them. Under DDP
    they are averaged here, once per step. Under FSDP 2 each backward pass leaves this process its shard of an averaged
    gradient; a sum of means is the mean of the sums, and no process ever holds a whole gradient.
    """

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self._sums: list[list[Tensor] | None] = [None, None]

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
        if self.accelerator.num_processes > 1 and not self.accelerator.is_fsdp2:
            forget, retain = ([self.accelerator.reduce(g, "mean") for g in part] for part in (forget, retain))
        for p, gradient in zip(movable(model), rule(forget, retain), strict=True):
            p.grad = gradient


def movable(model: nn.Module) -> list[nn.Parameter]:
    # Called after a backward pass: before it, FSDP may have whole parameters in the place of its shards.
    return [p for p in model.parameters() if p.requires_grad]
