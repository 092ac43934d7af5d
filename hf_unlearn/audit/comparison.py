"""From tables and findings to the report, without running a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hf_unlearn.audit.measures.findings import control_findings, likelihood_findings
from hf_unlearn.audit.measures.memberships import Tables
from hf_unlearn.audit.measures.score_sets import CHANGED_FROM
from hf_unlearn.audit.measures.statistic import Groups, Statistic, row
from hf_unlearn.audit.measures.summaries import summary_rows
from hf_unlearn.audit.observations import baseline_of, checks_of, notes_of, worst_of
from hf_unlearn.audit.records import Curve, Found, by_statistic
from hf_unlearn.audit.report import AuditReport
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.audit.verdicts.judgement import judgement, reconstruction_surface
from hf_unlearn.audit.verdicts.margins import Margins
from hf_unlearn.audit.verdicts.wording import CAVEAT


def compare(
    tables: Tables,
    seed: int = 0,
    found: Mapping[str, Found] | None = None,
    groups=None,
    threats: Sequence[str] = (),
    sets: Mapping[str, Any] | None = None,
    margins: Margins | None = None,
    not_run: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    holdout_rows: int = 0,
    reach: Mapping[str, Mapping[str, Any]] | None = None,
) -> AuditReport:
    """Compare models by their tables and by what attacks found, without running a model.

    Args:
        tables (`dict[str, dict[str, Scores]]`): what [`score_sets`] returned for `"unlearned"` and, where there are
            such models, for `"original"` and `"retrained"`: the same examples in the same order.
        seed (`int`, *optional*, defaults to `0`): of the bootstrap intervals.
        found (`dict[str, Found]`, *optional*): values and curves of each model.
        groups (*optional*): as for [`audit`].
        threats (sequence of `str`, *optional*): the threat models that are judged; without any there is no verdict.
        sets (`dict`, *optional*): the rows themselves, by set, for the blind baseline of the verdicts.
        margins ([`Margins`], *optional*): margins of the verdicts.
        not_run (sequence of `dict`, *optional*): attacks that could not be run, see [`AuditReport`].
        notes (sequence of `str`, *optional*): what else a reader must know.
        holdout_rows (`int`, *optional*): as for [`audit`].
        reach (`dict`, *optional*): what of the rows of each set is read, see [`~hf_unlearn.data.reach.reach_of`].
    """
    found, sets, roles = found or {}, sets or {}, list(tables)
    groups = Groups.of(groups, len(tables["unlearned"].get("holdout", ())))
    values = likelihood_findings(tables) | by_statistic(found)
    rows = [row(statistic, dict.fromkeys(roles) | by_role, seed, groups) for statistic, by_role in values.items()]
    rows += summary_rows(tables, seed, groups)
    sizes = {name: len(table) for name, table in tables["unlearned"].items() if CHANGED_FROM not in table.meta}
    report = {"rows": rows, "models": roles, "sets": sizes, "curves": _curves(found, seed), "not_run": list(not_run)}
    report["coverage"] = {
        "sets": {name: _covered(tables["unlearned"][name], (reach or {}).get(name)) for name in sizes}
    }
    if weights := _weights_covered(found):
        report["coverage"]["weights"] = weights
    if not threats:
        return AuditReport(**report, notes=[*notes_of(tables, holdout_rows), *notes])
    margins, baseline = margins or Margins(), baseline_of(sets, seed, groups)
    verdicts, surfaces = judgement(
        values,
        control_findings(tables),
        threats,
        None if baseline is None else baseline.exchangeable,
        margins,
        seed,
        groups,
        "retrained" in tables,
        not_run,
    )
    for table_row in rows:
        verdict = verdicts.get((table_row["measure"], table_row.get("surface")))
        if verdict is not None:
            table_row["verdict"] = verdict.as_dict()
    checks = []
    audits = {role: part.reconstruction for role, part in found.items() if part.reconstruction is not None}
    if "unlearned" in audits:
        surfaces["inversion"], check = reconstruction_surface(audits, len(verdicts) + 1)
        checks.append(check)
    checks += checks_of(baseline, list(verdicts.values()), tables)
    return AuditReport(
        **report,
        notes=[*notes_of(tables, holdout_rows), *(check["says"] for check in checks if check.get("warns")), *notes],
        surfaces=surfaces,
        checks=checks,
        worst=worst_of(values),
        threats=list(threats),
        caveat=CAVEAT,
        margins=asdict(margins),
        grouped=groups is not None,
    )


def _weights_covered(found: Mapping[str, Found]) -> dict[str, float]:
    """The share of the weights that each attack on them changed: the least over the models."""
    least: dict[str, float] = {}
    for part in found.values():
        for name, share in part.coverage.items():
            least[name] = min(share, least.get(name, 1.0))
    return least


def _covered(table: Scores, reach: Mapping[str, Any] | None) -> dict[str, Any]:
    """How many rows of a set were scored, and what of them no score reaches, where this is known."""
    missing = {reason: len(places) for reason, places in table.missing.items()}
    return {**(reach or {}), "rows": len(table), "scored": int(table.valid.sum()), **missing}


def _curves(found: Mapping[str, Found], seed: int) -> list[dict[str, Any]]:
    """Each curve, with a mean and its interval per point and model."""
    curves: dict[Curve, dict[str, Any]] = {}
    for role, part in found.items():
        for curve, values in part.curves.items():
            statistic = Statistic(curve.name, curve.set, curve.direction, kind=curve.kind)
            points = [statistic.estimate(v, seed).as_dict() for v in values]
            curves.setdefault(curve, {})[role] = points
    return [
        {"name": c.name, "set": c.set, "axis": c.axis, "x": list(c.x), "direction": c.direction} | estimates
        for c, estimates in curves.items()
    ]
