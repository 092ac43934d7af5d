"""Planted canaries in an audit: their exposure, and the lower bound of epsilon that their coins give."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from hf_unlearn.audit.measures import membership
from hf_unlearn.audit.measures.exposure import Canaries, exposure
from hf_unlearn.audit.measures.memberships import Tables
from hf_unlearn.audit.measures.statistic import MEMORY, Statistic
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.statistics.epsilon import one_run_epsilon


def canary_sets(canaries: Canaries) -> dict[str, list]:
    """The rows to score: all canaries, planted or not, and the candidates that they are ranked among."""
    return {"canaries": canaries.rows, "candidates": canaries.candidates}


def with_coins(table: Scores, canaries: Canaries) -> Scores:
    """The table of the canaries, which then also says which of them were planted."""
    coins = "".join("1" if included else "0" for included in canaries.included)
    return replace(table, meta={**table.meta, "included": coins})


def canary_findings(tables: Tables) -> dict[Statistic, dict[str, Any]]:
    """Exposure of each planted canary under every model: in bits, and as a share of the most that can be measured."""
    bits = Statistic("exposure_in_bits", "planted canaries", MEMORY, bounds=(0.0, math.inf))
    share = Statistic("exposure_share", "planted canaries", MEMORY, "verbatim")
    found: dict[Statistic, dict[str, Any]] = {bits: {}, share: {}}
    for role, sets in tables.items():
        values = exposure(sets["canaries"], sets["candidates"])[_coins(sets["canaries"])]
        found[bits][role] = values
        found[share][role] = values / np.log2(len(sets["candidates"]) + 1)
    return found


def epsilon_row(tables: Tables, seed: int = 0) -> dict[str, Any]:
    """A lower bound of epsilon for every model: how well it tells which canaries were planted, each by a fair coin."""
    row: dict[str, Any] = {
        "measure": "epsilon_lower_bound",
        "set": "canaries",
        "direction": "higher = more given away; 0 shows nothing",
    }
    for role, sets in tables.items():
        scores = membership.negative_loss(sets["canaries"])
        # Which canaries cannot be scored might tell which were planted.
        bound = None if np.isnan(scores).any() else one_run_epsilon(scores, _coins(sets["canaries"]), seed=seed)
        row[role] = None if bound is None else {**bound.as_dict(), "n": [bound.n]}
    return row


def _coins(table: Scores) -> np.ndarray:
    return np.array([coin == "1" for coin in table.meta["included"]])
