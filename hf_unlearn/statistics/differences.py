"""Differences between two models on the same records: resampled once for both, so that what they share cancels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from hf_unlearn.statistics.estimate import Estimate, of_groups
from hf_unlearn.statistics.ranking import Ranking
from hf_unlearn.statistics.resampling import (
    N_RESAMPLES,
    bootstrap_means,
    group_codes,
    interval,
    n_units,
    p_above,
    resampled_counts,
    weighted_mean,
)


@dataclass(frozen=True, eq=False)
class Difference:
    """A paired difference between two models, first minus second, with its bootstrap distribution.

    Attributes:
        value (`float`): the difference.
        n (`tuple[int, ...]`): number of pairs, `(n,)` or `(n_members, n_non_members)`.
        n_missing (`int`): records that can't be scored under both models.
        draws (`float64 (n_resamples,)`): the difference on resampled records, or groups of records.
        bounds (`tuple[float, float]` or `None`): the range of the difference where all values lie in [0, 1]; a bootstrap
            without spread can then be given a width.
        n_groups (`tuple[int, ...]` or `None`): numbers of groups, like `n`, where groups were resampled.
    """

    value: float
    n: tuple[int, ...]
    n_missing: int
    draws: np.ndarray = field(repr=False)
    bounds: tuple[float, float] | None = None
    n_groups: tuple[int, ...] | None = None

    @property
    def n_units(self) -> int:
        """Independent units on the smaller side: groups where they were resampled, otherwise records."""
        return min(self.n if self.n_groups is None else self.n_groups)

    def estimate(self, level: float = 0.95) -> Estimate:
        """The difference with its interval, see [`mean`]. For equivalence at 5 % compare the one of level 0.90."""
        if math.isnan(self.value):
            return Estimate(np.nan, np.nan, np.nan, self.n, "paired bootstrap", level, self.n_missing, "no records")
        low, high, method, reason = interval(self.value, self.draws, self.n_units, level, self.bounds)
        method = f"paired {method}{of_groups(self.n_groups)}"
        return Estimate(self.value, low, high, self.n, method, level, self.n_missing, reason)

    def p_greater(self, margin: float = 0.0) -> float:
        """One-sided p-value against "the difference is at most `margin`"; small = larger than `margin`."""
        return self._p(self.value, self.draws, margin)

    def p_less(self, margin: float = 0.0) -> float:
        """One-sided p-value against "the difference is at least `margin`"; small = less than `margin`."""
        return self._p(-self.value, -self.draws, -margin)

    def _p(self, value: float, draws: np.ndarray, margin: float) -> float:
        if math.isnan(value):
            return math.nan
        return p_above(value, draws, self.n_units, self.bounds is not None, margin)


def paired_difference(first: np.ndarray, second: np.ndarray, seed: int = 0, groups=None) -> Difference:
    """Mean of `first - second` over records, resampling the records once for both models.

    Args:
        first, second (`float (n,)`): a metric of the same records, in the same order, under two models (usually the
            unlearned and the retrained one).
        seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.
        groups (`(n,)`, *optional*): a label per record, to resample groups.
    """
    return _difference_of_means([(first, second)], [groups], seed)


def difference_in_differences(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], seed: int = 0, groups=None
) -> Difference:
    """Mean of `first - second` over the forget set minus the same mean over the holdout.

    What one model does better on all unseen records, as another seed may, cancels: if neither model saw a record of the
    two sets and these are exchangeable, the difference is 0 but for the sampling of records.

    Args:
        first, second (`tuple` of `float (n,)` and `float (m,)`): a metric of the forget set and of the holdout, under two
            models.
        seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.
        groups (`tuple` of two, *optional*): a label for each record of the forget set, and one for each of the holdout.
    """
    return _difference_of_means(list(zip(first, second, strict=True)), groups, seed)


def paired_auc_difference(
    first_members: np.ndarray,
    first_non_members: np.ndarray,
    second_members: np.ndarray,
    second_non_members: np.ndarray,
    seed: int = 0,
    groups=None,
) -> Difference:
    """AUC under the first model minus AUC under the second, resampling members and non-members once for both models.

    Args:
        first_members, second_members (`float (n,)`): scores of the same members, in the same order, under two models
            (usually the unlearned and the retrained one); higher = more member-like.
        first_non_members, second_non_members (`float (m,)`): the same for the non-members.
        seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.
        groups (`tuple` of two, *optional*): a label for each member, and one for each non-member, to resample groups.
    """
    pairs = [(first_members, second_members), (first_non_members, second_non_members)]
    sides, codes, n, n_missing = _scored(pairs, groups)
    if min(n) == 0:
        return Difference(np.nan, n, n_missing, np.full(N_RESAMPLES, np.nan))
    first, second = (Ranking(*scores) for scores in zip(*sides, strict=True))
    draws = [first.auc(*counts) - second.auc(*counts) for counts in resampled_counts(n, codes, seed)]
    value = float(first.auc() - second.auc())
    return Difference(value, n, n_missing, np.concatenate(draws), (-1.0, 1.0), _group_sizes(n, codes))


def _difference_of_means(pairs, groups, seed: int) -> Difference:
    """Of the mean change of one set of records, or of this and that of a second set, which is subtracted."""
    sides, codes, n, n_missing = _scored(pairs, groups)
    if min(n) == 0:
        return Difference(np.nan, n, n_missing, np.full(N_RESAMPLES, np.nan))
    everything = np.concatenate([values for pair in sides for values in pair])
    bounds = (-float(len(n)), float(len(n))) if everything.min() >= 0 and everything.max() <= 1 else None
    with np.errstate(invalid="ignore"):  # infinite minus infinite
        changes = [first - second for first, second in sides]
    value = changes[0].mean() - sum(change.mean() for change in changes[1:])
    if len(changes) == 1:
        draws = bootstrap_means(changes[0], seed, codes[0])
    else:
        chunks = resampled_counts(n, codes, seed)
        draws = np.concatenate([weighted_mean(f, changes[0]) - weighted_mean(h, changes[1]) for f, h in chunks])
    return Difference(float(value), n, n_missing, draws, bounds, _group_sizes(n, codes))


def _scored(pairs, groups) -> tuple[list, list[np.ndarray | None], tuple[int, ...], int]:
    """Each pair without the records that a model has no value of; their groups, their numbers, and how many are left out."""
    sides, codes, n_missing = [], [], 0
    for pair, labels in zip(pairs, (None, None) if groups is None else groups, strict=True):
        first, second = aligned(*pair)
        kept = ~(np.isnan(first) | np.isnan(second))
        sides.append((first[kept], second[kept]))
        codes.append(group_codes(labels, kept))
        n_missing += int((~kept).sum())
    return sides, codes, tuple(len(first) for first, _ in sides), n_missing


def _group_sizes(n: tuple[int, ...], codes: list[np.ndarray | None]) -> tuple[int, ...] | None:
    return None if all(code is None for code in codes) else tuple(map(n_units, n, codes))


def aligned(first, second) -> tuple[np.ndarray, np.ndarray]:
    """Both as `float64 (n,)`; a `ValueError` where they have not the same length."""
    first, second = (np.asarray(side, dtype=np.float64).ravel() for side in (first, second))
    if len(first) != len(second):
        raise ValueError(
            f"The two models have {len(first)} and {len(second)} values. Give one value per record for each model, in the "
            "same order, and NaN for a record that can't be scored."
        )
    return first, second
