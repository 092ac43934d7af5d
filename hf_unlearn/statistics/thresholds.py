"""Attacks that decide: a threshold chosen on some records and applied to others.

The best threshold of a sample is always better than it will be elsewhere. So it is chosen on one half of the records, and
what is reported is counted on the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hf_unlearn.statistics.differences import Difference, difference_in_differences
from hf_unlearn.statistics.estimate import AsDict, Estimate, known
from hf_unlearn.statistics.intervals import mean, rate


RULE = "best balanced accuracy on half of the records under the original model"


@dataclass(frozen=True)
class FrozenThreshold(AsDict):
    """An attack whose threshold was fixed on the original model, and what it says of each model.

    Attributes:
        threshold (`float`): a record is called a member if its score is larger.
        tpr (`dict[str, Estimate]`): share of the forget records called members, by model (`original`, `unlearned`,
            `retrained`): `tpr_forget@orig_threshold`. For the retrained model it is the floor.
        fpr (`dict[str, Estimate]`): share of the holdout called members, likewise: `fpr_holdout@same`.
        advantage (`dict[str, Estimate]`): the first minus the second, 0 = the attack tells nothing.
        balanced_accuracy (`dict[str, Estimate]`): 0.5 = the attack tells nothing.
        advantage_vs_retrained (`Estimate` or `None`): advantage on the unlearned minus that on the retrained model, paired;
            **both signs are bad**. `None` without a retrained model.
        rule (`str`): how the threshold was chosen.
    """

    threshold: float
    tpr: dict[str, Estimate]
    fpr: dict[str, Estimate]
    advantage: dict[str, Estimate]
    balanced_accuracy: dict[str, Estimate]
    advantage_vs_retrained: Estimate | None
    rule: str = RULE


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
    members, non_members = np.sort(members), np.sort(non_members)
    tpr = 1 - np.searchsorted(members, points, side="right") / len(members)
    fpr = 1 - np.searchsorted(non_members, points, side="right") / len(non_members)
    # The gain of the threshold just above each score; below all of them everybody is called a member, which gains nothing.
    gain = tpr - fpr
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    i = int(best[len(best) // 2])
    above = points[i + 1] if i + 1 < len(points) else points[i]
    middle = points[i] + (above - points[i]) / 2
    return float(middle if np.isfinite(middle) else points[i])


def balanced_accuracy(
    members: np.ndarray, non_members: np.ndarray, level: float = 0.95, seed: int = 0, groups=None
) -> Estimate:
    """Mean of the true positive and the true negative rate, at a threshold that was chosen on the other half.

    Args:
        members (`float (n,)`), non_members (`float (m,)`): scores, higher = more member-like; NaN is left out.
        level, seed, groups (*optional*): as for [`auc`][hf_unlearn.statistics.intervals.auc]; groups are never split.

    Returns:
        [`Estimate`]: 0.5 = the attack tells nothing. `n` is what was counted, the second half. NaN below two records
        (groups) a side.
    """
    sides = (members, non_members)
    halves = _halves(sides, groups, seed)
    if halves is None:
        return Estimate(
            np.nan, np.nan, np.nan, _sizes(sides), "threshold on the other half", level, 0, "too few records"
        )
    (chosen, counted), groups = halves
    threshold = best_threshold(*(side[half] for side, half in zip(_arrays(sides), chosen, strict=True)))
    calls = _calls(sides, counted, threshold)
    return _as_accuracy(_advantage(calls, groups, seed).estimate(level))


def at_original_threshold(
    models: Mapping[str, tuple[np.ndarray, np.ndarray]], level: float = 0.95, seed: int = 0, groups=None
) -> FrozenThreshold:
    """Fix the threshold of an attack on the original model, and apply it to every model.

    The threshold has the best balanced accuracy on one half of the records under the original model; all rates are of the
    other half, the same records under each model.

    Args:
        models (`dict`): for `"original"`, and for others such as `"unlearned"` and `"retrained"`, the scores of the forget
            set `(n,)` and of the holdout `(m,)`, higher = more member-like.
        level, seed, groups (*optional*): as for [`balanced_accuracy`].

    Raises:
        ValueError: there is no original model, or there are fewer than two records (groups) a side.
    """
    if models.get("original") is None:
        raise ValueError("The threshold is fixed on the original model, but you gave none. Score that model too.")
    models = {name: sides for name, sides in models.items() if sides is not None}
    halves = _halves(models["original"], groups, seed)
    if halves is None:
        raise ValueError(
            "A threshold is chosen on one half and applied to the other. Give at least two records a side."
        )
    (chosen, counted), groups = halves
    threshold = best_threshold(*(s[half] for s, half in zip(_arrays(models["original"]), chosen, strict=True)))
    calls = {name: _calls(sides, counted, threshold) for name, sides in models.items()}
    advantages = {name: _within(_advantage(of, groups, seed).estimate(level)) for name, of in calls.items()}
    gap = None
    if {"unlearned", "retrained"} <= set(calls):
        gap = difference_in_differences(calls["unlearned"], calls["retrained"], seed, groups).estimate(level)
    return FrozenThreshold(
        threshold=threshold,
        tpr={name: _rate(of[0], level, seed, groups and groups[0]) for name, of in calls.items()},
        fpr={name: _rate(of[1], level, seed, groups and groups[1]) for name, of in calls.items()},
        advantage=advantages,
        balanced_accuracy={name: _as_accuracy(estimate) for name, estimate in advantages.items()},
        advantage_vs_retrained=gap,
    )


def _arrays(sides) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(side, dtype=np.float64).ravel() for side in sides)


def _sizes(sides) -> tuple[int, ...]:
    return tuple(len(known(side)) for side in sides)


def _halves(sides, groups, seed: int):
    """Which records choose and which count, a pair of indices for each side, and the groups of those that count."""
    rng = np.random.default_rng(seed)
    chosen, counted, labels = [], [], []
    for side, of in zip(_arrays(sides), (None, None) if groups is None else groups, strict=True):
        scored = np.flatnonzero(~np.isnan(side))
        units = scored if of is None else np.asarray(of)[scored]
        names = np.unique(units)
        if len(names) < 2:
            return None
        first = np.isin(units, rng.permutation(names)[: len(names) // 2])
        chosen.append(scored[first])
        counted.append(scored[~first])
        labels.append(None if of is None else np.asarray(of)[counted[-1]])
    return (chosen, counted), None if groups is None else tuple(labels)


def _calls(sides, counted, threshold: float) -> tuple[np.ndarray, ...]:
    """1 where a record is called a member, 0 where not, NaN where it has no score."""
    picked = [side[index] for side, index in zip(_arrays(sides), counted, strict=True)]
    return tuple(np.where(np.isnan(side), np.nan, side > threshold) for side in picked)


def _advantage(calls, groups, seed: int) -> Difference:
    nobody = tuple(np.zeros(len(side)) for side in calls)
    return difference_in_differences(calls, nobody, seed, groups)


def _within(advantage: Estimate) -> Estimate:
    return replace(advantage, low=max(-1.0, advantage.low), high=min(1.0, advantage.high))


def _as_accuracy(advantage: Estimate) -> Estimate:
    shown = _within(advantage)
    method = f"threshold on the other half, {advantage.method.removeprefix('paired ')}"
    low, high = (1 + shown.low) / 2, (1 + shown.high) / 2
    return replace(advantage, value=(1 + advantage.value) / 2, low=low, high=high, method=method)


def _rate(calls: np.ndarray, level: float, seed: int, groups) -> Estimate:
    if groups is not None:
        return mean(calls, level, seed, groups)
    scored = known(calls)
    return rate(int(scored.sum()), len(scored), level)
