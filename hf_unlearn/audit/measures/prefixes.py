"""How much of an answer must be given until the rest comes out by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_unlearn.audit.table.scores import Scores


def prefix_curve(
    scores: Scores,
    fractions: Sequence[float] | None = None,
    tokens: Sequence[int] | None = None,
    suffix: int | None = None,
) -> np.ndarray:
    """Whether the rest of an answer is reproduced token for token, after more and more of it was given.

    Greedy decoding reproduces the rest exactly if every target of it is the most likely token, so this is read from the
    table. The share of records that are 1 at a column is a rate: report it with [`~hf_unlearn.audit.rate`].

    Args:
        scores ([`Scores`]): `n` examples. The end token is left out. Of a plain text (`{"text"}`) the first scored token
            is the first after BOS, or the second of the text where the tokenizer adds no BOS.
        fractions (sequence of `k` floats in [0, 1), *optional*): shares of the answer to give, rounded down to tokens.
        tokens (sequence of `k` ints, *optional*): or numbers of tokens to give.
        suffix (`int`, *optional*): compare exactly so many tokens after those given, as in "50 given, 50 compared"
            (Carlini et al., arXiv 2202.07646). Defaults to all that follow.

    Returns:
        `float64 (n, k)`, 1 = the rest came out, 0 = it did not, higher = more memorized; NaN where nothing, or less than
        `suffix`, is left to compare. Along a row values never fall unless `suffix` is set.
    """
    content = ~scores.is_end
    # Errors before each place, over all examples: what lies between two places is one subtraction.
    errors = np.concatenate([[0], np.cumsum(content & ~scores.hit)])
    length = np.diff(np.concatenate([[0], np.cumsum(content)])[scores.offsets])
    given = _given(length, fractions, tokens)
    until = length[:, None] if suffix is None else given + suffix
    possible = (given < length[:, None]) & (until <= length[:, None])
    start = scores.offsets[:-1, None]
    # The end token is the last, so that content is consecutive.
    first, last = (start + np.minimum(place, length[:, None]) for place in (given, until))
    return np.where(possible, (errors[last] == errors[first]).astype(np.float64), np.nan)


def _given(length: np.ndarray, fractions, tokens) -> np.ndarray:
    """Number of tokens given, `int64 (n, k)`."""
    if (fractions is None) == (tokens is None):
        raise ValueError("Give either fractions, or tokens: how much of each answer is put into the prompt.")
    if fractions is not None:
        fractions = np.asarray(fractions, dtype=np.float64)
        if not ((fractions >= 0) & (fractions < 1)).all():
            raise ValueError(f"fractions must be at least 0 and below 1, not {fractions.tolist()}.")
        # 0.29 * 100 is a rounding error below 29.
        return np.floor(length[:, None] * fractions + 1e-9).astype(np.int64)
    tokens = np.asarray(tokens, dtype=np.int64)
    if (tokens < 0).any():
        raise ValueError(f"tokens must be at least 0, not {tokens.tolist()}.")
    return np.broadcast_to(tokens, (len(length), len(tokens)))
