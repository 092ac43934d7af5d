"""Log-likelihoods of targets: the tokens of an answer under a causal LM, the one label of an image under a classifier.

A classifier is a model with a one-token answer, so code that is written in terms of [`TargetLogits`] serves both kinds of
model without a branch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_unlearn.data.rows import IGNORE_INDEX
from hf_unlearn.models.modes import unwrapped
from hf_unlearn.models.sampling import Sampling


# Logits that are reduced at a time: 1 MB in float32 stays in the cache of a CPU, 64 MB give a launch enough to do.
CHUNK_ON_CPU, CHUNK_ELSEWHERE = 2**18, 2**24


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
            ends = torch.tensor([start, start + size], device=self.rows.device)
            part = slice(*torch.searchsorted(self.rows, ends))
            parts[name] = TargetLogits(self.logits[part], self.targets[part], self.rows[part] - start, size)
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


def reading_positions(model: nn.Module, inputs: Mapping[str, Tensor], length: int) -> Tensor:
    """The positions of the states that targets are predicted from: `bool (rows, length)`.

    For an image this is the class token where the head reads that alone, as in a ViT, else every token: heads read their mean
    (BEiT), both (DINOv2), or a second token (a distilled DeiT).
    """
    if not is_image_classifier(model):
        return F.pad(scored_positions(inputs["labels"]), (0, 1))
    width, head = getattr(model.config, "hidden_size", None), getattr(model, "classifier", None)
    has_class_token = any(name.endswith("cls_token") for name, _ in model.named_parameters())
    reads_it = head is not None and getattr(head, "in_features", width) == width
    alone = has_class_token and reads_it and not getattr(model.config, "use_mean_pooling", False)
    place = torch.arange(length, device=inputs["labels"].device)
    return ((place == 0) | (not alone)).expand(len(inputs["labels"]), length)


def target_logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> TargetLogits:
    """Run the model once and return the logits of the targets in `inputs["labels"]`.

    For a causal LM the labels have the shape of `input_ids`, -100 where nothing is scored, or one column more, as the last
    token need not be read to be predicted; the vocabulary projection runs at the scored positions only. For an image
    classifier they are `(batch,)`. Padding may stand on either side.

    Args:
        model (`nn.Module`): a causal LM or an image classifier, possibly wrapped (PEFT, DDP, `torch.compile`).
        inputs (`Mapping`): what the model's forward takes, and `labels`. With `past_key_values`, the attention mask
            covers what is in that cache and the columns of `input_ids`.
    """
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    scored = scored_positions(labels)
    rows = scored.nonzero()[:, 0]
    if labels.dim() == 1:
        logits = model(**inputs).logits[scored[:, 0]]
        return TargetLogits(at_least_fp32(logits), labels[scored[:, 0]], rows, len(labels))
    # The logits at a position predict the next one.
    predicting = F.pad(scored, (0, inputs["input_ids"].shape[1] - scored.shape[1]))
    return TargetLogits(logits_at(model, inputs, predicting), labels[:, 1:][scored], rows, len(labels))


def max_logits(device: torch.device) -> int:
    """Logits of one pass that may be in memory: 64 MB in float32 on the CPU, 512 MB elsewhere."""
    return 2**24 if device.type == "cpu" else 2**27


def target_logits_in_parts(
    model: nn.Module, inputs: Mapping[str, Tensor], max_targets: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """[`target_logits`] of a causal LM for one row without padding, in order: pairs of logits and targets.

    Each part of the text goes on from the keys and values of those before it, so that no token is computed twice and at
    most `max_targets` rows of logits are in memory. A model without such a cache gives all of them at once.
    """
    length, labels = inputs["input_ids"].shape[1], inputs["labels"]
    predicting = F.pad(scored_positions(labels), (0, length + 1 - labels.shape[1]))
    targets = F.pad(labels[:, 1:], (0, length + 1 - labels.shape[1]))
    cache, start = empty_cache(model), 0
    # A part ends with the last of its positions; what comes after the last target of all is not needed.
    past = (predicting[0].nonzero()[:, 0] + 1).tolist()
    ends = [*past[max_targets - 1 : -1 : max_targets], *past[-1:]]
    for end in [length] if cache is None else ends:
        part = {"input_ids": inputs["input_ids"][:, start:end], "attention_mask": inputs["attention_mask"][:, :end]}
        if cache is not None:
            part["past_key_values"] = cache
        keep = predicting[:, start:end]
        yield logits_at(model, part, keep), targets[:, start:end][keep]
        start = end


def empty_cache(model: nn.Module):
    """A `DynamicCache` for the keys and values of the model, or `None` where a text can't be continued from one.

    Models with a recurrent state or without position ids cannot, nor can wrappers that bring a cache of their own (prefix
    tuning) or cut the batch (`DataParallel`).
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    config, peft_config = getattr(model, "config", None), getattr(model, "active_peft_config", None)
    if config is None or isinstance(model, nn.DataParallel) or getattr(peft_config, "is_prompt_learning", False):
        return None
    if getattr(config, "is_encoder_decoder", False) or getattr(model, "_is_stateful", False):
        return None
    if not {"past_key_values", "position_ids"} <= forward_parameters(model).keys():
        return None
    cache = DynamicCache(config=config)
    return cache if {type(layer) for layer in cache.layers} <= {DynamicLayer, DynamicSlidingWindowLayer} else None


