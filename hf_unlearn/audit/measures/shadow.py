"""Membership inference with other models whose training data is known: RMIA and LiRA.

Both compare a record's likelihood under the audited model with its likelihood under models that were not trained on it
(and, for LiRA, models that were). Each of those models costs a training run; RMIA is made for as few as one, and the model
retrained without the forget set is one. The functions here read tables of scores, and what they return is **higher = more
member-like**.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

from hf_unlearn.audit.measures.membership import check_same_targets, loss
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.statistics.estimate import known


# With fewer models on a side Carlini et al. estimate one variance for all records.
MANY_SHADOWS = 32
# How training on a record raises its probability in RMIA, from 0 (to near 1 whatever it was before) to 1 (not at all). For
# labels as in the authors' tool. The p of a text is mostly far below 1: with less than 1 the constant swamps it, and the
# attack becomes the LOSS attack.
LABEL_A, TEXT_A = 0.3, 1.0


def rmia(
    scores: Scores, references: Sequence[Scores], population: Scores, population_references: Sequence[Scores]
) -> np.ndarray:
    """Offline RMIA: the share of a population that a record beats (Zarifzadeh et al., arXiv 2312.03262).

    With the length-normalized probability `p = exp(-loss)`, a record x beats a population record z if
    `p(x) / q(x) > p(z) / q(z)`, where `q = ((1 + a) * mean of p under the references + 1 - a) / 2` stands for the
    probability under a model that may or may not have seen the record; `a` is 0.3 for labels and 1 for texts.

    Args:
        scores ([`Scores`]): `n` records under the audited model.
        references (sequence of [`Scores`]): the same records under one to four models that were not trained on them,
            such as the retrained model.
        population ([`Scores`]): other records of the same kind under the audited model, which was not trained on them.
            Not the non-members that the attack is tested on.
        population_references (sequence of [`Scores`]): the population under the same references, in the same order.

    Returns:
        `float64 (n,)` in [0, 1], higher = more member-like (as in the paper); NaN where a record has no targets.
        Population records without targets are left out.

    Raises:
        ValueError: there is no reference or no population, or tables do not match.
    """
    if not references or len(references) != len(population_references):
        raise ValueError(
            f"There are {len(references)} references of the records and {len(population_references)} of the "
            "population. Give at least one, and the same models for both. The retrained model is one."
        )
    a = LABEL_A if scores.of_labels else TEXT_A
    records = _log_ratio(scores, references, a)
    others = np.sort(known(_log_ratio(population, population_references, a)))
    if len(others) == 0:
        raise ValueError("No population record can be scored. Give records with targets, like the audited ones.")
    share = np.searchsorted(others, records, side="left") / len(others)
    return np.where(np.isnan(records), np.nan, share)


def logit_confidence(scores: Scores) -> np.ndarray:
    """`ln(p / (1 - p))`, the statistic of LiRA (Carlini et al., arXiv 2112.03570), roughly normal over models.

    p is the probability of the label or, of a text, the length-normalized probability `exp(-loss)`. With the
    log-probabilities of all classes 1 - p is the sum over the others, so that nothing is lost where p is near 1;
    without them 1 - p is no smaller than the resolution of the table.

    Returns:
        `float64 (n,)`, higher = more member-like; NaN for an example without targets.
    """
    log_p = -loss(scores)
    if scores.class_log_probs is not None:
        others = np.array(scores.class_log_probs, dtype=np.float64)
        others[np.flatnonzero(scores.lengths > 0), scores.target_ids] = -np.inf
        return log_p - logsumexp(others, axis=1)
    floor = np.log(np.finfo(scores.log_prob.dtype).eps)
    with np.errstate(divide="ignore"):
        # Both forms are exact, but each loses its digits where the other is needed.
        log_rest = np.where(log_p > -np.log(2), np.log(-np.expm1(log_p)), np.log1p(-np.exp(log_p)))
    return log_p - np.maximum(log_rest, floor)


def lira(phi: np.ndarray, phi_in: np.ndarray | None, phi_out: np.ndarray) -> np.ndarray:
    """LiRA: likelihood ratio of two normal distributions fitted to shadow models (Carlini et al., arXiv 2112.03570).

    `ln N(phi; m_in, s_in) - ln N(phi; m_out, s_out)`, record by record. Each record has standard deviations of its own if
    all have at least 32 models on each side; otherwise one serves all records, from the spread of each about its mean. For
    U-LiRA (Hayes et al., arXiv 2403.01218) the `in` models were trained on the record and then unlearned it: the score
    tells an unlearned model from one that never saw the record. The audited model must not be among the shadow models.
    Some tools return the negative.

    Args:
        phi (`float (n,)`): a statistic of `n` records under the audited model: [`logit_confidence`] or [`loss`].
        phi_in (`float (k, n)`): the same under `k` models trained on the record. `None` gives the one-sided (offline)
            score `(phi - m_out) / s_out`, for which phi must be higher for members.
        phi_out (`float (m, n)`): the same under `m` models never trained on the record. NaN where a model is on the
            other side for that record, in both.

    Returns:
        `float64 (n,)`, higher = more member-like; NaN where phi is not finite, a side has no model, or its models do not
        differ.

    Raises:
        ValueError: the shapes differ, or no record has two models on a side.
    """
    phi = _finite_or_nan(phi)
    sides = [_finite_or_nan(side) for side in (phi_in, phi_out) if side is not None]
    for side in sides:
        if side.ndim != 2 or side.shape[1] != len(phi):
            raise ValueError(
                f"phi_in and phi_out must have shape (models, {len(phi)}), not {side.shape}. Use NaN where a model is "
                "on the other side for a record."
            )
    fewest = min((~np.isnan(side)).sum(axis=0).min(initial=MANY_SHADOWS) for side in sides)
    fits = [_normal_fit(side, by_record=fewest >= MANY_SHADOWS) for side in sides]
    if phi_in is None:
        m_out, s_out = fits[0]
        return (phi - m_out) / s_out
    (m_in, s_in), (m_out, s_out) = fits
    return norm.logpdf(phi, m_in, s_in) - norm.logpdf(phi, m_out, s_out)


def _log_ratio(scores: Scores, references: Sequence[Scores], a: float) -> np.ndarray:
    """`ln(p / q)` of RMIA: `(n,)`. In logarithms, so that the probability of a long unlikely text does not vanish."""
    for reference in references:
        check_same_targets(scores, reference)
    mean_out = logsumexp([-loss(reference) for reference in references], axis=0) - np.log(len(references))
    with np.errstate(divide="ignore", invalid="ignore"):
        return -loss(scores) - np.logaddexp(np.log((1 + a) / 2) + mean_out, np.log((1 - a) / 2))


def _finite_or_nan(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _normal_fit(side: np.ndarray, by_record: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each record's models: two `(n,)`."""
    present = ~np.isnan(side)
    count = present.sum(axis=0)
    if not np.any(count > 1):
        raise ValueError(
            "No record has two shadow models on each side, so there is no spread to compare with. Train more models, "
            "or use rmia, which needs one."
        )
    values = np.where(present, side, 0)
    mean = values.sum(axis=0) / np.where(count > 0, count, np.nan)
    squares = np.where(present, (side - mean) ** 2, 0).sum(axis=0)
    if by_record:
        std = np.sqrt(squares / (count - 1))
    else:
        std = np.full(len(count), np.sqrt(squares.sum() / np.maximum(count - 1, 0).sum()))
    return mean, np.where(std > 0, std, np.nan)
