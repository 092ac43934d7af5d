"""Moving only the weights that matter most to the forget set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from hf_unlearn.models.likelihood import target_logits
from hf_unlearn.models.modes import evaluating


def largest(values: list[Tensor], share: float) -> list[Tensor]:
    """Masks of the largest entries over all tensors together: exactly `floor(share * number of entries)` are `True`."""
    flat = torch.cat([value.flatten() for value in values])
    mask = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    mask[flat.topk(math.floor(share * len(flat))).indices] = True
    return [part.view_as(value) for part, value in zip(mask.split([v.numel() for v in values]), values, strict=True)]


class SaliencyMask:
    """Holds every entry of the weights but a share of them at its start, bit for bit.

    Which entries may move is decided once, at the start: those with the largest |gradient| of the negative log-likelihood
    of the whole forget set, over all weights together. The others get no gradient, and what momentum or weight decay do
    to them is taken back after each step.

    Source: Fan et al., SalUn, arXiv 2310.12508.

    Args:
        share (`float`): of the entries that may move, in (0, 1].
    """

    reads = "forget"
    linear_only = False

    def __init__(self, share: float):
        self.share = share
        self._held: list[tuple[nn.Parameter, Tensor, Tensor]] = []  # parameter, its start, which entries may move

    def prepare(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Choose the entries on batches of the forget set. The result does not depend on how they are cut."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        total = [torch.zeros_like(p) for p in parameters]
        with evaluating(model):
            for batch in batches:
                nll = -target_logits(model, batch).sequence_log_probs.sum()
                for value, gradient in zip(total, torch.autograd.grad(nll, parameters), strict=True):
                    value += gradient
        masks = largest([value.abs() for value in total], self.share)
        self._held = [(p, p.detach().clone(), mask) for p, mask in zip(parameters, masks, strict=True)]

    def after_backward(self) -> None:
        """Zero the gradients of what is held, so that they do not count in the norm that is clipped."""
        for parameter, _, mask in self._held:
            if parameter.grad is not None:
                parameter.grad *= mask

    @torch.no_grad()
    def after_step(self) -> None:
        """Put back what is held."""
        for parameter, start, mask in self._held:
            parameter.copy_(torch.where(mask, parameter, start))
