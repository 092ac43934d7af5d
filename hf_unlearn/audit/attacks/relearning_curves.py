"""Relearning curves and what is read from them: areas, steps to a level, relearning time. No model runs here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.statistics.differences import aligned
from hf_unlearn.statistics.estimate import known_mean


Metric = Callable[[Scores], np.ndarray]


@dataclass(frozen=True, eq=False)
class RelearningCurve:
    """Tables of scores after `k` numbers of training steps.

    Attributes:
        steps (`tuple` of `int`, `k`): optimizer steps before each table.
        targets (`tuple` of `int`, `k`): answer tokens (for images, labels) in these steps, repetitions included.
        tables (`dict[str, tuple[Scores, ...]]`): by set its `k` tables.
        injected (`dict[str, int]`): by set how many of its rows are among those trained on: taught, not recovered.
        settings (`dict`): learning rate, batch size, seed, number of rows, dtype of the weights, and whether LoRA was used.
    """

    steps: tuple[int, ...]
    targets: tuple[int, ...]
    tables: dict[str, tuple[Scores, ...]]
    injected: dict[str, int]
    settings: dict[str, Any]

    def values(self, metric: Metric, set: str = "forget") -> np.ndarray:
        """A metric of every record of a set after each number of steps: `float64 (k, n)`, NaN where it can't be scored."""
        tables = self.tables[set]
        return np.stack([np.where(t.valid, np.asarray(metric(t), dtype=np.float64), np.nan) for t in tables])

    def area(self, metric: Metric) -> np.ndarray:
        """Mean of the metric of each forget record over the steps: the area under its curve over the length of the axis.

        Args:
            metric (`Callable[[Scores], float (n,)]`): such as `extraction_strength`; higher = more memorized.

        Returns:
            `float64 (n,)`, in the unit of the metric.
        """
        x, values = np.asarray(self.steps, dtype=np.float64), self.values(metric)
        return np.trapezoid(values, x, axis=0) / (x[-1] - x[0]) if len(x) > 1 else values[0]


def strongest(curves: Sequence[RelearningCurve], metric: Metric) -> RelearningCurve:
    """The curve with the largest mean area: from those of several learning rates, the one that brings back most.

    Choose it for each model by itself. A curve without a value (the training diverged) is never the strongest.
    """
    areas = [known_mean(curve.area(metric)) for curve in curves]
    return curves[int(np.argmax(np.where(np.isnan(areas), -np.inf, areas)))]


def area_between(first: RelearningCurve, second: RelearningCurve, metric: Metric) -> np.ndarray:
    """The mean difference between the curves of two models over the steps, see [`RelearningCurve.area`].

    Args:
        first, second ([`RelearningCurve`]): with the same rows and steps, usually of the unlearned and the retrained model.

    Returns:
        `float64 (n,)`, first minus second for each record, in the unit of the metric: above 0 = the first relearns more.
        `statistics.mean` gives it an interval.

    Raises:
        ValueError: the curves have different steps or records.
    """
    if first.steps != second.steps or first.targets != second.targets:
        raise ValueError(
            f"The curves have the steps {first.steps} and {second.steps}, and {first.targets} and {second.targets} targets. "
            "Give both models the same rows and budget."
        )
    if not first.tables["forget"][0].same_targets(second.tables["forget"][0]):
        raise ValueError("The curves are of different records. Score the same records under both models.")
    return first.area(metric) - second.area(metric)


def steps_to(curve: RelearningCurve, metric: Metric, original: np.ndarray, share: float = 0.9) -> float:
    """The first number of steps after which the mean metric reaches this share of its mean under the original model.

    Args:
        original (`float (n,)`): the metric, higher = more memorized, of the same records under the original model. A record
            counts only if it has a value under both.

    Returns:
        `float`: a number of steps, 0 if nothing had to be relearned, `inf` if it is not reached; NaN if no record counts.
    """
    for step, values in zip(curve.steps, curve.values(metric), strict=True):
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
) -> float:
    """Relearning time of the unlearned model divided by that of the retrained one (Tarun et al., arXiv 2111.08947).

    That is the number of steps until the metric (for images the accuracy, `exact_memorization`) is within `margin` of the
    original model's. **1 is best**; far below 1 the records were still there; above 1 the model has become hard to teach.

    Args:
        unlearned, retrained ([`RelearningCurve`]): with the same rows and closely spaced steps: only these are compared.
        metric, original: as for [`steps_to`].
        margin (`float`, *optional*, defaults to `0.1`): share of the original's value; the paper takes 0.05 to 0.1.

    Returns:
        `float`: `inf` if only the unlearned model does not get there; NaN if the retrained model does not, or starts there:
        then there is nothing to compare with.
    """
    if unlearned.steps != retrained.steps:
        raise ValueError(
            f"The curves have the steps {unlearned.steps} and {retrained.steps}. Score both after the same steps."
        )
    ours, theirs = (steps_to(curve, metric, original, 1 - margin) for curve in (unlearned, retrained))
    return ours / theirs if 0 < theirs < np.inf else float("nan")
