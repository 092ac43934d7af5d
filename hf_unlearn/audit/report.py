"""The report of an audit: numbers, curves, verdicts, and what was not tested."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class AuditReport:
    """What was measured, and what it shows.

    Attributes:
        rows (`list[dict]`): one a measure: `measure`, `set`, `direction`, for each model in `models` an estimate
            (`value`, `low`, `high`, `n`, `method`, ...) and, with a retrained model, `difference_to_retrained` and its
            `reading`. One with a `surface` has a `verdict` too.
        models (`list[str]`): which of original, unlearned, retrained (and retrained_2, ...) were audited.
        sets (`dict[str, int]`): number of examples of each set.
        surfaces (`dict[str, dict]`): for every surface its `verdict`, what it rests on, and a sentence.
        curves (`list[dict]`): values along an axis, such as accuracy by steps of relearning: `name`, `axis`, `x`, and for
            each model a list of estimates.
        checks (`list[dict]`): of the audit itself: whether forget set and holdout can be compared, whether the retrained
            model has seen the forget set.
        worst (`list[dict]`): for every statistic of records the positions in the forget set of those that show most,
            against the retrained model, and the share of records above what retrained models reach: averages hide
            single leaks.
        notes (`list[str]`): what a reader must know.
        threats (`list[str]`): against whom it was tested.
        caveat (`str`): what no test of this kind can show; belongs beside the verdicts.
        cost (`dict`): what the edit cost beside retraining, where both are known.
    """

    rows: list[dict[str, Any]]
    models: list[str]
    sets: dict[str, int]
    notes: list[str] = field(default_factory=list)
    surfaces: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    worst: list[dict[str, Any]] = field(default_factory=list)
    threats: list[str] = field(default_factory=list)
    caveat: str = ""
    cost: dict[str, Any] = field(default_factory=dict)

    def value(self, measure: str, set: str = "forget", model: str = "unlearned") -> float:
        """One number of the table, e.g. `report.value("verbatim_extraction")`."""
        for row in self.rows:
            if row["measure"] == measure and row["set"] == set:
                return row[model]["value"]
        raise KeyError(f"No measure {measure!r} of the {set} set. There are {[r['measure'] for r in self.rows]}.")

    def verdict(self, surface: str) -> str:
        """`"no_trace_found"`, `"residual"`, ... of a surface, e.g. `report.verdict("verbatim")`."""
        if surface not in self.surfaces:
            raise KeyError(f"No surface {surface!r}. There are {', '.join(self.surfaces)}.")
        return self.surfaces[surface]["verdict"]

    @property
    def exit_code(self) -> int:
        """1 where something of the forget set was found on any surface, else 0."""
        return int(any(surface["verdict"] == "residual" for surface in self.surfaces.values()))

    def as_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return dict(vars(self))
