"""How large a difference must be to matter: the constants behind every verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import t as student_t


#: What a statistic is: an AUC; yes or no a record (`"rate"`); a number in [0, 1] a record (`"share"`); a point of a
#: relearning curve; the distribution of a number over records; or a number without a scale of its own (`"unbounded"`),
#: such as minus the loss or a divergence.
KINDS = ("auc", "rate", "share", "relearn", "distribution", "unbounded")


@dataclass(frozen=True)
class Margins:
    """Margins and levels of the verdicts. Fix them before the results are seen, and print them beside these.

    They are the choices of this project, not of a paper, but for `alpha` and `power`, which are the usual ones.

    Attributes:
        auc (`float`): of an AUC.
        share (`float`): of rates (yes or no a record: verbatim extraction) and of means of shares (a number in [0, 1] a
            record: extraction strength, exact memorization, probability).
        share_records (`float`): they may also differ by this many records, which is more in a small forget set;
        rate_most (`float`): but a rate never by more than this: a handful of records would show anything;
        share_most (`float`): and a mean never by more than this: it has more to show than yes or no.
        relearn (`float`): at a point of a relearning curve, as a share of the value of the original model.
        distribution (`float`): of the distance between two distribution functions.
        alpha (`float`): one-sided level of the tests. At most this share of families has a false `residual`, and at most
            this share a false `over_forgotten`.
        power (`float`): with which the smallest detectable difference would be found.
    """

    auc: float = 0.05
    share: float = 0.02
    share_records: float = 4.0
    rate_most: float = 0.1
    share_most: float = 0.05
    relearn: float = 0.05
    distribution: float = 0.15
    alpha: float = 0.05
    power: float = 0.8

    def of(self, kind: str, n_units: int, original: float | None = None) -> float | None:
        """The margin of a kind of statistic, with `n_units` records or groups; `None` where there is none.

        Raises:
            ValueError: there is no such kind.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}.")
        if kind in ("auc", "distribution"):
            return getattr(self, kind)
        if kind in ("rate", "share"):
            most = self.rate_most if kind == "rate" else self.share_most
            return max(self.share, min(most, self.share_records / max(n_units, 1)))
        if kind == "relearn" and original is not None and original != 0:
            return self.relearn * abs(original)
        return None


DEFAULT_MARGINS = Margins()


@dataclass(frozen=True)
class SeedBand:
    """How far models that were retrained with other seeds lie from each other.

    Attributes:
        largest (`float`): the largest difference seen between two of them.
        band (`float`): what a further one exceeds by chance with probability alpha, on one side. With few seeds it is
            much wider than `largest`, because their spread is hardly known.
        n (`int`): how many there are.
    """

    largest: float
    band: float
    n: int


def seed_band(values: Sequence[float], alpha: float = 0.05) -> SeedBand | None:
    """The spread of a statistic over retrained models, from one value each; `None` with fewer than two.

    The band is the prediction bound for the difference of two normal values, Student's t with as many degrees of freedom
    as there are models, less one. A plain percentile of the differences between two or three models is far too narrow.
    """
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return None
    largest = max(abs(a - b) for a, b in combinations(known, 2))
    spread = float(np.std(known, ddof=1))
    return SeedBand(largest, float(student_t.isf(alpha, len(known) - 1)) * math.sqrt(2) * spread, len(known))
