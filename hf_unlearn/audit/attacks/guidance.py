"""An adversary who has both checkpoints: what the model before and the model after give away together.

What changed between them points to what was forgotten, whatever the method: even a model that was retrained without the
forget set gives it away beside the original (Wu et al., arXiv 2505.24379). So the pair (original, retrained) is the
yardstick of the pair (original, unlearned), and the original alone (weight 1) is what the adversary has anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_unlearn.audit.attacks.attack import attack
from hf_unlearn.audit.measures.extraction import exact_memorization, extraction_strength, verbatim_extracted
from hf_unlearn.audit.measures.membership import loss
from hf_unlearn.audit.records import AuditRecords, Curve, Found
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.audit.table.streaming import (
    Rows,
    by_record,
    check_comparable,
    encode_examples,
    in_memory,
    n_end_of,
    side_by_side,
    split_by_row,
    targets_of,
    warn_of_broken,
)
from hf_unlearn.models.likelihood import is_image_classifier, target_statistics


# From the model after (0) to the model before (1) and beyond, where the attack of the paper is.
WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0)
_COLUMNS = ("log_prob", "hit", "rank", "mean", "std", "margin")


@dataclass(frozen=True)
class GuidedExtraction:
    """What greedy decoding under guidance reproduces, for `w` weights and `n` records; **higher = more extracted**.

    Attributes:
        weights (`tuple` of `w`): 0 is the model after, 1 the model before.
        verbatim (`float64 (w, n)`): 1 where the whole answer comes out, else 0.
        extraction_strength (`float64 (w, n)`): share of the answer that comes out by itself, in [0, 1].
        exact_memorization (`float64 (w, n)`): share of targets that are the most likely token, in [0, 1].
        log_prob (`float64 (w, n)`): mean log-probability of a target under the guided distribution, in nats.

    NaN for a record without targets or with NaN logits.
    """

    weights: tuple[float, ...]
    verbatim: np.ndarray
    extraction_strength: np.ndarray
    exact_memorization: np.ndarray
    log_prob: np.ndarray


def guided_extraction(
    before, after, processing_class, examples: Iterable, weights=WEIGHTS, **options
) -> GuidedExtraction:
    """How much of each answer comes out when the model after is guided by what changed since the model before.

    The arguments are those of [`guided_scores`].
    """
    tables = guided_scores(before, after, processing_class, examples, weights, **options)

    def by_weight(metric) -> np.ndarray:
        return np.array([np.where(table.valid, metric(table), np.nan) for table in tables], dtype=np.float64)

    return GuidedExtraction(
        weights=tuple(weights),
        verbatim=by_weight(verbatim_extracted),
        extraction_strength=by_weight(extraction_strength),
        exact_memorization=by_weight(exact_memorization),
        log_prob=-by_weight(loss),
    )


def guided_scores(
    before,
    after,
    processing_class,
    examples: Iterable,
    weights: Sequence[float] = WEIGHTS,
    batch_size: int = 8,
    max_length: int | None = None,
    truncate: bool = False,
) -> list[Scores]:
    """The table of scores under the guided distribution, for each weight; any metric of a table can be read from them.

    The guided log-probabilities are `ln p_after + w (ln p_before - ln p_after)`, normalized. The most likely token
    depends only on what precedes it, so greedy decoding under guidance need not be run: it reproduces a target exactly
    where every `hit` is true. Each model reads each example once, whatever the number of weights.

    Args:
        before, after (`PreTrainedModel`, `str` or callable): the original, and the unlearned model (or the retrained one,
            for the yardstick), with one tokenizer; both are in memory together. A model may be given by its name, or as
            a function that loads it.
        processing_class, examples, batch_size, max_length, truncate: as for [`score`].
        weights (sequence of `float`, *optional*): 0 is the model after, 1 the model before, and more than 1 goes on in
            the same direction.

    Returns:
        `list` of [`Scores`], one per weight, without sampling schemes and sizes of texts. Where guidance makes a token
        certain that one of the models rules out (a logit of `-inf`), there is no distribution: the record is missing.

    Raises:
        ValueError: there are no weights, the models have different vocabularies or classes, or an example cannot be
            encoded.
    """
    weights = tuple(float(weight) for weight in weights)
    if not weights or not np.isfinite(weights).all():
        raise ValueError(f"Give at least one weight, and finite ones, such as {WEIGHTS}, not {weights}.")
    with in_memory(before, after) as models:
        check_comparable(models)
        rows = encode_examples(models, processing_class, examples, max_length, truncate)

        def statistics(inputs: dict[str, Tensor]) -> list[np.ndarray]:
            parts, owners = [], []
            for (earlier, later), targets, rows_of_part in side_by_side(models, inputs):
                parts.append(np.stack([_columns(guided(earlier, later, w), targets) for w in weights]))
                owners.append(rows_of_part)
            return split_by_row(np.concatenate(parts, axis=-1), np.concatenate(owners), len(inputs["labels"]))

        found = by_record(models, rows, batch_size, statistics, "Guiding one model by another")
        kind = "label" if is_image_classifier(models[0]) else "tokens"
    nothing = np.zeros((len(weights), len(_COLUMNS), 0))
    values = np.concatenate([nothing, *(columns for columns in found if columns is not None)], axis=-1)
    tables = [_table(rows, dict(zip(_COLUMNS, columns, strict=True)), kind) for columns in values]
    warn_of_broken(np.where([table.not_finite for table in tables], np.nan, 0.0), rows)
    return tables


def guided(before: Tensor, after: Tensor, weight: float) -> Tensor:
    """Logits `(t, outputs)` of the guided distribution; those of the models themselves where the weight is 1 or 0."""
    if weight == 0:
        return after
    if weight == 1:
        return before
    mixed = (1 - weight) * after + weight * before
    # What both rule out stays out: beyond 1 the infinities would cancel to NaN.
    return mixed.masked_fill((before == -torch.inf) & (after == -torch.inf), -torch.inf)


def _columns(logits: Tensor, targets: Tensor) -> np.ndarray:
    """The numbers of each target: `float64 (columns, t)`."""
    found = target_statistics(logits, targets)
    return np.stack([getattr(found, name).cpu().numpy().astype(np.float64) for name in _COLUMNS])


def _table(rows: Rows, columns: dict[str, np.ndarray], kind: str) -> Scores:
    """One table from the numbers of all targets, row after row."""
    targets = targets_of(rows)
    lengths = np.array([len(ids) for ids in targets], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    # No value of a record with a broken target is kept: a metric that reads only some of them must be NaN as well.
    owners = np.repeat(np.arange(len(lengths)), lengths)
    broken = np.isin(owners, owners[np.isnan(columns["log_prob"])])
    is_end = np.zeros(offsets[-1], dtype=bool)
    is_end[offsets[1:][n_end_of(rows) > 0] - 1] = True
    return Scores(
        offsets=offsets,
        target_ids=np.concatenate([np.zeros(0), *targets]).astype(np.int32),
        hit=(columns["hit"] > 0) & ~broken,
        rank=columns["rank"].astype(np.int32),
        is_end=is_end,
        zlib_size=np.zeros(len(lengths), dtype=np.int32),
        meta={"targets": kind},
        **{name: np.where(broken, np.nan, columns[name]) for name in ("log_prob", "mean", "std", "margin")},
    )


@attack("two-checkpoint", beside=("original",))
def guidance(model, records: AuditRecords, original) -> Found:
    """An adversary who has both checkpoints adds up what changed: how much more comes out than from the original.

    What the original gives away by itself this adversary has anyway, so only the gain counts. The retrained model beside
    the original is the yardstick.
    """
    weights = tuple(sorted({*records.config.guidance_weights, 1.0}))
    rows, options = records.rows("forget"), {"batch_size": records.config.batch_size, **records.lengths}
    found = guided_extraction(original, model, records.processing_class, rows, weights, **options)
    strength = found.extraction_strength
    gained = np.max(strength, axis=0) - strength[weights.index(1.0)]
    return Found(
        {records.statistic("extraction_strength_gained_by_guidance", "two-checkpoint"): gained},
        {Curve("guidance, extraction strength", "forget", "weight", weights): strength},
    )
