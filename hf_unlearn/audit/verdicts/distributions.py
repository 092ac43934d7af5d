"""The difference of two distributions of a number, such as the truth ratio, with a sign."""

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
        above (`float`): largest distance on the side that says that the first model gives larger values, in [0, 1].
        below (`float`): the same on the other side.
        n (`tuple[int]`): number of records scored under both models.
        n_missing (`int`): records that are not.
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
        """The difference plus and minus the critical distance; that both models share their records makes it wide."""
        if self.n_units == 0:
            return Estimate(np.nan, np.nan, np.nan, self.n, "kolmogorov-smirnov", level, self.n_missing, "no records")
        width = math.sqrt(-math.log((1 - level) / 2) / self.n_units)
        low, high = max(-1.0, self.value - width), min(1.0, self.value + width)
        return Estimate(self.value, low, high, self.n, "kolmogorov-smirnov", level, self.n_missing)

    def p_greater(self, margin: float = 0.0) -> float:
        """One-sided p-value against "the first model gives larger values by at most `margin`"."""
        return self._p(self.above, margin, self.below)

    def p_less(self, margin: float = 0.0) -> float:
        """One-sided p-value against "the first model gives smaller values by at most `-margin`"."""
        return self._p(self.below, -margin, self.above)

    def _p(self, distance: float, margin: float, other: float) -> float:
        if self.n_units == 0:
            return float("nan")
        beyond = (distance if distance >= other else -other) - margin
        return math.exp(-self.n_units * beyond**2) if beyond > 0 else 1.0


def distribution_difference(first, second) -> DistributionDifference:
    """Compare the distributions of a number of the same records, `float (n,)`, under two models.

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

    Distances do not add up along a line, so there is no spread to extrapolate to a further model.
    """
    if len(models) < 2:
        return None
    largest = max(abs(distribution_difference(*pair).value) for pair in combinations(models, 2))
    return SeedBand(largest, largest, len(models))
