"""The passes of a model over encoded rows: what goes in, in how much memory, and what is kept of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache

from hf_unlearn.audit.table import batching
from hf_unlearn.audit.table.batching import Batch, Span
from hf_unlearn.data.images import ImageRows
from hf_unlearn.data.pairing import UnlearningCollator, on_device
from hf_unlearn.data.rows import IGNORE_INDEX
from hf_unlearn.models.likelihood import (
    empty_cache,
    max_logits,
    target_logits,
    target_logits_in_parts,
    target_statistics,
)


# As deep as anything goes that is worth its passes.
MAX_DEPTH = 8
#: Where values are among those computed: pairs of start and length, which follow each other in a row.
Places = list[tuple[int, int]]


@dataclass
class _Read:
    """Spans that a model has read: keys and values, attention mask, and the line of each span in both."""

    cache: Cache
    mask: Tensor
    line: dict[Span, int]


class Passes:
    """The passes of a model in evaluation mode over encoded rows with targets, which leave a few numbers per target.

    The rows are cut into pieces of work that do not depend on the number of processes.

    * Beginnings that rows of text share are read once, if the model has a cache to go on from ([`batching.plan`]).
    * A pass has at most `max_logits` logits. A single row with more is read part by part.
    * Padding repeats a token of its own row, so that the weights of no token outside a row have a part in it.

    Attributes:
        lengths (`int64 (rows,)`): number of targets of each row.
        columns (`dict[str, list]`): the arrays computed so far: `(targets,)`, or `(targets, classes)` for the
            `class_log_probs` of images.
        places (`dict[int, Places]`): where the targets of each row are in them.
    """

    def __init__(self, model, rows: Sequence[dict], batch_size: int, sampling=()):
        self.model, self.rows, self.batch_size, self.sampling = model, rows, batch_size, sampling
        self.has_images = isinstance(rows, ImageRows) or (len(rows) > 0 and "pixel_values" in rows[0])
        self.columns: dict[str, list[np.ndarray]] = defaultdict(list)
        self.places: dict[int, Places] = {}
        self._n_computed = 0
        if self.has_images:
            self.lengths = np.ones(len(rows), dtype=np.int64)
            self.max_targets = batch_size
            return
        self.max_targets = max(1, max_logits(model.device) // model.config.get_text_config().vocab_size)
        self._symbols = [batching.symbols(row["input_ids"], row["labels"]) for row in rows]
        self.lengths = np.array([batching.n_targets(row[1:]) for row in self._symbols], dtype=np.int64)
        cache = empty_cache(model)
        # Spans of various lengths leave gaps of padding, and a gap between two of them would count in the distances of a
        # sliding window. With no more than one before the last, all padded to one length, it can be on the left.
        self._slides = cache is not None and any(cache.is_sliding)
        self._max_depth = 0 if cache is None else 1 if self._slides else MAX_DEPTH

    def batches(self) -> list[Batch]:
        """The pieces of work."""
        if self.has_images:
            every = [Span(i, 0, 0) for i in range(len(self.rows))]
            return [Batch([every[k : k + self.batch_size]]) for k in range(0, len(every), self.batch_size)]
        return batching.plan(self._symbols, self.batch_size, self.max_targets, self._max_depth)

    def run(self, batch: Batch) -> None:
        """Run a piece of work, and keep what it leaves."""
        if not batch.shared:
            for spans in batch.last:
                self._run_whole([span.row for span in spans])
            return
        # Two depths are in memory at most: the one read last, and the one that goes on from it.
        read: _Read | None = None
        places: dict[Span | None, Places] = {None: []}
        for depth in range(len(batch.shared) + 1):
            for spans in batch.last:
                if spans[0].depth == depth:
                    found, _ = self._run_spans(spans, read)
                    self.places |= {s.row: [*places[s.parent], at] for s, at in zip(spans, found, strict=True)}
            if depth == len(batch.shared):
                return
            width = max(len(span) for spans in batch.shared[depth] for span in spans) if self._slides else 0
            parts = []
            for spans in batch.shared[depth]:
                found, part = self._run_spans(spans, read, width)
                parts.append(part)
                places |= {s: [*places[s.parent], at] for s, at in zip(spans, found, strict=True)}
            read = self._joined(parts)

    def _run_whole(self, rows: list[int]) -> None:
        """Run rows that share nothing."""
        encoded = [self.rows[i] for i in rows]
        if self.has_images:
            inputs = on_device(UnlearningCollator()(encoded), self.model.device)
        else:
            inputs = self._padded([row["input_ids"][:-1] for row in encoded], [row["labels"] for row in encoded])
            if self.lengths[rows[0]] > self.max_targets:
                parts = target_logits_in_parts(self.model, inputs, self.max_targets)
                self.places[rows[0]] = [self._keep(*part, [len(part[1])])[0] for part in parts]
                return
        out = target_logits(self.model, inputs)
        for i, place in zip(rows, self._keep(out.logits, out.targets, out.lengths.tolist()), strict=True):
            self.places[i] = [place]

    def _run_spans(self, spans: list[Span], before: _Read | None, left_width: int = 0) -> tuple[Places, _Read]:
        """Read spans that follow their parents. Returns the places of the values of their targets, and what was read."""
        inputs = self._padded(
            [self.rows[span.row]["input_ids"][span.start : span.end] for span in spans],
            [self.rows[span.row]["labels"][span.start : span.end + 1] for span in spans],
            left_width,
        )
        cache = empty_cache(self.model)
        if before is not None:
            lines = torch.tensor([before.line[span.parent] for span in spans], device=self.model.device)
            inputs["attention_mask"] = torch.cat([before.mask[lines], inputs["attention_mask"]], dim=1)
            cache = copy(before.cache)
            cache.layers = [copy(layer) for layer in before.cache.layers]
            cache.batch_select_indices(lines)
        out = target_logits(self.model, {**inputs, "past_key_values": cache})
        places = self._keep(out.logits, out.targets, out.lengths.tolist())
        return places, _Read(cache, inputs["attention_mask"], {span: k for k, span in enumerate(spans)})

    def _joined(self, parts: list[_Read]) -> _Read:
        """The spans of several passes, padded as those of one."""
        if len(parts) == 1:
            return parts[0]
        longest = max(part.mask.shape[1] for part in parts)
        gaps = [longest - part.mask.shape[1] for part in parts]
        joined = parts[0]
        for layers in zip(*(part.cache.layers for part in parts), strict=True):
            for name in ("keys", "values"):
                states = [F.pad(getattr(layer, name), (0, 0, 0, gap)) for layer, gap in zip(layers, gaps, strict=True)]
                for layer in layers:
                    setattr(layer, name, None)  # or there would be twice as much in memory
                setattr(layers[0], name, torch.cat(states))
        joined.mask = torch.cat([F.pad(part.mask, (0, gap)) for part, gap in zip(parts, gaps, strict=True)])
        every = [span for part in parts for span in part.line]
        joined.line = {span: k for k, span in enumerate(every)}
        return joined

    def _keep(self, logits: Tensor, targets: Tensor, lengths: list[int]) -> Places:
        """Reduce the logits of several rows, one after the other, and return the places of their values."""
        table = target_statistics(logits, targets, self.sampling)
        kept = vars(table) | {f"sampled/{key}": values for key, values in table.sampled.items()}
        del kept["sampled"]
        if self.has_images:
            broken = table.log_prob.isnan()[:, None]
            kept["class_log_probs"] = logits.log_softmax(-1).masked_fill(broken, torch.nan)
        for name, values in kept.items():
            self.columns[name].append(values.cpu().numpy())
        starts = list(accumulate(lengths, initial=self._n_computed))
        self._n_computed = starts[-1]
        return list(zip(starts, lengths, strict=False))

    def _padded(
        self, ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], left_width=0
    ) -> dict[str, Tensor]:
        """A batch, padded on the right, or on the left to the width given.

        The last token of a row is predicted, but need not be read, so there is one label more.
        """

        def pad(rows: Sequence[Sequence[int]], filler: Sequence[int], more: int = 0) -> Tensor:
            width = left_width + more if left_width else max(map(len, rows))
            gaps = [[value] * (width - len(row)) for row, value in zip(rows, filler, strict=True)]
            return torch.tensor([[*g, *row] if left_width else [*row, *g] for row, g in zip(rows, gaps, strict=True)])

        batch = {
            "input_ids": pad(ids, [row[-1] for row in ids]),
            "attention_mask": pad([[1] * len(row) for row in ids], [0] * len(ids)),
            "labels": pad(labels, [IGNORE_INDEX] * len(ids), more=1),
        }
        return on_device(batch, self.model.device)
