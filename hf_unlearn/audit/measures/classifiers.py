"""Membership attacks on image classifiers, and the table in which SalUn publishes them.

Images must be scored without augmentation, members and non-members alike. Non-members of a forgotten class are unseen
images *of that class*: an attack that compares with other classes finds the class, not the membership.

`loss` in the module `membership` is minus the logarithm of [`confidence`]; RMIA and LiRA are in `shadow`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp

from hf_unlearn.audit.table.reduction import mean_by_example
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.statistics.estimate import Estimate, known
from hf_unlearn.statistics.intervals import rate_of


def confidence(scores: Scores) -> np.ndarray:
    """Probability of the label: `float64 (n,)` in [0, 1], higher = more member-like."""
    return np.exp(mean_by_example(scores, scores.log_prob))


def correctness(scores: Scores) -> np.ndarray:
    """1 where the label is the most likely class, 0 where not: `float64 (n,)`, higher = more member-like."""
    # If logits are not numbers none of them is the largest, but argmax names one.
    return mean_by_example(scores, np.where(np.isnan(scores.log_prob), np.nan, scores.hit))


def entropy(scores: Scores) -> np.ndarray:
    """Entropy of the predicted distribution in nats: `float64 (n,)`, **low = more member-like**.

    [`CLASS_ATTACKS`] holds its negative.
    """
    return -mean_by_example(scores, scores.mean)


def modified_entropy(scores: Scores) -> np.ndarray:
    """Entropy that knows the label y (Song and Mittal, arXiv 2003.10595), in nats; **low = more member-like**.

    `-(1 - p_y) ln p_y - sum over the other classes c of p_c ln(1 - p_c)`: 0 for a sure and correct prediction, and
    large for a sure and wrong one, which plain entropy can't tell apart. [`CLASS_ATTACKS`] holds its negative.

    Returns:
        `float64 (n,)`, `inf` where the label has no probability at all.

    Raises:
        ValueError: the table has no log-probabilities of all classes, because it is of texts or was scored without.
    """
    if scores.class_log_probs is None:
        raise ValueError(
            "Only tables of image classifiers have log-probabilities of all classes. Either score the images again, or "
            "use the attacks on texts."
        )
    log_p = np.asarray(scores.class_log_probs, dtype=np.float64)
    labels = np.full(len(scores), -1)
    labels[scores.lengths > 0] = scores.target_ids
    is_label = np.arange(log_p.shape[1]) == labels[:, None]
    log_rest = _log_of_rest(log_p)
    terms = np.where(is_label, np.exp(log_rest) * log_p, np.exp(log_p) * log_rest)
    return np.where(scores.valid, -terms.sum(axis=1), np.nan)


# The attacks that read the table of one model and fit nothing; all are higher = more member-like.
CLASS_ATTACKS: dict[str, Callable[[Scores], np.ndarray]] = {
    "confidence": confidence,
    "correctness": correctness,
    "entropy": lambda scores: -entropy(scores),
    "modified_entropy": lambda scores: -modified_entropy(scores),
}


def svc_attack(forget: Scores, retain: Scores, test: Scores, seed: int = 0) -> np.ndarray:
    """Which forget images a support vector classifier takes for members, as in SalUn (Fan et al., arXiv 2310.12508).

    It learns to tell retain images from as many test images by their [`confidence`] (RBF kernel, C = 3, gamma = 1), all
    under the audited model, and is then shown the forget set.

    Args:
        forget, retain, test ([`Scores`]): images under the audited model; it was trained on the retain set and not on
            the test set.
        seed (`int`, *optional*, defaults to `0`): which retain images (or, if there are fewer of these, test images).

    Returns:
        `float64 (n,)`, 1 = taken for a member; NaN for an image that can't be scored. Published is the share of zeros,
        see [`forget_efficacy`].

    Raises:
        ValueError: no retain or no test image can be scored.
    """
    from sklearn.svm import SVC

    members, non_members = known(confidence(retain)), known(confidence(test))
    size, rng = min(len(members), len(non_members)), np.random.default_rng(seed)
    if size == 0:
        raise ValueError(
            f"The attack learns from {len(members)} retain and {len(non_members)} test images. Give both, with targets."
        )
    sides = [side[np.sort(rng.choice(len(side), size, replace=False))] for side in (members, non_members)]
    classifier = SVC(C=3, kernel="rbf", gamma="auto").fit(np.concatenate(sides)[:, None], np.repeat([1, 0], size))
    values = confidence(forget)
    called, usable = np.full(len(values), np.nan), ~np.isnan(values)
    if usable.any():
        called[usable] = classifier.predict(values[usable, None])
    return called


def forget_efficacy(called_members: np.ndarray) -> Estimate:
    """SalUn's MIA: share of the forget set that [`svc_attack`] takes for unseen, with its interval.

    **Best near that of the retrained model; more is not better.** A model that generalizes treats unseen images much
    like its training images, so that even after retraining the share is small (about 13 % on CIFAR-10).
    """
    return rate_of(1 - np.asarray(called_members, dtype=np.float64))


def salun_row(forget: Scores, retain: Scores, test: Scores, seed: int = 0) -> dict[str, Estimate]:
    """A row of SalUn's table (arXiv 2310.12508), in [0, 1]: UA, RA, TA and MIA.

    UA is one minus the accuracy on the forget set, RA and TA are the accuracy on retain and test set, MIA is
    [`forget_efficacy`]. Each is best near that of the retrained model: compare rows with
    [`~hf_unlearn.audit.measures.aggregates.average_gap`] of their values. The table's last column, the minutes that the
    method took, cannot be read off scores.
    """
    return {
        "UA": rate_of(1 - correctness(forget)),
        "RA": rate_of(correctness(retain)),
        "TA": rate_of(correctness(test)),
        "MIA": forget_efficacy(svc_attack(forget, retain, test, seed)),
    }


def _log_of_rest(log_p: np.ndarray) -> np.ndarray:
    """`ln(1 - p_c)` for every class: `(n, C)`. Exact for the likeliest class too, where 1 - p would round to 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log_rest = np.log1p(-np.exp(log_p))
        top = np.argmax(log_p, axis=1)[:, None]
        others = log_p.copy()
        np.put_along_axis(others, top, -np.inf, axis=1)
        np.put_along_axis(log_rest, top, logsumexp(others, axis=1)[:, None], axis=1)
    return log_rest
