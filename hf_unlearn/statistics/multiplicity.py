"""Many attacks, one claim: p-values corrected for how many there are."""

from __future__ import annotations

import numpy as np


def holm(p_values) -> np.ndarray:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979, 65-70).

    Rejecting where the adjusted value is below 0.05 makes a false claim in at most 5 % of all families, however the
    tests depend on each other. Declare the family before the results are seen: all attacks, not those that found something.

    Args:
        p_values (`float (k,)`): one per test of the family; NaN for a test that could not be run, which does not count.

    Returns:
        `float64 (k,)`: adjusted values in the same order; NaN where there was none.

    Raises:
        ValueError: a p-value is not in [0, 1].
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    known = ~np.isnan(p_values)
    p = p_values[known]
    if np.any((p < 0) | (p > 1)):
        raise ValueError("p-values must be in [0, 1], but some are not. Use NaN for a test that could not be run.")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.full(len(p_values), np.nan)
    adjusted[np.flatnonzero(known)[order]] = np.minimum(1.0, stepped)
    return adjusted
