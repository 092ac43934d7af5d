import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from score_table import table

from hf_unlearn.audit import (
    Sampling,
    exact_memorization,
    extraction_probability,
    extraction_strength,
    queries_needed,
    verbatim_extracted,
)
from hf_unlearn.audit.measures.extraction import prefix_curve


def hits(rows, ends=None):
    rows = [[bool(value) for value in row] for row in rows]
    return table([[-1.0] * len(row) for row in rows], hits=rows, ends=ends)


ROWS = [[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0], [], [1], [0]]


def test_exact_memorization_by_hand():
    expected = [1, 0.75, 0.75, 0.75, 0, np.nan, 1, 0]
    np.testing.assert_array_equal(exact_memorization(hits(ROWS)), expected)


def test_extraction_strength_by_hand():
    expected = [1, 0.75, 0.5, 0, 0, np.nan, 1, 0]
    np.testing.assert_array_equal(extraction_strength(hits(ROWS)), expected)


def test_verbatim_extraction_by_hand():
    result = verbatim_extracted(hits(ROWS))
    assert result.dtype == bool
    np.testing.assert_array_equal(result, [True, False, False, False, False, False, True, False])


def test_the_end_token_is_left_out_of_matches_but_not_of_probabilities():
    scores = hits([[1, 1, 0], [1, 0, 1], [1]], ends=[[False, False, True], [False, False, True], [True]])
    np.testing.assert_array_equal(exact_memorization(scores), [1, 0.5, np.nan])
    np.testing.assert_array_equal(extraction_strength(scores), [1, 0, np.nan])
    np.testing.assert_array_equal(verbatim_extracted(scores), [True, False, False])
    np.testing.assert_array_equal(extraction_probability(scores, log=True), [-3, -3, -1])


@given(st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=8), max_size=6))
def test_extraction_strength_agrees_with_trying_every_prefix(rows):
    scores = hits([[hit for hit, _ in row] for row in rows], ends=[[end for _, end in row] for row in rows])
    for row, strength, memorized in zip(rows, extraction_strength(scores), exact_memorization(scores), strict=True):
        content = [hit for hit, end in row if not end]
        if content:
            assert strength == 1 - min(k for k in range(len(content) + 1) if all(content[k:])) / len(content)
            assert memorized == np.mean(content)
        else:
            assert np.isnan(strength) and np.isnan(memorized)


def test_probability_of_plain_sampling_is_the_product():
    scores = table([list(np.log([0.5, 0.25])), [], list(np.log([0.9]))])
    np.testing.assert_allclose(extraction_probability(scores), [0.125, np.nan, 0.9])


def test_probability_under_other_sampling_is_read_from_the_table():
    key = Sampling(top_k=40).key
    scores = table([[-2.0, -2.0], [-1.0]], sampled={key: [[-1.0, -0.5], [-np.inf]]})
    np.testing.assert_array_equal(extraction_probability(scores, top_k=40, log=True), [-1.5, -np.inf])
    np.testing.assert_array_equal(queries_needed(extraction_probability(scores, top_k=40))[1], np.inf)


def test_sampling_that_was_not_scored_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"sampling=\[Sampling\(temperature=0.7, top_k=0, top_p=1\)\]"):
        extraction_probability(table([[-1.0]]), temperature=0.7)


def test_log_form_does_not_underflow():
    scores = table([[-1.0] * 2000])
    assert extraction_probability(scores)[0] == 0
    assert extraction_probability(scores, log=True)[0] == -2000


def test_queries_needed_by_hand():
    np.testing.assert_array_equal(queries_needed([1.0, 0.5, 0.1, 0.0, np.nan], p=0.5), [1, 1, 7, np.inf, np.nan])
    # 1 - 0.7^2 = 0.51 exactly, where floating point puts the ratio of the logarithms a hair above 2.
    assert queries_needed(0.3, p=0.51) == 2
    assert queries_needed(0.5, p=0.875) == 3


def test_queries_needed_for_tiny_probabilities():
    assert queries_needed(1e-20, p=0.5) == pytest.approx(np.log(2) * 1e20, rel=1e-9)


@given(st.floats(1e-4, 0.999), st.floats(0.01, 0.99))
def test_queries_needed_is_the_smallest_sufficient_number(probability, p):
    n = queries_needed(probability, p)
    assert 1 - (1 - probability) ** n >= p - 1e-9
    assert n == 1 or 1 - (1 - probability) ** (n - 1) < p + 1e-9


@pytest.mark.parametrize(("probability", "p"), [(0.5, 0), (0.5, 1), (-0.1, 0.5), (1.1, 0.5)])
def test_queries_needed_refuses_what_is_no_probability(probability, p):
    with pytest.raises(ValueError):
        queries_needed(probability, p)


def test_logits_that_are_no_numbers_are_missing_and_no_miss():
    scores = table([[-0.1, np.nan], [-0.1, -0.2]], hits=[[True, False], [True, False]])
    for metric in (exact_memorization, extraction_strength):
        found = metric(scores)
        assert np.isnan(found[0]) and not np.isnan(found[1])


GIVEN = (0, 0.25, 0.5, 0.75)


def test_the_rest_comes_out_if_every_target_of_it_is_the_likeliest():
    scores = hits(
        [[0, 1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0], [], [0, 0]],
        # A wrong end token counts nowhere.
        ends=[[False] * 4 + [True], [False] * 4, [False] * 4 + [True], [False] * 4, [False] * 3, [], [False, True]],
    )
    n = np.nan
    expected = [[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 1, 1], [0] * 4, [0] * 4, [n] * 4, [0] * 4]
    curve = prefix_curve(scores, GIVEN)
    assert curve.dtype == np.float64
    np.testing.assert_array_equal(curve, expected)


@given(st.lists(st.lists(st.booleans(), max_size=30), min_size=1, max_size=6))
def test_the_curve_rises_where_extraction_strength_says(rows):
    scores = hits(rows, ends=[[i > 0 and i == len(row) - 1 for i in range(len(row))] for row in rows])
    fractions = np.arange(0, 1, 0.05)
    for row, curve, strength in zip(rows, prefix_curve(scores, fractions), extraction_strength(scores), strict=True):
        length = len(row) - (len(row) > 1)
        given = np.floor(fractions * length + 1e-9)
        expected = given >= round((1 - strength) * length) if length else np.full(len(fractions), np.nan)
        np.testing.assert_array_equal(curve, expected)


def test_rounding_does_not_lose_a_token():
    assert prefix_curve(hits([[0] * 29 + [1] * 71]), [0.28, 0.29]).tolist() == [[0, 1]]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, np.nan])
def test_a_fraction_that_leaves_nothing_to_compare_is_refused(fraction):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        prefix_curve(hits([[1]]), [fraction])
