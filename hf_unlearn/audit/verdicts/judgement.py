"""Verdicts on an audit: one a statistic, corrected for their number, and one a surface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from hf_unlearn.audit.attacks.reconstruction import LEVEL
from hf_unlearn.audit.config import AuditConfig
from hf_unlearn.audit.measures.likelihoods import FURTHER_PASSES, control_findings, likelihood_findings
from hf_unlearn.audit.measures.membership import too_short
from hf_unlearn.audit.measures.memberships import Tables
from hf_unlearn.audit.measures.statistic import Groups, Statistic
from hf_unlearn.audit.records import Found, by_statistic
from hf_unlearn.audit.report import AuditReport
from hf_unlearn.audit.roles import ROLES
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.audit.threats import SURFACES_OF
from hf_unlearn.audit.verdicts.verdict import (
    SURFACES,
    Margins,
    Verdict,
    adjust,
    judge,
    judge_auc,
    reference_warning,
    surface_verdicts,
    wording,
)
from hf_unlearn.audit.verdicts.wording import CAVEAT
from hf_unlearn.audit.verdicts.worst_records import worst_records
from hf_unlearn.statistics.exchangeability import blind_baseline


WORST = 10
# What tells which of the kept records an edit exposes.
EXPOSED = ("answer_probability", "retain")


def judged(
    report: AuditReport,
    tables: Tables,
    found: Mapping[str, Found],
    threats: Sequence[str],
    sets: Mapping[str, Any],
    margins: Margins | None,
    config: AuditConfig,
    groups=None,
) -> AuditReport:
    """The report with a verdict on every statistic that has a surface, on every surface, and on the audit itself."""
    margins = margins or Margins()
    groups = Groups.of(groups, len(sets.get("holdout", ())))
    baseline = _baseline(sets, config.seed, groups)
    values = likelihood_findings(tables) | by_statistic(found)
    surfaces = [surface for threat in threats for surface in SURFACES_OF[threat]]
    controls = control_findings(tables)
    verdicts = adjust(
        [
            _verdict(statistic, of_roles, controls.get(statistic), baseline, margins, config.seed, groups)
            for statistic, of_roles in values.items()
            if statistic.surface in surfaces and _comparable(of_roles, tables)
        ]
    )
    by_name = {(v.statistic, v.surface): v for v in verdicts}
    for row in report.rows:
        verdict = by_name.get((row["measure"], row.get("surface")))
        if verdict is not None:
            row["verdict"] = verdict.as_dict()
    of_surfaces = surface_verdicts(verdicts)
    report.threats = list(threats)
    report.surfaces = {name: _surface(of_surfaces[name]) for name in SURFACES}
    audits = {role: of.reconstruction for role, of in found.items() if of.reconstruction is not None}
    if "unlearned" in audits:
        report.surfaces["inversion"], of_images = _reconstruction(audits, len(verdicts) + 1)
        report.checks.append(of_images)
    report.checks += _checks(baseline, verdicts, tables)
    report.notes += [check["says"] for check in report.checks if check.get("warns")]
    report.worst = _worst(values)
    report.caveat = CAVEAT
    report.margins = asdict(margins)
    report.grouped = groups is not None
    return report


def _comparable(of_roles: Mapping[str, Any], tables: Tables) -> bool:
    # The reference attack has no value of the model it compares with, unless a second retrained model stands in for it.
    return "retrained" not in tables or of_roles.get("retrained") is not None


def _verdict(statistic: Statistic, of_roles, control, baseline, margins, seed, groups) -> Verdict:
    further = [of_roles[role] for role in of_roles if role.startswith("retrained_")]
    models = [of_roles.get(role) for role in ("original", "unlearned", "retrained")]
    arguments = {
        "surface": statistic.surface,
        "exchangeable": None if baseline is None else baseline.exchangeable,
        "margins": margins,
        "seed": seed,
        "beside_original": statistic.surface == "two-checkpoint",
    }
    if statistic.kind == "auc":
        arguments["groups"] = statistic.groups_of(groups)
        return judge_auc(statistic.name, *models, further, **arguments)
    kind = "relearn" if statistic.surface == "relearn" else statistic.kind.replace("mean", "share")
    # Where forget set and holdout differ in kind, what a model does on the one says nothing about the other.
    alike = baseline is None or baseline.exchangeable is not False
    if control is not None and kind == "share" and alike:
        models = [None if v is None else (v, control[role]) for v, role in zip(models, ROLES, strict=True)]
        further = [(of_roles[role], control[role]) for role in of_roles if role.startswith("retrained_")]
    arguments["groups"] = statistic.groups_of(groups)
    if arguments["groups"] is not None and isinstance(models[1], tuple):
        arguments["groups"] = (arguments["groups"], groups.holdout)
    return judge(statistic.name, kind, *models, further, **arguments)


def _surface(verdict) -> dict[str, Any]:
    shown = verdict.as_dict()
    shown.pop("verdicts")
    return shown | {"tested": [v.statistic for v in verdict.verdicts], "wording": wording(verdict)}


def _reconstruction(audits: Mapping[str, Any], family: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The surface of images, and the numbers under it, beside those of the retrained model.

    What is read off both pairs of checkpoints is not due to the edit. Nothing above the baselines is no equivalence: that
    stays open. That images are betrayed, but not shown, is a test like others and is corrected for their number.
    """
    audit, other = audits["unlearned"], audits.get("retrained")
    recovered = audit.outcome in ("recovered", "partly_recovered")
    betrayed = audit.outcome == "betrayed" and audit.p_value * family <= LEVEL
    as_retrained = other is not None and other.outcome == audit.outcome
    surface = {
        "surface": "inversion",
        "verdict": "residual" if (recovered or betrayed) and not as_retrained else "inconclusive",
        "reason": "as_retrained" if as_retrained and (recovered or betrayed) else audit.outcome,
        "worst": "reconstruction_from_weights",
        "listed": [],
        "tested": ["reconstruction_from_weights"],
        "wording": audit.sentence,
    }
    check = {"check": "reconstruction", **audit.as_dict(), "says": audit.sentence}
    check["warns"] = recovered or audit.outcome == "betrayed"
    check["retrained"] = None if other is None else other.as_dict()
    return surface, check


