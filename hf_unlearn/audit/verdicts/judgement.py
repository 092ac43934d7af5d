"""Verdicts on what an audit found: one per statistic, corrected for the number of statistics, and one per surface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_unlearn.audit.measures.statistic import Groups, Statistic
from hf_unlearn.audit.roles import ROLES, further_retrained
from hf_unlearn.audit.verdicts.margins import Margins
from hf_unlearn.audit.verdicts.of_surfaces import surface_verdicts
from hf_unlearn.audit.verdicts.surfaces import SURFACES, surfaces_of
from hf_unlearn.audit.verdicts.verdict import Verdict, adjust, judge
from hf_unlearn.audit.verdicts.wording import not_run_wording, wording


def judgement(
    values: Mapping[Statistic, Mapping[str, Any]],
    controls: Mapping[Statistic, Mapping[str, Any]],
    threats: Sequence[str],
    exchangeable: bool | None,
    margins: Margins,
    seed: int,
    groups: Groups | None,
    has_retrained: bool,
    not_run: Sequence[Mapping[str, Any]] = (),
) -> tuple[dict[tuple[str, str | None], Verdict], dict[str, dict[str, Any]]]:
    """Judge every statistic on a surface of the threat models, and every surface.

    Args:
        values (`dict`): values of each statistic by the role of the model.
        controls (`dict`): the same for the holdout, for some of the statistics.
        exchangeable (`bool`, *optional*): whether forget set and holdout can't be told apart without any model.
        not_run (sequence of `dict`): attacks that could not be run, with `surface`, `attack`, `model` and `reason`. Their
            surface is `not_tested`, because a part of the test is missing, unless another attack on it found something.

    Returns:
        The verdicts by (name, surface) of the statistic, and for every surface, in plain types, its verdict, what it rests
        on, and a sentence.
    """
    asked = {surface for threat in threats for surface in surfaces_of(threat)}
    verdicts = adjust(
        [
            _verdict(statistic, by_role, controls.get(statistic), exchangeable, margins, seed, groups)
            for statistic, by_role in values.items()
            if statistic.surface in asked and _comparable(by_role, has_retrained)
        ]
    )
    surfaces = {}
    for name, found in surface_verdicts(verdicts).items():
        surfaces[name] = found.as_dict() | {"wording": wording(found)}
        missing = [attack for attack in not_run if attack["surface"] == name]
        if missing and found.verdict not in ("residual", "over_forgotten"):
            surfaces[name] |= {"verdict": "not_tested", "reason": "not_run", "worst": None}
            surfaces[name]["wording"] = not_run_wording(name, missing)
    return {(v.statistic, v.surface): v for v in verdicts}, surfaces


def _comparable(by_role: Mapping[str, Any], has_retrained: bool) -> bool:
    # An attack with reference models has no value for the retrained model unless there is a second one, and an attack that
    # failed on a model has none for that model.
    needed = ("unlearned", "retrained") if has_retrained else ("unlearned",)
    return all(by_role.get(role) is not None for role in needed)


def _verdict(statistic: Statistic, by_role, control, exchangeable, margins, seed, groups) -> Verdict:
    models = [by_role.get(role) for role in ROLES]
    others = further_retrained(by_role)
    further = [by_role[role] for role in others]
    labels = statistic.groups_of(groups)
    # If forget set and holdout differ in kind, what a model does on the holdout says nothing about the forget set.
    if control is not None and statistic.kind == "share" and exchangeable is not False:
        models = [None if v is None else (v, control[role]) for v, role in zip(models, ROLES, strict=True)]
        further = [(by_role[role], control[role]) for role in others]
        labels = None if labels is None else (labels, groups.holdout)
    return judge(
        statistic.name,
        SURFACES[statistic.surface].margin or statistic.kind,
        *models,
        further,
        surface=statistic.surface,
        exchangeable=exchangeable,
        groups=labels,
        margins=margins,
        seed=seed,
    )


def reconstruction_surface(audits: Mapping[str, Any], family: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The verdict on the surface of images, and a check with its numbers beside those of the retrained model.

    What an adversary reads off both pairs of checkpoints is not due to the edit. Nothing above the baselines does not show
    equivalence, so it is inconclusive. That the weights betray images without showing them is a test, corrected for the
    number of tests.

    Args:
        audits (`dict[str, ReconstructionAudit]`): by role, of the unlearned and if there is one of the retrained model.
        family (`int`): number of tests in the audit.
    """
    audit, other = audits["unlearned"], audits.get("retrained")
    shown = audit.shows_records(family)
    as_retrained = shown and other is not None and other.outcome == audit.outcome
    surface = {
        "surface": "inversion",
        "verdict": "residual" if shown and not as_retrained else "inconclusive",
        "reason": "as_retrained" if as_retrained else audit.outcome,
        "worst": "reconstruction_from_weights",
        "listed": [],
        "tested": ["reconstruction_from_weights"],
        "wording": audit.sentence,
    }
    check = {"check": "reconstruction", **audit.as_dict(), "says": audit.sentence}
    check["warns"] = audit.outcome in ("recovered", "partly_recovered", "betrayed")
    check["retrained"] = None if other is None else other.as_dict()
    return surface, check
