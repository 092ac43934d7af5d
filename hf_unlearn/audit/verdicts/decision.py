"""The decision table: from paired differences to a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields

from hf_unlearn.audit.verdicts.distributions import DistributionDifference
from hf_unlearn.audit.verdicts.margins import Margins, SeedBand
from hf_unlearn.statistics.differences import Difference
from hf_unlearn.statistics.equivalence import records_needed, smallest_detectable
from hf_unlearn.statistics.estimate import Estimate, plain
from hf_unlearn.statistics.paired_rates import PairedRates


#: From the worst to the best, and `not_tested`, which has no rank.
VERDICTS = ("residual", "over_forgotten", "inconclusive", "no_baseline", "no_trace_found", "not_tested")

# The spread of fewer records or groups than this gives intervals that are too narrow to show equality.
MIN_UNITS = 10

PairedTest = Difference | PairedRates | DistributionDifference


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a verdict rests on, before the correction for other tests."""

    original: PairedTest | None
    unlearned: PairedTest | None
    margin: float | None
    band: SeedBand | None
    n_retrained: int
    cancels_seeds: bool
    exchangeable: bool | None
    reference_auc: Estimate | None
    same_as_original: bool | None
    margins: Margins
    beside_original: bool

    @property
    def has_reference(self) -> bool:
        return self.n_retrained > 0

    @property
    def alarm(self) -> float:
        """What a difference must exceed to be called one: the margin, or what other seeds of retraining explain."""
        return max(self.margin or 0.0, 0.0 if self.band is None else self.band.band)

    @property
    def signal(self) -> float:
        """What the original must exceed to show a signal: the margin, or the largest difference of retrained models.

        The alarm would be too much. With two retrained models it bounds a third that is unknown, and is so wide that what
        the original memorized would count as no signal.
        """
        return max(self.margin or 0.0, 0.0 if self.band is None else self.band.largest)


@dataclass(frozen=True)
class Verdict:
    """What is said about one statistic, and why.

    Attributes:
        statistic, kind, surface (`str`): what was measured.
        verdict (`str` or `None`): one of [`VERDICTS`]; `None` for a statistic without a margin, which only informs.
        reason (`str` or `None`): `no_reference`, `not_exchangeable`, `no_signal_before`, `signal_unclear` (too few records to
            tell whether there was a signal), `same_as_original` (original and retrained model are equal), `no_original`,
            `underpowered`, `seed_noise` (not beyond the differences between seeds of retraining), `not_after_correction`
            (beyond the margin, but not after the correction for the number of tests), `near_margin`, `not_measurable`,
            `no_records`, `no_margin`.
        flags (`tuple[str, ...]`): `created_by_edit` and `over` (the edit made a signal that was not there before, up or down;
            `over` also for an AUC below that of the retrained model, whatever the verdict), `leans_residual` and
            `leans_over` (no verdict, but the difference is not 0), `beside_original` (an attack on both checkpoints, where
            less than under retraining does no harm), `not_exchangeable`, `no_reference`, `one_retrained` (how much the seed
            matters is unknown), `less_holdout` (differences of the forget set minus those of the holdout).
        margin (`float`): the equivalence margin; NaN if there is none.
        seed_band (`float`): see [`SeedBand`]; NaN with fewer than two retrained models.
        unlearned (`Estimate` or `None`): unlearned minus retrained with its 90 % interval (1 - 2 alpha). Without a
            retrained model: AUC minus one half.
        original (`Estimate` or `None`): original minus retrained, likewise.
        share_left (`float`): `unlearned` divided by `original`, the share of the signal that is left; NaN without a signal.
        p_residual, p_over_forgotten (`float`): one-sided p-values beyond the margin, corrected by Holm in [`adjust`].
        family (`int`): number of tests in that correction.
        detectable (`float`): the true difference that the test would find with 80 % power in that family.
        records_needed (`float`): records (groups) per side that would show equivalence with 80 % power.
        n_retrained (`int`): number of retrained models in the comparison.
    """

    statistic: str
    kind: str
    surface: str | None
    verdict: str | None
    reason: str | None
    flags: tuple[str, ...]
    margin: float
    seed_band: float
    unlearned: Estimate | None
    original: Estimate | None
    share_left: float
    p_residual: float
    p_over_forgotten: float
    family: int
    detectable: float
    records_needed: float
    n_retrained: int
    evidence: Evidence = field(repr=False, compare=False)

    def as_dict(self) -> dict:
        """Plain types for JSON; NaN becomes `None`."""
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "evidence"}
        for name in ("unlearned", "original"):
            shown[name] = None if shown[name] is None else asdict(shown[name])
        return plain(shown)


