from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_unlearn.statistics.multiplicity import holm


def closed_testing(p):
    """Another route: a hypothesis is rejected if every set of hypotheses with it is, by Bonferroni."""
    adjusted = np.zeros(len(p))
    for size in range(1, len(p) + 1):
        for chosen in combinations(range(len(p)), size):
            value = min(1.0, size * min(p[i] for i in chosen))
            for i in chosen:
                adjusted[i] = max(adjusted[i], value)
    return adjusted


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_is_closed_testing_with_bonferroni(p):
    np.testing.assert_allclose(holm(p), closed_testing(p), atol=1e-15)


def test_by_hand_in_the_order_given_and_without_missing_tests():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.01, np.nan, 0.02]), [0.02, np.nan, 0.02])
    assert len(holm([])) == 0 and np.isnan(holm([np.nan])).all()


def test_values_that_are_no_p_values_are_refused():
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        holm([0.2, 1.2])
