"""The measures of an audit: what is read off the table of one set under one model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hf_unlearn.audit.measures import membership, quality
from hf_unlearn.audit.measures.extraction import (
    exact_memorization,
    extraction_probability,
    extraction_strength,
    queries_needed,
    verbatim_extracted,
)
from hf_unlearn.audit.measures.memberships import Tables
from hf_unlearn.audit.measures.statistic import FIT, MEMORY, UTILITY, Statistic
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.plugins import load_plugins


@dataclass(frozen=True)
class Measure:
    """A statistic that is read off the table of one set; see [`measure`] for the attributes."""

    statistic: Statistic
    function: Callable[[Scores], np.ndarray]
    kinds: tuple[str, ...]

    def values(self, scores: Scores) -> np.ndarray:
        """One number per example, `float64 (n,)`."""
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
    """Add a measure to the audit: a function that gives one number per example of a set.

        measure("first_token", "forget", MEMORY, first_token_is_right, surface="verbatim", kind="rate")

    Another package adds one by an entry point of the group `hf_unlearn.measures`, which names a module that does so.

    Args:
        name (`str`): its name in the report.
        set (`str`): the examples that it measures: `"forget"`, `"retain"`, `"holdout"`, `"test"` or `"siblings"`.
        direction (`str`): how to read it, in words; with a surface it must be `MEMORY`, higher = more memorized.
        function: from [`Scores`] of `n` examples to `(n,)`, booleans for a rate.
        surface (`str`, *optional*): where a trace of this kind shows; without one there is no verdict.
        kind, bounds (*optional*): see [`Statistic`].
        kinds (`tuple`, *optional*): the tables it can be read from: `"text"`, `"image"` or both.

    Raises:
        ValueError: there is a measure with this name on this set already.
    """
    for other in MEASURES:
        if (other.statistic.name, other.statistic.set) == (name, set) and {*other.kinds} & {*kinds}:
            raise ValueError(f"There is a measure {name!r} of the {set} set already. Give yours another name.")
    MEASURES.append(Measure(Statistic(name, set, direction, surface, kind, bounds=bounds), function, kinds))


def measures_of(tables: Tables) -> list[Measure]:
    """The measures of the kind of the tables, on the sets that are there."""
    load_plugins("hf_unlearn.measures")
    sets = tables["unlearned"]
    kind = "image" if sets["forget"].of_labels else "text"
    return [m for m in MEASURES if kind in m.kinds and len(sets.get(m.statistic.set, ()))]


def extractable(scores: Scores, samples: int = 100) -> np.ndarray:
    """Whether an answer comes out of so many samples (top-k 40) with probability one half or more: `bool (n,)`."""
    return queries_needed(extraction_probability(scores, top_k=40), p=0.5) <= samples


def _own_measures() -> None:
    text, image, loss = ("text",), ("image",), (0.0, math.inf)
    # The answer of a classifier is one label: its next-token accuracy is the accuracy, a rate, and a matter of knowledge.
    # Verbatim extraction and extraction strength would only repeat it, and nobody draws a label a hundred times.
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
