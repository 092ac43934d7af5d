"""The report of an audit: numbers, curves, verdicts, and what was not tested."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_unlearn.audit.verdicts.surfaces import surfaces_of


#: Exit codes: every surface that was asked for shows no trace; something was found; nothing is shown. 2 is for errors.
NO_TRACE, FOUND, NOT_SHOWN = 0, 1, 3


@dataclass(frozen=True, repr=False)
class AuditReport:
    """What was measured, and what it shows.

    Attributes:
        rows (`list[dict]`): one per measure: `measure`, `set`, `direction`, for each model in `models` an estimate
            (`value`, `low`, `high`, `n`, `method`, ...) and, with a retrained model, `difference_to_retrained` and its
            `reading`. A row with a `surface` has a `verdict` too.
        models (`list[str]`): which of original, unlearned, retrained (and retrained_2, ...) were audited.
        sets (`dict[str, int]`): number of examples of each set.
        surfaces (`dict[str, dict]`): for every surface its `verdict`, what it rests on, and a sentence.
        curves (`list[dict]`): values along an axis, such as accuracy by steps of relearning: `name`, `axis`, `x`, and for
            each model a list of estimates.
        checks (`list[dict]`): checks of the audit itself: whether forget set and holdout can be compared, whether the
            retrained model has seen the forget set.
        worst (`list[dict]`): for every statistic of records, the positions in the forget set of those that exceed the
            retrained model most, and the share of records above what retrained models reach: averages hide single leaks.
        notes (`list[str]`): what a reader must know.
        threats (`list[str]`): the threat models that were tested.
        caveat (`str`): what no test of this kind can show; belongs with the verdicts.
        cost (`dict`): the cost of the edit compared with that of retraining, where both are known.
        margins (`dict`): margins and levels of the verdicts, the fields of `Margins`.
        grouped (`bool`): whether the intervals of the forget set take the rows of one person as one.
        not_run (`list[dict]`): attacks that could not be run, with `attack`, `surface`, `model` and `reason`. Where nothing
            was found on their surface it is `not_tested`.
        coverage (`dict`): what of the records and of the weights was reached. `sets` has for each set `rows`, `scored`,
            `no_target` and `not_finite` (numbers of rows, by the table of the audited model), and where the rows are known
            `unread_columns` and `unreached`: what of a record no loss and no score reads, see
            [`~hf_unlearn.data.reach.reach_of`]. `weights`: the share of the weights of the body, in [0, 1], that each attack
            on the weights changed.
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
    margins: dict[str, Any] = field(default_factory=dict)
    grouped: bool = False
    not_run: list[dict[str, Any]] = field(default_factory=list)
    coverage: dict[str, Any] = field(default_factory=dict)

    def value(self, measure: str, set: str | None = None, model: str = "unlearned") -> float:
        """One number of the table, e.g. `report.value("verbatim_extraction")`.

        Args:
            measure (`str`): as in the rows.
            set (`str`, *optional*): the set of records, e.g. `"retain"` or `"forget against holdout"`; by default the
                forget set, or the only set that the measure has.
            model (`str`, *optional*, defaults to `"unlearned"`): one of `models`.

        Raises:
            KeyError: there is no such measure, set or model; the message lists those that there are.
        """
        rows = {row["set"]: row for row in self.rows if row["measure"] == measure}
        chosen = set or ("forget" if "forget" in rows or len(rows) != 1 else next(iter(rows)))
        if chosen not in rows:
            there = [(row["measure"], row["set"]) for row in self.rows if row["measure"] == measure or not rows]
            raise KeyError(f"No measure {measure!r} of the set {chosen!r}. There are (measure, set): {there}.")
        estimate = rows[chosen].get(model)
        if estimate is None:
            known = [name for name in self.models if rows[chosen].get(name) is not None]
            raise KeyError(f"{measure!r} has no value of the model {model!r}. It has those of {', '.join(known)}.")
        return estimate["value"]

    def verdict(self, surface: str) -> str:
        """`"no_trace_found"`, `"residual"`, ... of a surface, e.g. `report.verdict("verbatim")`."""
        if surface not in self.surfaces:
            raise KeyError(f"No surface {surface!r}. There are {', '.join(self.surfaces)}.")
        return self.surfaces[surface]["verdict"]

    @property
    def exit_code(self) -> int:
        """What a script may conclude.

        * 1: a surface is `residual` or `over_forgotten`;
        * 0: every surface of the chosen threat models that any statistic could test is `no_trace_found`, and every threat
          model has one;
        * 3: anything else. Nothing was found and nothing is shown: `inconclusive`, `no_baseline`, records that could not be
          scored, an attack that could not be run, a threat model that could not be tested, or a retrained model that looks
          as if it had seen the forget set.
        """
        if any(surface["verdict"] in ("residual", "over_forgotten") for surface in self.surfaces.values()):
            return FOUND
        if not self.threats or any(check["check"] == "reference_saw_forget_set" for check in self.checks):
            return NOT_SHOWN
        for threat in self.threats:
            surfaces = [self.surfaces[name] for name in surfaces_of(threat) if name in self.surfaces]
            # A surface that lacks optional data (prompts to rephrase, a second retrained model) has no statistic.
            tested = {surface["verdict"] for surface in surfaces if surface.get("tested")}
            stopped = any(attack["surface"] in surfaces_of(threat) for attack in self.not_run)
            if stopped or tested != {"no_trace_found"}:
                return NOT_SHOWN
        return NO_TRACE

    def __str__(self) -> str:
        """The verdicts, one per line, and what must be known with them."""
        against = ", ".join(self.threats).replace("_", " ") or "no threat model"
        lines = [f"Audit of {self.sets.get('forget', 0)} records, tested against: {against}."]
        tested = {name: surface for name, surface in self.surfaces.items() if surface["verdict"] != "not_tested"}
        lines += [f"  {name:15}  {self._line(surface)}" for name, surface in tested.items()]
        untested = [name for name in self.surfaces if name not in tested]
        lines += [f"  Not tested: {', '.join(untested)}. Nothing is said about these."] if untested else []
        lines += [f"  Could not be run: {a['attack']} ({a['model']} model): {a['reason']}" for a in self.not_run]
        return "\n".join([*lines, *(f"* {note}" for note in self.notes), *([self.caveat] if self.caveat else [])])

    __repr__ = __str__  # that of a dataclass would print all rows

    def _line(self, surface: dict[str, Any]) -> str:
        """Verdict and reason of a surface, and the difference that decided, with its interval and margin."""
        said = surface["verdict"].replace("_", " ")
        said += f" ({surface['reason'].replace('_', ' ')})" if surface.get("reason") else ""
        found = [row["verdict"] for row in self.rows if row["measure"] == surface["worst"] and "verdict" in row]
        found = [v for v in found if v["surface"] == surface["surface"] and v["unlearned"] is not None]
        if not found or any(found[0]["unlearned"][key] is None for key in ("value", "low", "high")):
            return f"{said}: {surface['worst']}" if surface["worst"] else said
        change, margin = found[0]["unlearned"], found[0]["margin"]
        said += f": {surface['worst']} {change['value']:+.3g} [{change['low']:+.3g}, {change['high']:+.3g}]"
        return said + ("" if margin is None else f", margin {margin:.3g}")

    def as_dict(self) -> dict[str, Any]:
        """Plain types for JSON: the attributes, and the `exit_code`."""
        return vars(self) | {"exit_code": self.exit_code}