def logits_at(model: nn.Module, inputs: Mapping[str, Tensor], keep: Tensor) -> Tensor:
    """Logits `(n_kept, n_classes)` of a causal LM at the positions that `keep (batch, length)` marks, row by row."""
    parameters = forward_parameters(model)
    inputs = {**inputs, "use_cache": "past_key_values" in inputs}
    if "position_ids" in parameters and "position_ids" not in inputs and "attention_mask" in inputs:
        # Absolute positions count real tokens: without this, padding on the left shifts them. The mask covers what is
        # in the cache, too; the last columns are those that are read now.
        positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        inputs["position_ids"] = positions[:, -keep.shape[1] :]
    if "logits_to_keep" in parameters:
        inputs["logits_to_keep"] = keep
    logits = model(**inputs).logits
    if logits.dim() == 3:  # a model that cannot be told which logits to keep
        logits = logits[keep]
    return at_least_fp32(logits)


def at_least_fp32(logits: Tensor) -> Tensor:
    """The logits in float32 if they have 16 bit, else as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def forward_parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Parameters of the forward of the transformers model inside the wrappers."""
    model = unwrapped(model, run=False)
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    return inspect.signature(model.forward).parameters


@dataclass
class TargetStatistics:
    """A few numbers per target, see [`hf_unlearn.audit.Scores`] for their meaning; every tensor is `(n_targets,)`."""

    log_prob: Tensor
    hit: Tensor
    rank: Tensor
    mean: Tensor
    std: Tensor
    margin: Tensor
    sampled: dict[str, Tensor]


def log_probs_and_hits(model: nn.Module, inputs: Mapping[str, Tensor], limit: int) -> np.ndarray:
    """Log-probability of each target, and whether it is the most likely token: `float64 (2, t)`, at most `limit` per pass."""
    scored = inputs["labels"] != IGNORE_INDEX
    if scored.dim() == 2:
        scored[:, 0] = False  # nothing predicts the first token
    place = scored.flatten().cumsum(0).view_as(scored) - 1
    parts = []
    for start in range(0, int(scored.sum()), limit):
        due = scored & (place >= start) & (place < start + limit)
        out = target_logits(model, {**inputs, "labels": inputs["labels"].masked_fill(~due, IGNORE_INDEX)})
        found = target_statistics(out.logits, out.targets)
        parts.append(np.stack([x.cpu().numpy().astype(np.float64) for x in (found.log_prob, found.hit)]))
    return np.concatenate(parts, axis=1)


