"""Update rules: how the gradient of the forget loss and that of the retain loss become one step.

A rule takes two lists of gradients of the same parameters, already averaged over micro-batches and processes, and
returns the one that the optimizer gets. Both losses are minimised, so a conflict is a negative inner product.
"""

from __future__ import annotations

import torch
from torch import Tensor


def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Inner product over all tensors, accumulated in float64 tensor by tensor."""
    return torch.stack([torch.sum(x.double() * y.double()) for x, y in zip(a, b, strict=True)]).sum()


def project(forget: list[Tensor], retain: list[Tensor]) -> list[Tensor]:
    """Remove from the forget gradient what conflicts with the retain gradient, then add the two.

    If <g_f, g_r> < 0: g_f <- g_f - <g_f, g_r> / |g_r|^2 g_r. Then, to first order, the forget part of a step of plain
    gradient descent does not raise the retain loss; with momentum, Adam or weight decay it may. The projection of
    PCGrad (arXiv 2001.06782), on the forget side only, as in A-GEM (arXiv 1812.00420).
    """
    conflict = dot(forget, retain)
    norm = dot(retain, retain)
    # Both cases as one number and without a branch, so that nothing waits for the accelerator.
    scale = torch.where((conflict < 0) & (norm > 0), conflict / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0.0)
    return [f - scale.to(f.dtype) * r + r for f, r in zip(forget, retain, strict=True)]


# `add` needs no second gradient: the losses are added, and the Trainer does the rest.
UPDATE_RULES = {"add": None, "project": project}
