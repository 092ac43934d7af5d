"""Attacks that decide: a threshold chosen on some records and applied to others.

The best threshold of a sample is always better than it will be elsewhere. So it is chosen on one half of the records, and
what is reported is counted on the other half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hf_unlearn.statistics.differences import difference_in_differences
from hf_unlearn.statistics.estimate import Estimate, known
from hf_unlearn.statistics.intervals import mean, rate


@dataclass(frozen=True)
class FrozenThreshold:
    """An attack whose threshold was fixed on the original model, and what it says of each model.

    Attributes:
        threshold (`float`): a record is called a member if its score is larger.
        tpr (`dict[str, Estimate]`): share of the forget records called members, by model (`original`, `unlearned`,
            `retrained`). That of the retrained model is the floor.
        fpr (`dict[str, Estimate]`): share of the holdout called members, by model.
        balanced_accuracy (`dict[str, Estimate]`): mean of the true positive and the true negative rate, by model; 0.5 =
            the attack tells nothing.
    """

    threshold: float
    tpr: dict[str, Estimate]
    fpr: dict[str, Estimate]
    balanced_accuracy: dict[str, Estimate]


def best_threshold(members: np.ndarray, non_members: np.ndarray) -> float:
    """The threshold of the best balanced accuracy on these very records, half way between two scores.

    The accuracy it has there is optimistic: report it on other records. Among equally good thresholds the middle one is
    taken. Scores above are called members; NaN scores are left out.

    Raises:
        ValueError: a side has no score.
    """
    members, non_members = (known(side) for side in (members, non_members))
    if min(len(members), len(non_members)) == 0:
        raise ValueError("A threshold needs scores of members and of non-members, but a side has none.")
    points = np.unique(np.concatenate([members, non_members]))
    tpr = 1 - np.searchsorted(np.sort(members), points, side="right") / len(members)
    fpr = 1 - np.searchsorted(np.sort(non_members), points, side="right") / len(non_members)
    # The gain of the threshold just above each score; below all of them everybody is called a member, which gains nothing.
    gain = tpr - fpr
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    i = int(best[len(best) // 2])
    above = points[min(i + 1, len(points) - 1)]
    middle = points[i] + (above - points[i]) / 2
    return float(middle if np.isfinite(middle) else points[i])


def at_original_threshold(
    models: Mapping[str, tuple[np.ndarray, np.ndarray]], seed: int = 0, groups=None
) -> FrozenThreshold:
    """Fix the threshold of an attack on the original model, and apply it to every model.

    The threshold has the best balanced accuracy on one half of the records under the original model; all rates are those
    of the other half, the same records under each model.

    Args:
        models (`dict`): for `"original"`, and for others such as `"unlearned"` and `"retrained"`, the scores of the forget
            set `(n,)` and of the holdout `(m,)`, higher = more member-like; NaN is left out.
        seed, groups (*optional*): as for [`auc`][hf_unlearn.statistics.intervals.auc]; groups are never split.

    Raises:
        ValueError: there is no original model, or there are fewer than two records (groups) on a side.
    """
    if "original" not in models:
        raise ValueError("The threshold is fixed on the original model, but you gave none. Score that model too.")
    scores = {name: [np.asarray(side, dtype=np.float64).ravel() for side in sides] for name, sides in models.items()}
    groups = [None, None] if groups is None else list(map(np.asarray, groups))
    rng = np.random.default_rng(seed)
    chosen, counted = zip(*(_halves(*side, rng) for side in zip(scores["original"], groups, strict=True)), strict=True)
    groups = [None if labels is None else labels[half] for labels, half in zip(groups, counted, strict=True)]
    threshold = best_threshold(*(side[half] for side, half in zip(scores["original"], chosen, strict=True)))
    calls = {
        name: tuple(_calls(side[half], threshold) for side, half in zip(sides, counted, strict=True))
        for name, sides in scores.items()
    }
    return FrozenThreshold(
        threshold,
        tpr={name: _rate(forget, seed, groups[0]) for name, (forget, _) in calls.items()},
        fpr={name: _rate(holdout, seed, groups[1]) for name, (_, holdout) in calls.items()},
        balanced_accuracy={name: _balanced_accuracy(sides, seed, groups) for name, sides in calls.items()},
    )


def _halves(scores: np.ndarray, labels: np.ndarray | None, rng) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the records that choose the threshold, and of those that are counted."""
    scored = np.flatnonzero(~np.isnan(scores))
    units = scored if labels is None else labels[scored]
    names = np.unique(units)
    if len(names) < 2:
        raise ValueError(
            "A threshold is chosen on one half and applied to the other. Give at least two records (groups) a side."
        )
    first = np.isin(units, rng.permutation(names)[: len(names) // 2])
    return scored[first], scored[~first]


def _calls(scores: np.ndarray, threshold: float) -> np.ndarray:
    """1 where a record is called a member, 0 where not, NaN where it has no score."""
    return np.where(np.isnan(scores), np.nan, scores > threshold)


def _balanced_accuracy(calls: tuple[np.ndarray, ...], seed: int, groups) -> Estimate:
    nobody = tuple(np.zeros(len(side)) for side in calls)
    advantage = difference_in_differences(calls, nobody, seed, groups).estimate()
    low, high = (1 + max(-1.0, advantage.low)) / 2, (1 + min(1.0, advantage.high)) / 2
    method = f"threshold on the other half, {advantage.method.removeprefix('paired ')}"
    return replace(advantage, value=(1 + advantage.value) / 2, low=low, high=high, method=method)


def _rate(calls: np.ndarray, seed: int, labels: np.ndarray | None) -> Estimate:
    if labels is not None:
        return mean(calls, seed=seed, groups=labels)
    scored = known(calls)
    return rate(int(scored.sum()), len(scored))