def target_statistics(logits: Tensor, targets: Tensor, sampling: Iterable[Sampling] = ()) -> TargetStatistics:
    """Reduce logits `(n_targets, n_classes)` to a few numbers per target.

    Works through the rows in chunks, so that memory beyond the logits themselves is bounded whatever the vocabulary (three
    temporaries of a chunk). Where logits are NaN or infinite (`-inf` for some of them is fine), all values are NaN, `hit`
    is false and `rank` is `n_classes`, behind every token.

    Args:
        sampling (iterable of [`Sampling`], *optional*): schemes to keep the log-probability of the target under.
    """
    max_elements = CHUNK_ON_CPU if logits.device.type == "cpu" else CHUNK_ELSEWHERE
    # Gradients have no business here, and the buffers below could not have any.
    logits = logits.detach()
    n_rows = min(len(logits), max(1, max_elements // max(1, logits.shape[-1])))
    # Three buffers for all intermediate results: memory that is fresh each time takes longer than the arithmetic. They
    # hold comparisons too, as 0 and 1, which are several times faster than those into booleans.
    kind = torch.promote_types(logits.dtype, torch.float32)
    buffers = [logits.new_empty(n_rows, logits.shape[-1], dtype=kind) for _ in range(3)]
    chunks = [
        _statistics_of_chunk(z.to(kind), y, sampling, *(buffer[: len(z)] for buffer in buffers))
        for z, y in zip(logits.split(max(1, n_rows)), targets.split(max(1, n_rows)), strict=True)
    ]
    values = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
    sampled = {key: values.pop(key) for key in dict.fromkeys(s.key for s in sampling)}
    return TargetStatistics(**values, sampled=sampled)


def _statistics_of_chunk(logits: Tensor, targets: Tensor, sampling, below, p, other) -> dict[str, Tensor]:
    own, top = logits.gather(1, targets[:, None]), logits.amax(-1, keepdim=True)
    torch.sub(logits, top, out=below)
    n_top = torch.eq(logits, top, out=other).sum(-1)
    # Push those at the top out of the way, and the next largest is the second.
    second = other.mul_(-1e30).add_(below).amax(-1)
    margin = torch.where((n_top > 1) | (logits.shape[-1] == 1), 0.0, -second)
    rank = torch.gt(logits, own, out=other).sum(-1).nan_to_num().long()
    # The first index wins a tie, on every device: topk and argmax do not promise it. Ties at the top are rare.
    hit = rank == 0
    tied = (hit & (n_top > 1)).nonzero()[:, 0]
    hit[tied] = (logits[tied] == top[tied]).int().argmax(-1) == targets[tied]

    # p ln p is 0 where p is 0, not NaN: `-inf` becomes a number so low that its p is 0 all the same.
    torch.exp(below.clamp_(min=-1e6), out=p)
    total = p.sum(-1, keepdim=True)
    mean = torch.mul(p, below, out=other).sum(-1, keepdim=True) / total
    # Two passes: the difference of moments breaks down for nearly deterministic tokens.
    variance = p.mul_(below.sub_(mean).square_()).sum(-1) / total[:, 0]
    values = {
        "log_prob": (own - top - total.log())[:, 0],
        "mean": (mean - total.log())[:, 0],
        "std": variance.sqrt(),
        "margin": margin,
        **{s.key: _sampled_log_prob(logits, targets, own, top, rank, s, below) for s in sampling},
    }
    # `-inf` is a token that the model may not say, which is no error unless all of them are.
    broken = ~top[:, 0].isfinite()
    values = {name: value.masked_fill(broken, torch.nan) for name, value in values.items()}
    return values | {"hit": hit & ~broken, "rank": rank.masked_fill(broken, logits.shape[-1])}


def _sampled_log_prob(logits, targets, own, top, rank, scheme, buffer: Tensor) -> Tensor:
    """Log-probability of drawing the target, in the order of transformers' warpers: temperature, top-k, top-p."""
    if scheme.top_p < 1:
        return warped(logits, scheme).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    log_odds = ((own - top) / scheme.temperature)[:, 0]
    if not 0 < scheme.top_k < logits.shape[-1]:
        total = torch.sub(logits, top, out=buffer).div_(scheme.temperature).exp_().sum(-1)
        return log_odds - total.log()
    kept = logits.topk(scheme.top_k, dim=-1).values
    # Tokens that are level with the last one are kept, however many there are.
    n_level = torch.eq(logits, kept[:, -1:], out=buffer).sum(-1) - (kept == kept[:, -1:]).sum(-1)
    weights = ((kept - top) / scheme.temperature).exp()
    total = weights.sum(-1) + n_level * weights[:, -1]
    return (log_odds - total.log()).masked_fill(rank >= scheme.top_k, -torch.inf)


def warped(logits: Tensor, scheme: Sampling) -> Tensor:
    """The logits `(rows, n_classes)` after the warpers of transformers: -inf for the tokens that the scheme removes."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = at_least_fp32(logits)
    if scheme.temperature != 1:
        logits = TemperatureLogitsWarper(scheme.temperature)(None, logits)
    if scheme.top_k > 0:
        logits = TopKLogitsWarper(scheme.top_k)(None, logits)
    if scheme.top_p < 1:
        logits = TopPLogitsWarper(scheme.top_p)(None, logits)
    return logits