def p_values(e: Evidence) -> tuple[float, float, float, float]:
    """One-sided p-values above and below the margin, and above and below 0; NaN if there is no such test."""
    test = e.unlearned
    if test is None or (e.has_reference and e.margin is None):
        return (math.nan,) * 4
    alarm = e.alarm if e.has_reference else 0.0
    return test.p_greater(alarm), test.p_less(-alarm), test.p_greater(), test.p_less()


def decide(names, e: Evidence, p: Sequence[float], family: int) -> Verdict:
    """The verdict on a statistic (name, kind, surface) from its evidence and its p-values corrected for the family."""
    statistic, kind, surface = names
    alpha, level = e.margins.alpha, 1 - 2 * e.margins.alpha
    after = None if e.unlearned is None else e.unlearned.estimate(level)
    before = None if e.original is None else e.original.estimate(level)
    signal = before is not None and before.low > e.signal
    verdict, reason, flags = _rules(kind, e, p, after, before)
    if e.exchangeable is False:
        flags.append("not_exchangeable")
    if e.n_retrained == 1 and not e.cancels_seeds:
        flags.append("one_retrained")
    if e.cancels_seeds and kind != "auc":
        flags.append("less_holdout")
    known = after is not None and not math.isnan(after.low)
    detectable = smallest_detectable(e.unlearned, e.margins.power, alpha / max(family, 1)) if known else math.nan
    return Verdict(
        statistic=statistic,
        kind=kind,
        surface=surface,
        verdict=verdict,
        reason=reason,
        flags=tuple(flags),
        margin=math.nan if e.margin is None else e.margin,
        seed_band=math.nan if e.band is None else e.band.band,
        unlearned=after,
        original=before,
        share_left=after.value / before.value if signal and known else math.nan,
        p_residual=p[0],
        p_over_forgotten=p[1],
        family=family,
        detectable=detectable,
        records_needed=_needed(e) if known and e.margin else math.nan,
        n_retrained=e.n_retrained,
        evidence=e,
    )


def _rules(
    kind: str, e: Evidence, p: Sequence[float], after: Estimate | None, before: Estimate | None
) -> tuple[str | None, str | None, list[str]]:
    """Verdict, reason and flags: the first row of the decision table that applies."""
    alpha = e.margins.alpha
    if not e.has_reference:
        return _without_reference(e, p)
    if min(after.n) == 0:
        return "not_tested", "no_records", []
    if e.margin is None:
        return None, "no_margin", []
    if math.isnan(after.low) or math.isnan(after.high) or (before is not None and math.isnan(before.low)):
        return "inconclusive", "not_measurable", []
    flags = []
    lower = (kind == "auc" and p[3] < alpha) or (kind == "unbounded" and after.value < -e.alarm)
    if lower and not e.beside_original:
        flags.append("over")
    flags += ["beside_original"] * e.beside_original
    inside = after.high < e.margin and (e.beside_original or -e.margin < after.low)
    above = after.low > e.alarm and p[0] < alpha
    below = after.high < -e.alarm and p[1] < alpha
    if before is not None and before.low <= e.signal:
        flags += ["created_by_edit"] * above + ["over"] * (below and not lower)
        reason = "signal_unclear" if before.high > e.signal else "no_signal_before"
        return "no_baseline", "same_as_original" if e.same_as_original else reason, flags
    if inside and e.unlearned.n_units < MIN_UNITS:
        return "inconclusive", "underpowered", flags
    if inside:
        unproven = before is None and not e.beside_original
        return ("no_baseline", "no_original", flags) if unproven else ("no_trace_found", None, flags)
    if above:
        return "residual", None, flags
    if below:
        return "over_forgotten", None, flags
    flags += ["leans_residual"] * (p[2] < alpha) + ["leans_over"] * (p[3] < alpha)
    if after.low > e.alarm or after.high < -e.alarm:
        return "inconclusive", "not_after_correction", flags
    if _needed(e) > e.unlearned.n_units:
        return "inconclusive", "underpowered", flags
    beyond = after.low > e.margin or after.high < -e.margin
    return "inconclusive", "seed_noise" if beyond and e.alarm > e.margin else "near_margin", flags


def _needed(e: Evidence) -> float:
    return records_needed(e.unlearned, e.margin, e.margins.power, e.margins.alpha)


def _without_reference(e: Evidence, p: Sequence[float]) -> tuple[str, str | None, list[str]]:
    if e.exchangeable is False:
        return "no_baseline", "not_exchangeable", []
    if e.unlearned is None or not e.exchangeable:
        return "no_baseline", "no_reference", []
    interval = e.unlearned.estimate(0.95)
    if interval.low > 0 and p[0] < e.margins.alpha:
        return "residual", None, ["no_reference"]
    over = interval.high < 0 and p[1] < e.margins.alpha
    return "no_baseline", "no_reference", ["over"] * over
