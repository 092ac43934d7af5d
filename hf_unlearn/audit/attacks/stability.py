"""Output stability: how far apart the distributions are that two models predict, record by record.

For equal models every distance is 0 and every agreement 1. Two models that were both retrained without the forget set
also differ: their distance, from [`null_band`], is the yardstick.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_unlearn.audit.attacks.attack import KINDS, attack
from hf_unlearn.audit.measures.statistic import Statistic
from hf_unlearn.audit.records import AuditRecords, Found
from hf_unlearn.audit.table.streaming import (
    by_record,
    check_comparable,
    encode_examples,
    in_memory,
    n_outputs,
    side_by_side,
    stacked,
    warn_of_broken,
)
from hf_unlearn.models.likelihood import is_image_classifier
from hf_unlearn.models.modes import fresh_copy
from hf_unlearn.statistics.estimate import known_mean


# The name of a distance when the two models swap places; all others are symmetric.
_SWAPPED = {"kl_ref_model": "kl_model_ref", "kl_model_ref": "kl_ref_model"}
_AGREEMENTS = ("top1_agreement", "top5_agreement")
# The largest value of the distances that have one.
_LARGEST = {"js": math.log(2), "tv": 1.0, "top1_agreement": 1.0, "top5_agreement": 1.0}
TOP = 5


def distances(
    model,
    reference,
    processing_class,
    examples: Iterable,
    batch_size: int = 8,
    max_length: int | None = None,
    truncate: bool = False,
) -> dict[str, np.ndarray]:
    """Distances between the predictions of two models, averaged over the targets of each record.

    Each batch is reduced at once, so that memory does not depend on the number of examples.

    Args:
        model, reference (`PreTrainedModel`, `str` or callable): the audited model and, as a rule, the retrained one, with
            the same tokenizer or classes. A model given by its name, or as a function that loads it, is loaded for as
            long as it is needed; both are in memory together.
        processing_class, examples, batch_size, max_length, truncate: as for [`score`].

    Returns:
        `dict[str, float64 (n,)]`, NaN for a record without targets or with NaN logits (a warning names these). Each is a
        mean over the positions that predict a target, never over padding or the prompt:

        - `kl_ref_model`: KL(reference || model) in nats, 0 or more; infinite where the model rules out what the
          reference does not;
        - `kl_model_ref`: KL(model || reference);
        - `js`: Jensen-Shannon divergence, half of KL(p || m) plus half of KL(q || m) with m = (p + q) / 2, in nats,
          from 0 to ln 2;
        - `tv`: total variation, half of the sum of |p - q|, from 0 to 1;
        - `top1_agreement`: share of targets for which both have the same most likely token, from 0 to 1.

        For images also `activation_distance`, the L2 norm of the difference of the probabilities (as in Chundawat et
        al., arXiv 2205.08096), and with more than five classes `top5_agreement`, the share of the five most likely
        classes that both models have in common.

    Raises:
        ValueError: the models have different vocabularies or classes, or an example cannot be encoded.
    """
    with in_memory(model, reference) as models:
        check_comparable(models)
        names = distance_names(is_image_classifier(models[0]), n_outputs(models[0]))
        rows = encode_examples(models, processing_class, examples, max_length, truncate)

        def means(inputs: dict[str, Tensor]) -> np.ndarray:
            n = len(inputs["labels"])
            total, count = np.zeros((n, len(names))), np.zeros((n, 1))
            for (ours, theirs), _, owners in side_by_side(models, inputs):
                np.add.at(total, owners, divergences(ours, theirs, names))
                count[:, 0] += np.bincount(owners, minlength=n)
            return total / count

        found = by_record(models, rows, batch_size, means, "Comparing two models")
    values = stacked(found, (len(names),))
    warn_of_broken(values, rows)
    return dict(zip(names, values, strict=True))


def zrf(model, processing_class, examples: Iterable, seed: int = 0, **options) -> np.ndarray:
    """Zero retrain forgetting of each record: `1 - js` to an untrained network (Chundawat et al., arXiv 2205.08096).

    The divergence is summed over the classes, so that it reaches ln 2. Published code also divides it by their number,
    after which every model scores about 1.

    Args:
        model, processing_class, examples, options: as for [`distances`].
        seed (`int`, *optional*, defaults to `0`): of the weights of the untrained network.

    Returns:
        `float64 (n,)` from 1 - ln 2 to 1, higher = more like a network that knows nothing. **Best near that of the
        retrained model**, which knows the other classes; 1 is not the goal.
    """
    with in_memory(model) as (loaded,):
        return 1 - distances(loaded, fresh_copy(loaded, seed), processing_class, examples, **options)["js"]


def pairwise_distances(
    models: Sequence, processing_class, examples: Iterable, **options
) -> list[dict[str, np.ndarray]]:
    """[`distances`] between every two of `k` models that were retrained with different seeds, for [`null_band`].

    Models given by their names, or as functions that load them, are loaded in turn: no more than two of them are in
    memory at a time. The other arguments are those of [`distances`].

    Returns:
        `list` of `k * (k - 1) / 2` results of [`distances`], in the order of `itertools.combinations`.

    Raises:
        ValueError: there are fewer than two models.
    """
    if len(models) < 2:
        raise ValueError(f"Give two retrained models or more, trained with different seeds, not {len(models)}.")
    examples, found = examples if hasattr(examples, "__getitem__") else list(examples), []
    for i, first in enumerate(models[:-1]):
        with in_memory(first) as (loaded,):
            found += [distances(loaded, second, processing_class, examples, **options) for second in models[i + 1 :]]
            del loaded
    return found


@dataclass(frozen=True)
class NullBand:
    """How far apart models are that were all retrained without the forget set.

    Attributes:
        values (`dict[str, float64 (k,)]`): the mean over the records for each pair; for a KL divergence in both
            directions, since either model may be the reference.
        bound (`dict[str, float]`): their 97.5th percentile, or the 2.5th of an agreement; a model beyond it is farther
            from a retrained model than these are from each other. With fewer than 40 values it is the extreme one, and a
            further retrained model may well exceed it: three seeds are few.
        n_pairs (`int`): number of pairs. They are not independent, as they share models.
    """

    values: dict[str, np.ndarray]
    bound: dict[str, float]
    n_pairs: int


def null_band(pairs: Sequence[Mapping[str, np.ndarray]]) -> NullBand:
    """The distances to be expected between retrained models, from those of every pair.

    Args:
        pairs (sequence): from [`pairwise_distances`].

    Raises:
        ValueError: there is no pair.
    """
    if not pairs:
        raise ValueError("There are no distances between retrained models. Give those of at least one pair.")
    values, bound = {}, {}
    for name in pairs[0]:
        directions = [name, _SWAPPED[name]] if name in _SWAPPED else [name]
        means = np.array([known_mean(pair[direction]) for direction in directions for pair in pairs])
        # Not interpolated: between few values a percentile would lie inside all of them.
        share, method = (0.025, "lower") if name in _AGREEMENTS else (0.975, "higher")
        values[name] = means
        bound[name] = math.nan if np.isnan(means).any() else float(np.quantile(means, share, method=method))
    return NullBand(values, bound, len(pairs))


def distance_names(images: bool, n_classes: int) -> tuple[str, ...]:
    """Names of the distances that [`divergences`] can measure between models of this kind."""
    names = ("kl_ref_model", "kl_model_ref", "js", "tv", "top1_agreement")
    if images:
        names += ("activation_distance",)
    # The five most likely of five classes are always the same.
    return (*names, "top5_agreement") if images and n_classes > TOP else names


def divergences(logits: Tensor, reference_logits: Tensor, names: Sequence[str]) -> np.ndarray:
    """The named distances of two models at each target: logits `(t, outputs)` of both -> `float64 (t, names)`.

    Works through the targets in chunks, so that memory beyond the logits is bounded whatever the vocabulary. Log-
    probabilities may be given in place of logits.
    """
    # On the CPU 1 MB in float32, which stays in its cache; elsewhere 64 MB, so that a launch has enough to do.
    chunk = max(1, (2**18 if logits.device.type == "cpu" else 2**24) // logits.shape[-1])
    found = [
        torch.stack(_divergences_of_chunk(ours, theirs, names), dim=1).cpu().double().numpy()
        for ours, theirs in zip(logits.split(chunk), reference_logits.split(chunk), strict=True)
    ]
    values = np.concatenate(found) if found else np.zeros((0, len(names)))
    # Rounding may lead beyond the ends of the range.
    return np.clip(values, 0, [_LARGEST.get(name, math.inf) for name in names])


def _divergences_of_chunk(logits: Tensor, reference: Tensor, names: Sequence[str]) -> list[Tensor]:
    dtype = torch.promote_types(logits.dtype, reference.dtype)
    log_p, log_q = logits.to(dtype).log_softmax(-1), reference.to(dtype).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    middle = ((p + q) / 2).clamp(min=torch.finfo(p.dtype).tiny)
    found = {
        "kl_ref_model": _kl(q, log_q, log_p),
        "kl_model_ref": _kl(p, log_p, log_q),
        # From ratios and not from differences of logarithms: exactly 0 where p = q.
        "js": (torch.xlogy(p, p / middle) + torch.xlogy(q, q / middle)).sum(-1) / 2,
        "tv": (p - q).abs().sum(-1) / 2,
        "top1_agreement": (_first_largest(logits) == _first_largest(reference)).to(p.dtype),
    }
    if "activation_distance" in names:
        found["activation_distance"] = (p - q).square().sum(-1).sqrt()
    if "top5_agreement" in names:
        ours, theirs = (z.sort(dim=-1, descending=True, stable=True).indices[:, :TOP] for z in (logits, reference))
        found["top5_agreement"] = (ours[:, :, None] == theirs[:, None, :]).any(-1).to(p.dtype).mean(-1)
    # Logits that are NaN have no order either.
    broken = found["js"].isnan()
    return [found[name].masked_fill(broken, torch.nan) for name in names]


def _kl(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q); an output that p rules out adds 0, whatever q gives it."""
    return (p * (log_p - log_q)).masked_fill(p == 0, 0.0).sum(-1)


