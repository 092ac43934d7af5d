"""Lower bounds on epsilon: how much a model gives away, at least, about what was in its training data.

Training, or unlearning, with (epsilon, delta)-differential privacy limits what any attack on the model can do. An attack
that does better refutes that epsilon, and how much better it does bounds epsilon from below. A bound of 0 shows nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc, expit
from scipy.stats import binom

from hf_unlearn.statistics.estimate import AsDict


SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class EpsilonBound(AsDict):
    """A lower bound that holds with probability `level`.

    Attributes:
        value (`float`): epsilon is at least this; 0 = nothing is shown.
        delta (`float`): of (epsilon, delta)-differential privacy.
        level (`float`): confidence level.
        guesses, correct (`int`): number of guesses, and how many were right.
        n (`int`): number of canaries that the guesses were counted on.
        method (`str`): how the bound was made.
    """

    value: float
    delta: float
    level: float
    guesses: int
    correct: int
    n: int
    method: str


def one_run_p_value(epsilon: float, guesses: int, correct: int, canaries: int, delta: float = 0.0) -> float:
    """Upper bound on the probability of so many right guesses under (epsilon, delta)-DP (Steinke et al., arXiv 2305.08846).

    `P[B >= v] + 2 m delta max_{1 <= i <= v} P[v - i <= B < v] / i` for v right guesses of r about m canaries, with B
    binomial of r trials and success `e^epsilon / (1 + e^epsilon)`.
    """
    q = expit(epsilon)
    p = float(betainc(correct, guesses - correct + 1, q)) if correct > 0 else 1.0  # the upper tail of the binomial
    if delta > 0 and correct > 0:
        below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, q))
        p += 2 * canaries * delta * float(np.max(below / np.arange(1, correct + 1)))
    return min(1.0, p)


def one_run_bound(guesses: int, correct: int, canaries: int, delta: float = 0.0, level: float = 0.95) -> EpsilonBound:
    """The largest epsilon that so many right guesses refute, from one model (arXiv 2305.08846).

    Args:
        guesses, correct (`int`): number of guesses, and how many were right. Which guesses are made must not depend on
            whether they are right.
        canaries (`int`): number of records that were each included by the toss of a fair coin, guessed about or not.
        delta (`float`, *optional*, defaults to `0.0`): of (epsilon, delta)-DP; well below `1 / canaries` or nothing is shown.
        level (`float`, *optional*, defaults to `0.95`): confidence level.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(
            f"You gave {correct} right guesses of {guesses} about {canaries} canaries. Give no more guesses than canaries, "
            "and no more right guesses than guesses."
        )

    def beyond(epsilon: float) -> float:
        return one_run_p_value(epsilon, guesses, correct, canaries, delta) - (1 - level)

    value, high = 0.0, 1.0
    if guesses > 0 and beyond(0.0) < 0:
        while beyond(high) < 0:
            high *= 2
        value = float(brentq(beyond, 0.0, high, xtol=1e-12))
    return EpsilonBound(value, delta, level, guesses, correct, canaries, "one run")


def one_run_epsilon(
    scores: np.ndarray, included: np.ndarray, delta: float = 0.0, level: float = 0.95, seed: int = 0
) -> EpsilonBound:
    """A lower bound from one model and canaries that were each put in by the toss of a coin (arXiv 2305.08846).

    The audit of an unlearned model plants them, requests the deletion of **all**, and guesses which ones were in: those with
    the highest scores were, those with the lowest were not, and nothing is guessed about the middle. How many are guessed
    is chosen on one half of the canaries and counted on the other, since the best of many cuts on the same half would be
    no bound.

    Args:
        scores (`float (m,)`): of the canaries, higher = more member-like. Without NaN: which canaries can be scored might
            depend on whether they were in.
        included (`bool (m,)`): whether each was in. Hundreds are needed: 20 right guesses of 20 show an epsilon of 1.8.
        delta (`float`, *optional*, defaults to `0.0`): of (epsilon, delta)-DP.
        level (`float`, *optional*, defaults to `0.95`): confidence level.
        seed (`int`, *optional*, defaults to `0`): of the split into halves.

    Raises:
        ValueError: the lengths differ, a score is missing, or there are fewer than four canaries.
    """
    scores, included = np.asarray(scores, dtype=np.float64), np.asarray(included, dtype=bool)
    if scores.shape != included.shape or scores.ndim != 1:
        raise ValueError(f"You gave scores {scores.shape} for coins {included.shape}. Give one of each per canary.")
    if np.isnan(scores).any() or len(scores) < 4:
        raise ValueError(
            f"{int(np.isnan(scores).sum())} of {len(scores)} canaries have no score. Give at least four, each with a score: "
            "which ones cannot be scored might tell which were in."
        )
    rng = np.random.default_rng(seed)
    # The shuffle also orders equal scores by chance, not by their position.
    halves = np.array_split(rng.permutation(len(scores)), 2)
    chosen, counted = (included[half[np.argsort(scores[half], kind="stable")]] for half in halves)
    cuts = [(top, bottom) for top in (0.0, *SHARES) for bottom in (0.0, *SHARES) if top + bottom > 0]

    def count(coins: np.ndarray, cut: tuple[float, float]) -> tuple[int, int, int]:
        m = len(coins)
        top, bottom = (math.ceil(share * m) for share in cut)
        bottom = min(bottom, m - top)
        return top + bottom, int(coins[m - top :].sum()) + int((~coins[:bottom]).sum()), m

    best = min(cuts, key=lambda cut: one_run_p_value(0.0, *count(chosen, cut), delta))
    most = one_run_bound(*count(chosen, best), delta, level).value
    for cut in cuts:
        if one_run_p_value(most, *count(chosen, cut), delta) < 1 - level:
            best, most = cut, one_run_bound(*count(chosen, cut), delta, level).value
    return one_run_bound(*count(counted, best), delta, level)
