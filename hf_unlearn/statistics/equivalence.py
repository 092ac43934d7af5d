"""Power: how much data it takes to find a difference between two models, or to show that there is none.

A difference that is not significant is no evidence of equality, least of all in a small sample.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from hf_unlearn.statistics.differences import Difference
from hf_unlearn.statistics.paired_rates import PairedRates


def smallest_detectable(difference: Difference | PairedRates, power: float = 0.8, alpha: float = 0.05) -> float:
    """The true difference that a one-sided test at `alpha` finds with that power: 2.49 standard errors by default.

    Print it beside every "no evidence": a smaller difference would probably have been missed.
    """
    return (_z(1 - alpha) + _z(power)) * standard_error(difference)


def records_needed(
    difference: Difference | PairedRates, margin: float, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Records (groups, where these were resampled) per side that show equivalence with that power if there is no difference.

    By default the margin must be 2.93 standard errors. NaN where the standard error is unknown.
    """
    needed = (_z(1 - alpha) + _z((1 + power) / 2)) * standard_error(difference) / margin
    return float("nan") if math.isnan(needed) else float(math.ceil(difference.n_units * needed**2))


def standard_error(difference: Difference | PairedRates) -> float:
    """The standard error, from the width of the 90 % interval, which exists even where the bootstrap has no spread."""
    interval = difference.estimate(0.90)
    return (interval.high - interval.low) / (2 * _z(0.95))


def _z(probability: float) -> float:
    return NormalDist().inv_cdf(probability)
