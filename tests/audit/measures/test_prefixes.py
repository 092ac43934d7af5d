import numpy as np
import pytest
from score_table import table
from tiny import tiny_tokenizer

from hf_unlearn.audit import extraction_strength
from hf_unlearn.audit.measures.prefixes import prefix_curve


TOKENIZER = tiny_tokenizer()
PROMPTS = ["Question: Where does Ada live?\nAnswer:", "Q:", "Question: Who is the author?\nAnswer:"]
T, F = True, False


def test_the_rest_comes_out_if_every_target_of_it_is_the_likeliest():
    scores = table(
        [[0] * 5, [0] * 4, [0] * 3, [], [0] * 2],
        hits=[[T, F, T, T, F], [T, T, T, T], [T, T, F], [], [F, F]],
        ends=[[F, F, F, F, T], [F] * 4, [F] * 3, [], [F, T]],  # a wrong end token counts nowhere
    )
    curve = prefix_curve(scores, tokens=[0, 1, 2, 3, 4])
    n = np.nan
    expected = [[0, 0, 1, 1, n], [1, 1, 1, 1, n], [0, 0, 0, n, n], [n] * 5, [0, n, n, n, n]]
    np.testing.assert_array_equal(curve, expected)
    np.testing.assert_array_equal(
        prefix_curve(scores, fractions=[0, 0.25, 0.5, 0.75]),
        [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [n] * 4, [0] * 4],
    )


def test_exactly_the_suffix_asked_for_is_compared():
    hits = np.ones((1, 120), bool)
    for wrong, expected in [(49, 1), (50, 0), (99, 0), (100, 1), (119, 1)]:
        one = hits.copy()
        one[0, wrong] = False
        scores = table([[0] * 120], hits=one.tolist(), ends=[[F] * 119 + [T]])
        assert prefix_curve(scores, tokens=[50], suffix=50).tolist() == [[expected]], wrong
    # 119 tokens but for the end: 69 given leave 50, 70 given leave one too few.
    assert prefix_curve(scores, tokens=[69, 70], suffix=50)[0, 0] == 1
    assert np.isnan(prefix_curve(scores, tokens=[69, 70], suffix=50)[0, 1])


def test_the_curve_rises_where_extraction_strength_says():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 12, 200)
    scores = table(
        [[0] * n for n in lengths],
        hits=[rng.random(n) < 0.7 for n in lengths],
        ends=[[F] * (n - 1) + [n > 1] for n in lengths],
    )
    content = np.array([max(1, n - 1) if n > 1 else 1 for n in lengths])
    curve = prefix_curve(scores, tokens=range(12))
    needed = np.round((1 - extraction_strength(scores)) * content).astype(int)
    for row, k, n in zip(curve, needed, content, strict=True):
        assert np.nansum(row[:k]) == 0 and (row[k:n] == 1).all() and np.isnan(row[n:]).all()
    assert (np.diff(curve, axis=1)[~np.isnan(np.diff(curve, axis=1))] >= 0).all()


def test_rounding_does_not_lose_a_token():
    hits = [[F] * 29 + [T] * 71]
    assert prefix_curve(table([[0] * 100], hits=hits), fractions=[0.28, 0.29]).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either fractions, or tokens"),
        ({"fractions": [0.5], "tokens": [1]}, "either fractions, or tokens"),
        ({"fractions": [1.0]}, "at least 0 and below 1"),
        ({"tokens": [-1]}, "at least 0"),
    ],
)
def test_what_is_given_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        prefix_curve(table([[0]]), **options)
