"""Bounds on what a model says by chance: from samples of its answers to what it would say asked again and again.

The most likely answer alone hides leaks. From `m` independent samples of the answer to one prompt, and a leakage score in
[0, 1] for each (ROUGE with the truth, whether a span came out, ...), these are bounds that hold for the model's own
distribution, for any number of samples and without assumptions on its shape (Scholten, Günnemann and Schwinn, arXiv
2410.03523).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hf_unlearn.statistics.intervals import rate


@dataclass(frozen=True, eq=False)
class LeakageBounds:
    """What `m` samples say of the scores that a model gives, record by record; all are `float64 (n,)`.

    Higher = leaks more. NaN where a record has no sample. The intervals of one kind hold at `level` for each record by
    itself; over `n` records some will fail.

    Attributes:
        share, share_low, share_high: chance of a score above the threshold, with the Clopper-Pearson interval (one-sided at
            0 and at 1: no hit in 100 samples is a chance of at most 3 %).
        mean, mean_low, mean_high: expected score.
        std, std_low, std_high: its standard deviation. A low mean with a large one leaks now and then.
        n_samples: samples that could be judged.
        threshold, level (`float`): as asked for.
    """

    share: np.ndarray
    share_low: np.ndarray
    share_high: np.ndarray
    mean: np.ndarray
    mean_low: np.ndarray
    mean_high: np.ndarray
    std: np.ndarray
    std_low: np.ndarray
    std_high: np.ndarray
    n_samples: np.ndarray
    threshold: float
    level: float


def leakage_bounds(values: np.ndarray, threshold: float, level: float = 0.95) -> LeakageBounds:
    """Bounds on the share above a threshold, the mean and the standard deviation of leakage scores.

    Mean and standard deviation are bounded by what the band of [`distribution_band`] allows: both hold at once.

    Args:
        values (`float (n, m)`): scores in [0, 1] of `m` samples of `n` records, higher = leaks more; NaN where a sample
            can't be judged.
        threshold (`float`): a sample leaks if its score is larger. Fix it before looking.
        level (`float`, *optional*, defaults to `0.95`): confidence level.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"values must have two dimensions, records and samples, not {values.ndim}.")
    if np.any((values < 0) | (values > 1)):
        raise ValueError("values must be in [0, 1], as the bounds on mean and standard deviation rely on that.")
    columns = np.full((10, len(values)), np.nan)
    for i, row in enumerate(values):
        known = row[~np.isnan(row)]
        columns[9, i] = len(known)
        if len(known):
            share = rate(int((known > threshold).sum()), len(known), level)
            x, lower, upper = distribution_band(known, level)
            columns[:9, i] = [
                *(share.value, share.low, share.high),
                *(known.mean(), _mean(x, upper), _mean(x, lower)),
                *(known.std(), _least_std(x, lower, upper), _largest_std(x, lower, upper)),
            ]
    return LeakageBounds(*columns, threshold=threshold, level=level)


def distribution_band(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Band around the distribution function of scores in [0, 1], which holds everywhere at once.

    By the inequality of Dvoretzky, Kiefer and Wolfowitz with Massart's constant (1990): the share of samples up to `x` is
    off by at most `sqrt(ln(2 / (1 - level)) / (2 m))`.

    Args:
        values (`float (m,)`): scores in [0, 1].
        level (`float`, *optional*, defaults to `0.95`): confidence level.

    Returns:
        `(x, lower, upper)`: borders `x` `(k + 1,)` from 0 to 1, and bounds on P(score <= t) for `x[i] <= t < x[i + 1]`,
        `(k,)`. `1 - lower` bounds the chance of a score above `t` from above.
    """
    values = np.sort(np.asarray(values, dtype=np.float64))
    x = np.unique(np.concatenate([[0.0], values, [1.0]]))
    share = np.searchsorted(values, x[:-1], side="right") / len(values)
    half = math.sqrt(math.log(2 / (1 - level)) / (2 * len(values)))
    return x, np.maximum(share - half, 0), np.minimum(share + half, 1)


def _mean(x: np.ndarray, distribution: np.ndarray) -> float:
    """Expectation of a score in [0, 1] from its distribution function: the integral of 1 - F."""
    return float(((1 - distribution) * np.diff(x)).sum())


def _least_std(x: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> float:
    """Smallest standard deviation in the band: all mass that may be near `c` is there, for the best `c`.

    `E (s - c)^2 = 2 (integral from 0 to c of (c - t) F(t) + integral from c to 1 of (t - c) (1 - F(t)))` is smallest with
    the lower end of the band to the left of `c` and the upper one to the right. It is convex in `c`, and stationary where
    the two integrals of F and of 1 - F are equal.
    """
    width = np.diff(x)
    left = np.concatenate([[0], np.cumsum(lower * width)])
    right = np.concatenate([np.cumsum(((1 - upper) * width)[::-1])[::-1], [0]])
    # Both are straight between the borders, and their difference rises.
    c = np.interp(0.0, left - right, x)
    t = np.union1d(x, c)
    piece = np.clip(np.searchsorted(x, t[:-1], side="right") - 1, 0, len(lower) - 1)
    moved = np.abs((t[1:] - c) ** 2 - (t[:-1] - c) ** 2)
    return float(np.sqrt((moved * np.where(t[1:] <= c, lower[piece], 1 - upper[piece])).sum()))


def _largest_std(x: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> float:
    """Largest standard deviation in the band: as much mass as may be at both ends, and none between.

    Such a distribution function follows the upper end of the band up to a height `p`, stays there, and goes on along the
    lower end once that is higher. Between the heights that the band takes its variance is a concave parabola of `p`.
    """
    of_upper, of_lower = (
        [np.concatenate([[0], np.cumsum(end * np.diff(power))]) for power in (x, x**2)] for end in (upper, lower)
    )

    def variance(p: np.ndarray) -> np.ndarray:
        a, b = np.searchsorted(upper, p, side="left"), np.searchsorted(lower, p, side="right")
        # 1 - E s = integral of F, 1 - E s^2 = integral of 2 t F
        mean, square = (
            1 - (up[a] + p * (power[b] - power[a]) + low[-1] - low[b])
            for up, low, power in zip(of_upper, of_lower, (x, x**2), strict=True)
        )
        return square - mean**2

    p = np.union1d(lower, upper)
    start, end = p[:-1], p[1:]
    at_start, middle, at_end = variance(start), variance((start + end) / 2), variance(end)
    bend = at_start - 2 * middle + at_end
    with np.errstate(divide="ignore", invalid="ignore"):
        top = 0.5 + np.where(bend < 0, (at_start - at_end) / (4 * bend), 0)
    highest = variance(start + np.clip(top, 0, 1) * (end - start))
    return float(np.sqrt(max(0.0, *variance(p), *highest)))
