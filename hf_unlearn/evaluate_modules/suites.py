"""What the evaluation suites in `eval_suites` share: the rows of a benchmark, and results with their intervals.

A suite runs a model once and computes all it reports from one table of numbers per record. So every further measure is
free, and a retrained model is compared record by record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_unlearn.audit.measures.statistic import Statistic
from hf_unlearn.audit.table.score import score
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.statistics.estimate import Estimate
from hf_unlearn.statistics.intervals import KolmogorovSmirnov


def score_once(
    model, processing_class, sets: Mapping[str, Sequence[Mapping]], batch_size: int = 16, **options
) -> dict[str, Scores]:
    """Score several sets of rows in one pass, sorted by length across the sets; each gets its own table.

    Args:
        model, processing_class, batch_size, options: as for [`~hf_unlearn.audit.score`].
        sets (`dict[str, list]`): rows by the name of their set.

    Raises:
        ValueError: a row that can't be encoded; the message names its set and its index in it, and no text.
    """
    everything = [row for rows in sets.values() for row in rows]
    starts = dict(zip(sets, np.cumsum([0, *map(len, sets.values())]), strict=False))
    try:
        table = score(model, processing_class, everything, batch_size, **{"sampling": (), **options})
    except ValueError as error:
        if not (found := re.match(r"Example (\d+): ", str(error))):
            raise
        index = int(found[1])
        name = [name for name, start in starts.items() if start <= index][-1]
        message = str(error)[found.end() :]
        raise ValueError(f"Row {index - starts[name]} of the set {name!r}: {message}") from None
    return {name: table[start : start + len(sets[name])] for name, start in starts.items()}


def results(
    found: Mapping[Statistic, Any], retrained: Mapping[Statistic, Any] | None = None, seed: int = 0
) -> list[dict]:
    """The results of a suite, one [`result`] per statistic, compared with a retrained model where there is one.

    Args:
        found (`dict`): statistic -> its values under the model, one per record, as [`Statistic`] takes them. The `set` of a
            statistic is the name of the task.
        retrained (`dict`, *optional*): the same under a model retrained without the forget set. Adds its value `retrained`,
            and the paired `difference`, model minus retrained, with `difference_low` and `difference_high`.
        seed (`int`, *optional*, defaults to `0`): of the bootstrap intervals.
    """
    rows = []
    for statistic, values in found.items():
        row = result(statistic.set, statistic.name, statistic.direction, statistic.estimate(values, seed))
        if retrained is not None:
            difference = statistic.difference(values, retrained[statistic], seed).estimate()
            row |= {"retrained": statistic.estimate(retrained[statistic], seed).value, "difference": difference.value}
            row |= {"difference_low": difference.low, "difference_high": difference.high}
        rows.append(row)
    return rows


def result(task: str, measure: str, orientation: str, estimate: Estimate) -> dict[str, Any]:
    """One result of a suite: plain numbers, all in 64 bit, and how to read them."""
    names = ("value", "low", "high", "n_missing", "method", "reason")
    n = estimate.n[0] if len(estimate.n) == 1 else list(estimate.n)
    described = {"task_name": task, "measure": measure, "n": n, "orientation": orientation}
    return described | {name: getattr(estimate, name) for name in names}


#: How to read the mean of [`folded_truth_ratio`], and of `max(0, 1 - R)`.
FOLDED, TRUE_BETTER = "as retrained is best, mean of min(R, 1 / R)", "higher = better, mean of max(0, 1 - R)"


def of_test(task: str, measure: str, test: KolmogorovSmirnov) -> dict[str, Any]:
    """The [`result`] of a test against the retrained model: `value` is its p-value, to be read with `d` and `n`."""
    estimate = Estimate(test.p, np.nan, np.nan, test.n, "two-sample Kolmogorov-Smirnov", n_missing=test.n_missing)
    row = result(task, measure, "p-value, high = not told apart from retrained; it falls with n, compare d", estimate)
    return row | {"d": test.d, "critical_d": test.critical_d, "log10": test.log10_p}


def read_rows(data: str | Path, config: str, split: str = "train", limit: int | None = None) -> list[dict]:
    """Rows of one configuration of a benchmark.

    Args:
        data (`str` or `Path`): Hub id, a folder that was downloaded from there, or one with a JSON or JSON Lines file for
            each configuration, such as `forget10.json`, or for each split of it, such as `knowmem/forget_qa.json`.
        config, split (`str`): which rows. Strings become rows of `{"text"}`.
        limit (`int`, *optional*): at most this many rows, from the first on.

    Raises:
        FileNotFoundError: a folder without such a file.
    """
    from hf_unlearn.data.files import read_text
    from hf_unlearn.data.json_rows import json_values
    from hf_unlearn.data.load import load_rows

    stems = (f"{config}/{split}", config)
    files = [Path(data) / f"{stem}{suffix}" for stem in stems for suffix in (".json", ".jsonl")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        if Path(data).is_dir() and not (Path(data) / "README.md").is_file():
            raise FileNotFoundError(f"The folder has none of {', '.join(str(f.relative_to(data)) for f in files)}.")
        return list(load_rows(str(data), split if limit is None else f"{split}[:{limit}]", config))
    values, _ = json_values(read_text(file))
    if all(isinstance(value, str) for value in values):
        return [{"text": value} for value in values[:limit]]
    return list(load_rows(str(file), "train" if limit is None else f"train[:{limit}]"))
