"""The blocks of a transformer: what they return, and what the model answers if they return something else.

Layer `l` is the state after block `l`, counted from 1; layer 0 is what goes into the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from hf_unlearn.data.rows import IGNORE_INDEX
from hf_unlearn.models.blocks import find_blocks
from hf_unlearn.models.likelihood import is_image_classifier, scored_positions, target_logits, target_statistics


def blocks_of(model: nn.Module) -> tuple[nn.Module, str]:
    try:
        return find_blocks(model)
    except ValueError:
        raise ValueError(
            f"No list of blocks was found in {type(model).__name__}, so its layers cannot be looked into. Leave this audit "
            "out."
        ) from None


def states_of(
    model: nn.Module, blocks: Sequence[nn.Module], inputs: dict[str, Tensor], keep: Callable = lambda state: state
) -> list[Tensor]:
    """What `keep` makes of the state `(rows, length, width)` before the first block and after each: one pass, no logits."""
    kept = []

    def before(module, args, kwargs):
        kept.append(keep(args[0] if args else kwargs["hidden_states"]))

    def after(module, args, output):
        kept.append(keep(output[0] if isinstance(output, tuple) else output))

    with ExitStack() as hooks:
        hooks.callback(blocks[0].register_forward_pre_hook(before, with_kwargs=True).remove)
        for block in blocks:
            hooks.callback(block.register_forward_hook(after).remove)
        target_logits(model, {**inputs, "labels": torch.full_like(inputs["labels"], IGNORE_INDEX)})
    return kept


@contextmanager
def output_replaced(block: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a block return something else than it computes."""

    def after(module, args, output):
        if isinstance(output, tuple):
            return (change(output[0]).to(output[0]), *output[1:])
        return change(output).to(output)

    hook = block.register_forward_hook(after)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def cut_to_one(parent: nn.Module, name: str) -> Iterator[None]:
    """Leave only the first of the blocks in the model."""
    whole = getattr(parent, name)
    setattr(parent, name, whole[:1])
    try:
        yield
    finally:
        setattr(parent, name, whole)


def log_probs_and_hits(model: nn.Module, inputs: dict[str, Tensor], limit: int) -> np.ndarray:
    """Log-probability of each target, and whether it is the most likely token: `float64 (2, t)`, row after row."""
    parts = []
    for labels in _labels_in_parts(inputs["labels"], limit):
        out = target_logits(model, {**inputs, "labels": labels})
        found = target_statistics(out.logits, out.targets)
        parts.append(np.stack([of.cpu().numpy().astype(np.float64) for of in (found.log_prob, found.hit)]))
    return np.concatenate(parts, axis=1)


def _labels_in_parts(labels: Tensor, limit: int) -> Iterator[Tensor]:
    """The labels with only some of the targets in them, so that all of a text need not have logits at once."""
    scored = labels != IGNORE_INDEX
    if labels.dim() == 2:
        scored[:, 0] = False  # nothing predicts the first token
    place = scored.flatten().cumsum(0).view_as(scored) - 1
    for start in range(0, int(scored.sum()), limit):
        yield labels.masked_fill(~(scored & (place >= start) & (place < start + limit)), IGNORE_INDEX)


def reading_positions(model: nn.Module, inputs: dict[str, Tensor], length: int) -> Tensor:
    """Where the states are from which targets are predicted: `bool (rows, length)`."""
    if not is_image_classifier(model):
        return nn.functional.pad(scored_positions(inputs["labels"]), (0, 1))
    has_class_token = any(name.endswith("cls_token") for name, _ in model.named_parameters())
    place = torch.arange(length, device=inputs["labels"].device)
    return ((place == 0) | (not has_class_token)).expand(len(inputs["labels"]), length)
