"""Yes or no under two models: exact where a bootstrap has nothing to resample.

Where one model gives away three records of 400 and the other none, a bootstrap sees little and claims much. What counts
are the discordant records, those that only one of the two models gives away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from hf_unlearn.statistics.differences import aligned
from hf_unlearn.statistics.estimate import Estimate
from hf_unlearn.statistics.intervals import clopper_pearson


@dataclass(frozen=True)
class PairedRates:
    """Difference of two rates on the same records, first minus second; it is used like a `Difference`.

    Attributes:
        first_only, second_only (`int`): number of discordant records: hits of only the first, or only the second model.
        records (`int`): number of records scored under both models.
        n_missing (`int`): number of other records.
        holdout (`PairedRates` or `None`): the same for unseen records, whose difference is subtracted.
    """

    first_only: int
    second_only: int
    records: int
    n_missing: int = 0
    holdout: PairedRates | None = None

    @property
    def n(self) -> tuple[int, ...]:
        return (self.records,) if self.holdout is None else (self.records, self.holdout.records)

    @property
    def n_units(self) -> int:
        return min(self.n)

    @property
    def value(self) -> float:
        if self.n_units == 0:
            return float("nan")
        own = (self.first_only - self.second_only) / self.records
        return own if self.holdout is None else own - self.holdout.value

    def estimate(self, level: float = 0.95) -> Estimate:
        """The difference with its interval; without any discordant record it is about +-3/n at the level 0.90.

        Clopper-Pearson limits of both discordant rates are combined by their squares, with their correlation (Tang et al.,
        2010, 10.1002/sim.3790). By enumeration each end errs at most 1.5 points more often than it should at n = 5, and
        not more often from n = 20 on.
        """
        missing = self.n_missing + (self.holdout.n_missing if self.holdout else 0)
        if self.n_units == 0:
            return Estimate(np.nan, np.nan, np.nan, self.n, "discordant pairs", level, missing, "no records")
        low, high = (self._limit((1 - level) / 2, lower) for lower in (True, False))
        reason = None if self.first_only + self.second_only else "no discordant records"
        return Estimate(self.value, low, high, self.n, "discordant pairs", level, missing, reason)

    def p_greater(self, margin: float = 0.0) -> float:
        """One-sided p-value against "the difference is at most `margin`": the tail where the interval reaches the margin."""
        return self._p(lambda tail: self._limit(tail, lower=True) - margin)

    def p_less(self, margin: float = 0.0) -> float:
        """One-sided p-value against "the difference is at least `margin`"."""
        return self._p(lambda tail: margin - self._limit(tail, lower=False))

    def _p(self, distance) -> float:
        if self.n_units == 0:
            return float("nan")
        if distance(0.5) <= 0:
            return 1.0
        smallest = 1e-12
        return smallest if distance(smallest) > 0 else float(brentq(distance, smallest, 0.5, xtol=1e-12))

    def _limit(self, tail: float, lower: bool) -> float:
        first, second = (clopper_pearson(hits, self.records, tail) for hits in (self.first_only, self.second_only))
        p, q = self.first_only / self.records, self.second_only / self.records
        out, into = (p - first[0], second[1] - q) if lower else (first[1] - p, q - second[0])
        # The two rates exclude each other. Half a record more in each class keeps the correlation away from 0 / 0.
        s, t = ((hits + 0.5) / (self.records + 1.5) for hits in (self.first_only, self.second_only))
        overlap = math.sqrt(s * t / ((1 - s) * (1 - t)))
        width = math.sqrt(out**2 + into**2 + 2 * overlap * out * into)
        center, sign = p - q, -1 if lower else 1
        if self.holdout is not None:
            center -= self.holdout.value
            width = math.hypot(width, self.holdout._limit(tail, not lower) - self.holdout.value)
        return center + sign * width


def paired_rates(first, second) -> PairedRates:
    """Compare hits under two models, record by record.

    Args:
        first, second (`(n,)`, or two arrays): 1 or `True` for a hit, 0 for none, NaN for a record that can't be scored,
            under each of two models. As a tuple of the forget set and the holdout, the difference on the latter is
            subtracted, see [`difference_in_differences`].

    Raises:
        ValueError: the models have different numbers of values, or a value is neither 0 nor 1.
    """
    if isinstance(first, tuple):
        forget, holdout = (paired_rates(*side) for side in zip(first, second, strict=True))
        return PairedRates(forget.first_only, forget.second_only, forget.records, forget.n_missing, holdout)
    first, second = aligned(first, second)
    kept = ~(np.isnan(first) | np.isnan(second))
    first, second = first[kept], second[kept]
    if not np.isin(np.concatenate([first, second]), (0, 1)).all():
        raise ValueError(
            "Rates compare hits, 0 or 1, but you gave other values. Use paired_difference for their means."
        )
    return PairedRates(int((first > second).sum()), int((second > first).sum()), len(first), int((~kept).sum()))
