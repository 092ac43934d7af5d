"""Tensors of which a process has a part, as FSDP 2 keeps parameters and their gradients."""

from __future__ import annotations

from torch import Tensor


def is_sharded(x: Tensor) -> bool:
    """Whether it is a `DTensor`."""
    return hasattr(x, "device_mesh")


def local(x: Tensor) -> Tensor:
    """The part of this process; all of a tensor that is not sharded."""
    return x.to_local() if is_sharded(x) else x


def whole(x: Tensor) -> Tensor:
    """All of the tensor, in every process. Each process must call it."""
    return x.full_tensor() if is_sharded(x) else x


def placed_like(x: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, cut as `other` is; where they are alike already, the tensor itself. Each process must call it."""
    if not is_sharded(other) or is_sharded(x):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(other.device), other.device_mesh, other.placements)
