"""The audit: every measure of a model, next to the same measure of the original and of the retrained model."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hf_unlearn.audit.attacks.attack import Attack
from hf_unlearn.audit.attacks.table import attacks_of
from hf_unlearn.audit.checks import DEFAULT_THREATS, check_request, sets_of, threats_of
from hf_unlearn.audit.comparison import compare
from hf_unlearn.audit.config import AuditConfig
from hf_unlearn.audit.measures.canaries import canary_sets, with_coins
from hf_unlearn.audit.measures.memberships import lira_finding
from hf_unlearn.audit.measures.score_sets import score_sets
from hf_unlearn.audit.records import AuditRecords, Found
from hf_unlearn.audit.report import AuditReport
from hf_unlearn.audit.roles import Models
from hf_unlearn.audit.table.score import score
from hf_unlearn.data.reach import reach_of
from hf_unlearn.data.text import context_length, limits_of
from hf_unlearn.models.likelihood import is_image_classifier
from hf_unlearn.models.load import load_processing_class


logger = logging.getLogger(__name__)


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
    holdout_rows: int = 0,
) -> AuditReport:
    """Audit an unlearned model: what an adversary finds in it, compared with the original and a retrained model.

        report = audit("unlearned", original="original", retrained="retrained", split=split(rows, request))
        report.verdict("verbatim")

    Args:
        model (`PreTrainedModel` or `str`): the audited model, or its name.
        original (`PreTrainedModel` or `str`, *optional*): the model before the edit. Without it nothing shows that there
            was something to forget.
        retrained (*optional*): a model trained without the forget set, the goal of every measure. Several, of different
            seeds, go in a list: the first is the reference, and the distance of the others from it is the noise that a
            verdict allows. Without one there is a verdict only where something is found.
        split (`Split` or `dict`): sets of rows: `forget`, and optionally `retain` and `holdout`, `test` and `siblings` for a
            class, and `unrelated` to relearn from.
        threat_model (`str` or sequence of `str`, *optional*, defaults to `("extraction", "membership")`): what the adversary
            can do: `"extraction"` (asks), `"membership"` (sees likelihoods), `"latent"` (has the weights: looks into the
            layers, quantizes, prunes), `"relearning"` (trains it further), `"both_checkpoints"` (has the original too).
        processing_class (*optional*): tokenizer or image processor; by default that of the model, if it is a name.
        config ([`AuditConfig`], *optional*): how much is tried.
        margins ([`Margins`], *optional*): how far from the retrained model still counts as equal.
        cache ([`ScoreCache`], *optional*): keeps the tables of models that were scored before.
        load, device (*optional*): how a name becomes a model, and where it runs; see [`Models`].
        groups (`(n,)`, *optional*): the person each forget row is about; rows of one person are not independent. A
            dictionary with `"forget"` and `"holdout"` has the labels of both sets.
        canaries ([`Canaries`], *optional*): what was planted in the training data of the original, from `make_canaries`:
            gives their exposure, and a lower bound of epsilon.
        shadows (sequence, *optional*): at least two models or names, trained on the forget set with other seeds and then
            unlearned like the audited one (U-LiRA), or not (LiRA). They are compared with all retrained models but the
            first, so that at least three retrained models are needed.
        holdout_rows (`int`, *optional*): number of holdout rows before those that do not fit the request were left out, to
            say why there is no holdout. A `Split` knows it.

    Returns:
        [`AuditReport`]

    Raises:
        ValueError: there is no forget set, or a threat model lacks what it needs; raised before anything is computed.
    """
    config = AuditConfig() if config is None else config
    models = Models(model, original, retrained, load, device, shadows)
    threats = threats_of(threat_model)
    sets = sets_of(split)
    notes = check_request(models.given, sets, threats, config, groups)
    models.require(only_objects=load is not None)
    if processing_class is None and models.name("unlearned") is not None:
        processing_class = load_processing_class(models.name("unlearned"))
    records = AuditRecords(sets, processing_class, config, groups)
    run = _Run(models, records, attacks_of(threats, config.stability and "retrained" in models.roles))
    run.score_and_attack(cache, canaries)
    run.attack_beside()
    n_holdout = holdout_rows or getattr(split, "holdout_rows", 0)
    shown = {"not_run": run.not_run, "notes": notes, "holdout_rows": n_holdout, "reach": run.reach}
    return compare(run.tables, config.seed, run.found, groups, threats, records.sets, margins, **shown)


class _Run:
    """Audits one model after the other, then each together with the models that an attack needs as well.

    Attributes:
        tables (`dict[str, dict[str, Scores]]`): by role and set.
        found (`dict[str, Found]`): by role, what the attacks found.
        not_run (`list[dict]`): attacks that could not be run: `attack`, `surface`, `model`, `reason`.
        reach (`dict[str, dict]`): by set, what of its rows is read.
    """

    def __init__(self, models: Models, records: AuditRecords, attacks: Sequence[Attack]):
        self.models, self.records = models, records
        self.attacks = [attack for attack in attacks if records.kind in attack.kinds]
        self.tables: dict[str, Any] = {}
        self.found = {role: Found() for role in models.roles}
        self.not_run: list[dict[str, Any]] = []
        self.reach: dict[str, dict[str, Any]] = {}

    def score_and_attack(self, cache, canaries) -> None:
        """The tables of every model, and what an adversary finds who has only this model."""
        records = self.records
        options = {"batch_size": records.config.batch_size, "max_length": records.config.max_length}
        options |= {"truncate": records.config.truncate, "cache": cache}
        scored = {name: rows for name, rows in records.sets.items() if name != "unrelated"}
        scored |= {} if canaries is None else canary_sets(canaries)
        for role in self.models.roles:
            with self.models.use(role) as model:
                if not self.reach:  # before the first pass, so that an error names the set and the row
                    self.reach = {key: self._reach_of(model, key, rows) for key, rows in scored.items()}
                name = f"{role.replace('_', ' ')} model"
                table = score_sets(model, records.processing_class, scored, name=name, **options)
                if canaries is not None:
                    table["canaries"] = with_coins(table["canaries"], canaries)
                self.tables[role] = records.tables = table
                for attack in self.attacks:
                    if not attack.beside and role in (attack.roles or self.models.roles):
                        self._attack(attack, role, model)
        shadows = []
        for role in self.models.shadows:
            with self.models.use(role) as model:
                shadows.append(score(model, records.processing_class, records.sets["forget"], **options))
        for statistic, by_role in (lira_finding(self.tables, shadows) if shadows else {}).items():
            for role, values in by_role.items():
                self.found[role].values[statistic] = values

    def _reach_of(self, model, name: str, rows) -> dict[str, Any]:
        config, sizes = self.records.config, limits_of(model.config, is_image_classifier(model))
        max_length = config.max_length or context_length(model)
        return reach_of(rows, self.records.processing_class, f"{name} set", max_length, config.truncate, **sizes)

    def attack_beside(self) -> None:
        """What an adversary finds who has other models too. The models of one attack are in memory together."""
        for attack in self.attacks:
            if not attack.beside or not set(attack.beside) <= set(self.models.roles):
                continue
            with ExitStack() as loaded:
                others = {role: loaded.enter_context(self.models.use(role)) for role in attack.beside}
                for role in attack.roles or [role for role in self.models.roles if role not in attack.beside]:
                    with self.models.use(role) as model:
                        found = self._attack(attack, role, model, **others)
                    if role == "retrained_2" and "retrained" in attack.beside:
                        # The reference is what retraining with another seed gives.
                        self.found["retrained"].add(found)

    def _attack(self, attack: Attack, role: str, model, **others) -> Found:
        """Add what an attack finds. If it stops with an error, what it and the others found before is kept."""
        found, reason = Found(), attack.obstacle(model)
        if reason is None:
            try:
                for part in attack.found(model, self.records, **others):
                    found.add(part)
            except Exception as error:
                reason = _reason(error)
        self.found[role].add(found)
        if reason is not None:
            logger.warning(f"{attack.name} could not be run on the {role} model: {reason}")
            self.not_run.append({"attack": attack.name, "surface": attack.surface, "model": role, "reason": reason})
        return found


def _reason(error: Exception) -> str:
    """Why an attack stopped. Errors of other packages may quote a record, so only their place is named."""
    package = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if package in Path(frame.filename).parents]
    # Compiled code has no frame: its error seems to come from our line, which then does not raise.
    if isinstance(error, ValueError) and ours and ours[-1] is frames[-1] and frames[-1].line.startswith("raise "):
        return str(error)
    place = (ours or frames)[-1]
    return f"it stopped with {type(error).__name__} at {Path(place.filename).name}, line {place.lineno}"
