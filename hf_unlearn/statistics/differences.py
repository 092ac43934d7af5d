"""Differences between two models on the same records: resampled once for both, so that what they share drops out."""

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
        bounds (`tuple[float, float]` or `None`): between what the difference lies by definition, where the values lie in
            [0, 1]; a bootstrap without spread can then be given a width.
        n_groups (`tuple[int, ...]` or `None`): number of groups where these were resampled, a side as in `n`.
    """

    value: float
    n: tuple[int, ...]
    n_missing: int
    draws: np.ndarray = field(repr=False)
    bounds: tuple[float, float] | None = None
    n_groups: tuple[int, ...] | None = None

    @property
    def n_units(self) -> int:
        """Independent units on the smaller side: groups where there are some, or else records."""
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
        return (
            float("nan") if math.isnan(value) else p_above(value, draws, self.n_units, self.bounds is not None, margin)
        )


def paired_difference(first: np.ndarray, second: np.ndarray, seed: int = 0, groups=None) -> Difference:
    """Mean of `first - second` over records, resampling the records once for both models.

    Args:
        first, second (`float (n,)`): a metric of the same records, in the same order, under two models (usually the
            unlearned and the retrained one).
        seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.
        groups (`(n,)`, *optional*): a label a record, to resample groups.
    """
    (change,), n_missing, bounded, codes = _changes([(first, second)], [groups])
    if len(change) == 0:
        return Difference(np.nan, (0,), n_missing, np.full(N_RESAMPLES, np.nan))
    draws = bootstrap_means(change, seed, codes[0])
    bounds = (-1.0, 1.0) if bounded else None
    return Difference(float(change.mean()), (len(change),), n_missing, draws, bounds, _group_sizes([change], codes))


def difference_in_differences(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], seed: int = 0, groups=None
) -> Difference:
    """Mean of `first - second` over the forget set minus the same mean over the holdout.

    What one model does better on all unseen records, as another seed may, drops out: if neither model saw a record of
    the two sets and these are exchangeable, the difference is 0 but for the sampling of records.

    Args:
        first, second (`tuple` of `float (n,)` and `float (m,)`): a metric of the forget set and of the holdout, under two
            models.
        seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.
        groups (`tuple` of two, *optional*): a label for each record of the forget set, and one for each of the holdout.
    """
    sides = list(zip(first, second, strict=True))
    changes, n_missing, bounded, codes = _changes(sides, (None, None) if groups is None else groups)
    n = tuple(len(change) for change in changes)
    if min(n) == 0:
        return Difference(np.nan, n, n_missing, np.full(N_RESAMPLES, np.nan))
    draws = [
        weighted_mean(counts[0], changes[0]) - weighted_mean(counts[1], changes[1])
        for counts in resampled_counts(n, codes, seed)
    ]
    value = float(changes[0].mean() - changes[1].mean())
    bounds = (-2.0, 2.0) if bounded else None
    return Difference(value, n, n_missing, np.concatenate(draws), bounds, _group_sizes(changes, codes))


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
    sides, codes, n_missing = [], [], 0
    pairs = ((first_members, second_members), (first_non_members, second_non_members))
    for pair, of in zip(pairs, (None, None) if groups is None else groups, strict=True):
        first, second = aligned(*pair)
        kept = ~(np.isnan(first) | np.isnan(second))
        sides.append((first[kept], second[kept]))
        codes.append(group_codes(of, kept))
        n_missing += int((~kept).sum())
    n = (len(sides[0][0]), len(sides[1][0]))
    if min(n) == 0:
        return Difference(np.nan, n, n_missing, np.full(N_RESAMPLES, np.nan))
    first, second = (Ranking(sides[0][model], sides[1][model]) for model in (0, 1))
    draws = np.concatenate([first.auc(*c) - second.auc(*c) for c in resampled_counts(n, codes, seed)])
    value = float(first.auc() - second.auc())
    return Difference(value, n, n_missing, draws, (-1.0, 1.0), _group_sizes([side[0] for side in sides], codes))


def _changes(sides, groups) -> tuple[list[np.ndarray], int, bool, list[np.ndarray | None]]:
    """First minus second of each side; how many are missing; whether all values lie in [0, 1]; the groups of each."""
    changes, codes, n_missing, bounded = [], [], 0, True
    for pair, of in zip(sides, groups, strict=True):
        first, second = aligned(*pair)
        kept = ~(np.isnan(first) | np.isnan(second))
        both = np.concatenate([first[kept], second[kept]])
        bounded &= bool(both.min(initial=0) >= 0 and both.max(initial=1) <= 1)
        with np.errstate(invalid="ignore"):  # infinite minus infinite
            changes.append(first[kept] - second[kept])
        codes.append(group_codes(of, kept))
        n_missing += int((~kept).sum())
    return changes, n_missing, bounded, codes


def _group_sizes(sides, codes) -> tuple[int, ...] | None:
    if all(of is None for of in codes):
        return None
    return tuple(n_units(len(side), of) for side, of in zip(sides, codes, strict=True))


def aligned(first, second) -> tuple[np.ndarray, np.ndarray]:
    """Both as `float64 (n,)`; a `ValueError` where they have not the same length."""
    first, second = (np.asarray(side, dtype=np.float64).ravel() for side in (first, second))
    if len(first) != len(second):
        raise ValueError(
            f"The two models have {len(first)} and {len(second)} values. A paired difference needs one value for each "
            "record under both, in the same order; use NaN for a record that can't be scored."
        )
    return first, second
