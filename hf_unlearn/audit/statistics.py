"""Values with their intervals: AUC, true positive rate at a false positive rate, rates, means, differences.

A point estimate from a few hundred records says little without its interval, so every function returns one. Membership
scores are **higher = more member-like**; NaN means "cannot be scored", is left out and is counted in `n_missing`.
Bootstraps are seeded: the same call gives the same interval.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

import numpy as np
from scipy.stats import beta, ks_2samp, norm
from scipy.stats import t as student_t


N_RESAMPLES = 2000
# Below this many records on one side the normal approximation behind DeLong's interval is replaced by the bootstrap.
DELONG_MIN_N = 30


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval.

    Attributes:
        value, low, high (`float`): the point estimate and the ends of the interval; NaN if it can't be measured.
        n (`tuple[int, ...]`): number of records used, `(n,)` or `(n_members, n_non_members)`.
        method (`str`): how the interval was made.
        level (`float`): confidence level.
        n_missing (`int`): records left out because they can't be scored.
        reason (`str` or `None`): why a value or an interval is missing or degenerate.
    """

    value: float
    low: float
    high: float
    n: tuple[int, ...]
    method: str
    level: float = 0.95
    n_missing: int = 0
    reason: str | None = None

    def as_dict(self) -> dict:
        """Plain types for JSON; NaN becomes `None`."""
        return _plain(asdict(self))


@dataclass(frozen=True)
class OperatingPoint:
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

    def as_dict(self) -> dict:
        """Plain types for JSON; NaN becomes `None`."""
        return _plain(asdict(self))


@dataclass(frozen=True)
class KolmogorovSmirnov:
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

    def as_dict(self) -> dict:
        """Plain types for JSON; NaN becomes `None`."""
        return _plain(asdict(self))


@dataclass(frozen=True, eq=False)
class Difference:
    """A paired difference between two models, first minus second, with its bootstrap distribution.

    Attributes:
        value (`float`): the difference.
        n (`tuple[int, ...]`): number of pairs, `(n,)` or `(n_members, n_non_members)`.
        n_missing (`int`): records that can't be scored under both models.
        draws (`float64 (n_resamples,)`): the difference on resampled records.
        bounded (`bool`): the statistic lies in [0, 1], so that a bootstrap without spread can be given a width.
    """

    value: float
    n: tuple[int, ...]
    n_missing: int
    draws: np.ndarray = field(repr=False)
    bounded: bool = False

    def estimate(self, level: float = 0.95) -> Estimate:
        """The difference with its interval, see [`mean`]. For equivalence at 5 % compare the one of level 0.90."""
        if math.isnan(self.value):
            return Estimate(np.nan, np.nan, np.nan, self.n, "paired bootstrap", level, self.n_missing, "no records")
        low, high, method, reason = _interval(self.value, self.draws, min(self.n), level, self.bounded, floor=-1.0)
        return Estimate(self.value, low, high, self.n, f"paired {method}", level, self.n_missing, reason)

    def p_greater(self, margin: float = 0.0) -> float:
        """One-sided p-value against "the difference is at most `margin`"; small = larger than `margin`."""
        return self._p(self.draws <= margin)

    def p_less(self, margin: float = 0.0) -> float:
        """One-sided p-value against "the difference is at least `margin`"; small = less than `margin`."""
        return self._p(self.draws >= margin)

    def _p(self, against: np.ndarray) -> float:
        return float("nan") if math.isnan(self.value) else float((1 + against.sum()) / (1 + len(against)))


def auc(members: np.ndarray, non_members: np.ndarray, level: float = 0.95, seed: int = 0) -> Estimate:
    """Area under the ROC curve: the chance that a member scores higher than a non-member, ties counting one half.

    0.5 = the attack can't tell; 1 = it always can; **below 0.5 is not privacy**: deleted records that look *less* like
    members than unseen ones stand out too.

    Args:
        members (`float (n,)`): scores of the records that may have been trained on, higher = more member-like.
        non_members (`float (m,)`): scores of records that were not.
        level (`float`, *optional*, defaults to `0.95`): confidence level.
        seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.

    Returns:
        [`Estimate`]: with DeLong's interval (Sun and Xu, 2014, 10.1109/LSP.2014.2337313), or a stratified bootstrap
        below 30 records a side. At an AUC of 0 or 1, where both have no width, a one-sided Clopper-Pearson bound with
        the smaller of n and m.
    """
    members, non_members, n, n_missing = _two_sides(members, non_members)

    def result(low, high, method, reason=None):
        return Estimate(float(value), float(low), float(high), n, method, level, n_missing, reason)

    if min(n) == 0:
        value = np.nan
        return result(np.nan, np.nan, "none", "no members" if n[0] == 0 else "no non-members")
    pairs = _Ranking(members, non_members)
    value = pairs.auc()
    if value in (0.0, 1.0):
        bound = (1 - level) ** (1 / min(n))
        low, high = (bound, 1.0) if value == 1 else (0.0, 1 - bound)
        return result(low, high, "clopper-pearson, smaller n", "perfect separation")
    if min(n) == 1:
        return result(0, 1, "none", "one record on a side has no spread")
    if min(n) >= DELONG_MIN_N:
        half = norm.ppf((1 + level) / 2) * pairs.delong_std()
        return result(max(0, value - half), min(1, value + half), "delong")
    draws = np.concatenate([pairs.auc(*weights) for weights in _resampled_counts(n, seed)])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return result(low, high, "stratified bootstrap")


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
        reason = f"unmeasurable: a false positive rate below 1/{n[1]} needs at least {_needed(fpr)} non-members"
    if reason is not None:
        nothing = [Estimate(np.nan, np.nan, np.nan, (size,), "clopper-pearson", level, 0, reason) for size in n]
        return OperatingPoint(*nothing, target_fpr=fpr, threshold=np.nan)
    # The small term keeps products like 0.29 * 100, a rounding error below 29, from losing one false positive.
    allowed = int(math.floor(fpr * n[1] + 1e-9))
    threshold = -np.inf if allowed >= n[1] else np.sort(non_members)[n[1] - 1 - allowed]
    called = [side > threshold if allowed < n[1] else np.ones(len(side), bool) for side in (members, non_members)]
    tpr, realized = (rate(int(side.sum()), len(side), level) for side in called)
    return OperatingPoint(tpr, realized, target_fpr=fpr, threshold=float(threshold))


