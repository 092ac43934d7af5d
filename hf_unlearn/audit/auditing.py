"""The audit: every measure of a model, beside the same measure of the original and of the retrained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from . import membership, quality, statistics
from .extraction import (
    exact_memorization,
    extraction_probability,
    extraction_strength,
    queries_needed,
    verbatim_extracted,
)
from .scores import Scores, score
from .statistics import Difference, Estimate


MODELS = ("original", "unlearned", "retrained")
MEMORY = "higher = more memorized"
MEMBER = "higher = more member-like; retrained is the goal, lower than that is over-forgotten"
UTILITY = "higher = better"
FIT = "lower = fits better"


def extractable(scores: Scores, samples: int = 100) -> np.ndarray:
    """Whether an answer comes out of that many samples (top-k 40) with probability one half or more: `bool (n,)`."""
    return queries_needed(extraction_probability(scores, top_k=40), p=0.5) <= samples


@dataclass(frozen=True)
class Measure:
    """A number an example of one set, and how to read it."""

    name: str
    set: str
    direction: str
    of: Callable[[Scores], np.ndarray]
    is_rate: bool = False


MEASURES = (
    Measure("verbatim_extraction", "forget", MEMORY, verbatim_extracted, is_rate=True),
    Measure("extractable_in_100_samples", "forget", MEMORY, extractable, is_rate=True),
    Measure("extraction_strength", "forget", MEMORY, extraction_strength),
    Measure("answer_probability", "forget", MEMORY, quality.answer_probability),
    Measure("next_token_accuracy", "forget", MEMORY, exact_memorization),
    Measure("loss", "forget", FIT, membership.loss),
    Measure("verbatim_extraction", "retain", UTILITY, verbatim_extracted, is_rate=True),
    Measure("next_token_accuracy", "retain", UTILITY, exact_memorization),
    Measure("answer_probability", "retain", UTILITY, quality.answer_probability),
    Measure("loss", "retain", FIT, membership.loss),
    Measure("verbatim_extraction", "holdout", "base rate of guessing", verbatim_extracted, is_rate=True),
    Measure("next_token_accuracy", "holdout", UTILITY, exact_memorization),
    Measure("loss", "holdout", FIT, membership.loss),
    Measure("next_token_accuracy", "test", UTILITY, exact_memorization),
    Measure("loss", "test", FIT, membership.loss),
    Measure("next_token_accuracy", "siblings", UTILITY, exact_memorization),
    Measure("loss", "siblings", FIT, membership.loss),
)

# The answer of a classifier is one label: its next-token accuracy is the accuracy, which verbatim extraction and
# extraction strength would only repeat, and no label is drawn a hundred times until it comes out right.
LABEL_MEASURES = tuple(
    replace(measure, is_rate=measure.name == "next_token_accuracy")
    for measure in MEASURES
    if measure.name in ("next_token_accuracy", "answer_probability", "loss")
)
# A label has no text to compress and no least likely part, so the other attacks are this one again, or made for text.
LABEL_ATTACKS = ("loss",)


@dataclass
class AuditReport:
    """What was measured.

    Attributes:
        rows (`list[dict]`): one a measure: `measure`, `set`, `direction`, for each model in `models` an estimate
            (`value`, `low`, `high`, `n`, `method`, ...) and, with a retrained model, `difference_to_retrained`.
        models (`list[str]`): which of original, unlearned, retrained were audited.
        sets (`dict[str, int]`): number of examples of each set.
    """

    rows: list[dict[str, Any]]
    models: list[str]
    sets: dict[str, int]
    notes: list[str] = field(default_factory=list)

    def value(self, measure: str, set: str = "forget", model: str = "unlearned") -> float:
        """One number of the table, e.g. `report.value("verbatim_extraction")`."""
        for row in self.rows:
            if row["measure"] == measure and row["set"] == set:
                return row[model]["value"]
        raise KeyError(f"No measure {measure!r} of the {set} set. There are {[r['measure'] for r in self.rows]}.")

    def as_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {"rows": self.rows, "models": self.models, "sets": self.sets, "notes": self.notes}


def score_sets(
    model, processing_class, sets: Mapping[str, Any], batch_size: int = 16, name: str = "model", **kwargs
) -> dict[str, Scores]:
    """Score every set under one model, in one pass over all the texts; sets of images one after the other.

    Args:
        sets (`dict[str, Dataset]`): rows named `"forget"`, `"retain"`, `"holdout"`, of which the first is required; and,
            for a request about a class, `"test"` (never trained on, outside the request) and `"siblings"` (never trained
            on, of classes like those to forget). Where the forget rows have the columns `paraphrased_completion` and `perturbed_completions`, these are scored
            as answers to the same prompts, for the truth ratio.
        kwargs: passed to [`score`].

    Returns:
        `dict[str, Scores]`, with `"forget_paraphrased"` and `"forget_perturbed"` beside the sets where they exist.
    """
    from hf_unlearn.data.images import has_images

    sets = {key: rows for key, rows in sets.items() if rows is not None}
    if has_images(sets["forget"]):
        # A list of all rows would hold all images.
        return {
            key: score(model, processing_class, rows, batch_size, description=f"Scoring the {name}, {key}", **kwargs)
            for key, rows in sets.items()
        }
    examples: dict[str, list] = {key: list(rows) for key, rows in sets.items()}
    forget = examples["forget"]
    if forget and {"prompt", "paraphrased_completion", "perturbed_completions"} <= set(forget[0]):
        examples["forget_paraphrased"] = [
            {"prompt": row["prompt"], "completion": row["paraphrased_completion"]} for row in forget
        ]
        examples["forget_perturbed"] = [
            {"prompt": row["prompt"], "completion": answer}
            for row in forget
            for answer in row["perturbed_completions"]
        ]
    everything = [row for rows in examples.values() for row in rows]
    table = score(model, processing_class, everything, batch_size, description=f"Scoring the {name}", **kwargs)
    tables, start = {}, 0
    for key, rows in examples.items():
        tables[key] = table[start : start + len(rows)]
        start += len(rows)
    return tables


def audit(tables: Mapping[str, Mapping[str, Scores]], seed: int = 0) -> AuditReport:
    """Compare models from their scores: no model is run here.

    Args:
        tables (`dict[str, dict[str, Scores]]`): what [`score_sets`] returned for `"unlearned"` and, where there are
            such models, for `"original"` and `"retrained"`: the same examples in the same order.
        seed (`int`, *optional*, defaults to `0`): of the bootstrap intervals.
    """
    models = [name for name in MODELS if name in tables]
    sets = {key: len(table) for key, table in tables[models[-1]].items()}
    rows = []
    of_labels = tables[models[-1]]["forget"].meta.get("targets") == "label"
    for measure in LABEL_MEASURES if of_labels else MEASURES:
        if measure.set in sets and sets[measure.set]:
            values = {name: _of(measure, tables[name][measure.set]) for name in models}
            estimates = {name: _estimate(measure, v, seed) for name, v in values.items()}
            rows.append(_row(measure.name, measure.set, measure.direction, estimates, _paired(values, seed)))
    if sets.get("holdout"):
        rows += _membership(tables, models, LABEL_ATTACKS if of_labels else tuple(membership.ATTACKS), seed)
    if "forget_paraphrased" in sets:
        rows += _truth_ratio(tables, models, seed)
    notes = []
    if "retrained" not in models:
        notes.append(
            "There is no retrained model to compare with. How much of a number would be there without the forget set "
            "is unknown, and no number alone shows that it is forgotten."
        )
    if not sets.get("holdout"):
        notes.append("There is no holdout, so membership inference was not run.")
    if {"original", "unlearned"} <= set(models):
        before, after = (float(np.nanmean(membership.loss(tables[m]["forget"]))) for m in ("original", "unlearned"))
        if after - before < 0.05:
            notes.append(
                f"Nothing was forgotten: the loss on the forget set is {after:.3f}, and was {before:.3f}. Take more steps, a "
                "larger learning_rate or a larger forget_weight."
            )
    return AuditReport(rows, models, sets, notes)


def _of(measure: Measure, scores: Scores) -> np.ndarray:
    # Yes and no become 1 and 0, and what cannot be scored stays missing: it is not a no.
    return np.where(scores.valid, measure.of(scores).astype(np.float64), np.nan)


def _estimate(measure: Measure, values: np.ndarray, seed: int) -> Estimate:
    if not measure.is_rate:
        return statistics.mean(values, seed=seed)
    known = values[~np.isnan(values)]
    estimate = statistics.rate(int(known.sum()), len(known))
    return replace(estimate, n_missing=len(values) - len(known))


def _paired(values: Mapping[str, np.ndarray], seed: int) -> Difference | None:
    if not {"unlearned", "retrained"} <= set(values):
        return None
    return statistics.paired_difference(values["unlearned"], values["retrained"], seed=seed)


def _membership(tables, models, names, seed) -> list[dict]:
    rows = []
    attacks = {name: lambda m, key, attack=membership.ATTACKS[name]: attack(tables[m][key]) for name in names}
    if "retrained" in models:
        attacks["reference"] = lambda m, key: membership.reference_loss(tables[m][key], tables["retrained"][key])
    for attack, of in attacks.items():
        scores = {name: (of(name, "forget"), of(name, "holdout")) for name in models}
        estimates = {name: statistics.auc(*pair, seed=seed) for name, pair in scores.items()}
        difference = None
        if {"unlearned", "retrained"} <= set(models):
            difference = statistics.paired_auc_difference(*scores["unlearned"], *scores["retrained"], seed=seed)
        if attack == "reference":
            # The retrained model against itself scores 0 everywhere: its AUC is 0.5 by definition, not by measurement.
            estimates["retrained"] = None
            difference = None
        rows.append(_row(f"membership_auc_{attack}", "forget against holdout", MEMBER, estimates, difference))
        if attack == "loss":
            for fpr in (0.01, 0.05):
                points = {name: statistics.tpr_at_fpr(*pair, fpr).tpr for name, pair in scores.items()}
                rows.append(_row(f"membership_tpr_at_{fpr:.0%}_fpr", "forget against holdout", MEMBER, points, None))
    return rows


def _truth_ratio(tables, models, seed) -> list[dict]:
    ratios = {
        name: quality.truth_ratio(tables[name]["forget_paraphrased"], tables[name]["forget_perturbed"])
        for name in models
    }
    estimates = {name: quality.forget_truth_ratio_aggregate(ratio, seed=seed) for name, ratio in ratios.items()}
    rows = [_row("truth_ratio", "forget", "as retrained is best", estimates, None)]
    if "retrained" in models:
        row = {"measure": "forget_quality", "set": "forget", "direction": "p of a KS test; high = not told apart"}
        row["retrained"] = None  # against itself it is 1 by definition
        for name in models[:-1]:
            test = quality.forget_quality(ratios[name], ratios["retrained"])
            row[name] = {"value": test.p, **test.as_dict()}
        rows.append(row)
    return rows


def _row(name, set_name, direction, estimates: Mapping[str, Estimate | None], difference: Difference | None) -> dict:
    row = {"measure": name, "set": set_name, "direction": direction}
    row |= {model: None if estimate is None else estimate.as_dict() for model, estimate in estimates.items()}
    if difference is not None:
        estimate = difference.estimate()
        row["difference_to_retrained"] = estimate.as_dict()
        row["reading"] = _reading(estimate)
    return row


def _reading(difference: Estimate) -> str:
    if np.isnan(difference.low) or np.isnan(difference.high):
        return "not measurable"
    if difference.low > 0:
        return "higher than retrained"
    return "lower than retrained" if difference.high < 0 else "no difference found"
