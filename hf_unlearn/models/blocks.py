"""Hidden states of a block, from a forward pass that ends there."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_unlearn.data.rows import IGNORE_INDEX
from hf_unlearn.models.likelihood import target_logits


def find_blocks(model: nn.Module) -> tuple[nn.Module, str]:
    """Where the blocks of a transformer are: the module that holds them and the name of the list.

    Raises:
        ValueError: no list of modules is as long as the model is deep.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                return parent, name
    raise ValueError(
        f"No list of {depth} blocks was found in {type(model).__name__}, so its activations cannot be steered. Choose a "
        "method on the outputs (npo, graddiff)."
    )


@dataclass
class BlockCalls:
    """What the blocks `first ... last` were called with, and what the last one returned.

    Attributes:
        output (`Tensor (rows, length, width)`): of the block `last`.
    """

    blocks: list[nn.Module]
    calls: list[tuple[tuple, dict[str, Any]]] = field(default_factory=list)
    output: Tensor | None = None

    def replay(self, rows: slice) -> Tensor:
        """Run the blocks again on some rows, from what came into the first one."""
        n = len(self.output)
        hidden = _cut(self.calls[0][0][0], rows, n)
        for block, (args, kwargs) in zip(self.blocks, self.calls, strict=True):
            out = block(hidden, *_cut(args[1:], rows, n), **_cut(kwargs, rows, n))
            hidden = out[0] if isinstance(out, tuple) else out
        return hidden


def _cut(value, rows: slice, n: int):
    """The same rows of every tensor that has them; masks and positions that all rows share stay whole."""
    if isinstance(value, Tensor):
        return value[rows] if value.dim() and len(value) == n else value
    if isinstance(value, tuple):
        return tuple(_cut(item, rows, n) for item in value)
    if isinstance(value, Mapping):
        return {key: _cut(item, rows, n) for key, item in value.items()}
    return value


def run_to_block(model: nn.Module, base: nn.Module, inputs: Mapping[str, Tensor], first: int, last: int) -> BlockCalls:
    """Run a model as far as the block `last`: no later block, no logits.

    The pass goes through `model`, which may be wrapped (DDP), so that its hooks see it. Nothing is cut off the model but
    for the time of the pass.

    Args:
        base (`nn.Module`): the transformers model inside `model`.
        inputs (`Mapping`): what the model's forward takes, and `labels`, which do not matter.
        first (`int`): the first block whose call is kept.
        last (`int`): index of the block to stop after.
    """
    parent, name = find_blocks(base)
    blocks = getattr(parent, name)
    seen = BlockCalls(list(blocks[first : last + 1]))

    def keep_call(module, args, kwargs):
        seen.calls.append((args, kwargs))

    def keep_output(module, args, output):
        seen.output = output[0] if isinstance(output, tuple) else output

    hooks = [block.register_forward_pre_hook(keep_call, with_kwargs=True) for block in seen.blocks]
    hooks.append(blocks[last].register_forward_hook(keep_output))
    nothing_scored = torch.full_like(inputs["labels"], IGNORE_INDEX)
    try:
        with _shortened(parent, name, last + 1):
            target_logits(model, {**inputs, "labels": nothing_scored})
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@contextmanager
def _shortened(parent: nn.Module, name: str, n: int):
    # Not by an exception out of the forward, which would leave DDP waiting for the gradients of this pass.
    whole = getattr(parent, name)
    setattr(parent, name, whole[:n])
    try:
        yield
    finally:
        setattr(parent, name, whole)
