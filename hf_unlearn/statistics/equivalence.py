"""Equivalence: showing that two models do *not* differ, and how much data that takes.

A difference that is not significant is no evidence of equality, least of all in a small sample.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist

from hf_unlearn.statistics.differences import Difference
from hf_unlearn.statistics.estimate import Estimate, plain
from hf_unlearn.statistics.paired_rates import PairedRates


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of "the difference is as large as the margin" (Schuirmann, 1987, 10.1007/BF01068419).

    Attributes:
        equivalent (`bool`): the interval lies strictly inside (-margin, +margin), which is the same as p < alpha.
        p (`float`): the larger of the two one-sided p-values; small = equivalent.
        margin (`float`): the largest difference that does not matter, fixed before the results were seen.
        interval (`Estimate`): the difference with its interval of level 1 - 2 alpha.
    """

    equivalent: bool
    p: float
    margin: float
    interval: Estimate

    def as_dict(self) -> dict:
        """Plain types for JSON; NaN becomes `None`."""
        return plain(asdict(self))


def equivalence(difference: Difference | PairedRates, margin: float, alpha: float = 0.05) -> Equivalence:
    """Whether two models are shown to differ by less than `margin`, see [`Equivalence`].

    Raises:
        ValueError: the margin is not positive: no two things are shown to be exactly equal.
    """
    if not margin > 0:
        raise ValueError(
            f"An equivalence margin must be positive, not {margin}. Choose the largest harmless difference."
        )
    interval = difference.estimate(1 - 2 * alpha)
    inside = -margin < interval.low and interval.high < margin
    p = max(difference.p_greater(-margin), difference.p_less(margin))
    return Equivalence(inside, p, margin, interval)


def smallest_detectable(difference: Difference | PairedRates, power: float = 0.8, alpha: float = 0.05) -> float:
    """The true difference that a one-sided test at `alpha` finds with that power: 2.49 standard errors by default.

    Print it beside every "no evidence": a smaller difference would probably have been missed.
    """
    return (_z(1 - alpha) + _z(power)) * standard_error(difference)


def records_needed(
    difference: Difference | PairedRates, margin: float, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Records a side (groups, where these were resampled) that show equivalence with that power, if there is no difference.

    By default the margin must be 2.93 standard errors. NaN where the standard error is unknown.
    """
    needed = (_z(1 - alpha) + _z((1 + power) / 2)) * standard_error(difference) / margin
    return float("nan") if math.isnan(needed) else float(math.ceil(difference.n_units * needed**2))


def standard_error(difference: Difference | PairedRates) -> float:
    """From the width of the 90 % interval, which is there even where the bootstrap has no spread."""
    interval = difference.estimate(0.90)
    return (interval.high - interval.low) / (2 * _z(0.95))


def _z(probability: float) -> float:
    return NormalDist().inv_cdf(probability)
