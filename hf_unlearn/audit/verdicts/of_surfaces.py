"""The verdict of each surface, from those of its statistics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hf_unlearn.audit.verdicts.decision import VERDICTS, Verdict
from hf_unlearn.audit.verdicts.surfaces import SURFACES


# Reasons why a test shows nothing, whatever it finds now.
NO_SIGNAL = ("no_signal_before", "signal_unclear", "same_as_original")


@dataclass(frozen=True)
class SurfaceVerdict:
    """The worst of the verdicts of one surface.

    Attributes:
        surface (`str`): one of `SURFACES`.
        verdict (`str`): one of [`VERDICTS`].
        reason (`str` or `None`): of the worst verdict.
        worst (`Verdict` or `None`): the verdict that decided.
        verdicts (`tuple[Verdict, ...]`): those of all tested statistics.
        listed (`tuple[str, ...]`): statistics that did not count: without a margin, or without a signal before where another
            statistic had one.
    """

    surface: str
    verdict: str
    reason: str | None
    worst: Verdict | None
    verdicts: tuple[Verdict, ...]
    listed: tuple[str, ...]

    def as_dict(self) -> dict:
        """Plain types for JSON, with the names of the statistics."""
        return {
            "surface": self.surface,
            "verdict": self.verdict,
            "reason": self.reason,
            "listed": list(self.listed),
            "worst": None if self.worst is None else self.worst.statistic,
            "tested": [verdict.statistic for verdict in self.verdicts],
        }


def surface_verdict(surface: str, verdicts: Iterable[Verdict]) -> SurfaceVerdict:
    """The verdict of a surface: the worst of those of its statistics.

    A statistic without a margin is only listed. So is one without a signal before, if another of the surface had one.
    """
    verdicts = tuple(verdicts)
    counted = [v for v in verdicts if v.verdict not in (None, "not_tested")]
    counted = [v for v in counted if v.reason not in NO_SIGNAL] or counted
    if not counted:
        reason = verdicts[0].reason if verdicts else None
        return SurfaceVerdict(surface, "not_tested", reason, None, verdicts, tuple(v.statistic for v in verdicts))
    worst = min(counted, key=lambda v: VERDICTS.index(v.verdict))
    listed = tuple(v.statistic for v in verdicts if all(v is not other for other in counted))
    return SurfaceVerdict(surface, worst.verdict, worst.reason, worst, verdicts, listed)


def surface_verdicts(verdicts: Iterable[Verdict]) -> dict[str, SurfaceVerdict]:
    """The verdict of each of [`SURFACES`]; `not_tested` for one without a statistic."""
    verdicts = list(verdicts)
    return {name: surface_verdict(name, [v for v in verdicts if v.surface == name]) for name in SURFACES}