def _first_largest(logits: Tensor) -> Tensor:
    """Index of the largest logit, the first one on ties: on some devices argmax may name any of them."""
    index = torch.arange(logits.shape[-1], device=logits.device)
    return torch.where(logits == logits.amax(-1, keepdim=True), index, logits.shape[-1]).amin(-1)


@attack(kinds=("image",))
def likeness_to_untrained(model, records: AuditRecords) -> Found:
    """How alike a classifier is to a network that knows nothing (ZRF), which the retrained model is not either."""
    rows, config = records.rows("forget"), records.config
    values = zrf(model, records.processing_class, rows, seed=config.seed, batch_size=config.batch_size)
    direction = "as retrained is best; 1 = like an untrained network"
    return Found({Statistic("zrf", "forget", direction, records=records.positions()): values})


@attack(kinds=KINDS, beside=("retrained",))
def distance_to_retrained(model, records: AuditRecords, retrained) -> Iterator[Found]:
    """Output stability: how far the predictions are from those of the retrained model, on every set."""
    for name in ("forget", "retain", "holdout"):
        rows = records.rows(name)
        if not len(rows):
            continue
        found = distances(
            model, retrained, records.processing_class, rows, records.config.batch_size, **records.lengths
        )
        positions = records.positions() if name == "forget" else None
        for distance, values in found.items():
            direction = "1 = as retrained" if distance in _AGREEMENTS else "0 = as retrained"
            bounds = (0.0, _LARGEST.get(distance, math.inf))
            statistic = Statistic(f"{distance}_to_retrained", name, direction, records=positions, bounds=bounds)
            yield Found({statistic: values})
