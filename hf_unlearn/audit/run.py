"""The audit: every measure of a model, beside the same measure of the original and of the retrained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_unlearn.audit.checks import DEFAULT_THREATS, check_request, sets_of, threats_of
from hf_unlearn.audit.config import AuditConfig
from hf_unlearn.audit.measures import membership
from hf_unlearn.audit.measures.canaries import canary_sets, with_coins
from hf_unlearn.audit.measures.extraction import exact_memorization
from hf_unlearn.audit.measures.likelihoods import likelihood_findings, score_sets
from hf_unlearn.audit.measures.memberships import Tables, lira_finding
from hf_unlearn.audit.measures.statistic import Groups, Statistic, row
from hf_unlearn.audit.measures.summaries import summary_rows
from hf_unlearn.audit.records import Curve, Found, Subjects, by_statistic
from hf_unlearn.audit.report import AuditReport
from hf_unlearn.audit.roles import Models
from hf_unlearn.audit.table.score import score
from hf_unlearn.audit.threats import ONE_MODEL, TWO_MODELS, depth_of_unlearning, distance_to_retrained, like_untrained
from hf_unlearn.models.load import load_processing_class


# A model that keeps less of its accuracy on the retain set than this share is called damaged.
KEPT = 0.9


def audit(
    model,
    original=None,
    retrained=None,
    split=None,
    threat_model: Sequence[str] = DEFAULT_THREATS,
    processing_class=None,
    config: AuditConfig | None = None,
    margins=None,
    cache=None,
    load=None,
    device=None,
    groups=None,
    canaries=None,
    shadows: Sequence = (),
) -> AuditReport:
    """Audit an unlearned model: what an adversary finds in it, beside the original and a retrained model.

        report = audit("unlearned", original="original", retrained="retrained", split=split(rows, request))
        report.verdict("verbatim")

    Args:
        model (`PreTrainedModel` or `str`): what is audited, or its name.
        original (`PreTrainedModel` or `str`, *optional*): the model before the edit. Without it nothing shows that there
            was something to forget.
        retrained (*optional*): trained without the forget set, the goal of every measure. Several, of different seeds, in
            a list: the first is the reference, and how far the others are from it is the noise that a verdict allows.
            Without one there is no verdict but where something is found.
        split (`Split` or `dict`): sets of rows: `forget`, and where there are such, `retain` and `holdout`, `test` and
            `siblings` for a class, `unrelated` to relearn from.
        threat_model (`str` or sequence of `str`, *optional*, defaults to `("extraction", "membership")`): what the adversary can do:
            `"extraction"` (asks), `"membership"` (sees likelihoods), `"latent"` (has the weights: looks into the layers,
            quantizes, prunes), `"relearning"` (trains it further), `"both_checkpoints"` (has the original too).
        processing_class (*optional*): tokenizer or image processor; by default that of the model, if it is a name.
        config ([`AuditConfig`], *optional*): how much of what is tried.
        margins ([`~hf_unlearn.audit.verdicts.verdict.Margins`], *optional*): how far from the retrained model still counts as equal.
        cache ([`ScoreCache`], *optional*): keeps the tables of models that were scored before.
        load, device (*optional*): how a name becomes a model, and where it runs; see [`Models`].
        groups (`(n,)`, *optional*): whose a forget row is; rows of one person are not independent. A dictionary of
            `"forget"` and `"holdout"` has the labels of both.
        canaries ([`~hf_unlearn.audit.measures.exposure.Canaries`], *optional*): what was planted in the training data of the
            original, from `make_canaries`: their exposure, and a lower bound of epsilon.
        shadows (sequence, *optional*): at least two models or names, trained on the forget set with other seeds and then
            unlearned like the audited one (U-LiRA), or not (LiRA). They are compared with the retrained models but the
            first, of which there must be at least three in all.

    Returns:
        [`AuditReport`]

    Raises:
        ValueError: there is no forget set, or a threat model lacks what it needs. Before anything is computed.
    """
    from hf_unlearn.audit.verdicts.judgement import judged

    config = AuditConfig() if config is None else config
    models = Models(model, original, retrained, load, device, shadows)
    threats = threats_of(threat_model)
    sets = sets_of(split)
    notes = check_request(models.given, sets, threats, config, groups)
    if processing_class is None and models.name("unlearned") is not None:
        processing_class = load_processing_class(models.name("unlearned"))
    subjects = Subjects(sets, processing_class, config, groups)
    tables, found = _run(models, subjects, threats, cache, canaries)
    report = judged(
        compare(tables, config.seed, found, groups), tables, found, threats, subjects.sets, margins, config, groups
    )
    report.notes += notes
    return report


#: What each audit found of each model.
FoundByRole = dict[str, Found]


def _run(
    models: Models, subjects: Subjects, threats: Sequence[str], cache, canaries=None
) -> tuple[Tables, FoundByRole]:
    """One model after the other, then the original beside each of the others, and each beside the retrained one."""
    config = subjects.config
    options = {"max_length": config.max_length, "truncate": config.truncate, "cache": cache}
    found: FoundByRole = {role: Found() for role in models.roles}
    tables = _each_model(models, subjects, threats, options, canaries, found)
    _beside_the_original(models, subjects, threats, found)
    if models.shadows:
        _against_shadows(models, subjects, options, tables, found)
    if config.stability and "retrained" in models.roles:
        _beside_the_retrained(models, subjects, found)
    return tables, found


def _each_model(models: Models, subjects: Subjects, threats, options, canaries, found: FoundByRole) -> dict[str, Any]:
    """The tables of every model, and what is found by those who have nothing but it."""
    scored = {name: rows for name, rows in subjects.sets.items() if name != "unrelated"}
    scored |= {} if canaries is None else canary_sets(canaries)
    tables: dict[str, Any] = {}
    for role in models.roles:
        with models.use(role) as model:
            name = f"{role.replace('_', ' ')} model"
            batch_size = subjects.config.batch_size
            tables[role] = score_sets(model, subjects.processing_class, scored, batch_size, name=name, **options)
            if canaries is not None:
                tables[role]["canaries"] = with_coins(tables[role]["canaries"], canaries)
            subjects.tables = tables[role]
            for threat in threats:
                for audit_of_one in ONE_MODEL[threat]:
                    _add(found[role], audit_of_one(model, subjects))
    return tables


def _beside_the_original(models: Models, subjects: Subjects, threats: Sequence[str], found: FoundByRole) -> None:
    for threat in threats:
        for audit_of_two in TWO_MODELS.get(threat, ()):
            with models.use("original") as before:
                for role in [role for role in models.roles if role != "original"]:
                    with models.use(role) as after:
                        _add(found[role], audit_of_two(before, after, subjects))
    if "latent" in threats and {"original", "retrained"} <= set(models.roles):
        with (
            models.use("original") as original,
            models.use("retrained") as retrained,
            models.use("unlearned") as model,
        ):
            _add(found["unlearned"], depth_of_unlearning(original, model, retrained, subjects))


def _against_shadows(models: Models, subjects: Subjects, options, tables: Tables, found: FoundByRole) -> None:
    shadows = []
    for role in models.shadows:
        with models.use(role) as model:
            rows, batch_size = subjects.sets["forget"], subjects.config.batch_size
            shadows.append(score(model, subjects.processing_class, rows, batch_size, **options))
    for statistic, values in lira_finding(tables, shadows).items():
        for role, of_role in values.items():
            found[role].values[statistic] = of_role


def _beside_the_retrained(models: Models, subjects: Subjects, found: FoundByRole) -> None:
    with models.use("retrained") as retrained:
        _add(found["retrained"], like_untrained(retrained, subjects))
        for role in [role for role in models.roles if role != "retrained"]:
            with models.use(role) as model:
                distances = distance_to_retrained(model, retrained, subjects)
                _add(found[role], like_untrained(model, subjects))
            _add(found[role], distances)
            if role == "retrained_2":  # what retraining with another seed gives: the yardstick
                _add(found["retrained"], distances)


def _add(found: Found, more: Found) -> None:
    found.values |= more.values
    found.curves |= more.curves
    found.reconstruction = more.reconstruction or found.reconstruction


def compare(
    tables: Tables, seed: int = 0, found: Mapping[str, Found] | None = None, groups: Sequence | None = None
) -> AuditReport:
    """Compare models from their tables, and from what further audits found: no model is run here.

    Args:
        tables (`dict[str, dict[str, Scores]]`): what [`score_sets`] returned for `"unlearned"` and, where there are
            such models, for `"original"` and `"retrained"`: the same examples in the same order.
        seed (`int`, *optional*, defaults to `0`): of the bootstrap intervals.
        found (`dict[str, Found]`, *optional*): values and curves of each model.
        groups (*optional*): as for [`audit`].
    """
    roles = list(tables)
    groups = Groups.of(groups, len(tables["unlearned"].get("holdout", ())))
    values = likelihood_findings(tables) | by_statistic(found or {})
    rows = [row(statistic, dict.fromkeys(roles) | of_roles, seed, groups) for statistic, of_roles in values.items()]
    rows += summary_rows(tables, seed, groups)
    sets = {
        name: len(table) for name, table in tables["unlearned"].items() if not name.endswith(("_lowercase", "_recall"))
    }
    report = AuditReport(rows, roles, sets, curves=_curves(found or {}, seed))
    if "retrained" not in roles:
        report.notes.append(
            "There is no retrained model to compare with. How much of a number would be there without the forget set "
            "is unknown, and no number alone shows that it is forgotten."
        )
    if not sets.get("holdout"):
        report.notes.append("There is no holdout, so membership inference was not run.")
    if "original" in roles:
        report.notes += _what_the_edit_did(tables)
    return report


def _what_the_edit_did(tables: Tables) -> list[str]:
    """Notes where nothing was forgotten, or much was lost that should be kept."""
    notes = []
    before, after = (_mean(membership.loss(tables[role]["forget"])) for role in ("original", "unlearned"))
    retrained = _mean(membership.loss(tables["retrained"]["forget"])) if "retrained" in tables else np.inf
    if after - before < 0.05 and before < retrained - 0.05:
        notes.append(f"Nothing was forgotten: the loss on the forget set is {after:.3f}, and was {before:.3f}.")
    if len(tables["unlearned"].get("retain", ())):
        before, after = (_mean(exact_memorization(tables[role]["retain"])) for role in ("original", "unlearned"))
        if after < KEPT * before:
            notes.append(
                f"Much was lost that should be kept: next-token accuracy on the retain set is {after:.3f}, and was "
                f"{before:.3f}. A model that knows nothing leaves no trace, and is of no use."
            )
    return notes


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def _curves(found: Mapping[str, Found], seed: int) -> list[dict[str, Any]]:
    """Each curve with a mean and its interval a point, for each model."""
    curves: dict[Curve, dict[str, Any]] = {}
    for role, of_role in found.items():
        for curve, values in of_role.curves.items():
            statistic = Statistic(curve.name, curve.set, curve.direction, kind=curve.kind)
            points = [statistic.estimate(v, seed).as_dict() for v in values]
            curves.setdefault(curve, {})[role] = points
    return [
        {"name": c.name, "set": c.set, "axis": c.axis, "x": list(c.x), "direction": c.direction} | of_roles
        for c, of_roles in curves.items()
    ]
