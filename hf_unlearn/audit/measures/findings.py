"""Every statistic that the tables of the models give, with its values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hf_unlearn.audit.measures import membership, quality
from hf_unlearn.audit.measures.canaries import canary_findings
from hf_unlearn.audit.measures.measure import measures_of
from hf_unlearn.audit.measures.memberships import Tables, membership_findings
from hf_unlearn.audit.measures.statistic import MEMORY, Statistic
from hf_unlearn.audit.roles import further_retrained


# A loss has no scale of its own: several retrained models show how far apart such models are. Two hardly do.
MIN_SEEDS = 3
LOG_LIKELIHOOD = Statistic("log_likelihood", "forget", MEMORY, "knowledge", "unbounded", bounds=(-math.inf, 0.0))
TRUTH_RATIO = Statistic("truth_ratio_probability", "forget", MEMORY, "knowledge")


def likelihood_findings(tables: Tables) -> dict[Statistic, dict[str, Any]]:
    """Every statistic of the tables, with its values under each model: see [`statistic.Values`]."""
    sets = tables["unlearned"]
    found: dict[Statistic, dict[str, Any]] = {
        measure.statistic: {role: measure.values(by_set[measure.statistic.set]) for role, by_set in tables.items()}
        for measure in measures_of(tables)
    }
    if 1 + len(further_retrained(tables)) >= MIN_SEEDS:
        found[LOG_LIKELIHOOD] = {role: membership.negative_loss(by_set["forget"]) for role, by_set in tables.items()}
    if "forget_paraphrased" in sets:
        found[TRUTH_RATIO] = {
            role: quality.truth_ratio(by_set["forget_paraphrased"], by_set["forget_perturbed"], "probability")
            for role, by_set in tables.items()
        }
    if len(sets.get("holdout", ())):
        found |= membership_findings(tables)
    if "canaries" in sets:
        found |= canary_findings(tables)
    return found


def control_findings(tables: Tables) -> dict[Statistic, dict[str, np.ndarray]]:
    """The statistics of the forget set that are judged, measured on the holdout: what a model guesses anyway."""
    if not len(tables["unlearned"].get("holdout", ())):
        return {}
    return {
        measure.statistic: {role: measure.values(by_set["holdout"]) for role, by_set in tables.items()}
        for measure in measures_of(tables)
        if measure.statistic.surface is not None
    }
