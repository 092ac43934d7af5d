"""Models with changed weights: pruned, with noise, averaged with the original. What an edit only hid may come back.

Nothing is trained and no data is needed, so whoever has the weights can do it. Each function returns a changed copy that
[`score`] takes like any model, and leaves the model it got as it is. A retrained model changes under these attacks too:
run it, the original and the unlearned model through the same one and compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import nn

from hf_unlearn.models.linear import weight_modules
from hf_unlearn.models.modes import plain_copy


@torch.no_grad()
def pruned(model: nn.Module, fraction: float) -> nn.Module:
    """A copy in which the smallest entries of all linear weights together are 0 (global magnitude pruning).

    Args:
        model (`PreTrainedModel` or `PeftModel`): stays as it is.
        fraction (`float`): share of the entries, in [0, 1]. Exactly `round(fraction * entries)` become 0; of equally large
            ones, the first.

    Raises:
        ValueError: the fraction is not a share, or see [`plain_copy`] and [`linear_modules`].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be between 0 and 1, not {fraction}.")
    model = plain_copy(model)
    weights = [module.weight for module in weight_modules(model).values()]
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
    """The largest `t` with at most `k` magnitudes below it, by bisection: memory is bounded by the largest layer."""
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
    """A copy with independent Gaussian noise on every linear weight.

    Args:
        model (`PreTrainedModel` or `PeftModel`): stays as it is.
        relative_std (`float`): standard deviation of the noise on a weight matrix, over that of its entries.
        seed (`int`, *optional*, defaults to `0`): models of one architecture get the same noise, but for its scale.

    Raises:
        ValueError: `relative_std` is negative, or see [`plain_copy`] and [`linear_modules`].
    """
    if not relative_std >= 0:
        raise ValueError(f"relative_std must not be negative, it is {relative_std}.")
    model = plain_copy(model)
    generator = torch.Generator().manual_seed(seed)  # of the CPU, so that the device does not matter
    for module in weight_modules(model).values():
        weight = module.weight
        noise = torch.randn(weight.shape, generator=generator).to(
            weight.device, torch.promote_types(weight.dtype, torch.float32)
        )
        weight.copy_(weight + relative_std * weight.to(noise.dtype).std() * noise)
    return model


@torch.no_grad()
def averaged(unlearned: nn.Module, original: nn.Module, weight: float) -> nn.Module:
    """A copy on the way from the unlearned model back to the original: `(1 - weight) * unlearned + weight * original`.

    An attack of someone who has both. Its yardstick is the same mixture of the retrained model with the original.

    Args:
        unlearned, original (`PreTrainedModel` or `PeftModel`): of one architecture; both stay as they are.
        weight (`float`): share of the original; 0 gives the unlearned model. Beyond 1, or below 0, it extrapolates.

    Raises:
        ValueError: the models have other weights than each other, or see [`plain_copy`].
    """
    model = plain_copy(unlearned)
    other = plain_copy(original) if hasattr(original, "merge_and_unload") else original
    ours, theirs = (dict(_floating_weights(side)) for side in (model, other))
    if {name: value.shape for name, value in ours.items()} != {name: value.shape for name, value in theirs.items()}:
        raise ValueError(
            "The unlearned model and the original have not the same weights, so they have no average. Give two models of "
            "one architecture."
        )
    for name, value in ours.items():
        wide = torch.promote_types(value.dtype, torch.float32)
        value.copy_(torch.lerp(value.to(wide), theirs[name].detach().to(value.device, wide), weight))
    return model


def _floating_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers with their names; a tied one comes once."""
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        if value.is_floating_point():
            yield name, value


#: Attacks on the weights of one model: name -> changed copy. `quantization.WEIGHT_ATTACKS` has these and quantization.
PERTURBATIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "pruned 10%": lambda model: pruned(model, 0.1),
    "pruned 30%": lambda model: pruned(model, 0.3),
    "pruned 50%": lambda model: pruned(model, 0.5),
    "noise 1%": lambda model: noised(model, 0.01),
    "noise 10%": lambda model: noised(model, 0.1),
    "noise 30%": lambda model: noised(model, 0.3),
}