def rate(hits: int, n: int, level: float = 0.95) -> Estimate:
    """A share with its Clopper-Pearson interval; at 0 of n and n of n the one-sided bound (`1 - 0.05 ** (1 / n)`).

    "0 of 100" is hence "at most 3 %", never "0 %".
    """
    if not 0 <= hits <= n:
        raise ValueError(f"hits must be between 0 and n={n}, not {hits}.")
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, (0,), "clopper-pearson", level, 0, "no records")
    tail = (1 - level) / 2
    if hits == 0:
        low, high = 0.0, 1 - (1 - level) ** (1 / n)
    elif hits == n:
        low, high = (1 - level) ** (1 / n), 1.0
    else:
        low, high = beta.ppf(tail, hits, n - hits + 1), beta.ppf(1 - tail, hits + 1, n - hits)
    one_sided = ", one-sided" if hits in (0, n) else ""
    return Estimate(hits / n, float(low), float(high), (n,), f"clopper-pearson{one_sided}", level)


def mean(values: np.ndarray, level: float = 0.95, seed: int = 0) -> Estimate:
    """Mean over records with a bootstrap interval; NaN records are left out and counted.

    Percentiles of the bootstrap from 10 records on; below, where they are too narrow, Student's t with the bootstrap's
    standard error. Values in [0, 1] that are all the same get the exact bound for "none of n is different". A single
    record has no interval otherwise.
    """
    values = np.asarray(values, dtype=np.float64)
    kept = values[~np.isnan(values)]
    n, n_missing = (len(kept),), len(values) - len(kept)
    if len(kept) == 0:
        return Estimate(np.nan, np.nan, np.nan, n, "bootstrap", level, n_missing, "no records")
    value = float(kept.mean())
    if not np.isfinite(kept).all():
        return Estimate(value, np.nan, np.nan, n, "bootstrap", level, n_missing, "infinite values")
    bounded = bool(kept.min() >= 0 and kept.max() <= 1)
    low, high, method, reason = _interval(value, _bootstrap_means(kept, seed), len(kept), level, bounded, floor=0.0)
    return Estimate(value, low, high, n, method, level, n_missing, reason)


def _interval(value: float, draws: np.ndarray, n: int, level: float, bounded: bool, floor: float):
    """Ends of the interval of a statistic with bootstrap `draws` from `n` records, its method, and a caveat."""
    tail = (1 - level) / 2
    if bounded and np.ptp(draws) < 1e-15:
        width = 1 - tail ** (1 / n)
        return max(floor, value - width), min(1.0, value + width), "exact, none of n", "no spread"
    if n < 2:
        return np.nan, np.nan, "bootstrap", "one record has no spread"
    if n < 10:
        width = student_t.ppf(1 - tail, n - 1) * draws.std(ddof=1) * math.sqrt(n / (n - 1))
        low, high = float(value - width), float(value + width)
        return (max(floor, low), min(1.0, high), "Student's t", None) if bounded else (low, high, "Student's t", None)
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high), "bootstrap", None


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


