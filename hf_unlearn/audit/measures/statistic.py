"""What an audit finds: values of records under each model, and the row of the result that they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_unlearn.statistics import intervals
from hf_unlearn.statistics.differences import Difference, paired_auc_difference, paired_difference
from hf_unlearn.statistics.estimate import Estimate


MEMORY = "higher = more memorized"
MEMBER = "higher = more member-like; retrained is the goal, lower than that is over-forgotten"
UTILITY = "higher = better"
FIT = "lower = fits better"


@dataclass(frozen=True)
class Groups:
    """The person each record is about: one label per record. Records of one person are not independent."""

    forget: list
    holdout: list

    @classmethod
    def of(cls, groups, n_holdout: int) -> Groups | None:
        """From one label per forget row, or labels by set; a row of the holdout without a label counts by itself."""
        if groups is None:
            return None
        by_set = groups if isinstance(groups, Mapping) else {"forget": groups}
        alone = [f"holdout {i}" for i in range(n_holdout)]
        return cls(list(by_set["forget"]), alone if by_set.get("holdout") is None else list(by_set["holdout"]))


@dataclass(frozen=True)
class Statistic:
    """A number that an audit reports, and how to read it.

    Attributes:
        name, set (`str`): what is measured, and of which records.
        direction (`str`): how to read it, in words.
        surface (`str`, *optional*): where a trace would show, one of `SURFACES`; without one there is no verdict, as for
            utility.
        kind (`str`): for values `(n,)` per model `"share"` (the mean of numbers in [0, 1]), `"rate"` (of yes and no),
            `"relearn"` (a share after relearning) or `"unbounded"` (the mean of other numbers); `"auc"` for two arrays per
            model, membership scores `(n,)` of the forget set and `(m,)` of the holdout.
        bounds (`tuple` of two, *optional*): smallest and largest possible value, such as `(0, math.inf)` for a loss;
            without them values that all lie in [0, 1] are taken for shares.
        records (`tuple` of `n`, *optional*): positions of the values in the forget set, if they are only a part of it.
        others (`tuple` of `m`, *optional*): the same for the holdout, for an AUC.
    """

    name: str
    set: str
    direction: str
    surface: str | None = None
    kind: str = "share"
    records: tuple[int, ...] | None = None
    others: tuple[int, ...] | None = None
    bounds: tuple[float, float] | None = None

    def estimate(self, values, seed: int = 0, groups=None) -> Estimate:
        """The value with its interval; with `groups`, the person of each record, persons are resampled and not records."""
        if self.kind == "auc":
            return intervals.auc(*values, seed=seed, groups=groups)
        values = np.asarray(values, dtype=np.float64)
        if self.kind != "rate" or groups is not None:
            return intervals.mean(values, seed=seed, groups=groups, bounds=self.bounds)
        return intervals.rate_of(values)

    def difference(self, first, second, seed: int = 0, groups=None) -> Difference:
        """The first model minus the second, record by record."""
        if self.kind == "auc":
            return paired_auc_difference(*first, *second, seed=seed, groups=groups)
        return paired_difference(first, second, seed=seed, groups=groups)

    def groups_of(self, groups: Groups | None) -> Any:
        """The groups of the records that were measured; `None` where these are not of the forget set."""
        if groups is None or not (self.set == "forget" or self.kind == "auc"):
            return None
        forget, holdout = _picked(groups.forget, self.records), _picked(groups.holdout, self.others)
        return (forget, holdout) if self.kind == "auc" else forget


def _picked(labels: list, places: tuple[int, ...] | None) -> list:
    return labels if places is None else [labels[i] for i in places]


#: Values by the role of the model: `(n,)`, or for an AUC `((n,), (m,))`; `None` where there are none.
Values = Mapping[str, Any]


def row(statistic: Statistic, values: Values, seed: int = 0, groups: Groups | None = None) -> dict[str, Any]:
    """The statistic under each model, and how the unlearned one differs from the retrained one."""
    groups = statistic.groups_of(groups)
    estimates = {role: None if v is None else statistic.estimate(v, seed, groups) for role, v in values.items()}
    difference = None
    if values.get("unlearned") is not None and values.get("retrained") is not None:
        difference = statistic.difference(values["unlearned"], values["retrained"], seed, groups)
    return row_of(statistic, estimates, difference)


def row_of(statistic: Statistic, estimates: Mapping[str, Any], difference: Difference | None = None) -> dict[str, Any]:
    """A row from estimates."""
    found = {"measure": statistic.name, "set": statistic.set, "direction": statistic.direction}
    if statistic.surface is not None:
        found["surface"] = statistic.surface
    found |= {role: None if estimate is None else estimate.as_dict() for role, estimate in estimates.items()}
    if difference is not None:
        estimate = difference.estimate()
        found["difference_to_retrained"] = estimate.as_dict()
        found["reading"] = _reading(estimate)
    return found


def _reading(difference: Estimate) -> str:
    if np.isnan(difference.low) or np.isnan(difference.high):
        return "not measurable"
    if difference.low > 0:
        return "higher than retrained"
    return "lower than retrained" if difference.high < 0 else "no difference found"
