"""Extraction: how much of an answer comes out of the model when it is given the prompt.

Everything is read from the teacher-forced table. Greedy decoding reproduces an answer exactly if every target is the
most likely token, so no text is generated; tokens are compared, which gives a lower bound on the match of strings. The
end token is not compared, but it counts in the probability of drawing the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_unlearn.audit.table.reduction import example_of_target, mean_by_example, sum_by_example
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.models.sampling import Sampling


def exact_memorization(scores: Scores) -> np.ndarray:
    """Share of the targets that are the most likely token, end token left out (Tirumala et al., arXiv 2205.10770).

    Returns:
        `float64 (n,)` in [0, 1], higher = more memorized; NaN without targets. A model that never saw the text is far
        from 0 (about half of the tokens of an ordinary sentence can be guessed): compare with a retrained model.
    """
    return mean_by_example(scores, scores.hit, ~scores.is_end)


def extraction_strength(scores: Scores) -> np.ndarray:
    """Share of the answer that the model completes by itself, given the rest (Carlini et al., arXiv 2012.07805).

    `1 - k / T`, where `T` is the number of targets without the end token and `k` the smallest number of them that must
    be given so that all others are the most likely tokens. A wrong last token gives 0; in the benchmark open-unlearning,
    where `k` is at most `T - 1`, it gives `1 / T`.

    Returns:
        `float64 (n,)` in [0, 1], higher = more memorized; NaN without targets.
    """
    content = ~scores.is_end
    length = sum_by_example(scores, content)
    examples = example_of_target(scores)
    # Number of content targets up to and including each one, counted within its example.
    place = np.cumsum(content) - (np.cumsum(length) - length)[examples]
    given = np.zeros(len(scores))
    missed = content & ~scores.hit
    np.maximum.at(given, examples[missed], place[missed])
    return 1 - given / np.where((length > 0) & scores.valid, length, np.nan)


def verbatim_extracted(scores: Scores) -> np.ndarray:
    """Whether greedy decoding reproduces the answer token for token, end token left out: `bool (n,)`.

    `False` for an example without targets. The share of `True` is a rate: report it with [`~hf_unlearn.audit.rate`].
    """
    return exact_memorization(scores) == 1


def prefix_curve(scores: Scores, fractions: Sequence[float]) -> np.ndarray:
    """Whether the rest of an answer is reproduced token for token, after more and more of it was given.

    The share of records that are 1 in a column is a rate: report it with [`~hf_unlearn.audit.rate`].

    Args:
        scores ([`Scores`]): `n` examples. The end token is left out. Of a plain text (`{"text"}`) the first scored token
            is the first after BOS, or the second of the text where the tokenizer adds no BOS.
        fractions (sequence of `k` floats in [0, 1)): shares of the answer to give, rounded down to whole tokens.

    Returns:
        `float64 (n, k)`, 1 = the rest came out, 0 = it did not, higher = more memorized; NaN without targets. Along a row
        values never fall.

    Raises:
        ValueError: a fraction is not in [0, 1).
    """
    fractions = np.asarray(fractions, dtype=np.float64)
    if not ((fractions >= 0) & (fractions < 1)).all():
        raise ValueError(f"fractions must be at least 0 and below 1, not {fractions.tolist()}.")
    content = ~scores.is_end
    # Errors before each place, over all examples: what lies between two places is one subtraction.
    errors = np.concatenate([[0], np.cumsum(content & ~scores.hit)])
    length = sum_by_example(scores, content).astype(np.int64)[:, None]
    # 0.29 * 100 is a rounding error below 29.
    given = np.floor(length * fractions + 1e-9).astype(np.int64)
    # The end token is the last, so that content is consecutive.
    start = scores.offsets[:-1, None]
    came_out = errors[start + length] == errors[start + given]
    return np.where(given < length, came_out, np.nan)


def extraction_probability(
    scores: Scores, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, log: bool = False
) -> np.ndarray:
    """Probability of drawing exactly the answer, end token included, in one sample (Hayes et al., arXiv 2410.19482).

    Args:
        scores ([`Scores`]): `n` examples.
        temperature, top_k, top_p (*optional*): the sampling scheme, see [`Sampling`]. The default, plain sampling, can
            always be read; another scheme only if it was given to `score`.
        log (`bool`, *optional*, defaults to `False`): return the natural logarithm, which doesn't underflow.

    Returns:
        `float64 (n,)`, higher = more memorized; NaN without targets, 0 (`-inf`) where the scheme removes a target.

    Raises:
        ValueError: the scheme was not scored.
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    if sampling == Sampling():
        log_prob = scores.log_prob
    elif sampling.key in scores.sampled:
        log_prob = scores.sampled[sampling.key]
    else:
        known = "; ".join(sorted(scores.sampled)) or "none but plain sampling"
        raise ValueError(
            f"You asked for sampling with {sampling.key}, but the scores hold {known}. Either ask for that, "
            f"or score again with sampling=[Sampling(temperature={temperature:g}, top_k={top_k}, top_p={top_p:g})]."
        )
    total = sum_by_example(scores, log_prob)
    total[~scores.valid] = np.nan
    return total if log else np.exp(total)


def queries_needed(probability: np.ndarray, p: float = 0.5) -> np.ndarray:
    """Number of samples after which the answer has come out at least once with probability `p`.

    The `n` of (n, p)-discoverable extraction (Hayes et al., arXiv 2410.19482): `ln(1 - p) / ln(1 - probability)`,
    rounded up.

    Args:
        probability (`float (n,)`): chance that one sample is the answer, from [`extraction_probability`].
        p (`float`, *optional*, defaults to `0.5`): the chance of at least one success; 0.9 is the other usual choice.

    Returns:
        `float64 (n,)`, whole numbers from 1; **low = easy to extract**, `inf` where `probability` is 0, NaN for NaN.
    """
    if not 0 < p < 1:
        raise ValueError(f"p must lie strictly between 0 and 1, not {p}.")
    probability = np.asarray(probability, dtype=np.float64)
    if np.any((probability < 0) | (probability > 1)):
        raise ValueError("probability must be in [0, 1]. Pass extraction_probability(..., log=False).")
    with np.errstate(divide="ignore", over="ignore"):
        ratio = np.log1p(-p) / np.log1p(-probability)
    # A ratio that is whole in exact arithmetic may come out a rounding error larger, which must not cost one more sample.
    return np.where(probability == 0, np.inf, np.maximum(1.0, np.ceil(ratio * (1 - 1e-12))))
