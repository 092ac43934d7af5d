"""Membership inference: was this example in the training set?

Every membership score is oriented **higher = more member-like**, so that an AUC above .5 always means that the members
were recognized. Some papers state theirs the other way round. `loss` is the exception: it is the plain quantity, low
for a text that the model fits; `ATTACKS["loss"]` is its negative.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .reduction import example_of_target, mean_by_example
from .scores import Scores


# Near-deterministic tokens have no spread to divide by: the variance is clamped at 1e-6.
MIN_STD = 1e-3


def loss(scores: Scores) -> np.ndarray:
    """Mean negative log-likelihood a target, in nats: `float64 (n,)`, **low = the model fits the example**.

    The end token of an answer counts. NaN for an example without targets.
    """
    return -mean_by_example(scores, scores.log_prob)


def negative_loss(scores: Scores) -> np.ndarray:
    """The LOSS attack (Yeom et al., arXiv 1709.01604): `-loss`. `float64 (n,)`, higher = more member-like."""
    return -loss(scores)


def zlib_ratio(scores: Scores) -> np.ndarray:
    """Minus the loss over the zlib-compressed size of the target text (Carlini et al., arXiv 2012.07805).

    Discounts texts that any model would find easy. `float64 (n,)` in nats a target and byte, higher = more
    member-like (the paper states the ratio without the minus). NaN where there are no targets or no text.
    """
    size = np.where(scores.zlib_size > 0, scores.zlib_size, np.nan)
    return -loss(scores) / size


def min_k(scores: Scores, k: float = 0.2) -> np.ndarray:
    """Min-K%: mean of the smallest log-probabilities of an example (Shi et al., arXiv 2310.16789).

    Args:
        scores ([`Scores`]): `n` examples.
        k (`float`, *optional*, defaults to `0.2`): the share of the targets that is kept, at least one target. The
            paper recommends 0.2; MUSE and its PrivLeak use 0.4.

    Returns:
        `float64 (n,)` in nats, higher = more member-like; NaN for an example without targets.
    """
    return _mean_of_smallest(scores, scores.log_prob, k)


def min_k_plus_plus(scores: Scores, k: float = 0.2) -> np.ndarray:
    """Min-K%++: Min-K% of the log-probability standardized over the vocabulary (Zhang et al., arXiv 2404.02936).

    Each log-probability is centered by its mean under the model and divided by its standard deviation, which is
    clamped at 0.001 for near-deterministic tokens. Arguments as for [`min_k`].

    Returns:
        `float64 (n,)`, no unit, higher = more member-like; NaN for an example without targets.
    """
    mean, std = np.asarray(scores.mean, dtype=np.float64), np.asarray(scores.std, dtype=np.float64)
    return _mean_of_smallest(scores, (scores.log_prob - mean) / np.maximum(std, MIN_STD), k)


def reference_loss(scores: Scores, reference_scores: Scores) -> np.ndarray:
    """How much better the model fits an example than a reference model does: loss of the reference minus loss.

    The reference may be the model retrained without the forget set, which makes it the strongest of the cheap attacks,
    or a public base model with the same tokenizer (Carlini et al., arXiv 2012.07805).

    Args:
        scores ([`Scores`]): `n` examples under the audited model.
        reference_scores ([`Scores`]): the same examples, in the same order, under the reference model.

    Returns:
        `float64 (n,)` in nats a target, higher = more member-like; NaN for an example without targets.

    Raises:
        ValueError: the two tables do not hold the same targets.
    """
    same = np.array_equal(scores.offsets, reference_scores.offsets)
    if not (same and np.array_equal(scores.target_ids, reference_scores.target_ids)):
        raise ValueError(
            "The scores and the reference scores are of different targets. Score the same examples, in the same order "
            "and with the same tokenizer, under both models."
        )
    return loss(reference_scores) - loss(scores)


# The attacks that read nothing but the scores of the audited model; all are higher = more member-like.
# `reference_loss` is not among them because it needs a second model.
ATTACKS: dict[str, Callable[[Scores], np.ndarray]] = {
    "loss": negative_loss,
    "zlib": zlib_ratio,
    "min_k": min_k,
    "min_k_plus_plus": min_k_plus_plus,
}


def _mean_of_smallest(scores: Scores, values: np.ndarray, k: float) -> np.ndarray:
    if not 0 < k <= 1:
        raise ValueError(f"k is the share of targets that is kept and must be in (0, 1], not {k}.")
    examples = example_of_target(scores)
    order = np.lexsort((values, examples))
    place = np.arange(len(values)) - np.repeat(scores.offsets[:-1], scores.lengths)
    keep_count = np.maximum(1, (k * scores.lengths).astype(np.int64))
    keep = np.zeros(len(values), dtype=bool)
    keep[order] = place < keep_count[examples]
    return mean_by_example(scores, values, keep)
