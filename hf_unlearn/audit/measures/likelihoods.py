"""The likelihood audit: everything that is read from the one table of each model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_unlearn.audit.measures import membership, quality
from hf_unlearn.audit.measures.canaries import canary_findings
from hf_unlearn.audit.measures.extraction import (
    exact_memorization,
    extraction_probability,
    extraction_strength,
    queries_needed,
    verbatim_extracted,
)
from hf_unlearn.audit.measures.memberships import Tables, membership_findings
from hf_unlearn.audit.measures.statistic import FIT, MEMORY, UTILITY, Statistic
from hf_unlearn.audit.table.scores import Scores


def extractable(scores: Scores, samples: int = 100) -> np.ndarray:
    """Whether an answer comes out of that many samples (top-k 40) with probability one half or more: `bool (n,)`."""
    return queries_needed(extraction_probability(scores, top_k=40), p=0.5) <= samples


@dataclass(frozen=True)
class Measure:
    """A statistic that is the mean or the rate of a number an example of one set."""

    statistic: Statistic
    of: Callable[[Scores], np.ndarray]

    def values(self, scores: Scores) -> np.ndarray:
        # Yes and no become 1 and 0, and what cannot be scored stays missing: it is not a no.
        return np.where(scores.valid, self.of(scores).astype(np.float64), np.nan)


def _measure(name, set_name, direction, of, surface=None, kind="mean") -> Measure:
    bounds = (0.0, math.inf) if name == "loss" else (0.0, 1.0)
    return Measure(Statistic(name, set_name, direction, surface, kind, bounds=bounds), of)


MEASURES = (
    _measure("verbatim_extraction", "forget", MEMORY, verbatim_extracted, "verbatim", "rate"),
    _measure("extractable_in_100_samples", "forget", MEMORY, extractable, "sampled", "rate"),
    _measure("extraction_strength", "forget", MEMORY, extraction_strength, "verbatim"),
    _measure("answer_probability", "forget", MEMORY, quality.answer_probability, "knowledge"),
    _measure("next_token_accuracy", "forget", MEMORY, exact_memorization, "verbatim"),
    _measure("loss", "forget", FIT, membership.loss),
    _measure("verbatim_extraction", "retain", UTILITY, verbatim_extracted, kind="rate"),
    _measure("next_token_accuracy", "retain", UTILITY, exact_memorization),
    _measure("answer_probability", "retain", UTILITY, quality.answer_probability),
    _measure("loss", "retain", FIT, membership.loss),
    _measure("verbatim_extraction", "holdout", "base rate of guessing", verbatim_extracted, kind="rate"),
    _measure("next_token_accuracy", "holdout", UTILITY, exact_memorization),
    _measure("loss", "holdout", FIT, membership.loss),
    _measure("next_token_accuracy", "test", UTILITY, exact_memorization),
    _measure("loss", "test", FIT, membership.loss),
    _measure("next_token_accuracy", "siblings", UTILITY, exact_memorization),
    _measure("loss", "siblings", FIT, membership.loss),
)


def _of_a_label(measure: Measure) -> Measure:
    """The answer of a classifier is one label, so its next-token accuracy is the accuracy: a rate."""
    kind = "rate" if measure.statistic.name == "next_token_accuracy" else "mean"
    surface = measure.statistic.surface and "knowledge"
    return replace(measure, statistic=replace(measure.statistic, kind=kind, surface=surface))


# Verbatim extraction and extraction strength would only repeat the accuracy of a label, and no label is drawn a hundred
# times until it comes out right.
LABEL_MEASURES = tuple(
    _of_a_label(measure)
    for measure in MEASURES
    if measure.statistic.name in ("next_token_accuracy", "answer_probability", "loss")
)
# The loss has no scale of its own: how far it may be from the retrained model's, several of these show. Two hardly do.
MIN_SEEDS = 3
LOG_LIKELIHOOD = Statistic("log_likelihood", "forget", MEMORY, "knowledge", "unbounded", bounds=(-math.inf, 0.0))
#: How the names of sets end that are those of others, changed for one attack.
FURTHER_PASSES = ("_lowercase", "_recall")
#: Sets of texts that are written for the rows of another set, and scored with them.
TRUTH_RATIO_COLUMNS = {"prompt", "paraphrased_completion", "perturbed_completions"}


def score_sets(
    model, processing_class, sets: Mapping[str, Any], batch_size: int = 16, name: str = "model", **kwargs
) -> dict[str, Scores]:
    """Score every set under one model, in one pass over all the texts; sets of images one after the other.

    Args:
        sets (`dict[str, Dataset]`): rows named `"forget"`, `"retain"`, `"holdout"`, of which the first is required; and,
            for a request about a class, `"test"` (never trained on, outside the request) and `"siblings"` (never trained
            on, of classes like those to forget). Where the forget rows have the columns `paraphrased_completion` and
            `perturbed_completions`, these are scored as answers to the same prompts, for the truth ratio; texts of forget
            set and holdout are scored in lower case as well, and behind a few texts of the holdout, for the membership attacks
            lowercase and ReCaLL.
        kwargs: passed to [`score`].

    Returns:
        `dict[str, Scores]`, with `"forget_paraphrased"`, `"forget_perturbed"`, and `"forget_lowercase"`, `"forget_recall"`
        and the same of the holdout beside the sets where they exist.
    """
    from hf_unlearn.audit.measures.conditioning import recall_rows
    from hf_unlearn.audit.table.score import score
    from hf_unlearn.data.images import has_images
    from hf_unlearn.data.text import context_length

    sets = {key: rows for key, rows in sets.items() if rows is not None}
    if has_images(sets["forget"]):
        # A list of all rows would hold all images.
        return {
            key: score(model, processing_class, rows, batch_size, description=f"Scoring the {name}, {key}", **kwargs)
            for key, rows in sets.items()
        }
    examples: dict[str, list] = {key: list(rows) for key, rows in sets.items()}
    examples |= _written_for(examples)
    limit = kwargs.get("max_length") or context_length(model)
    conditioned, prefix_rows = recall_rows(examples, processing_class, limit)
    examples |= conditioned
    everything = [row for rows in examples.values() for row in rows]
    table = score(model, processing_class, everything, batch_size, description=f"Scoring the {name}", **kwargs)
    tables, start = {}, 0
    for key, rows in examples.items():
        tables[key] = table[start : start + len(rows)]
        start += len(rows)
    for key in conditioned:
        tables[key] = replace(tables[key], meta={**tables[key].meta, "prefix_rows": str(prefix_rows)})
    return tables


def _written_for(examples: Mapping[str, list]) -> dict[str, list]:
    """Further rows to be scored, made of those of the sets."""
    found, forget = {}, examples["forget"]
    if forget and isinstance(forget[0], Mapping) and set(forget[0]) >= TRUTH_RATIO_COLUMNS:
        found["forget_paraphrased"] = [
            {"prompt": row["prompt"], "completion": row["paraphrased_completion"]} for row in forget
        ]
        found["forget_perturbed"] = [
            {"prompt": row["prompt"], "completion": answer}
            for row in forget
            for answer in row["perturbed_completions"]
        ]
    if examples.get("holdout") and not any("input_ids" in row for row in (*forget, *examples["holdout"])):
        for further in membership.further_passes():
            found |= {f"{key}_{further.name}": further.rows(examples[key]) for key in ("forget", "holdout")}
    return found


def likelihood_findings(tables: Tables) -> dict[Statistic, dict[str, Any]]:
    """Every statistic of the tables, with its values under each model: see [`findings.Values`]."""
    roles, sets = list(tables), tables["unlearned"]
    of_labels = sets["forget"].meta.get("targets") == "label"
    found = {
        measure.statistic: {role: measure.values(tables[role][measure.statistic.set]) for role in roles}
        for measure in (LABEL_MEASURES if of_labels else MEASURES)
        if measure.statistic.set in sets and len(sets[measure.statistic.set])
    }
    if len([role for role in roles if role.startswith("retrained")]) >= MIN_SEEDS:
        found[LOG_LIKELIHOOD] = {role: membership.negative_loss(tables[role]["forget"]) for role in roles}
    if "forget_paraphrased" in sets:
        statistic = Statistic("truth_ratio_probability", "forget", MEMORY, "knowledge")
        found[statistic] = {
            role: quality.truth_ratio(
                tables[role]["forget_paraphrased"], tables[role]["forget_perturbed"], variant="probability"
            )
            for role in roles
        }
    if "holdout" in sets and len(sets["holdout"]):
        found |= membership_findings(tables)
    if "canaries" in sets:
        found |= canary_findings(tables)
    return found


def control_findings(tables: Tables) -> dict[Statistic, dict[str, np.ndarray]]:
    """The same numbers of the holdout, for statistics of the forget set that are judged: what a model guesses anyway."""
    sets = tables["unlearned"]
    if "holdout" not in sets or not len(sets["holdout"]):
        return {}
    of_labels = sets["forget"].meta.get("targets") == "label"
    return {
        measure.statistic: {role: measure.values(of["holdout"]) for role, of in tables.items()}
        for measure in (LABEL_MEASURES if of_labels else MEASURES)
        if measure.statistic.surface is not None
    }
