"""The blocks of a transformer: find them, read their states, leave some out, change their output.

Layer `l` is the state after block `l`, counted from 1; layer 0 is the input of the first block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_unlearn.data.rows import IGNORE_INDEX
from hf_unlearn.models.likelihood import target_logits


_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """Index of the transformer layer that a parameter belongs to, by its name; `None` outside the layers."""
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


def find_blocks(
    model: nn.Module, otherwise: str = "its layers cannot be looked into. Leave this audit out"
) -> tuple[nn.Module, str]:
    """Where the blocks of a transformer are: the module that holds them and the name of the list.

    Args:
        otherwise (`str`, *optional*): for the error: what cannot be done without the blocks, and what to do instead.

    Raises:
        ValueError: no list of modules is as long as the model is deep.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                return parent, name
    raise ValueError(f"No list of {depth} blocks was found in {type(model).__name__}, so {otherwise}.")


@contextmanager
def shortened(parent: nn.Module, name: str, n: int) -> Iterator[None]:
    """Leave only the first `n` blocks in the model for a while."""
    # Not by an exception out of the forward, which would leave DDP waiting for the gradients of this pass.
    whole = getattr(parent, name)
    setattr(parent, name, whole[:n])
    try:
        yield
    finally:
        setattr(parent, name, whole)


@contextmanager
def output_replaced(block: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a block return `change(state)` in place of its state for a while."""

    def after(module, args, output):
        if isinstance(output, tuple):
            return (change(output[0]).to(output[0]), *output[1:])
        return change(output).to(output)

    with block.register_forward_hook(after):
        yield


def states_of(
    model: nn.Module, blocks: Sequence[nn.Module], inputs: dict[str, Tensor], keep: Callable = lambda state: state
) -> list[Tensor]:
    """`keep(state)` of the state `(rows, length, width)` before the first block and after each: one pass, no logits."""
    kept = []

    def before(module, args, kwargs):
        kept.append(keep(args[0] if args else kwargs["hidden_states"]))

    def after(module, args, output):
        kept.append(keep(_state(output)))

    with ExitStack() as hooks:
        hooks.enter_context(blocks[0].register_forward_pre_hook(before, with_kwargs=True))
        for block in blocks:
            hooks.enter_context(block.register_forward_hook(after))
        _run_unscored(model, inputs)
    return kept


@dataclass
class BlockCalls:
    """The arguments that consecutive blocks were called with, and the `output (rows, length, width)` of the last one."""

    blocks: list[nn.Module]
    calls: list[tuple[tuple, dict[str, Any]]] = field(default_factory=list)
    output: Tensor | None = None

    def replay(self, rows: slice) -> Tensor:
        """Run the blocks again on some rows, from the input of the first block."""
        n = len(self.output)
        hidden = _cut(self.calls[0][0][0], rows, n)
        for block, (args, kwargs) in zip(self.blocks, self.calls, strict=True):
            hidden = _state(block(hidden, *_cut(args[1:], rows, n), **_cut(kwargs, rows, n)))
        return hidden


def run_to_block(model: nn.Module, base: nn.Module, inputs: Mapping[str, Tensor], first: int, last: int) -> BlockCalls:
    """Run a model up to the block `last` and keep the calls from the block `first` on: no later block, no logits.

    The pass goes through `model`, which may be wrapped (DDP), so that its hooks see it.

    Args:
        base (`nn.Module`): the transformers model inside `model`.
        inputs (`Mapping`): what the model's forward takes, and `labels`, which do not matter.
        first, last (`int`): indices of blocks.
    """
    parent, name = find_blocks(base)
    blocks = getattr(parent, name)
    seen = BlockCalls(list(blocks[first : last + 1]))

    def keep_call(module, args, kwargs):
        seen.calls.append((args, kwargs))

    def keep_output(module, args, output):
        seen.output = _state(output)

    with ExitStack() as hooks:
        for block in seen.blocks:
            hooks.enter_context(block.register_forward_pre_hook(keep_call, with_kwargs=True))
        hooks.enter_context(blocks[last].register_forward_hook(keep_output))
        hooks.enter_context(shortened(parent, name, last + 1))
        _run_unscored(model, inputs)
    return seen


def _run_unscored(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Run a pass without a target, so that the head has nothing to do."""
    target_logits(model, {**inputs, "labels": torch.full_like(inputs["labels"], IGNORE_INDEX)})


def _state(output) -> Tensor:
    """A block returns its state, or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output


def _cut(value, rows: slice, n: int):
    """The same rows of every tensor that has them; masks and positions that all rows share stay whole."""
    if isinstance(value, Tensor):
        return value[rows] if value.dim() and len(value) == n else value
    if isinstance(value, tuple):
        return tuple(_cut(item, rows, n) for item in value)
    if isinstance(value, Mapping):
        return {key: _cut(item, rows, n) for key, item in value.items()}
    return value
