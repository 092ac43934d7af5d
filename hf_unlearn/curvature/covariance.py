"""Second moments of the inputs of weight matrices, streamed: memory is bounded by the matrices, not by the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from hf_unlearn.models.likelihood import target_logits
from hf_unlearn.models.modes import evaluating
from hf_unlearn.models.weights import WeightMatrix


logger = logging.get_logger(__name__)

Reader = Callable[[WeightMatrix, Sequence, "Tensor | None"], list[Tensor]]


def input_covariances(
    model: nn.Module, matrices: Iterable[WeightMatrix], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, list[Tensor]]:
    """Sum over all tokens of `x x^T` for the inputs `x` of each matrix, not centered. Padding does not count.

    Args:
        matrices (iterable of [`WeightMatrix`]): those whose inputs can be seen, see [`inputs_are_seen`].

    Returns:
        `dict[str, list]`: `float64 (d_in, d_in)` for each of `matrix.by_input()`, by name of the matrix; matrices with the
        same input (queries, keys and values) share one tensor. A matrix whose module is not called is missing; an expert
        that no token reaches has zeros.
    """
    matrices = list(matrices)
    sums: dict[str, list[Tensor]] = {}
    owner: dict[str, str] = {}  # by matrix, the first one with the same input, which adds it up
    last: dict[str, Tensor] = {}
    mask: Tensor | None = None

    def hook(matrix: WeightMatrix, read: Reader):
        name = matrix.name

        def add(module, args, kwargs):
            args = (*args, *kwargs.values())
            if name not in owner:
                same = (other for other, seen in last.items() if read is _tokens and seen is args[0])
                owner[name] = next(same, name)
                if read is _tokens:
                    last[name] = args[0]
            if owner[name] == name:
                moments = [x.T @ x for x in map(Tensor.double, read(matrix, args, mask))]
                sums[name] = [a + b for a, b in zip(sums[name], moments, strict=True)] if name in sums else moments

        return add

    hooks = [m.module.register_forward_pre_hook(hook(m, _reader(m)), with_kwargs=True) for m in matrices]
    try:
        with torch.no_grad(), evaluating(model):
            for batch in batches:
                mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
                target_logits(model, batch)
                last.clear()
    finally:
        for handle in hooks:
            handle.remove()
    if missing := [matrix.name for matrix in matrices if matrix.name not in owner]:
        logger.warning(
            f"No input of {len(missing)} weight matrices was seen, such as {missing[0]}: no row reaches them, or the model "
            "reads them past their modules. They stay as they are."
        )
    return {name: sums[first] for name, first in owner.items()}


def inputs_are_seen(matrix: WeightMatrix) -> bool:
    """Whether [`input_covariances`] knows what the matrix is multiplied with: linear layers, routers, convolutions over one
    or two axes, and fused experts with the layout that transformers declares."""
    return _reader(matrix) is not None


def _reader(matrix: WeightMatrix) -> Reader | None:
    module, leaf = matrix.module, matrix.name.rpartition(".")[2]
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return _patches
    if isinstance(module, (nn.Linear, Conv1D)):
        return _tokens
    if matrix.parameter.dim() == 2 and leaf == "weight" and not list(module.children()):
        return _tokens  # a router
    if matrix.is_stack and isinstance(getattr(module, "has_gate", None), bool) and matrix.parameter.dim() == 3:
        return {"gate_up_proj": _routed, "up_proj": _routed, "down_proj": _between}.get(leaf)
    return None


def _tokens(matrix: WeightMatrix, args: Sequence, mask: Tensor | None) -> list[Tensor]:
    x = args[0].detach()
    if mask is not None and x.dim() == 3 and x.shape[:2] == mask.shape:
        x = x[mask]
    elif mask is not None and x.dim() == 2 and len(x) == mask.numel():  # the layers of a mixture get one row per token
        x = x[mask.flatten()]
    return [x.reshape(-1, x.shape[-1])]


def _patches(matrix: WeightMatrix, args: Sequence, mask: Tensor | None) -> list[Tensor]:
    """What a kernel is multiplied with, for each group of channels: `(positions, channels of the group x kernel)`."""
    module, x = matrix.module, args[0].detach()
    # As torch pads itself where the padding has a name ("same") or is not of zeros.
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode)
    options = [module.kernel_size, module.dilation, module.stride]
    if isinstance(module, nn.Conv1d):
        x, options = x.unsqueeze(-2), [(1, *value) for value in options]
    kernel, dilation, stride = options
    columns = F.unfold(x, kernel, dilation, stride=stride)
    columns = columns.unflatten(1, (module.groups, -1))  # (rows, groups, d, positions)
    return [group.transpose(1, 2).flatten(0, 1) for group in columns.unbind(1)]


def _routed(matrix: WeightMatrix, args: Sequence, mask: Tensor | None) -> list[Tensor]:
    """The tokens that each expert gets."""
    hidden, chosen = args[0].detach().flatten(0, -2), args[1].flatten(0, -2)
    counted = mask.flatten() if mask is not None and mask.numel() == len(hidden) else True
    return [hidden[(chosen == i).any(-1) & counted] for i in range(len(matrix.parameter))]


def _between(matrix: WeightMatrix, args: Sequence, mask: Tensor | None) -> list[Tensor]:
    """What the first projection of each expert and its activation make of these tokens."""
    module = matrix.module
    name = "gate_up_proj" if module.has_gate else "up_proj"
    biases = getattr(module, f"{name}_bias") if module.has_bias else None
    inputs = []
    for i, x in enumerate(_routed(matrix, args, mask)):
        weight = getattr(module, name)[i]
        x = x @ weight if module.is_transposed else F.linear(x, weight)
        x = x if biases is None else x + biases[i]
        inputs.append(module._apply_gate(x) if module.has_gate else module.act_fn(x))
    return inputs
