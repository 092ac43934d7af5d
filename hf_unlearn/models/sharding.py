"""Tensors of which a process has a part, as FSDP 2 keeps parameters and their gradients."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn


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


def whole_copy(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A model on the CPU with the whole weights of one that is spread over processes, its adapters beside them.

    Args:
        model (`PreTrainedModel` or `PeftModel`): of which this process has a part.
        state (`Mapping`): all its weights by name, as `Accelerator.get_state_dict` gathers them for the first process.
    """
    from torch.distributed.fsdp import FSDPModule

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # FSDP 2 gives the model a class of its own, derived from the one that it had.
    plain = next(one for one in type(base).__mro__ if not issubclass(one, FSDPModule))
    copied = plain(copy.deepcopy(base.config))
    if base is not model:
        from peft import get_peft_model

        for name, config in model.peft_config.items():
            copied = get_peft_model(copied, config, adapter_name=name)
    copied.load_state_dict(state, assign=True)
    (copied.get_base_model() if base is not model else copied).tie_weights()
    return copied.eval()
