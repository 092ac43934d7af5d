from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from hf_unlearn.audit.verdicts.margins import Margins, seed_band


def test_default_margins_by_hand():
    margins = Margins()
    assert margins.of("auc", 40) == 0.05
    assert margins.of("share", 400) == 0.02 and margins.of("rate", 40) == 0.1
    # A handful of records may make up a tenth of a rate, but never more than a twentieth of a mean.
    assert margins.of("rate", 0) == 0.1 and margins.of("share", 5) == margins.of("share", 80) == 0.05
    assert margins.of("relearn", 40, original=-0.8) == pytest.approx(0.04)
    assert margins.of("unbounded", 40) is None and margins.of("relearn", 40) is None
    assert Margins(auc=0.1).of("auc", 40) == 0.1
    with pytest.raises(ValueError, match="kind must be one of auc"):
        margins.of("mean", 40)


def test_the_band_of_two_seeds_by_hand():
    found = seed_band([0.50, 0.53])
    assert (found.largest, found.n) == (pytest.approx(0.03), 2)
    assert found.band == pytest.approx(stats.t.ppf(0.95, 1) * 0.03)
    assert seed_band([0.5]) is None and seed_band([0.5, float("nan")]) is None


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_further_retrained_model_exceeds_the_band_as_rarely_as_it_says(n):
    rng = np.random.default_rng(n)
    exceeded = percentile = 0
    for _ in range(3000):
        values = rng.normal(0.4, 0.02, n + 1)
        found = seed_band(values[:n])
        exceeded += values[n] - values[0] > found.band
        percentile += values[n] - values[0] > np.quantile([abs(a - b) for a, b in combinations(values[:n], 2)], 0.975)
    # The reference is one of the models of which the spread is estimated, which makes the two a little dependent.
    assert exceeded / 3000 == pytest.approx(0.05, abs=0.015)
    if n < 5:
        assert percentile / 3000 > 0.08  # what a plain percentile of so few differences would do
