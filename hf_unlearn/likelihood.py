"""Log-likelihoods of targets: the tokens of an answer under a causal LM, the one label of an image under a classifier.

The only place that touches logits. A classifier is a model with a one-token answer, so whatever is written in terms
of [`TargetLogits`] serves both kinds of model without a branch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn


IGNORE_INDEX = -100


@dataclass
class TargetLogits:
    """Logits at the scored positions of a batch, flattened example after example.

    Args:
        logits (`Tensor (n_targets, n_classes)`): row `i` predicts `targets[i]`; at least float32.
        targets (`Tensor (n_targets,)`): token or class ids.
        rows (`Tensor (n_targets,)`): the example each target belongs to, ascending.
        n_rows (`int`): number of examples; one without targets is allowed.
        counts (`tuple`, *optional*): `(number of targets, number of examples)` of the whole optimizer step, over all
            micro-batches and processes, divided by the number of processes (whose gradients are averaged). The means
            below divide by them, so that accumulation and data parallelism change nothing. Defaults to the counts of
            this batch.
    """

    logits: Tensor
    targets: Tensor
    rows: Tensor
    n_rows: int
    counts: tuple[Tensor | float, Tensor | float] | None = None

    @cached_property
    def log_probs(self) -> Tensor:
        """ln p(target), in nats: `(n_targets,)`."""
        return -F.cross_entropy(self.logits, self.targets, reduction="none")

    @cached_property
    def lengths(self) -> Tensor:
        """Number of targets of each example: `(n_rows,)`."""
        return torch.bincount(self.rows, minlength=self.n_rows)

    def sequence_sum(self, values: Tensor) -> Tensor:
        """Sum values of targets `(n_targets,)` into values of examples `(n_rows,)`."""
        return values.new_zeros(self.n_rows).index_add(0, self.rows, values)

    @cached_property
    def sequence_log_probs(self) -> Tensor:
        """ln p(answer | prompt), summed over the answer: `(n_rows,)`."""
        return self.sequence_sum(self.log_probs)

    def token_mean(self, values: Tensor) -> Tensor:
        """Mean over the targets of the whole step, of values `(n_targets,)`; 0 when there is no target."""
        count = self.targets.numel() if self.counts is None else self.counts[0]
        return values.sum() / _at_least_one(count)

    def sequence_mean(self, values: Tensor) -> Tensor:
        """Mean over the examples of the whole step, of values `(n_rows,)`."""
        count = self.n_rows if self.counts is None else self.counts[1]
        return values.sum() / _at_least_one(count)

    def split(self, sizes: Mapping[str, int]) -> dict[str, TargetLogits]:
        """Cut a fused batch into named parts of consecutive examples; `sizes` sum to `n_rows`."""
        parts, start = {}, 0
        for name, size in sizes.items():
            first, last = torch.searchsorted(self.rows, torch.tensor([start, start + size], device=self.rows.device))
            parts[name] = TargetLogits(
                self.logits[first:last], self.targets[first:last], self.rows[first:last] - start, size
            )
            start += size
        return parts


def _at_least_one(count):
    # 0 / 0 would make NaN gradients of a batch that has nothing to score. A count divided by the number of processes
    # may be a fraction below 1, and is right as it is.
    if isinstance(count, Tensor):
        return torch.where(count > 0, count, torch.ones_like(count))
    return count if count > 0 else 1


def is_image_classifier(model: nn.Module) -> bool:
    """Whether the model takes images and answers with one label; otherwise it is a causal language model."""
    return getattr(model, "main_input_name", "input_ids") == "pixel_values"


def scored_positions(labels: Tensor) -> Tensor:
    """Which positions have a target, `(batch, length - 1)` for token labels (shifted), `(batch, 1)` for class labels."""
    shifted = labels[:, 1:] if labels.dim() == 2 else labels[:, None]
    return shifted != IGNORE_INDEX


def target_logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> TargetLogits:
    """Run the model once and return the logits of the targets in `inputs["labels"]`.

    For a causal LM the labels have the shape of `input_ids`, -100 where nothing is scored; the vocabulary projection
    runs at the scored positions only. For an image classifier they are `(batch,)`. Padding may stand on either side.

    Args:
        model (`nn.Module`): a causal LM or an image classifier, possibly wrapped (PEFT, DDP, `torch.compile`).
        inputs (`Mapping`): what the model's forward takes, and `labels`.
    """
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    scored = scored_positions(labels)
    rows = scored.nonzero()[:, 0]
    if labels.dim() == 1:
        logits = model(**inputs).logits[scored[:, 0]]
        return TargetLogits(_at_least_fp32(logits), labels[scored[:, 0]], rows, len(labels))

    targets = labels[:, 1:][scored]
    keep = F.pad(scored, (0, 1))  # the logits at a position predict the next one
    parameters = _forward_parameters(model)
    inputs["use_cache"] = False
    if "position_ids" in parameters and "position_ids" not in inputs and "attention_mask" in inputs:
        # Absolute positions count real tokens: without this, padding on the left shifts them.
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    if "logits_to_keep" in parameters:
        inputs["logits_to_keep"] = keep
    logits = model(**inputs).logits
    if logits.dim() == 3:  # a model that cannot be told which logits to keep
        logits = logits[keep]
    return TargetLogits(_at_least_fp32(logits), targets, rows, len(labels))


def _at_least_fp32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _forward_parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Parameters of the forward of the transformers model inside the wrappers."""
    while inner := getattr(model, "module", None) or getattr(model, "_orig_mod", None):  # DDP, torch.compile
        model = inner
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    return inspect.signature(model.forward).parameters


