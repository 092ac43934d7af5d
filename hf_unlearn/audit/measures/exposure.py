"""Exposure of planted canaries: how many bits of a random secret the model gives away.

A canary is a text with a random part, such as "The code of the door is 4711.". It is planted in the training data, and
afterwards compared with other fillings of the same template, which were not planted. Exposure is **higher = more memorized**.
Source: Carlini et al., The Secret Sharer, arXiv 1802.08232.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, skewnorm

from hf_unlearn.audit.table.reduction import sum_by_example
from hf_unlearn.audit.table.scores import Scores


# Fewer candidates do not show the shape of their distribution.
MIN_FIT_CANDIDATES = 20


@dataclass(frozen=True)
class Canaries:
    """Fillings of one template with random digits, all different.

    Attributes:
        rows (`list[dict]`): `n` canaries.
        included (`bool (n,)`): which of them belong in the training data, each by its own fair coin. The others show
            what the same measure gives without training; the bound on epsilon from one run rests on the coins.
        candidates (`list[dict]`): fillings that are never trained on, to rank the canaries among.
    """

    rows: list[dict]
    included: np.ndarray
    candidates: list[dict]

    @property
    def planted(self) -> list[dict]:
        """The rows to put into the training data (more than once, for a canary that should be remembered)."""
        return [row for row, included in zip(self.rows, self.included, strict=True) if included]


def make_canaries(template: str | Mapping[str, str], n: int, n_candidates: int = 1000, seed: int = 0) -> Canaries:
    """Draw canaries, and candidates to compare them with, uniformly from the fillings of a template.

    Args:
        template (`str` or `dict`): a text, or a row of `{"text"}` or `{"prompt", "completion"}`, in which every `#` of
            the text that is scored stands for a random digit, as in `"The code is ####-####."`: 10 ** 8 fillings, or 27
            bits.
        n (`int`): number of canaries.
        n_candidates (`int`, *optional*, defaults to `1000`): exposure by rank cannot exceed `log2(n_candidates + 1)`.
        seed (`int`, *optional*, defaults to `0`): seed of digits and coins, which tells which canaries are planted.

    Raises:
        ValueError: the template has no `#` or more than 18, or has fewer fillings than are asked for.
    """
    row = {"text": template} if isinstance(template, str) else dict(template)
    column = "completion" if "completion" in row else "text"
    n_digits = row.get(column, "").count("#")
    if not 1 <= n_digits <= 18:
        raise ValueError(
            f"The {column} of the template has {n_digits} '#'. Put 1 to 18 where random digits should go."
        )
    if n + n_candidates > 10**n_digits:
        raise ValueError(
            f"{n_digits} digits have {10**n_digits} fillings, but you asked for {n} canaries and {n_candidates} "
            "candidates. Either use more digits, or ask for fewer."
        )
    digits, coins = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    secrets = digits.choice(10**n_digits, size=n + n_candidates, replace=False)
    before, *parts = row[column].split("#")
    filled = [
        {**row, column: before + "".join(map("".join, zip(f"{secret:0{n_digits}d}", parts, strict=True)))}
        for secret in secrets
    ]
    return Canaries(filled[:n], coins.random(n) < 0.5, filled[n:])


def exposure(canaries: Scores | np.ndarray, candidates: Scores | np.ndarray) -> np.ndarray:
    """Exposure by rank in bits: `log2 N - log2 rank`, where rank 1 is the likeliest of all `N` fillings.

    `N` counts the canary itself, so it is the number of candidates plus one; a candidate that is as likely as the
    canary ranks before it. A canary that the model never saw has an exposure of at least e bits with a chance of
    `2 ** -e`: 1 is its median, and its mean is 1.44 (`1 / ln 2`) with many candidates.

    Args:
        canaries ([`Scores`] or `float (n,)`): the canaries, or their negative log-likelihoods.
        candidates ([`Scores`], `float (K,)` or `float (n, K)`): other fillings of the same template that were not
            trained on, or their negative log-likelihoods: the same for all canaries, or a row for each. The canary
            must not be among its own. From tables the log-likelihood is summed over the targets of the whole text.

    Returns:
        `float64 (n,)` in the order of the canaries, from 0 to `log2(K + 1)`, higher = more memorized; NaN where a
        canary or all its candidates cannot be scored. Candidates that cannot are not counted.
    """
    canaries, candidates = _log_perplexities(canaries, candidates)
    present = ~np.isnan(candidates)
    before = (candidates <= canaries[:, None]).sum(axis=1)
    total = 1 + present.sum(axis=1)
    known = ~np.isnan(canaries) & (total > 1)
    return np.where(known, np.log2(total) - np.log2(1 + before), np.nan)


def fitted_exposure(canaries: Scores | np.ndarray, candidates: Scores | np.ndarray) -> np.ndarray:
    """Exposure by extrapolation in bits: `-log2` of the share of a fitted distribution likelier than the canary.

    A skew-normal distribution is fitted to the negative log-likelihoods of the candidates. It is not bounded by their
    number, but far beyond their logarithm it says no more than that the canary lies far outside.

    Arguments and result as for [`exposure`], from 0 upwards.

    Raises:
        ValueError: there are fewer than 20 candidates that can be scored, or they are all alike.
    """
    canaries, candidates = _log_perplexities(canaries, candidates)
    # Usually all canaries share their candidates, and one fit will do.
    shared = candidates.strides[0] == 0
    fits = [_fit(row) for row in (candidates[:1] if shared else candidates)]
    shape, location, scale = np.array(fits).reshape(-1, 3).T
    return -_skewnorm_log_cdf((canaries - location) / scale, shape) / np.log(2)


def _fit(candidates: np.ndarray) -> tuple[float, float, float]:
    candidates = candidates[np.isfinite(candidates)]
    if len(candidates) < MIN_FIT_CANDIDATES or np.ptp(candidates) == 0:
        raise ValueError(
            f"A distribution cannot be fitted to {len(candidates)} candidates with "
            f"{len(np.unique(candidates))} different values. Score at least {MIN_FIT_CANDIDATES}, or use exposure()."
        )
    # The optimizer is at home around 0 and 1.
    center, spread = candidates.mean(), candidates.std()
    shape, location, scale = skewnorm.fit((candidates - center) / spread)
    return shape, center + spread * location, spread * scale


def _skewnorm_log_cdf(z: np.ndarray, shape: np.ndarray) -> np.ndarray:
    log_cdf = skewnorm.logcdf(z, shape)
    # Where that underflows: the density over the slope of its logarithm, which is exact enough far out in the left tail.
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = -z + shape * np.exp(norm.logpdf(shape * z) - norm.logcdf(shape * z))
        tail = np.log(2) + norm.logpdf(z) + norm.logcdf(shape * z) - np.log(slope)
    return np.where(np.isneginf(log_cdf) & np.isfinite(z), tail, log_cdf)


def _log_perplexities(canaries, candidates) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihoods `(n,)` of the canaries and `(n, K)` of the candidates."""
    canaries, candidates = (_negative_log_likelihood(side) for side in (canaries, candidates))
    if candidates.ndim == 1:
        candidates = np.broadcast_to(candidates, (len(canaries), len(candidates)))
    if canaries.ndim != 1 or candidates.ndim != 2 or len(candidates) != len(canaries):
        raise ValueError(
            f"{len(canaries)} canaries need candidates of shape (K,) or ({len(canaries)}, K), not {candidates.shape}."
        )
    return canaries, candidates


def _negative_log_likelihood(side: Scores | np.ndarray) -> np.ndarray:
    if not isinstance(side, Scores):
        return np.asarray(side, dtype=np.float64)
    return np.where(side.valid, -sum_by_example(side, side.log_prob), np.nan)
