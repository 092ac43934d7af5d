import json
import math

import numpy as np
import pytest

from hf_unlearn.statistics.epsilon import one_run_bound, one_run_epsilon, one_run_p_value


def randomized_response(m, epsilon, seed):
    """Coins, each told truly with probability e^epsilon / (1 + e^epsilon): exactly epsilon-DP."""
    rng = np.random.default_rng(seed)
    coins = rng.random(m) < 0.5
    lie = rng.random(m) < 1 / (1 + math.exp(epsilon))
    return np.where(lie, ~coins, coins) + rng.random(m) / 2, coins


@pytest.mark.parametrize(
    ("epsilon", "guesses", "correct", "canaries", "delta"), [(1, 40, 33, 100, 1e-3), (0, 9, 9, 9, 0)]
)
def test_the_p_value_is_the_printed_formula(epsilon, guesses, correct, canaries, delta):
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    chance = [math.comb(guesses, k) * q**k * (1 - q) ** (guesses - k) for k in range(guesses + 1)]
    best = max(sum(chance[correct - i : correct]) / i for i in range(1, correct + 1))
    expected = sum(chance[correct:]) + 2 * canaries * delta * best
    assert one_run_p_value(epsilon, guesses, correct, canaries, delta) == pytest.approx(min(1, expected))


def test_the_bound_is_where_the_p_value_is_the_level():
    found = one_run_bound(100, 90, 400)
    assert one_run_p_value(found.value, 100, 90, 400) == pytest.approx(0.05, abs=1e-9)
    # All of twenty right: q^20 = 0.05.
    q = 0.05 ** (1 / 20)
    assert one_run_bound(20, 20, 20).value == pytest.approx(math.log(q / (1 - q)))
    assert one_run_bound(20, 12, 20).value == 0 and one_run_bound(0, 0, 20).value == 0
    json.dumps(found.as_dict(), allow_nan=False)


def test_delta_costs_and_a_large_one_leaves_nothing():
    bounds = [one_run_bound(200, 190, 1000, delta).value for delta in (0, 1e-6, 1e-4, 1e-2)]
    assert bounds == sorted(bounds, reverse=True) and bounds[0] > bounds[2] and bounds[3] == 0


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 3.0])
def test_the_bound_lies_below_the_true_epsilon_at_its_level(epsilon):
    found = [one_run_epsilon(*randomized_response(400, epsilon, seed), seed=seed).value for seed in range(100)]
    assert sum(value > epsilon for value in found) <= 100 * 0.05 + 2.6 * math.sqrt(100 * 0.05 * 0.95)
    assert np.mean(found) > 0.45 * epsilon


def test_the_bound_comes_close_with_many_canaries():
    found = [one_run_epsilon(*randomized_response(40_000, 2.0, seed), seed=seed).value for seed in range(3)]
    assert np.mean(found) == pytest.approx(2.0, abs=0.12)


def test_choosing_the_cut_on_the_counted_half_would_claim_too_much():
    def best_of_all_cuts(scores, coins):
        ordered = coins[np.argsort(scores)]
        m = len(coins)
        return max(
            one_run_bound(2 * k, int(ordered[m - k :].sum() + (~ordered[:k]).sum()), m).value for k in range(1, m // 2)
        )

    claims = [best_of_all_cuts(*randomized_response(60, 0.0, seed)) > 0 for seed in range(60)]
    assert np.mean(claims) > 0.1


def test_ties_are_broken_by_chance_and_not_by_the_order_of_the_canaries():
    coins = np.r_[np.ones(200, bool), np.zeros(200, bool)]
    found = [one_run_epsilon(np.zeros(400), coins, seed=seed).value for seed in range(100)]
    assert sum(value > 0 for value in found) <= 5 + 2.6 * math.sqrt(100 * 0.05 * 0.95)


def test_scores_that_say_nothing_and_bad_input():
    with pytest.raises(ValueError, match="1 of 5 canaries"):
        one_run_epsilon([1, 2, np.nan, 3, 4], [True] * 5)
    with pytest.raises(ValueError, match="one of each per canary"):
        one_run_epsilon([1, 2, 3, 4], [True] * 5)
    with pytest.raises(ValueError, match="no more guesses"):
        one_run_bound(10, 5, 8)