@dataclass
class TargetStatistics:
    """A few numbers a target, see [`hf_unlearn.audit.Scores`] for their meaning; every tensor is `(n_targets,)`."""

    log_prob: Tensor
    hit: Tensor
    rank: Tensor
    mean: Tensor
    std: Tensor
    margin: Tensor
    sampled: dict[str, Tensor]


def target_statistics(
    logits: Tensor, targets: Tensor, sampling=(), max_elements: int | None = None
) -> TargetStatistics:
    """Reduce logits `(n_targets, n_classes)` to a few numbers a target.

    Works through the rows in chunks of at most `max_elements` logits, so that memory beyond the logits themselves is
    bounded whatever the vocabulary (about three temporaries of a chunk).

    Args:
        sampling (iterable of objects with `temperature`, `top_k`, `top_p` and `key`, *optional*):
            schemes whose log-probability of the target is kept as well.
        max_elements (`int`, *optional*): defaults to `2**18` on the CPU (1 MB in float32, which stays in its cache) and
            to `2**24` elsewhere (64 MB, so that a launch has enough to do).
    """
    if max_elements is None:
        max_elements = 2**18 if logits.device.type == "cpu" else 2**24
    chunk = max(1, max_elements // max(1, logits.shape[-1]))
    chunks = [
        _statistics_of_chunk(z, y, sampling) for z, y in zip(logits.split(chunk), targets.split(chunk), strict=True)
    ]
    if not chunks:
        chunks = [_statistics_of_chunk(logits, targets, sampling)]

    def join(get):
        return torch.cat([get(c) for c in chunks])

    names = ("log_prob", "hit", "rank", "mean", "std", "margin")
    return TargetStatistics(
        **{name: join(lambda c, name=name: getattr(c, name)) for name in names},
        sampled={s.key: join(lambda c, key=s.key: c.sampled[key]) for s in sampling},
    )


def _statistics_of_chunk(logits: Tensor, targets: Tensor, sampling) -> TargetStatistics:
    logits = _at_least_fp32(logits)
    own = logits.gather(1, targets[:, None])
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    finite = log_p.masked_fill(p == 0, 0.0)  # p ln p is 0 where p is 0, not NaN
    mean = (p * finite).sum(-1)
    # Two passes: the difference of moments breaks down for nearly deterministic tokens.
    std = (p * (finite - mean[:, None]).square()).sum(-1).clamp(min=0).sqrt()
    top = logits.topk(min(2, logits.shape[-1]), dim=-1).values
    margin = top[:, 0] - top[:, -1]
    rank = (logits > own).sum(-1)
    # The first index wins a tie, on every device: topk and argmax do not promise it.
    first_of_ties = torch.arange(logits.shape[-1], device=logits.device) < targets[:, None]
    hit = (rank == 0) & ~((logits == own) & first_of_ties).any(-1)
    return TargetStatistics(
        log_prob=log_p.gather(1, targets[:, None])[:, 0],
        hit=hit,
        rank=rank,
        mean=mean,
        std=std,
        margin=margin,
        sampled={s.key: _sampled_log_prob(logits, targets, s) for s in sampling},
    )


def _sampled_log_prob(logits: Tensor, targets: Tensor, scheme) -> Tensor:
    """Log-probability of drawing the target, in the order of transformers' warpers: temperature, top-k, top-p."""
    z = logits / scheme.temperature
    if 0 < scheme.top_k < z.shape[-1]:
        smallest_kept = z.topk(scheme.top_k, dim=-1).values[:, -1:]
        z = z.masked_fill(z < smallest_kept, -torch.inf)
    if scheme.top_p < 1:
        # Kept are the tokens, from the least likely up, whose cumulated mass exceeds 1 - top_p; always the top one.
        order = z.argsort(dim=-1)
        mass = z.gather(1, order).softmax(-1).cumsum(-1)
        removed = mass <= 1 - scheme.top_p
        removed[:, -1] = False
        z = z.masked_fill(torch.zeros_like(removed).scatter(1, order, removed), -torch.inf)
    return z.log_softmax(-1).gather(1, targets[:, None])[:, 0]
