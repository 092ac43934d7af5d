"""Models with changed weights: pruned, or with noise. This can bring back what an edit only hid.

Anyone who has the weights can do it, without training and without data. Each function returns a changed copy that [`score`]
takes like any model, and leaves the given model as it is. A retrained model changes under these attacks too: apply the same
one to the retrained, the original and the unlearned model and compare.
"""

from __future__ import annotations

import torch
from torch import nn

from hf_unlearn.models.modes import plain_copy
from hf_unlearn.models.weights import require_weight_matrices


@torch.no_grad()
def pruned(model: nn.Module, fraction: float) -> nn.Module:
    """A copy in which the smallest entries of all weight matrices together are 0 (global magnitude pruning).

    Args:
        model (`PreTrainedModel` or `PeftModel`): stays as it is.
        fraction (`float`): share of the entries, in [0, 1]. Exactly `round(fraction * entries)` become 0; among equally
            large entries, the first.

    Raises:
        ValueError: the fraction is not in [0, 1], or see [`plain_copy`] or [`require_weight_matrices`].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be between 0 and 1, not {fraction}.")
    model = plain_copy(model)
    weights = [weight for matrix in require_weight_matrices(model) for weight in matrix.stored()]
    left = round(fraction * sum(weight.numel() for weight in weights))
    threshold = _smallest(weights, left)
    left -= sum(int((bits < threshold).sum()) for bits in map(_magnitude, weights))
    for weight in weights:
        bits = _magnitude(weight)
        remove, tied = bits < threshold, torch.nonzero(bits == threshold)[:left]
        remove[tuple(tied.T)] = True
        left -= len(tied)
        weight.masked_fill_(remove, 0)
    return model


def _magnitude(weight: torch.Tensor) -> torch.Tensor:
    """The absolute values as integers of the same order: the bits of a float that is not negative."""
    wide = weight.detach().abs()
    return wide.view(torch.int64) if wide.dtype == torch.float64 else wide.float().view(torch.int32)


def _smallest(weights: list[torch.Tensor], k: int) -> int:
    """The largest `t` with at most `k` magnitudes below it. Bisection needs no more memory than the largest matrix."""
    low, high = 0, 2 ** (63 if weights[0].dtype == torch.float64 else 31) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if sum(int((_magnitude(weight) < middle).sum()) for weight in weights) <= k:
            low = middle
        else:
            high = middle - 1
    return low


@torch.no_grad()
def noised(model: nn.Module, relative_std: float, seed: int = 0) -> nn.Module:
    """A copy with independent Gaussian noise on every weight matrix.

    Args:
        model (`PreTrainedModel` or `PeftModel`): stays as it is.
        relative_std (`float`): standard deviation of the noise on a weight matrix, divided by that of its entries.
            Each expert of a mixture is a matrix of its own.
        seed (`int`, *optional*, defaults to `0`): models of one architecture get the same noise, up to its scale.

    Raises:
        ValueError: `relative_std` is negative, or see [`plain_copy`] or [`require_weight_matrices`].
    """
    if not relative_std >= 0:
        raise ValueError(f"relative_std must not be negative, it is {relative_std}.")
    model = plain_copy(model)
    generator = torch.Generator().manual_seed(seed)  # of the CPU, so that the device does not matter
    for weight in (part for matrix in require_weight_matrices(model) for part in matrix.stored()):
        dtype = torch.promote_types(weight.dtype, torch.float32)
        noise = torch.randn(weight.shape, generator=generator).to(weight.device, dtype)
        weight.copy_(weight + relative_std * weight.to(dtype).std() * noise)
    return model
