"""Rows of an audit that are no statistics: rates at fixed thresholds, and the aggregates that papers publish.

They inform and decide nothing: two models with the same aggregate can differ in every part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hf_unlearn.audit.measures import aggregates, membership, quality
from hf_unlearn.audit.measures.canaries import epsilon_row
from hf_unlearn.audit.measures.classifiers import salun_row
from hf_unlearn.audit.measures.extraction import exact_memorization, extraction_strength
from hf_unlearn.audit.measures.memberships import Pair, Tables
from hf_unlearn.audit.measures.statistic import MEMBER, Statistic, row_of
from hf_unlearn.audit.roles import ROLES, further_retrained
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.statistics import intervals
from hf_unlearn.statistics.estimate import known_mean
from hf_unlearn.statistics.thresholds import at_original_threshold


Rows = list[dict[str, Any]]
# What a table knows about utility. TOFU's nine parts need answers, real authors and world facts: see the suite `tofu`.
UTILITY_OF_TABLE = (
    "higher = better; utility of answer probability and next-token accuracy on retain, not TOFU's nine parts"
)
# The form of the truth ratio that TOFU's scripts compute.
VARIANT = "tofu"
# MUSE computes PrivLeak from Min-K% with this share (arXiv 2407.06460).
PRIVLEAK_K = 0.4
# The attacks of the published privacy score (arXiv 2506.12618).
PRIVACY_ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")


def summary_rows(tables: Tables, seed: int = 0, groups=None) -> Rows:
    """All rows that the tables allow."""
    sets = tables["unlearned"]
    has_labels = sets["forget"].of_labels
    rows: Rows = []
    if len(sets.get("holdout", ())):
        rows += _rates(tables) + _frozen_threshold(tables, seed, groups)
        rows += [] if has_labels else _privleak(tables)
    if "forget_paraphrased" in sets:
        rows += _truth_ratio(tables, seed)
    if has_labels and len(sets.get("test", ())) and len(sets.get("retain", ())):
        rows += _salun(tables, seed)
    elif not has_labels:
        rows += _published_scores(tables)
    if "canaries" in sets:
        rows.append(epsilon_row(tables, seed))
    return rows


def _rates(tables: Tables) -> Rows:
    scores = {role: _attack(membership.negative_loss, sets) for role, sets in tables.items()}
    rows = []
    for fpr in (0.01, 0.05):
        statistic = Statistic(f"membership_tpr_at_{fpr:.0%}_fpr", "forget against holdout", MEMBER)
        points = {role: intervals.tpr_at_fpr(*pair, fpr) for role, pair in scores.items()}
        row = row_of(statistic, {role: point.tpr for role, point in points.items()})
        for role, point in points.items():
            row[role]["fpr"] = point.fpr.as_dict()  # what it really is: at most the one asked for
        rows.append(row)
    return rows


def _frozen_threshold(tables: Tables, seed: int, groups) -> Rows:
    """What an attack calls a member whose threshold was fixed on the original model."""
    scores = {role: _attack(membership.negative_loss, tables[role]) for role in tables if role in ROLES}
    sides = None if groups is None else (groups.forget, groups.holdout)
    try:
        found = at_original_threshold(scores, seed=seed, groups=sides)
    except ValueError:  # no original model, too few records that can be scored, or too few persons
        return []
    named = (
        ("tpr_at_threshold_of_original", "forget", MEMBER, found.tpr),
        ("fpr_at_threshold_of_original", "holdout", "0 = no false alarm", found.fpr),
        ("balanced_accuracy_at_threshold_of_original", "forget against holdout", MEMBER, found.balanced_accuracy),
    )
    return [row_of(Statistic(name, set, direction), values) for name, set, direction, values in named]


def _privleak(tables: Tables) -> Rows:
    """PrivLeak of every model against the retrained one, which is 0 by definition."""
    if "retrained" not in tables:
        return []
    aucs = {
        role: intervals.auc(*_attack(lambda scores: membership.min_k(scores, PRIVLEAK_K), sets))
        for role, sets in tables.items()
    }
    reference = aucs.pop("retrained").value
    if np.isnan(reference):
        return []
    row: dict[str, Any] = {
        "measure": "privleak",
        "set": "forget against holdout",
        "direction": "percent; 0 = as retrained, negative = still memorized, positive = over-forgotten",
        "variant": "Min-40%",
        "retrained": None,
    }
    return [row | {role: _number(quality.privleak(auc.value, reference), auc.n) for role, auc in aucs.items()}]


def _truth_ratio(tables: Tables, seed: int) -> Rows:
    ratios = {
        role: quality.truth_ratio(sets["forget_paraphrased"], sets["forget_perturbed"], VARIANT)
        for role, sets in tables.items()
    }
    estimates = {role: quality.forget_truth_ratio_aggregate(ratio, seed=seed) for role, ratio in ratios.items()}
    rows = [row_of(Statistic("truth_ratio", "forget", "as retrained is best"), estimates) | {"variant": VARIANT}]
    if "retrained" in tables:
        row: dict[str, Any] = {"measure": "forget_quality", "set": "forget", "variant": VARIANT}
        row["direction"] = "p of a KS test; high = not told apart"
        row["retrained"] = None  # against itself it is 1 by definition
        reference = ratios.pop("retrained")
        tests = {role: quality.forget_quality(ratio, reference) for role, ratio in ratios.items()}
        rows.append(row | {role: {"value": test.p, **test.as_dict()} for role, test in tests.items()})
    return rows


def _published_scores(tables: Tables) -> Rows:
    """Mem, Priv, Util and Overall as far as their parts are there; see [`~hf_unlearn.audit.measures.aggregates`]."""
    found: dict[str, dict[str, quality.Aggregate]] = {}
    further = further_retrained(tables)
    tables = {role: sets for role, sets in tables.items() if role not in further}
    if "forget_paraphrased" in tables["unlearned"]:
        found["memorization_score"] = {role: _memorization(sets) for role, sets in tables.items()}
    if "retrained" in tables and len(tables["retrained"].get("holdout", ())):
        aucs = {role: _privacy_aucs(sets) for role, sets in tables.items()}
        found["privacy_score"] = {
            role: aggregates.privacy_score(by_attack, aucs["retrained"])
            for role, by_attack in aucs.items()
            if not np.isnan([*by_attack.values(), *aucs["retrained"].values()]).any()
        }
    if "original" in tables and len(tables["original"].get("retain", ())):
        kept = {role: _utility(sets["retain"]).value for role, sets in tables.items()}
        found["utility_score"] = {role: aggregates.utility_score(u, kept["original"]) for role, u in kept.items()}
    parts = ("memorization_score", "privacy_score", "utility_score")
    if all(found.get(name) for name in parts):
        found["overall_score"] = {
            role: aggregates.overall_score(*(found[name][role].value for name in parts))
            for role in tables
            if all(role in found[name] for name in parts)
        }
    forget, retain, holdout = (len(tables["unlearned"].get(key, ())) for key in ("forget", "retain", "holdout"))
    about = {
        "memorization_score": ("forget", "as retrained is best; higher = less memorized", {}, [forget]),
        "privacy_score": ("forget", "higher = better", {"variant": "relative"}, [forget, holdout]),
        "utility_score": ("retain", UTILITY_OF_TABLE, {}, [retain]),
        "overall_score": ("forget", UTILITY_OF_TABLE, {}, [forget, retain, holdout]),
    }
    rows = []
    for name, by_role in found.items():
        set, direction, variant, n = about[name]
        row = {"measure": name, "set": set, "direction": direction, **variant}
        row |= {role: None if x.value is None else _number(n=n, **x.as_dict()) for role, x in by_role.items()}
        rows += [row] if by_role else []
    return rows


def _memorization(sets: Mapping[str, Scores]) -> quality.Aggregate:
    paraphrased, perturbed = sets["forget_paraphrased"], sets["forget_perturbed"]
    return aggregates.memorization_score(
        known_mean(extraction_strength(sets["forget"])),
        known_mean(exact_memorization(sets["forget"])),
        known_mean(quality.answer_probability(paraphrased)),
        known_mean(quality.truth_ratio(paraphrased, perturbed, variant="probability")),
    )


def _privacy_aucs(sets: Mapping[str, Scores]) -> dict[str, float]:
    return {name: intervals.auc(*_attack(membership.ATTACKS[name], sets)).value for name in PRIVACY_ATTACKS}


def _utility(retain: Scores) -> quality.Aggregate:
    parts = {"answer_probability": quality.answer_probability, "next_token_accuracy": exact_memorization}
    return quality.model_utility({name: known_mean(part(retain)) for name, part in parts.items()})


def _salun(tables: Tables, seed: int) -> Rows:
    """The columns of SalUn's table, and how far they are from those of the retrained model on average."""
    keys = ("forget", "retain", "test")
    found = {role: salun_row(*(sets[key] for key in keys), seed=seed) for role, sets in tables.items()}
    rows = []
    for column, set in {"UA": "forget", "RA": "retain", "TA": "test", "MIA": "forget"}.items():
        statistic = Statistic(f"salun_{column.lower()}", set, "as retrained is best")
        rows.append(row_of(statistic, {role: estimates[column] for role, estimates in found.items()}))
    if "retrained" in tables:
        row = {"measure": "salun_average_gap", "set": "all", "direction": "0 = as retrained", "retrained": None}
        n = [len(tables["unlearned"][key]) for key in keys]
        values = {role: {name: x.value for name, x in estimates.items()} for role, estimates in found.items()}
        reference = values.pop("retrained")
        gaps = {role: aggregates.average_gap(columns, reference) for role, columns in values.items()}
        rows.append(row | {role: _number(n=n, **gap.as_dict()) for role, gap in gaps.items()})
    return rows


def _attack(attack: Callable[[Scores], np.ndarray], sets: Mapping[str, Scores]) -> Pair:
    return attack(sets["forget"]), attack(sets["holdout"])


def _number(value: float, n=(), **further: Any) -> dict[str, Any]:
    """A number without an interval."""
    return {"value": None if value is None or np.isnan(value) else float(value), "n": list(n), **further}
