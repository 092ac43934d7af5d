import numpy as np
import pytest
from score_table import table

from hf_unlearn.audit import ATTACKS, auc, loss, membership, min_k, min_k_plus_plus, reference_loss, zlib_ratio


def random_rows(seed=0, n=20, longest=30):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest, n)
    lengths[:3] = 0, 1, 2
    return [list(rng.gamma(1.0, 2.0, size) * -1) for size in lengths]


def test_loss_is_the_mean_negative_log_likelihood_and_nan_without_targets():
    np.testing.assert_array_equal(loss(table([[-1.0, -2.0, -6.0], [], [-0.5]])), [3.0, np.nan, 0.5])


@pytest.mark.filterwarnings("error")
def test_empty_examples_raise_no_warning():
    assert np.isnan(loss(table([[]]))[0]) and np.isnan(min_k(table([[]]))[0])


def test_the_end_token_counts_in_the_loss():
    assert loss(table([[-1.0, -3.0]], ends=[[False, True]]))[0] == 2


def test_zlib_ratio_divides_by_the_size_and_is_nan_without_text():
    scores = table([[-1.0, -3.0], [-4.0], []], zlib_size=[8, 0, 8])
    np.testing.assert_array_equal(zlib_ratio(scores), [-0.25, np.nan, np.nan])


def test_min_k_by_hand():
    scores = table([[-5.0, -1.0, -4.0, -2.0, -3.0]])
    assert min_k(scores, k=0.2)[0] == -5
    assert min_k(scores, k=0.4)[0] == -4.5
    assert min_k(scores, k=0.59)[0] == -4.5
    assert min_k(scores, k=1.0)[0] == -3


def test_min_k_plus_plus_by_hand_and_clamp():
    scores = table([[-3.0, -2.0]], mean=[[-1.0, -1.0]], std=[[2.0, 0.25]])
    assert min_k_plus_plus(scores, k=0.5)[0] == -4
    certain = table([[-0.001]], mean=[[0.0]], std=[[0.0]])
    assert min_k_plus_plus(certain)[0] == pytest.approx(-0.001 / membership.MIN_STD)


@pytest.mark.parametrize("k", [0.05, 0.2, 0.4, 1.0])
def test_min_k_agrees_with_sorting_each_example(k):
    rows = random_rows()
    expected = [np.mean(sorted(row)[: max(1, int(k * len(row)))]) if row else np.nan for row in rows]
    np.testing.assert_allclose(min_k(table(rows), k), expected, rtol=1e-12)


def test_min_k_with_ties_keeps_exactly_k_targets():
    assert min_k(table([[-2.0, -2.0, -2.0, -1.0, -1.0]]), k=0.8)[0] == -1.75


def test_min_k_keeps_one_target_at_least():
    np.testing.assert_array_equal(min_k(table([[-7.0], [-3.0, -1.0]]), k=0.2), [-7, -3])


def test_impossible_targets_stay_at_minus_infinity():
    scores = table([[-np.inf, -1.0], [-1.0]])
    assert min_k(scores)[0] == min_k_plus_plus(scores)[0] == -np.inf
    np.testing.assert_array_equal(loss(scores), [np.inf, 1])


@pytest.mark.parametrize("k", [0, -0.1, 1.5])
def test_min_k_refuses_a_share_outside_of_0_to_1(k):
    with pytest.raises(ValueError, match="share of targets"):
        min_k(table([[-1.0]]), k=k)


def test_reference_loss_is_positive_where_the_model_knows_more():
    scores, reference = table([[-1.0, -1.0], [-3.0], []]), table([[-2.0, -4.0], [-1.0], []])
    np.testing.assert_array_equal(reference_loss(scores, reference), [2, -2, np.nan])


def test_reference_loss_refuses_other_targets():
    with pytest.raises(ValueError, match="different targets"):
        reference_loss(table([[-1.0, -1.0], [-1.0]]), table([[-1.0], [-1.0, -1.0]]))


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_rank_a_memorized_text_above_an_unknown_one(name):
    members = table([[-0.1, -0.3, -0.2], [-0.2, -0.2, -0.5]])
    others = table([[-2.0, -3.0, -1.0], [-4.0, -1.5, -2.0]])
    assert auc(ATTACKS[name](members), ATTACKS[name](others)).value == 1


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_return_one_float64_an_example_and_nan_for_empty_ones(name):
    scores = ATTACKS[name](table(random_rows()))
    assert scores.shape == (20,) and scores.dtype == np.float64
    np.testing.assert_array_equal(np.isnan(scores), [True] + [False] * 2 + [not row for row in random_rows()[3:]])
    assert ATTACKS[name](table([])).shape == (0,)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_in_32_bit_agree_with_64_bit(name):
    rows = random_rows(1)
    single, double = (ATTACKS[name](table(rows, dtype=dtype)) for dtype in (np.float32, np.float64))
    np.testing.assert_allclose(single, double, rtol=1e-6)


def test_long_texts_are_accumulated_in_64_bit():
    scores = table([[-0.1] * 1_000_000], dtype=np.float32)
    assert loss(scores)[0] == pytest.approx(float(np.float32(0.1)), rel=1e-9)
