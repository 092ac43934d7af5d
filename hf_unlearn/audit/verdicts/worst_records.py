"""The records that stand out most, because an average hides the few that are still there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_unlearn.statistics.differences import aligned
from hf_unlearn.statistics.estimate import Estimate
from hf_unlearn.statistics.intervals import rate


@dataclass(frozen=True, eq=False)
class WorstRecords:
    """The records that stand out most against the retrained model.

    Attributes:
        indices (`int64 (k,)`): positions in the arrays that were given, the worst first.
        excess (`float64 (k,)`): score under the unlearned minus that under the retrained model, falling.
        share_above (`Estimate`): share of all records above `limit`; about 5 % by chance.
        limit (`float`): with one retrained model the 95th percentile of its scores; with several, the 95th percentile of the
            difference between two of them on the same record, with which `excess` is then compared.
        n_missing (`int`): records that can't be scored under both models.
    """

    indices: np.ndarray
    excess: np.ndarray
    share_above: Estimate
    limit: float
    n_missing: int


def worst_records(
    unlearned: np.ndarray, retrained: np.ndarray, k: int = 10, further_retrained: Sequence[np.ndarray] = ()
) -> WorstRecords:
    """List the records of which the unlearned model knows most beyond the retrained one.

    Call it for the forget set, and for the retain set as well: an edit exposes some of the kept records.

    Args:
        unlearned, retrained (`float (n,)`): scores of the same records, **higher = more memorized**; NaN is left out.
        k (`int`, *optional*, defaults to `10`): records to list at most.
        further_retrained (sequence of `float (n,)`, *optional*): scores under models retrained with other seeds.

    Raises:
        ValueError: the lengths differ.
    """
    unlearned, retrained = aligned(unlearned, retrained)
    with np.errstate(invalid="ignore"):  # infinite minus infinite
        excess = unlearned - retrained
    known = np.flatnonzero(~np.isnan(excess))
    order = known[np.argsort(-excess[known], kind="stable")][:k]
    if further_retrained:
        null = np.concatenate([np.subtract(*aligned(other, retrained)) for other in further_retrained])
        # It is chance which of two retrained models comes first.
        values, null = excess[known], np.concatenate([null, -null])
    else:
        values, null = unlearned[known], retrained
    null = null[~np.isnan(null)]
    limit = float(np.quantile(null, 0.95, method="higher")) if len(null) else np.nan
    above = rate(int((values > limit).sum()), len(known))
    return WorstRecords(order, excess[order], above, limit, len(excess) - len(known))
