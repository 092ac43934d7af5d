"""Work that several processes share, as under `torchrun` or `accelerate launch`; with one process, nothing special."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch


T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """Number of this process and of all; `(0, 1)` where no process group was started."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def gathered(work: Callable[[], T]) -> list[T]:
    """Do `work` in every process, which each must call this, and give each the results of all, in their order.

    Where the work fails in one process it fails in all, as the others would wait forever.

    Raises:
        RuntimeError: the work failed in another process; the message has the kind of its error and no more.
    """
    rank, world = rank_and_world()
    if world == 1:
        return [work()]
    result, error = None, None
    try:
        result = work()
    except Exception as caught:
        error = caught
    outcomes: list = [None] * world
    torch.distributed.all_gather_object(outcomes, (result, type(error).__name__ if error else None))
    if error is not None:
        raise error
    for other, (_, failure) in enumerate(outcomes):
        if failure is not None:
            raise RuntimeError(
                f"Process {other} of {world} stopped with {failure}: see its own error. This is process {rank}."
            )
    return [result for result, _ in outcomes]


def of_the_first(work: Callable[[], T]) -> T:
    """Do `work` in the first process alone and give every process its result. Every process must call it."""
    return gathered(lambda: work() if rank_and_world()[0] == 0 else None)[0]


def is_divided(model: torch.nn.Module) -> bool:
    """Whether a process holds only a part of the weights (FSDP, ZeRO-3): then all must run every pass together."""
    marks = ("device_mesh", "ds_id", "_is_flat_param")
    return any(hasattr(parameter, mark) for parameter in model.parameters() for mark in marks)
