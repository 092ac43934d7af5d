"""Which weights may move, and how far: what a setting holds, whatever the optimizer does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from torch import Tensor, nn

from hf_unlearn.training.low_rank import SingularSubspace
from hf_unlearn.training.saliency import SaliencyMask
from hf_unlearn.training.subspace import Subspace


class Constraint(Protocol):
    """Holds a part of the weights at the start of the run. The trainer calls it at three places.

    Attributes:
        reads (`str` or `None`): rows that `prepare` needs batches of, `"forget"` or `"retain"`; `None` for none.
        linear_only (`bool`): whether it says something of the weights of linear layers alone; all others are frozen.
    """

    reads: str | None
    linear_only: bool

    def prepare(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]] = ()) -> None:
        """Read the model at its very start; once, also when a run is resumed."""

    def after_backward(self) -> None:
        """Change the gradients of a backward pass, before they are clipped."""

    def after_step(self) -> None:
        """Undo what an optimizer step has done to weights that are held."""


def constraints_of(args) -> dict[str, Constraint]:
    """The constraints that an [`UnlearningConfig`] asks for, by the setting that asks for each (as one would write it)."""
    found: dict[str, Constraint] = {}
    if args.saliency is not None:
        found[f"saliency={args.saliency}"] = SaliencyMask(args.saliency)
    if args.singular_rank is not None:
        found[f"singular_rank={args.singular_rank}"] = SingularSubspace(args.singular_rank, args.singular_part)
    if args.update_rule == "subspace":
        found['update_rule="subspace"'] = Subspace(args.subspace_energy)
    return found
