"""Curves of relearning, and what is read from them: areas, steps to a level, relearn time. No model is run here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.statistics.differences import aligned


Metric = Callable[[Scores], np.ndarray]


@dataclass(frozen=True, eq=False)
class RelearningCurve:
    """Tables of scores in the course of a training, `k` of each set.

    Attributes:
        steps (`tuple` of `int`, `k`): optimizer steps before each scoring.
        targets (`tuple` of `int`, `k`): answer tokens trained on until then, repetitions included (labels, of images).
        tables (`dict[str, tuple[Scores, ...]]`): for each set its tables, one a scoring.
        injected (`dict[str, int]`): for each set how many of its rows were trained on themselves. These are taught again,
            not recovered.
        settings (`dict`): learning rate, batch size, seed, number of rows, type of the weights, and whether it was LoRA.
    """

    steps: tuple[int, ...]
    targets: tuple[int, ...]
    tables: dict[str, tuple[Scores, ...]]
    injected: dict[str, int]
    settings: dict[str, Any]

    def values(self, metric: Metric, set: str = "forget") -> np.ndarray:
        """A metric of every record after every number of steps: `float64 (k, n)`, NaN where it can't be scored.

        The AUC of an attack after each comes from its values of two sets, such as `"forget"` and `"holdout"`.
        """
        tables = self.tables[set]
        return np.stack([np.where(t.valid, np.asarray(metric(t), dtype=np.float64), np.nan) for t in tables])

    def area(self, metric: Metric, set: str = "forget", against: str = "steps") -> np.ndarray:
        """Mean of the metric along the curve of each record: the area under it over the length of the axis.

        Args:
            metric (`Callable[[Scores], float (n,)]`): as `extraction_strength`; higher = more memorized.
            set (`str`, *optional*, defaults to `"forget"`): which set.
            against (`str`, *optional*, defaults to `"steps"`): the axis, `"steps"` or `"targets"`.

        Returns:
            `float64 (n,)`, in the unit of the metric.
        """
        if against not in ("steps", "targets"):
            raise ValueError(f'against must be "steps" or "targets", not {against!r}.')
        x, values = np.asarray(getattr(self, against), dtype=np.float64), self.values(metric, set)
        return np.trapezoid(values, x, axis=0) / (x[-1] - x[0]) if len(x) > 1 else values[0]


def strongest(curves: Sequence[RelearningCurve], metric: Metric, set: str = "forget") -> RelearningCurve:
    """The curve with the largest mean area: of several learning rates, the one that brings back most.

    Choose it for each model by itself. A curve without a value (the training diverged) is never the strongest.
    """
    areas = []
    for curve in curves:
        area = curve.area(metric, set)
        areas.append(-np.inf if np.isnan(area).all() else np.nanmean(area))
    return curves[int(np.argmax(areas))]


def area_between(
    first: RelearningCurve, second: RelearningCurve, metric: Metric, set: str = "forget", against: str = "steps"
) -> np.ndarray:
    """Area between the curves of two models, over the length of the axis: the mean difference along the way.

    Args:
        first, second ([`RelearningCurve`]): of the same rows and steps; the unlearned and the retrained model, as a rule.
        metric, set, against: see [`RelearningCurve.area`].

    Returns:
        `float64 (n,)`, first minus second for each record, in the unit of the metric: above 0 = the first relearns more.
        For an interval give it to `statistics.mean`.

    Raises:
        ValueError: the curves have other steps, or are of other records.
    """
    if first.steps != second.steps or first.targets != second.targets:
        raise ValueError(
            f"The curves have the steps {first.steps} and {second.steps}, and {first.targets} and {second.targets} targets. "
            "Give both models the same rows and budget."
        )
    if not first.tables[set][0].same_targets(second.tables[set][0]):
        raise ValueError(
            f"The curves are of different records in the set {set!r}. Score the same ones under both models."
        )
    return first.area(metric, set, against) - second.area(metric, set, against)


def steps_to(
    curve: RelearningCurve, metric: Metric, original: np.ndarray, share: float = 0.9, set: str = "forget"
) -> float:
    """The first of the numbers of steps after which the metric has this share of what it is under the original model.

    Args:
        curve ([`RelearningCurve`]): of the model that is asked about.
        metric (`Callable[[Scores], float (n,)]`): higher = more memorized.
        original (`float (n,)`): the metric of the same records under the original. A record counts only where it is known
            under both.
        share (`float`, *optional*, defaults to `0.9`): of the mean under the original.

    Returns:
        `float`: a number of steps, 0 if nothing had to be relearned, `inf` if it is not reached; NaN if no record counts.
    """
    for step, values in zip(curve.steps, curve.values(metric, set), strict=True):
        values, reference = aligned(values, original)
        kept = ~(np.isnan(values) | np.isnan(reference))
        if not kept.any():
            return float("nan")
        if values[kept].mean() >= share * reference[kept].mean():
            return float(step)
    return float("inf")


def anamnesis_index(
    unlearned: RelearningCurve,
    retrained: RelearningCurve,
    metric: Metric,
    original: np.ndarray,
    margin: float = 0.1,
    set: str = "forget",
) -> float:
    """Relearning time of the unlearned model over that of the retrained one (Tarun et al., arXiv 2111.08947).

    Steps until the metric (the accuracy, `exact_memorization` of images) is within `margin` of the original's, under both.
    **1 is best**; far below 1 the records were still there; above 1 the model has become hard to teach.

    Args:
        unlearned, retrained ([`RelearningCurve`]): of the same rows and steps. Its steps are all that is looked at, so give
            them closely spaced.
        metric, original, set: as for [`steps_to`].
        margin (`float`, *optional*, defaults to `0.1`): share of the original's value; the paper takes 0.05 to 0.1.

    Returns:
        `float`: `inf` if only the unlearned model does not get there; NaN if the retrained model does not, or is there from
        the start: then there is nothing to compare with.
    """
    if unlearned.steps != retrained.steps:
        raise ValueError(
            f"The curves have the steps {unlearned.steps} and {retrained.steps}. Score both at the same ones."
        )
    ours, theirs = (steps_to(curve, metric, original, 1 - margin, set) for curve in (unlearned, retrained))
    return ours / theirs if 0 < theirs < np.inf else float("nan")
