"""Values with their intervals: AUC, true positive rate at a false positive rate, rates, means.

A point estimate from a few hundred records says little without its interval, so every function returns one. Membership
scores are **higher = more member-like**; a score of NaN means "cannot be scored", is left out and is counted in
`n_missing`. Bootstraps are seeded: the same call gives the same interval. Where several rows belong to one person or
author, name these in `groups`, one label per record: the bootstrap then draws whole groups, and the intervals are as wide
as they must be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import betaincinv
from scipy.stats import ks_2samp, norm

from hf_unlearn.statistics.estimate import AsDict, Estimate, known, of_groups
from hf_unlearn.statistics.ranking import Ranking
from hf_unlearn.statistics.resampling import bootstrap_means, group_codes, interval, n_units, resampled_counts


# Below this many records on one side the normal approximation behind DeLong's interval is replaced by the bootstrap.
DELONG_MIN_N = 30


@dataclass(frozen=True)
class OperatingPoint(AsDict):
    """True positive rate of an attack at the threshold that a bound on the false positive rate allows.

    Attributes:
        tpr (`Estimate`): share of members called members; NaN with a reason when it is unmeasurable.
        fpr (`Estimate`): the false positive rate realized, at most `target_fpr` in the sample.
        target_fpr (`float`): the bound asked for.
        threshold (`float`): a record is called a member if its score is strictly larger.
    """

    tpr: Estimate
    fpr: Estimate
    target_fpr: float
    threshold: float


@dataclass(frozen=True)
class KolmogorovSmirnov(AsDict):
    """Two-sample Kolmogorov-Smirnov test. A p-value depends on the sample sizes: never quote it without `d` and `n`.

    Attributes:
        d (`float`): largest distance between the two distribution functions, in [0, 1]; 0 = the same values. At 1 the
            samples are totally separated, and p only restates the sample sizes.
        p, log10_p (`float`): two-sided p-value; its logarithm stays finite where p underflows.
        critical_d (`float`): `d` beyond which p < 0.05, asymptotically.
        n (`tuple[int, int]`): sizes of the samples.
        n_missing (`int`): values left out because they are NaN.
    """

    d: float
    p: float
    log10_p: float
    critical_d: float
    n: tuple[int, int]
    n_missing: int = 0


def auc(members: np.ndarray, non_members: np.ndarray, level: float = 0.95, seed: int = 0, groups=None) -> Estimate:
    """Area under the ROC curve: the chance that a member scores higher than a non-member, ties counting one half.

    0.5 = the attack can't tell; 1 = it always can; **below 0.5 is not privacy**: deleted records that look *less* like
    members than unseen ones stand out too.

    Args:
        members (`float (n,)`): scores of the records that may have been trained on, higher = more member-like.
        non_members (`float (m,)`): scores of records that were not.
        level (`float`, *optional*, defaults to `0.95`): confidence level.
        seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.
        groups (`tuple` of two, *optional*): a label for each member, and one for each non-member.

    Returns:
        [`Estimate`]: with DeLong's interval (Sun and Xu, 2014, 10.1109/LSP.2014.2337313), or a stratified bootstrap
        below 30 records a side, or of groups. At an AUC of 0 or 1, where both have no width, a one-sided
        Clopper-Pearson bound with the smaller of n and m (of the numbers of groups, where there are some).
    """
    sides = zip((None, None) if groups is None else groups, (members, non_members), strict=True)
    codes = [group_codes(labels, ~np.isnan(np.ravel(side))) for labels, side in sides]
    members, non_members, n, n_missing = _two_sides(members, non_members)
    units = min(map(n_units, n, codes))
    pairs = Ranking(members, non_members)
    value = pairs.auc() if min(n) else np.nan

    def result(low, high, method, reason=None):
        return Estimate(float(value), float(low), float(high), n, method, level, n_missing, reason)

    if min(n) == 0:
        return result(np.nan, np.nan, "none", "no members" if n[0] == 0 else "no non-members")
    if value in (0.0, 1.0):
        bound = (1 - level) ** (1 / units)
        low, high = (bound, 1.0) if value == 1 else (0.0, 1 - bound)
        return result(low, high, f"clopper-pearson, smaller n{of_groups(groups)}", "perfect separation")
    if units == 1:
        return result(0, 1, "none", f"one {'record' if groups is None else 'group'} on a side has no spread")
    if min(n) >= DELONG_MIN_N and groups is None:
        half = norm.ppf((1 + level) / 2) * pairs.delong_std()
        return result(max(0, value - half), min(1, value + half), "delong")
    draws = np.concatenate([pairs.auc(*counts) for counts in resampled_counts(n, codes, seed)])
    low, high, method, reason = interval(value, draws, units, level)
    return result(max(0.0, low), min(1.0, high), f"stratified {method}{of_groups(groups)}", reason)


def tpr_at_fpr(members: np.ndarray, non_members: np.ndarray, fpr: float, level: float = 0.95) -> OperatingPoint:
    """Largest true positive rate over thresholds whose false positive rate is at most `fpr`; no interpolation.

    Records with the same score are called the same way, so the realized false positive rate may be smaller than `fpr`.

    Args:
        members, non_members: scores as for [`auc`].
        fpr (`float`): bound on the false positive rate. Below `1 / m` it is unmeasurable with m non-members.
        level (`float`, *optional*, defaults to `0.95`): confidence level of the Clopper-Pearson intervals.
    """
    if not 0 <= fpr <= 1:
        raise ValueError(f"fpr must be in [0, 1], not {fpr}.")
    members, non_members, n, n_missing = _two_sides(members, non_members)
    reason = None
    if min(n) == 0:
        reason = "no members" if n[0] == 0 else "no non-members"
    elif fpr * n[1] < 1 - 1e-9:
        needed = math.ceil(1 / fpr - 1e-9) if fpr > 0 else "infinitely many"
        reason = f"unmeasurable: a false positive rate of {fpr:g} needs {needed} non-members, and there are {n[1]}"
    if reason is not None:
        nothing = [Estimate(np.nan, np.nan, np.nan, (size,), "clopper-pearson", level, 0, reason) for size in n]
        return OperatingPoint(*nothing, target_fpr=fpr, threshold=np.nan)
    # The small term keeps products like 0.29 * 100, a rounding error below 29, from losing one false positive.
    allowed = int(math.floor(fpr * n[1] + 1e-9))
    threshold = -np.inf if allowed >= n[1] else np.sort(non_members)[n[1] - 1 - allowed]
    called = [side > threshold if allowed < n[1] else np.ones(len(side), bool) for side in (members, non_members)]
    return OperatingPoint(*(rate_of(side, level) for side in called), target_fpr=fpr, threshold=float(threshold))


def rate(hits: int, n: int, level: float = 0.95) -> Estimate:
    """A share with its Clopper-Pearson interval; at 0 of n and n of n the one-sided bound (`1 - 0.05 ** (1 / n)`).

    "0 of 100" is hence "at most 3 %", never "0 %".
    """
    if not 0 <= hits <= n:
        raise ValueError(f"hits must be between 0 and n={n}, not {hits}.")
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, (0,), "clopper-pearson", level, 0, "no records")
    if hits in (0, n):
        bound, method = (1 - level) ** (1 / n), "clopper-pearson, one-sided"
        low, high = (0.0, 1 - bound) if hits == 0 else (bound, 1.0)
    else:
        (low, high), method = clopper_pearson(hits, n, (1 - level) / 2), "clopper-pearson"
    return Estimate(hits / n, low, high, (n,), method, level)


def rate_of(hits: np.ndarray, level: float = 0.95) -> Estimate:
    """The share of `hits (n,)` that are 1, see [`rate`]; NaN is left out and counted."""
    scored = known(hits)
    return replace(rate(int(scored.sum()), len(scored), level), n_missing=np.size(hits) - len(scored))


def clopper_pearson(hits: int, n: int, tail: float) -> tuple[float, float]:
    """The ends of the exact interval of a share, each of which errs in at most `tail` (Clopper and Pearson, 1934)."""
    low = float(betaincinv(hits, n - hits + 1, tail)) if hits else 0.0
    return low, float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0


def mean(
    values: np.ndarray, level: float = 0.95, seed: int = 0, groups=None, bounds: tuple[float, float] | None = None
) -> Estimate:
    """Mean over records with a bootstrap interval, see [`~hf_unlearn.statistics.resampling.interval`].

    Values that are all the same have an interval only where their bounds are finite, and a single record has none.

    Args:
        values (`float (n,)`): one number per record; NaN is left out and counted.
        level, seed (*optional*): as for [`auc`].
        groups (`(n,)`, *optional*): one label per record; groups then count, not records.
        bounds (`tuple[float, float]`, *optional*): the range of a value by its definition, such as `(0, math.inf)` for a
            divergence; the interval keeps to it. By default values that all lie in [0, 1] are taken for shares, others
            for unbounded.
    """
    values = np.asarray(values, dtype=np.float64)
    codes = group_codes(groups, ~np.isnan(values))
    kept = known(values)
    n, n_missing = (len(kept),), len(values) - len(kept)
    if len(kept) == 0:
        return Estimate(np.nan, np.nan, np.nan, n, "bootstrap", level, n_missing, "no records")
    value = float(kept.mean())
    if not np.isfinite(kept).all():
        return Estimate(value, np.nan, np.nan, n, "bootstrap", level, n_missing, "infinite values")
    if bounds is None:
        bounds = (0.0, 1.0) if kept.min() >= 0 and kept.max() <= 1 else (-np.inf, np.inf)
    draws, units = bootstrap_means(kept, seed, codes), n_units(len(kept), codes)
    low, high, method, reason = interval(value, draws, units, level, bounds, reach=bounds[1] - bounds[0])
    return Estimate(value, low, high, n, f"{method}{of_groups(groups)}", level, n_missing, reason)


def ks(a: np.ndarray, b: np.ndarray) -> KolmogorovSmirnov:
    """Two-sample Kolmogorov-Smirnov test of `a (n,)` and `b (m,)`.

    p is exact up to 10,000 values a side; where scipy can't compute that, it warns and gives the asymptotic one.
    """
    a, b, n, n_missing = _two_sides(a, b)
    if min(n) == 0:
        return KolmogorovSmirnov(np.nan, np.nan, np.nan, np.nan, n, n_missing)
    test = ks_2samp(a, b)
    d, p, effective = float(test.statistic), float(test.pvalue), n[0] * n[1] / (n[0] + n[1])
    log10_p = math.log10(p) if p > 0 else (math.log(2) - 2 * effective * d**2) / math.log(10)
    return KolmogorovSmirnov(d, p, log10_p, 1.358 / math.sqrt(effective), n, n_missing)


def _two_sides(a, b) -> tuple[np.ndarray, np.ndarray, tuple[int, int], int]:
    n_missing = np.size(a) + np.size(b)
    a, b = known(a), known(b)
    return a, b, (len(a), len(b)), n_missing - len(a) - len(b)