def paired_difference(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Difference:
    """Mean of `first - second` over records, resampling the records once for both models.

    Args:
        first, second (`float (n,)`): a metric of the same records, in the same order, under two models (usually the
            unlearned and the retrained one).
        seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.
    """
    first, second = _aligned(first, second)
    kept = ~(np.isnan(first) | np.isnan(second))
    first, second, n_missing = first[kept], second[kept], int((~kept).sum())
    if not kept.any():
        return Difference(np.nan, (0,), n_missing, np.full(N_RESAMPLES, np.nan))
    both = np.concatenate([first, second])
    bounded = bool(both.min() >= 0 and both.max() <= 1)
    difference = first - second
    draws = _bootstrap_means(difference, seed)
    return Difference(float(difference.mean()), (len(difference),), n_missing, draws, bounded)


def paired_auc_difference(
    first_members: np.ndarray,
    first_non_members: np.ndarray,
    second_members: np.ndarray,
    second_non_members: np.ndarray,
    seed: int = 0,
) -> Difference:
    """AUC under the first model minus AUC under the second, resampling members and non-members once for both models.

    Args:
        first_members, second_members (`float (n,)`): scores of the same members, in the same order, under two models
            (usually the unlearned and the retrained one); higher = more member-like.
        first_non_members, second_non_members (`float (m,)`): the same for the non-members.
        seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.
    """
    sides, n_missing = [], 0
    for pair in ((first_members, second_members), (first_non_members, second_non_members)):
        first, second = _aligned(*pair)
        kept = ~(np.isnan(first) | np.isnan(second))
        sides.append((first[kept], second[kept]))
        n_missing += int((~kept).sum())
    n = (len(sides[0][0]), len(sides[1][0]))
    if min(n) == 0:
        return Difference(np.nan, n, n_missing, np.full(N_RESAMPLES, np.nan), bounded=True)
    first, second = (_Ranking(sides[0][model], sides[1][model]) for model in (0, 1))
    draws = [first.auc(*counts) - second.auc(*counts) for counts in _resampled_counts(n, seed)]
    return Difference(float(first.auc() - second.auc()), n, n_missing, np.concatenate(draws), bounded=True)


class _Ranking:
    """Where each member falls among the sorted non-members: all that an AUC, weighted or not, needs."""

    def __init__(self, members: np.ndarray, non_members: np.ndarray):
        self.members, self.non_members = members, non_members
        self.order = np.argsort(non_members, kind="stable")
        ordered = non_members[self.order]
        self.below = np.searchsorted(ordered, members, side="left")
        self.up_to = np.searchsorted(ordered, members, side="right")

    def auc(self, member_counts: np.ndarray | None = None, non_member_counts: np.ndarray | None = None):
        """AUC, or with counts `(draws, n)` and `(draws, m)` the AUC of each resample: `(draws,)`."""
        if member_counts is None or non_member_counts is None:
            return (self.below + self.up_to).mean() / (2 * len(self.order))
        mass = np.zeros((len(non_member_counts), len(self.order) + 1))
        np.cumsum(non_member_counts[:, self.order], axis=1, out=mass[:, 1:])
        wins = (member_counts * (mass[:, self.below] + mass[:, self.up_to])).sum(axis=1) / 2
        return wins / (member_counts.sum(axis=1) * mass[:, -1])

    def delong_std(self) -> float:
        n, m = len(self.members), len(self.order)
        of_members = (self.below + self.up_to) / (2 * m)
        ordered = np.sort(self.members)
        left, right = (np.searchsorted(ordered, self.non_members, side=side) for side in ("left", "right"))
        of_non_members = 1 - (left + right) / (2 * n)
        return math.sqrt(of_members.var(ddof=1) / n + of_non_members.var(ddof=1) / m)


def _resampled_counts(n: tuple[int, int], seed: int):
    """How often each member and each non-member is drawn, a chunk of resamples at a time."""
    rng = np.random.default_rng(seed)
    for size in _chunks(sum(n)):
        yield tuple(rng.multinomial(side, np.full(side, 1 / side), size=size) for side in n)


def _bootstrap_means(values: np.ndarray, seed: int) -> np.ndarray:
    rng, n = np.random.default_rng(seed), len(values)
    return np.concatenate([values[rng.integers(n, size=(size, n))].mean(axis=1) for size in _chunks(n)])


def _chunks(width: int) -> list[int]:
    """Sizes that sum to the number of resamples and keep a `(size, width)` array around a million entries."""
    size = max(1, 1_000_000 // width)
    return [min(size, N_RESAMPLES - start) for start in range(0, N_RESAMPLES, size)]


def _two_sides(a, b) -> tuple[np.ndarray, np.ndarray, tuple[int, int], int]:
    a, b = (np.asarray(side, dtype=np.float64).ravel() for side in (a, b))
    kept_a, kept_b = a[~np.isnan(a)], b[~np.isnan(b)]
    n_missing = len(a) + len(b) - len(kept_a) - len(kept_b)
    return kept_a, kept_b, (len(kept_a), len(kept_b)), n_missing


def _aligned(first, second) -> tuple[np.ndarray, np.ndarray]:
    first, second = (np.asarray(side, dtype=np.float64).ravel() for side in (first, second))
    if len(first) != len(second):
        raise ValueError(
            f"The two models have {len(first)} and {len(second)} values. A paired difference needs one value for each "
            "record under both, in the same order; use NaN for a record that can't be scored."
        )
    return first, second


def _needed(fpr: float) -> int | str:
    return math.ceil(1 / fpr - 1e-9) if fpr > 0 else "infinitely many"


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
