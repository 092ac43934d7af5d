"""Worst records first: an average hides the few that are still there."""

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
        share_above (`Estimate`): share of all records above `limit`. By chance it is about 5 %.
        limit (`float`): with one retrained model the 95th percentile of its scores; with several, that of the differences
            between two of them on the same record, which `excess` is then compared with.
        n_missing (`int`): records that can't be scored under both models.
    """

    indices: np.ndarray
    excess: np.ndarray
    share_above: Estimate
    limit: float
    n_missing: int

    def as_dict(self) -> dict:
        """Plain types for JSON; NaN becomes `None`."""
        share = self.share_above.as_dict()
        limit = None if np.isnan(self.limit) else self.limit
        shown = {"indices": self.indices.tolist(), "excess": self.excess.tolist()}
        return shown | {"share_above": share, "limit": limit, "n_missing": self.n_missing}


def worst_records(
    unlearned: np.ndarray, retrained: np.ndarray, k: int = 10, further_retrained: Sequence[np.ndarray] = ()
) -> WorstRecords:
    """Order records by how much more the unlearned model knows of them than the retrained one.

    List the forget set, and the retain set as well: some kept records become more exposed by an edit.

    Args:
        unlearned, retrained (`float (n,)`): scores of the same records, **higher = more memorized**; NaN is left out.
        k (`int`, *optional*, defaults to `10`): how many to list; fewer where there are fewer.
        further_retrained (sequence of `float (n,)`, *optional*): under models retrained with other seeds.

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
        # Which of two retrained models comes first is chance.
        values, null = excess[known], np.concatenate([null, -null])
    else:
        values, null = unlearned[known], retrained
    null = null[~np.isnan(null)]
    limit = float(np.quantile(null, 0.95, method="higher")) if len(null) else np.nan
    above = rate(int((values > limit).sum()), len(known))
    return WorstRecords(order, excess[order], above, limit, len(excess) - len(known))
