"""From one value per target to one value per example."""

from __future__ import annotations

import numpy as np

from hf_unlearn.audit.table.scores import Scores


def example_of_target(scores: Scores) -> np.ndarray:
    """Which example each target belongs to: `int64 (t,)`."""
    return np.repeat(np.arange(len(scores)), scores.lengths)


def sum_by_example(scores: Scores, values: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
    """Sum in float64 of `values (t,)` over the targets of each example, or those in `keep (t,)`: `(n,)`; 0 without any."""
    examples, values = example_of_target(scores), np.asarray(values, dtype=np.float64)
    if keep is not None:
        examples, values = examples[keep], values[keep]
    # `bincount` returns integers if there is no target at all.
    return np.bincount(examples, weights=values, minlength=len(scores)).astype(np.float64)


def mean_by_example(scores: Scores, values: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
    """Mean in float64 of `values (t,)` over the targets of each example, or those in `keep (t,)`: `(n,)`; NaN without any."""
    counts = sum_by_example(scores, np.ones(len(scores.log_prob)), keep)
    counts[(counts == 0) | ~scores.valid] = np.nan
    return sum_by_example(scores, values, keep) / counts
