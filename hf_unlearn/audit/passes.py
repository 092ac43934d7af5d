"""The passes of a model over encoded rows: what goes in, in how much memory, and what is kept of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor

from hf_unlearn.data.images import ImageRows
from hf_unlearn.data.pairing import UnlearningCollator
from hf_unlearn.likelihood import (
    IGNORE_INDEX,
    empty_cache,
    target_logits,
    target_logits_in_parts,
    target_statistics,
)

from . import batching
from .batching import Batch


def max_logits(device: torch.device) -> int:
    """Logits of one pass that may be in memory: 64 MB in float32 on the CPU, 512 MB elsewhere."""
    return 2**24 if device.type == "cpu" else 2**27


class Passes:
    """The passes of one model over encoded rows, and what they leave: a few numbers a target.

    The rows are cut into pieces of work that do not depend on how many processes do them.

    * What rows share at their beginning is read once, where the model has a cache to go on from ([`batching.plan`]).
    * A pass has at most `max_logits` logits. Where a single row has more, it is read part by part.
    * Padding repeats a token of its own row, so that the weights of no token outside a row have a part in it.

    Args:
        model (`PreTrainedModel` or `PeftModel`): in evaluation mode.
        rows (sequence of encoded rows): of text or of images, each with at least one target.
        batch_size (`int`): rows a pass.
        sampling (sequence of [`Sampling`]): schemes to keep the log-probability of.

    Attributes:
        lengths (`int64 (rows,)`): number of targets of each row.
        order (`list[int]`): the rows that were run so far.
        columns (`dict[str, list]`): their values, in that order: arrays `(targets,)`, and `class_log_probs` of images
            `(targets, classes)`.
    """

    def __init__(self, model, rows: Sequence[dict], batch_size: int, sampling=()):
        self.model, self.rows, self.batch_size, self.sampling = model, rows, batch_size, sampling
        self.of_images = isinstance(rows, ImageRows) or (len(rows) > 0 and "pixel_values" in rows[0])
        self.order: list[int] = []
        self.columns: dict[str, list[np.ndarray]] = defaultdict(list)
        if self.of_images:
            self.lengths = np.ones(len(rows), dtype=np.int64)
            self.max_targets = batch_size
            return
        self.max_targets = max(1, max_logits(model.device) // model.config.get_text_config().vocab_size)
        self.scored = [np.flatnonzero(np.asarray(row["labels"][1:]) != IGNORE_INDEX) for row in rows]
        self.lengths = np.array([len(positions) for positions in self.scored], dtype=np.int64)

    def batches(self) -> list[Batch]:
        """The pieces of work."""
        if self.of_images:  # all of one size, so there is no order to prefer
            return [Batch(rows, []) for rows in self._cut(range(len(self.rows)))]
        return batching.plan(
            [row["input_ids"] for row in self.rows],
            [int(positions[0]) for positions in self.scored],
            self.lengths,
            self.batch_size,
            self.max_targets,
            share=empty_cache(self.model) is not None,
        )

    def _cut(self, rows) -> list[list[int]]:
        return batching.passes(rows, self.lengths, self.batch_size, self.max_targets)

    def run(self, batch: Batch) -> None:
        """Run a piece of work, and keep what it leaves."""
        if batch.stems:
            self._go_on(batch)
            return
        rows = [self.rows[i] for i in batch.rows]
        self.order += batch.rows
        if self.of_images:
            inputs = self._to_device(UnlearningCollator()(rows))
        else:
            inputs = self._padded([row["input_ids"][:-1] for row in rows], [row["labels"] for row in rows])
            if self.lengths[batch.rows[0]] > self.max_targets:
                for logits, targets in target_logits_in_parts(self.model, inputs, self.max_targets):
                    self._keep(logits, targets)
                return
        out = target_logits(self.model, inputs)
        self._keep(out.logits, out.targets)

    def _go_on(self, batch: Batch) -> None:
        """Read what the rows begin with, and then each of them from there."""
        stems = {i: self.rows[i]["input_ids"][:n] for i, n in zip(batch.rows, batch.stems, strict=True)}
        cache, mask, place = self._read(list(dict.fromkeys(stems.values())))
        rows = sorted(batch.rows, key=lambda i: (len(stems[i]) - len(self.rows[i]["input_ids"]), i))
        for part in self._cut(rows):
            inputs = self._padded(
                [self.rows[i]["input_ids"][len(stems[i]) : -1] for i in part],
                [self.rows[i]["labels"][len(stems[i]) :] for i in part],
            )
            index = torch.tensor([place[stems[i]] for i in part], device=self.model.device)
            inputs["attention_mask"] = torch.cat([mask[index], inputs["attention_mask"]], dim=1)
            inputs["past_key_values"] = of_part = copy(cache)
            of_part.layers = [copy(layer) for layer in cache.layers]
            of_part.batch_select_indices(index)
            out = target_logits(self.model, inputs)
            self.order += part
            self._keep(out.logits, out.targets)

    def _read(self, stems: list[tuple[int, ...]]):
        """The keys and values of the stems, their attention mask, and the place of each in both."""
        cache = empty_cache(self.model)
        # The gap that padding leaves between a stem and what follows would count in the distances of a sliding window.
        slides = any(cache.is_sliding)
        header = () if slides else batching.header(stems)
        if header:
            target_logits(self.model, {**self._padded([header]), "past_key_values": cache})
            cache.batch_select_indices(torch.zeros(len(stems), dtype=torch.long, device=self.model.device))
        inputs = self._padded([stem[len(header) :] for stem in stems], on_left=slides)
        read = inputs["attention_mask"].new_ones(len(stems), len(header))
        inputs["attention_mask"] = torch.cat([read, inputs["attention_mask"]], dim=1)
        target_logits(self.model, {**inputs, "past_key_values": cache})
        return cache, inputs["attention_mask"], {stem: k for k, stem in enumerate(stems)}

    def _padded(self, ids: Sequence[Sequence[int]], labels=None, on_left: bool = False) -> dict[str, Tensor]:
        """A batch; without labels nothing is scored. The last token of a row is only predicted, so labels have one more."""

        def pad(rows: Sequence[Sequence[int]], filler: Sequence[int]) -> Tensor:
            longest = max(map(len, rows))
            gaps = [[value] * (longest - len(row)) for row, value in zip(rows, filler, strict=True)]
            return torch.tensor([[*g, *row] if on_left else [*row, *g] for row, g in zip(rows, gaps, strict=True)])

        return self._to_device(
            {
                "input_ids": pad(ids, [row[-1] for row in ids]),
                "attention_mask": pad([[1] * len(row) for row in ids], [0] * len(ids)),
                "labels": pad(labels or [[IGNORE_INDEX] * len(row) for row in ids], [IGNORE_INDEX] * len(ids)),
            }
        )

    def _to_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def _keep(self, logits: Tensor, targets: Tensor) -> None:
        table = target_statistics(logits, targets, self.sampling)
        kept = {name: getattr(table, name) for name in ("log_prob", "hit", "rank", "mean", "std", "margin")}
        kept |= {f"sampled/{key}": values for key, values in table.sampled.items()}
        if self.of_images:
            broken = table.log_prob.isnan()[:, None]
            kept["class_log_probs"] = logits.log_softmax(-1).masked_fill(broken, torch.nan)
        for name, values in kept.items():
            self.columns[name].append(values.cpu().numpy())