def _baseline(sets: Mapping[str, Any], seed: int, groups=None):
    """Whether forget set and holdout can be told apart without any model."""
    if not len(sets.get("forget", ())) or not len(sets.get("holdout", ())):
        return None
    of_sides = None if groups is None else (groups.forget, groups.holdout)
    return blind_baseline(sets["forget"], sets["holdout"], groups=of_sides, seed=seed)


def _checks(baseline, verdicts: Sequence[Verdict], tables: Tables) -> list[dict[str, Any]]:
    checks = []
    if baseline is not None:
        checks.append({"check": "blind_baseline", **baseline.as_dict(), "warns": baseline.shift is True})
        if baseline.shift is True:
            checks[-1]["says"] = (
                "Forget set and holdout differ in kind: a classifier that never saw a model tells them apart. An attack "
                "that compares them may find that difference and not what was trained on; only the difference to the "
                "retrained model counts."
            )
    if reference_warning(verdicts) is not None:
        checks.append(
            {
                "check": "reference_saw_forget_set",
                "warns": True,
                "says": "The retrained model looks as if it had been trained on the forget set. Nothing that is compared "
                "with it shows anything. Train it without these rows, and audit again.",
            }
        )
    missing = {
        f"{role}, {name}": int((~scores.valid).sum())
        for role, of_role in tables.items()
        for name, scores in of_role.items()
        if not scores.valid.all() and not name.endswith(FURTHER_PASSES)
    }
    if missing:
        says = ", ".join(f"{n} of the {name}" for name, n in missing.items())
        checks.append(
            {
                "check": "not_scored",
                "counts": missing,
                "warns": True,
                "says": f"Some examples could not be scored (no target, or logits that are no numbers): {says}. They are "
                "missing in every number, and in no total silently.",
            }
        )
    return checks + _too_short(tables["unlearned"])


def _too_short(sets: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """How many texts have so few tokens that Min-K reads a single one; of labels there is no Min-K."""
    if sets["forget"].meta.get("targets") == "label":
        return []
    counts = {name: int(too_short(sets[name]).sum()) for name in ("forget", "holdout") if name in sets}
    if not any(counts.values()):
        return []
    says = ", ".join(f"{n} of the {name} set" for name, n in counts.items())
    return [
        {
            "check": "too_short_for_min_k",
            "counts": counts,
            "warns": True,
            "says": f"Some texts have fewer than five tokens to score ({says}). For these Min-K and Min-K++ read the least "
            "likely token alone, which is a larger share than the 20 % of the others.",
        }
    ]


def _worst(values: Mapping[Statistic, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records that show most against the retrained model, by their positions. Averages hide single leaks.

    Of the retain set too: an edit exposes some of those that are kept.
    """
    found = []
    for statistic, of_roles in values.items():
        unlearned, retrained = of_roles.get("unlearned"), of_roles.get("retrained")
        exposed = statistic.surface is not None or (statistic.name, statistic.set) == EXPOSED
        if not exposed or statistic.kind == "auc" or unlearned is None or retrained is None:
            continue
        further = [of_roles[role] for role in of_roles if role.startswith("retrained_")]
        worst = worst_records(unlearned, retrained, WORST, further)
        shown = [(int(i), round(float(x), 6)) for i, x in zip(worst.indices, worst.excess, strict=True) if x > 0]
        found.append(
            {
                "measure": statistic.name,
                "set": statistic.set,
                "records": [i if statistic.records is None else statistic.records[i] for i, _ in shown],
                "excess": [excess for _, excess in shown],
                "share_above": worst.share_above.as_dict(),
                "limit": None if np.isnan(worst.limit) else worst.limit,
                "n_missing": worst.n_missing,
            }
        )
    return found
