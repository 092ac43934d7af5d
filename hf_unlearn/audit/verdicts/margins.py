"""How large a difference must be to matter: the constants of every verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import t as student_t


#: Kinds of statistics: an AUC; yes or no per record (`"rate"`); a number in [0, 1] per record (`"share"`); a share after
#: relearning; the distribution of a number over records; or a number without bounds (`"unbounded"`), such as minus the loss.
KINDS = ("auc", "rate", "share", "relearn", "distribution", "unbounded")


@dataclass(frozen=True)
class Margins:
    """Margins and levels of the verdicts. Fix them before you see the results, and print them beside these.

    They are choices of this project and not of a paper, except `alpha` and `power`, which have their usual values.

    Attributes:
        auc (`float`): for an AUC.
        share (`float`): for rates (yes or no per record, such as verbatim extraction) and for means of shares (a number in
            [0, 1] per record, such as extraction strength, exact memorization or a probability).
        share_records (`float`): rates and means may also differ by so many records, which is more in a small forget set;
        rate_most (`float`): but a rate by no more than this, or a handful of records would show equality;
        share_most (`float`): and a mean by no more than this: a share tells more than yes or no.
        relearn (`float`): for relearning, as a share of the value of the original model.
        distribution (`float`): for the distance between two distribution functions.
        alpha (`float`): one-sided level of the tests. At most this share of families has a false `residual`, and at most
            this share a false `over_forgotten`.
        power (`float`): of the test that finds the smallest detectable difference.
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
        """The margin for a kind of statistic with `n_units` records or groups; `None` if there is none.

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
    """How much models that were retrained with different seeds differ from each other.

    Attributes:
        largest (`float`): the largest difference between two of them.
        band (`float`): the difference that a further one exceeds by chance with probability alpha, on one side. With few
            seeds it is much wider than `largest`, because their spread is hardly known.
        n (`int`): number of models.
    """

    largest: float
    band: float
    n: int


def seed_band(values: Sequence[float], alpha: float = 0.05) -> SeedBand | None:
    """The spread of a statistic over retrained models, from one value per model; `None` with fewer than two.

    The band is the prediction bound for the difference of two normal values: Student's t with one degree of freedom less
    than there are models. A plain percentile of the differences between two or three models is far too narrow.
    """
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return None
    largest = max(abs(a - b) for a, b in combinations(known, 2))
    spread = float(np.std(known, ddof=1))
    return SeedBand(largest, float(student_t.isf(alpha, len(known) - 1)) * math.sqrt(2) * spread, len(known))
