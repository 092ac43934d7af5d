"""A number with its uncertainty: what every statistic returns."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np


class AsDict:
    """A dataclass of numbers that can be written to a file."""

    def as_dict(self) -> dict:
        """Plain types for JSON; NaN becomes `None`."""
        return plain(asdict(self))


@dataclass(frozen=True)
class Estimate(AsDict):
    """A value with its confidence interval.

    Attributes:
        value, low, high (`float`): the point estimate and the ends of the interval; NaN if they can't be measured.
        n (`tuple[int, ...]`): number of records used, `(n,)` or `(n_members, n_non_members)`.
        method (`str`): how the interval was made.
        level (`float`): confidence level.
        n_missing (`int`): records left out because they can't be scored.
        reason (`str` or `None`): why a value or an interval is missing or degenerate.
    """

    value: float
    low: float
    high: float
    n: tuple[int, ...]
    method: str
    level: float = 0.95
    n_missing: int = 0
    reason: str | None = None


def plain(value):
    """Plain types for JSON; NaN becomes `None`."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def known(values) -> np.ndarray:
    """The values that are not NaN, `float64 (k,)`: NaN means that a record can't be scored."""
    values = np.asarray(values, dtype=np.float64).ravel()
    return values[~np.isnan(values)]


def known_mean(values) -> float:
    """Mean of the values that are not NaN; NaN where there is none."""
    values = known(values)
    return float(values.mean()) if len(values) else math.nan


def of_groups(groups) -> str:
    """The end of a method's name, by which one that resampled groups is told from one that resampled records."""
    return "" if groups is None else ", groups"
