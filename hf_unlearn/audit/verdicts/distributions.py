"""The signed difference between two distributions of a number, such as the truth ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from hf_unlearn.audit.verdicts.margins import SeedBand
from hf_unlearn.statistics.differences import aligned
from hf_unlearn.statistics.estimate import Estimate


@dataclass(frozen=True)
class DistributionDifference:
    """Largest distance between two distribution functions (Kolmogorov-Smirnov); it is used like a `Difference`.

    Attributes:
        above, below (`float`): largest distance, in [0, 1], where the first model gives larger and smaller values.
        n (`tuple[int]`): number of records scored under both models.
        n_missing (`int`): number of the other records.
    """

    above: float
    below: float
    n: tuple[int, ...]
    n_missing: int = 0

    @property
    def n_units(self) -> int:
        return self.n[0]

    @property
    def value(self) -> float:
        """The larger distance, negative where the first model gives smaller values."""
        return self.above if self.above >= self.below else -self.below

    def estimate(self, level: float = 0.95) -> Estimate:
        """The difference plus and minus the critical distance. It is wide, as it ignores that the models share records."""
        if self.n_units == 0:
            return Estimate(np.nan, np.nan, np.nan, self.n, "kolmogorov-smirnov", level, self.n_missing, "no records")
        width = math.sqrt(-math.log((1 - level) / 2) / self.n_units)
        low, high = max(-1.0, self.value - width), min(1.0, self.value + width)
        return Estimate(self.value, low, high, self.n, "kolmogorov-smirnov", level, self.n_missing)

    def p_greater(self, margin: float = 0.0) -> float:
        """One-sided p-value against "the first model gives larger values by at most `margin`"."""
        return self._p(self.value - margin)

    def p_less(self, margin: float = 0.0) -> float:
        """One-sided p-value against "the first model gives smaller values by at most `-margin`"."""
        return self._p((self.below if self.below >= self.above else -self.above) + margin)

    def _p(self, beyond: float) -> float:
        if self.n_units == 0:
            return float("nan")
        return math.exp(-self.n_units * beyond**2) if beyond > 0 else 1.0


def distribution_difference(first, second) -> DistributionDifference:
    """Compare the distributions of values `float (n,)` of the same records under two models.

    Raises:
        ValueError: the models have different numbers of values.
    """
    first, second = aligned(first, second)
    kept = ~(np.isnan(first) | np.isnan(second))
    first, second = np.sort(first[kept]), np.sort(second[kept])
    n, n_missing = len(first), int((~kept).sum())
    if n == 0:
        return DistributionDifference(np.nan, np.nan, (0,), n_missing)
    points = np.concatenate([first, second])
    gap = (np.searchsorted(second, points, side="right") - np.searchsorted(first, points, side="right")) / n
    return DistributionDifference(float(max(0.0, gap.max())), float(max(0.0, -gap.min())), (n,), n_missing)


def distance_band(models: Sequence) -> SeedBand | None:
    """The largest distance between two of several retrained models; `None` with fewer than two.

    Unlike values, distances have no spread from which a bound for a further model could follow.
    """
    if len(models) < 2:
        return None
    largest = max(abs(distribution_difference(*pair).value) for pair in combinations(models, 2))
    return SeedBand(largest, largest, len(models))
