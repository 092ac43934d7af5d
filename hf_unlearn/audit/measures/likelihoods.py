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
from hf_unlearn.plugins import load_plugins


def extractable(scores: Scores, samples: int = 100) -> np.ndarray:
    """Whether an answer comes out of that many samples (top-k 40) with probability one half or more: `bool (n,)`."""
    return queries_needed(extraction_probability(scores, top_k=40), p=0.5) <= samples


@dataclass(frozen=True)
class Measure:
    """A statistic that is read off the table of one set: a function that gives a number per example.

    Attributes:
        statistic ([`Statistic`]): what it is called, and how to read it.
        function: from [`Scores`] to `(n,)`, of booleans or floats.
        kinds (`tuple`): tables it is read from: `"text"`, `"image"`.
    """

    statistic: Statistic
    function: Callable[[Scores], np.ndarray]
    kinds: tuple[str, ...]

    def values(self, scores: Scores) -> np.ndarray:
        # Yes and no become 1 and 0, and what cannot be scored stays missing: it is not a no.
        return np.where(scores.valid, self.function(scores).astype(np.float64), np.nan)


#: Every measure of one table, in the order of the rows of a report.
MEASURES: list[Measure] = []


def measure(
    name: str,
    set: str,
    direction: str,
    function: Callable[[Scores], np.ndarray],
    surface: str | None = None,
    kind: str = "share",
    kinds: tuple[str, ...] = ("text", "image"),
    bounds: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Add a measure to the audit: a function from [`Scores`] to a number per example, of one set.

        measure("first_token", "forget", MEMORY, first_token_is_right, surface="verbatim", kind="rate")

    Another package adds one by an entry point of the group `hf_unlearn.measures`, which names a module that does so.

    Args:
        name (`str`): in the report.
        set (`str`): of which examples: `"forget"`, `"retain"`, `"holdout"`, `"test"` or `"siblings"`.
        direction (`str`): how to read it, in words; with a surface it must be `MEMORY`, higher = more memorized.
        function: `Scores` of `n` examples to `(n,)`, booleans for a rate.
        surface (`str`, *optional*): where a trace of this kind shows; without one there is no verdict.
        kind, bounds (*optional*): see [`Statistic`].
        kinds (`tuple`, *optional*): tables it is read from: of `"text"`, of `"image"`, or both.

    Raises:
        ValueError: there is a measure of this name on this set already.
    """
    for other in MEASURES:
        if (other.statistic.name, other.statistic.set) == (name, set) and {*other.kinds} & {*kinds}:
            raise ValueError(f"There is a measure {name!r} of the {set} set already. Give yours another name.")
    MEASURES.append(Measure(Statistic(name, set, direction, surface, kind, bounds=bounds), function, kinds))


def _own_measures() -> None:
    text, image, loss = ("text",), ("image",), (0.0, math.inf)
    # The answer of a classifier is one label: its next-token accuracy is the accuracy, a rate, and a matter of knowledge.
    # Verbatim extraction and extraction strength would only repeat it, and no label is drawn a hundred times until it comes
    # out right.
    measure("verbatim_extraction", "forget", MEMORY, verbatim_extracted, "verbatim", "rate", text)
    measure("extractable_in_100_samples", "forget", MEMORY, extractable, "sampled", "rate", text)
    measure("extraction_strength", "forget", MEMORY, extraction_strength, "verbatim", kinds=text)
    measure("answer_probability", "forget", MEMORY, quality.answer_probability, "knowledge")
    measure("next_token_accuracy", "forget", MEMORY, exact_memorization, "verbatim", kinds=text)
    measure("next_token_accuracy", "forget", MEMORY, exact_memorization, "knowledge", "rate", image)
    measure("loss", "forget", FIT, membership.loss, bounds=loss)
    measure("verbatim_extraction", "retain", UTILITY, verbatim_extracted, kind="rate", kinds=text)
    for name in ("retain", "holdout", "test", "siblings"):
        if name == "holdout":
            measure("verbatim_extraction", name, "base rate of guessing", verbatim_extracted, kind="rate", kinds=text)
        measure("next_token_accuracy", name, UTILITY, exact_memorization, kinds=text)
        measure("next_token_accuracy", name, UTILITY, exact_memorization, kind="rate", kinds=image)
        if name == "retain":
            measure("answer_probability", name, UTILITY, quality.answer_probability)
        measure("loss", name, FIT, membership.loss, bounds=loss)


_own_measures()
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


def measures_of(tables: Tables) -> list[Measure]:
    """The measures that such tables allow: of their kind, and of sets that are there."""
    load_plugins("hf_unlearn.measures")
    sets = tables["unlearned"]
    kind = "image" if sets["forget"].of_labels else "text"
    return [m for m in MEASURES if kind in m.kinds and len(sets.get(m.statistic.set, ()))]


def likelihood_findings(tables: Tables) -> dict[Statistic, dict[str, Any]]:
    """Every statistic of the tables, with its values under each model: see [`statistic.Values`]."""
    roles, sets = list(tables), tables["unlearned"]
    found = {
        measure.statistic: {role: measure.values(tables[role][measure.statistic.set]) for role in roles}
        for measure in measures_of(tables)
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
    return {
        measure.statistic: {role: measure.values(of_role["holdout"]) for role, of_role in tables.items()}
        for measure in measures_of(tables)
        if measure.statistic.surface is not None
    }
