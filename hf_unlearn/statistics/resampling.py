"""The bootstrap: resampled records or groups of records, and the intervals and p-values that are computed from the draws.

Rows of one person, or of one author, are not independent. Where `groups` name them, whole groups are drawn, and the
number of groups is the size of the sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student_t


N_RESAMPLES = 2000
# Below this many units the percentiles of the bootstrap are too few to read, and Student's t takes their place.
PERCENTILE_MIN_N = 10


def group_codes(groups, kept: np.ndarray) -> np.ndarray | None:
    """The groups of the records that are kept, numbered from 0: `int64 (n,)`; `None` where there are no groups.

    Raises:
        ValueError: there is not one label per record.
    """
    if groups is None:
        return None
    labels = np.asarray(groups)
    if labels.shape != kept.shape:
        raise ValueError(
            f"You gave groups of shape {labels.shape} for {len(kept)} records. Give one label for each record, in the "
            "order of the values."
        )
    return np.unique(labels[kept], return_inverse=True)[1]


def n_units(n: int, codes: np.ndarray | None) -> int:
    """The number of independent units: groups where there are groups, otherwise records."""
    return n if codes is None else int(codes.max(initial=-1)) + 1


def resampled_counts(
    n: Sequence[int], codes: Sequence[np.ndarray | None], seed: int
) -> Iterator[tuple[np.ndarray, ...]]:
    """How often each record of each side is drawn: one chunk of resamples at a time, `int64 (draws, n)` per side."""
    rng = np.random.default_rng(seed)
    units = list(map(n_units, n, codes))
    for size in chunks(sum(n)):
        counts = []
        for unit, code in zip(units, codes, strict=True):
            # Draws of a multinomial with equal chances, five times as fast as numpy's own.
            drawn = rng.integers(unit, size=(size, unit)) + unit * np.arange(size)[:, None]
            drawn = np.bincount(drawn.ravel(), minlength=size * unit).reshape(size, unit)
            counts.append(drawn if code is None else drawn[:, code])
        yield tuple(counts)


def bootstrap_means(values: np.ndarray, seed: int, codes: np.ndarray | None = None) -> np.ndarray:
    """Means of resampled records, or of the records of resampled groups: `float64 (N_RESAMPLES,)`."""
    n = len(values)
    if codes is None:
        rng = np.random.default_rng(seed)
        return np.concatenate([values[rng.integers(n, size=(size, n))].mean(axis=1) for size in chunks(n)])
    return np.concatenate([weighted_mean(counts, values) for (counts,) in resampled_counts([n], [codes], seed)])


def weighted_mean(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean of each resample: counts `(draws, n)` and values `(n,)` to `(draws,)`."""
    return counts @ values / counts.sum(axis=1)


def interval(
    value: float,
    draws: np.ndarray,
    n: int,
    level: float,
    bounds: tuple[float, float] | None = None,
    reach: float = 1.0,
):
    """Ends of the interval of a statistic with bootstrap `draws` from `n` units, its method, and a caveat.

    From 10 units on the ends are percentiles of the draws, taken a little further out because the sample is small
    (Hesterberg, 2015, 10.1080/00031305.2015.1089789); below, Student's t with the standard error of the bootstrap. No end
    lies beyond the `bounds` of the statistic, where they are known; one of them may be infinite.

    Draws without spread say nothing about other records. With finite bounds (a mean of values in [0, 1], or differences of
    such means) the interval is then the exact one for "none of n is different", where a record can differ by `reach` from
    the others. With an infinite bound there is none. Without `bounds` it is the value itself, as for the difference between
    two models that agree on every record.
    """
    tail = (1 - level) / 2
    if not np.isfinite(draws).all():
        return np.nan, np.nan, "bootstrap", "infinite values"
    floor, top = map(float, bounds or (-np.inf, np.inf))
    same = bounds is not None and has_no_spread(value, draws)
    if same and math.isfinite(top - floor):
        width = reach * (1 - tail ** (1 / n))
        return max(floor, value - width), min(top, value + width), "exact, none of n", "no spread"
    if n < 2:
        return np.nan, np.nan, "bootstrap", "one record has no spread"
    if same:
        return np.nan, np.nan, "bootstrap", "no spread: all values are alike, and how far others may be is not known"
    if n < PERCENTILE_MIN_N:
        width = student_t.ppf(1 - tail, n - 1) * _small_sample_std(draws, n)
        return max(floor, float(value - width)), min(top, float(value + width)), "Student's t", None
    tail = norm.cdf(student_t.ppf(tail, n - 1) * math.sqrt(n / (n - 1)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high), "bootstrap", None


def has_no_spread(value: float, draws: np.ndarray) -> bool:
    """Whether the draws of a statistic differ by no more than the rounding of sums."""
    return bool(np.ptp(draws) < max(1e-15, 1e-12 * abs(value)))


def p_above(value: float, draws: np.ndarray, n: int, bounded: bool, margin: float) -> float:
    """One-sided p-value against "the statistic is at most `margin`".

    It is the tail at which the lower end of [`interval`] meets the margin, so that the two never disagree.
    """
    if bounded and has_no_spread(value, draws):
        return float((1 - min(1.0, value - margin)) ** n) if value > margin else 1.0
    if n < 2 or not np.isfinite(draws).all():
        return float("nan")
    if n < PERCENTILE_MIN_N:
        std = _small_sample_std(draws, n)
        return float(student_t.sf((value - margin) / std, n - 1)) if std > 0 else float(value <= margin)
    against = int((draws <= margin).sum())
    p = (1 + against) / (1 + len(draws))
    if against == 0 and (std := draws.std(ddof=1)) > 0:
        # Beyond what the number of draws can tell, the normal distribution goes on.
        p = min(p, float(norm.sf((value - margin) / std)))
    return float(student_t.cdf(norm.ppf(p) * math.sqrt((n - 1) / n), n - 1))


def _small_sample_std(draws: np.ndarray, n: int) -> float:
    return float(draws.std(ddof=1)) * math.sqrt(n / (n - 1))


def chunks(width: int) -> list[int]:
    """Sizes that sum to the number of resamples and keep a `(size, width)` array around a million entries."""
    size = max(1, 1_000_000 // width)
    return [min(size, N_RESAMPLES - start) for start in range(0, N_RESAMPLES, size)]
