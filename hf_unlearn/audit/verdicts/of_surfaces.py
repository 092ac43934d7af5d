"""One verdict for each surface, from those of its statistics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hf_unlearn.audit.verdicts.decision import VERDICTS, Verdict
from hf_unlearn.audit.verdicts.surfaces import SURFACES


#: Reasons of a test that shows nothing, whatever it finds now.
NO_SIGNAL = ("no_signal_before", "signal_unclear", "same_as_original")


@dataclass(frozen=True)
class SurfaceVerdict:
    """The worst of the verdicts of one surface.

    Attributes:
        surface (`str`): one of `SURFACES`.
        verdict (`str`): one of [`VERDICTS`].
        reason (`str` or `None`): of the worst row.
        worst (`Verdict` or `None`): the row that decided.
        verdicts (`tuple[Verdict, ...]`): all rows, what was tested.
        listed (`tuple[str, ...]`): statistics that did not count: no signal before, where another had one, or no margin.
    """

    surface: str
    verdict: str
    reason: str | None
    worst: Verdict | None
    verdicts: tuple[Verdict, ...]
    listed: tuple[str, ...] = ()

    def as_dict(self) -> dict:
        """Plain types for JSON; the rows are those of the verdicts themselves."""
        shown = {"surface": self.surface, "verdict": self.verdict, "reason": self.reason, "listed": list(self.listed)}
        worst = None if self.worst is None else self.worst.statistic
        return shown | {"worst": worst, "verdicts": [verdict.as_dict() for verdict in self.verdicts]}


def surface_verdict(verdicts: Iterable[Verdict], surface: str | None = None) -> SurfaceVerdict:
    """The verdict of a surface: that of its worst row.

    A test without a signal before is only listed once another test of the surface had one; so is what only informs.
    """
    verdicts = tuple(verdicts)
    surface = surface or next((v.surface for v in verdicts if v.surface), "unnamed")
    counted = [v for v in verdicts if v.verdict not in (None, "not_tested")]
    with_signal = [v for v in counted if v.reason not in NO_SIGNAL]
    counted = with_signal or counted
    if not counted:
        reason = verdicts[0].reason if verdicts else None
        return SurfaceVerdict(surface, "not_tested", reason, None, verdicts, tuple(v.statistic for v in verdicts))
    worst = min(counted, key=lambda v: VERDICTS.index(v.verdict))
    listed = tuple(v.statistic for v in verdicts if all(v is not other for other in counted))
    return SurfaceVerdict(surface, worst.verdict, worst.reason, worst, verdicts, listed)


def surface_verdicts(verdicts: Iterable[Verdict]) -> dict[str, SurfaceVerdict]:
    """The verdict of each of [`SURFACES`], `not_tested` where there is no row; rows without a surface are left out."""
    verdicts = list(verdicts)
    return {name: surface_verdict([v for v in verdicts if v.surface == name], name) for name in SURFACES}
