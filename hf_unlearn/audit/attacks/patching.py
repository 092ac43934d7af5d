"""Unlearning depth: from which layer on the states of the unlearned model lack what the original knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_unlearn.audit.attacks.attack import KINDS, attack
from hf_unlearn.audit.measures.statistic import Statistic
from hf_unlearn.audit.records import AuditRecords, Found
from hf_unlearn.audit.table.streaming import (
    by_record,
    check_comparable,
    encode_examples,
    in_memory,
    inputs_for,
    max_targets,
    split_by_row,
    stacked,
    warn_of_broken,
)
from hf_unlearn.models.blocks import all_blocks, as_tokens, backbone_config, output_replaced, states_of
from hf_unlearn.models.likelihood import log_probs_and_hits, reading_positions, scored_positions


# In nats per target, as in the paper.
THRESHOLD = 0.05


@dataclass(frozen=True)
class PatchingDepth:
    """How deep the unlearning of each record goes, for `layers` blocks and `n` records.

    Attributes:
        depth (`float64 (n,)`): from 0, where the states hold what those of the original hold, to 1, where they lack as
            much as those of the retrained model; **best near 1**. NaN for a record without targets or with NaN logits, and
            where the states of the retrained model lower the answer of the original in no layer.
        drop_unlearned, drop_retrained (`float64 (layers, n)`): by how much the mean log-probability of a target under the
            original falls with the states of that model in a layer, in nats.
    """

    depth: np.ndarray
    drop_unlearned: np.ndarray
    drop_retrained: np.ndarray


def patching_depth(
    original,
    unlearned,
    retrained,
    processing_class,
    examples: Iterable,
    batch_size: int = 8,
    max_length: int | None = None,
    truncate: bool = False,
) -> PatchingDepth:
    """Unlearning depth by activation patching (Lee et al., arXiv 2605.24614).

    The states of a layer of the original, where they predict targets, are replaced by those of the retrained or the
    unlearned model, and the rest of the original answers. Only layers count in which the retrained model lowers the
    log-probability by more than 0.05 nats per target, as in the paper. The depth is the share of this drop that the
    unlearned model causes too, in each layer between 0 and 1, weighted by the drop of the retrained model. For an image
    the state of the class token is replaced where the head reads that alone, else all states.

    All three models are in memory, and the original runs two passes per layer.

    Args:
        original, unlearned, retrained (`PreTrainedModel`, `str` or callable): of one architecture.
        processing_class, examples, batch_size, max_length, truncate: as for [`score`].

    Raises:
        ValueError: the models have different shapes, no blocks are found in them, or an example cannot be encoded.
    """
    with in_memory(original, unlearned, retrained) as models:
        check_comparable(models)
        blocks = [all_blocks(model) for model in models]
        widths = [_width(backbone_config(model)) for model in models]
        if any(width != widths[0] for width in widths) or len(set(map(len, blocks))) > 1:
            raise ValueError(
                f"The models have {', '.join(str(len(layers)) for layers in blocks)} blocks of width "
                f"{', '.join(map(str, widths))}. States can only be exchanged between models of one shape."
            )
        rows = encode_examples(models, processing_class, examples, max_length, truncate)
        limit = max_targets(models[:1])

        def means_of_patched(inputs: dict[str, Tensor]) -> np.ndarray:
            inputs = inputs_for(models[0], inputs)
            means = [_mean_log_probs(models[0], inputs, limit)]
            for model, own in zip(models[1:], blocks[1:], strict=True):
                for block, state in zip(blocks[0], states_of(model, own, inputs_for(model, inputs))[1:], strict=True):
                    with output_replaced(block, partial(_patched, models[0], inputs, state)):
                        means.append(_mean_log_probs(models[0], inputs, limit))
            return np.stack(means, axis=1)

        found = by_record(models, rows, batch_size, means_of_patched, "Patching the layers")
    n_layers = len(blocks[0])
    means = stacked(found, (1 + 2 * n_layers,))
    warn_of_broken(means, rows)
    drop_unlearned, drop_retrained = (means[0] - means[1:]).reshape(2, n_layers, len(found))
    counts = drop_retrained > THRESHOLD
    weight = np.where(counts, drop_retrained, 0.0)
    share = np.clip(drop_unlearned / np.where(counts, drop_retrained, 1.0), 0, 1)
    total = weight.sum(axis=0)
    depth = (weight * share).sum(axis=0) / np.where(total > 0, total, np.nan)
    depth[np.isnan(means).any(axis=0)] = np.nan
    return PatchingDepth(depth, drop_unlearned, drop_retrained)


def _mean_log_probs(model: nn.Module, inputs: dict[str, Tensor], limit: int) -> np.ndarray:
    """Mean log-probability of a target of each row: `float64 (rows,)`."""
    owners = scored_positions(inputs["labels"]).nonzero()[:, 0].cpu().numpy()
    log_probs = log_probs_and_hits(model, inputs, limit)[0]
    return np.array([values.mean() for values in split_by_row(log_probs, owners, len(inputs["labels"]))])


def _width(config) -> Any:
    return getattr(config, "hidden_sizes", None) or getattr(config, "hidden_size", None)


def _patched(model: nn.Module, inputs: dict[str, Tensor], state: Tensor, output: Tensor) -> Tensor:
    tokens = as_tokens(output, len(inputs["labels"]))
    read = reading_positions(model, inputs, tokens.shape[1])
    if read.all():  # whatever the layout of the states
        return state
    return torch.where(read[:, :, None], state.to(output), output)


@attack(kinds=KINDS, threat="latent", beside=("original", "retrained"), roles=("unlearned",), requires=(all_blocks,))
def depth_of_unlearning(model, records: AuditRecords, original, retrained) -> Found:
    """In how many layers the states lack what the original has, as those of the retrained model do."""
    rows, batch_size = records.rows("forget"), records.config.batch_size
    found = patching_depth(original, model, retrained, records.processing_class, rows, batch_size, **records.lengths)
    statistic = Statistic("patching_depth", "forget", "1 = as deep as retraining", records=records.positions())
    return Found({statistic: found.depth})
