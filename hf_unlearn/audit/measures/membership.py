"""Membership inference: was this example in the training set?

Every membership score is oriented **higher = more member-like**, so that an AUC above .5 always means that the members
were recognized; some papers state theirs the other way round. Only [`loss`] is low for a text that the model fits;
`ATTACKS["loss"]` is its negative.

The attacks read tables of scores and run no model. Those in `ATTACKS` need one table; those of [`further_passes`] need the
scores of a changed text as well; [`reference_loss`] needs a second model. Attacks that need several models trained on known
data are in `shadow`, those made for image classifiers in `classifiers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hf_unlearn.audit.table.reduction import example_of_target, mean_by_example
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.data.rows import IGNORE_INDEX, reworded, scored_text


# Near-deterministic tokens have no spread to divide by: the variance is clamped at 1e-6.
MIN_STD = 1e-3


def loss(scores: Scores) -> np.ndarray:
    """Mean negative log-likelihood per target, in nats: `float64 (n,)`, **low = the model fits the example**.

    The end token of an answer counts. NaN for an example without targets.
    """
    return -mean_by_example(scores, scores.log_prob)


def negative_loss(scores: Scores) -> np.ndarray:
    """The LOSS attack (Yeom et al., arXiv 1709.01604): `-loss`. `float64 (n,)`, higher = more member-like."""
    return -loss(scores)


def zlib_ratio(scores: Scores) -> np.ndarray:
    """Minus the loss over the zlib-compressed size of the target text (Carlini et al., arXiv 2012.07805).

    Discounts texts that any model would find easy. `float64 (n,)` in nats per target and byte, higher = more
    member-like (the paper states the ratio without the minus). NaN where there are no targets or no text.
    """
    size = np.where(scores.zlib_size > 0, scores.zlib_size, np.nan)
    return -loss(scores) / size


def min_k(scores: Scores, k: float = 0.2) -> np.ndarray:
    """Min-K%: mean of the smallest log-probabilities of an example (Shi et al., arXiv 2310.16789).

    Args:
        scores ([`Scores`]): `n` examples.
        k (`float`, *optional*, defaults to `0.2`): the share of the targets that is kept, at least one target. The
            paper recommends 0.2; MUSE and its PrivLeak use 0.4.

    Returns:
        `float64 (n,)` in nats, higher = more member-like; NaN for an example without targets.
    """
    return _mean_of_smallest(scores, scores.log_prob, k)


def min_k_plus_plus(scores: Scores, k: float = 0.2) -> np.ndarray:
    """Min-K%++: Min-K% of the log-probability standardized over the vocabulary (Zhang et al., arXiv 2404.02936).

    Each log-probability is centered by its mean under the model and divided by its standard deviation, which is
    clamped at 0.001 for near-deterministic tokens. Arguments as for [`min_k`].

    Returns:
        `float64 (n,)`, no unit, higher = more member-like; NaN for an example without targets.
    """
    mean, std = np.asarray(scores.mean, dtype=np.float64), np.asarray(scores.std, dtype=np.float64)
    return _mean_of_smallest(scores, (scores.log_prob - mean) / np.maximum(std, MIN_STD), k)


def too_short(scores: Scores, k: float = 0.2) -> np.ndarray:
    """Which examples have so few targets that the share `k` of them is less than one target: `bool (n,)`.

    Of these [`min_k`] and [`min_k_plus_plus`] read the smallest target alone, which is a larger share than `k`: report how
    many there are. `False` without targets: those are not scored at all.
    """
    return scores.valid & (_share(scores, k) == 0)


def dc_pdd(scores: Scores, token_frequencies: np.ndarray, a: float = 0.01) -> np.ndarray:
    """DC-PDD: probabilities weighed by how rare their tokens are (Zhang et al., arXiv 2409.14781).

    Mean of `min(a, p ln(1 / f))` over the first target with each token, where p is the probability of the target and f the
    frequency of the token in ordinary text. A likely rare token speaks for a member, a likely common one does not.

    Args:
        scores ([`Scores`]): `n` examples.
        token_frequencies (`float (V,)`): how often each token occurs in text that the model need not have seen, above
            0, from [`~hf_unlearn.audit.measures.membership.token_frequencies`].
        a (`float`, *optional*, defaults to `0.01`): bound on what a single token may add.

    Returns:
        `float64 (n,)` in [0, a], higher = more member-like (as in the paper); NaN without targets.

    Raises:
        ValueError: a frequency is not in (0, 1], there are targets beyond the end of the table, or the ids of the
            targets are not known, as in a table from a file.
    """
    if not scores.has_target_ids:
        raise ValueError(
            "DC-PDD needs the tokens, but a table that was read from a file does not have them. Score the examples again."
        )
    frequencies = np.asarray(token_frequencies, dtype=np.float64)
    if not np.all((frequencies > 0) & (frequencies <= 1)):
        raise ValueError(
            "token_frequencies must be above 0 and at most 1, but some are not. Smooth the counts, as "
            "token_frequencies(ids, vocab_size) does: a token that the corpus does not hold is rare, not impossible."
        )
    if len(scores.target_ids) and scores.target_ids.max() >= len(frequencies):
        raise ValueError(
            f"token_frequencies has {len(frequencies)} entries, but there are targets beyond it. Give one entry for each "
            "token of the model."
        )
    weighed = np.exp(np.asarray(scores.log_prob, dtype=np.float64)) * -np.log(frequencies[scores.target_ids])
    first = np.zeros(len(weighed), dtype=bool)
    first[np.unique(example_of_target(scores) * len(frequencies) + scores.target_ids, return_index=True)[1]] = True
    return mean_by_example(scores, np.minimum(a, weighed), first)


def token_frequencies(token_ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """How often each token occurs among `token_ids (t,)`, for [`dc_pdd`]: `float64 (vocab_size,)`, with sum 1.

    One is added to every count. Take the ids of a public corpus, or the `target_ids` of scored texts that are like those to
    be attacked, and not among them.

    Raises:
        ValueError: an id is not in the vocabulary.
    """
    counts = np.bincount(np.asarray(token_ids, dtype=np.int64), minlength=vocab_size) + 1.0
    if len(counts) > vocab_size:
        raise ValueError(f"vocab_size is {vocab_size}, but there are larger token ids. Give that of the model.")
    return counts / counts.sum()


def reference_loss(scores: Scores, reference_scores: Scores) -> np.ndarray:
    """How much better the model fits an example than a reference model does: loss of the reference minus loss.

    With the model retrained without the forget set as reference it is the strongest of the cheap attacks; a public base
    model with the same tokenizer will do, too (Carlini et al., arXiv 2012.07805).

    Args:
        scores ([`Scores`]): `n` examples under the audited model.
        reference_scores ([`Scores`]): the same examples, in the same order, under the reference model.

    Returns:
        `float64 (n,)` in nats per target, higher = more member-like; NaN for an example without targets.

    Raises:
        ValueError: the two tables do not hold the same targets.
    """
    check_same_targets(scores, reference_scores)
    return loss(reference_scores) - loss(scores)


def likelihood_drop(before_scores: Scores, after_scores: Scores) -> np.ndarray:
    """Membership from both checkpoints: by how much a record became less likely, mean of `ln p_before - ln p_after`.

    Records of the forget set lose most, those of the holdout little. Compare the AUC with that of the pair (original,
    retrained). Arguments, shape and errors as for [`reference_loss`]; higher = more likely to be what was forgotten.
    """
    return reference_loss(before_scores, after_scores)


def lowercase_ratio(scores: Scores, lowercased_scores: Scores) -> np.ndarray:
    """Minus the loss over the loss of the same text in lower case (Carlini et al., arXiv 2012.07805).

    A text that was learned by heart suffers from the change, others hardly do. MUSE states the ratio without the minus.

    Args:
        scores ([`Scores`]): `n` examples.
        lowercased_scores ([`Scores`]): the rows of [`lowercased`] under the same model.

    Returns:
        `float64 (n,)`, no unit, higher = more member-like; NaN where one of the two has no targets or both
        losses are 0.
    """
    return -_ratio(loss(scores), loss(lowercased_scores))


def recall(scores: Scores, conditioned_scores: Scores) -> np.ndarray:
    """ReCaLL: log-likelihood after a prefix of non-members over log-likelihood (Xie et al., arXiv 2406.15968).

    Other text in front takes more from a memorized text than from an unknown one. The ratio of losses is the same, and
    oriented as in the paper.

    Args:
        scores ([`Scores`]): `n` examples.
        conditioned_scores ([`Scores`]): the rows of [`with_prefix`] under the same model.

    Returns:
        `float64 (n,)`, no unit, higher = more member-like; NaN without targets, or where both losses are 0.

    Raises:
        ValueError: the two tables do not hold the same targets, as where the prefix was scored too.
    """
    check_same_targets(scores, conditioned_scores)
    return _ratio(loss(conditioned_scores), loss(scores))


def lowercased(rows: Sequence[Mapping[str, Any] | str]) -> list:
    """The rows with the text that is scored in lower case; a prompt stays as it is. For [`lowercase_ratio`].

    Raises:
        ValueError: a row holds no text, but ids or an image.
    """
    for index, row in enumerate(rows):
        if scored_text(row) is None:
            raise ValueError(
                f"Row {index} holds no text. Either give rows of text, or leave the attack lowercase out."
            )
    return [reworded(row, answer=str.lower) for row in rows]


def with_prefix(rows: Sequence[Mapping[str, Any] | str], prefix: str, tokenizer) -> list:
    """The rows, encoded, with the prefix between BOS token and text, for [`recall`]; the scored targets stay the same.

    The ids of prefix and text are joined, not their characters: BOS occurs once, no token is merged across the border, and
    no end token is added to a text that has none.

    Args:
        rows (sequence): rows of `{"text"}`, `{"prompt", "completion"}` or `{"messages"}`, or strings.
        prefix (`str`): text like that of the rows that the model was not trained on, usually several holdout texts
            joined by line breaks. They must not be among the holdout texts that are scored.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer of the model.

    Returns:
        list of `{"input_ids", "labels", "n_end"}`, one per row; a row with an empty text or answer stays as it is.

    Raises:
        ValueError: the prefix is empty, or a row cannot be encoded; the message has its index and no text.
    """
    from hf_unlearn.data.text import EmptyTargetError, encode

    bos = tokenizer.bos_token_id
    try:
        prefix_ids = encode({"text": prefix}, tokenizer)["input_ids"]
    except EmptyTargetError:
        raise ValueError("The prefix is empty, so that nothing would change. Give texts of non-members.") from None
    prefix_ids = prefix_ids[int(prefix_ids[0] == bos) :]
    result: list = []
    for index, row in enumerate(rows):
        try:
            encoded = encode(row, tokenizer)
        except EmptyTargetError:
            result.append(row)
            continue
        except ValueError as error:
            raise ValueError(f"Row {index}: {error}") from None
        ids, labels = encoded["input_ids"], encoded["labels"]
        start = int(ids[0] == bos)
        result.append(
            {
                "input_ids": [*ids[:start], *prefix_ids, *ids[start:]],
                "labels": [*labels[:start], *[IGNORE_INDEX] * len(prefix_ids), *labels[start:]],
                "n_end": encoded.get("n_end", 0),
            }
        )
    return result


class FurtherPass(NamedTuple):
    """An attack for which the model scores changed texts as well: `rows` changes the rows of a set, one for each and in the
    same order, and `combine` makes `float64 (n,)` of the scores of both, higher = more member-like."""

    name: str
    rows: Callable[[Sequence], list]
    combine: Callable[[Scores, Scores], np.ndarray]


def further_passes(prefix: str | None = None, tokenizer=None) -> list[FurtherPass]:
    """The text attacks that need one more pass of the audited model: lowercase, and ReCaLL where a prefix is given.

    Args:
        prefix (`str`, *optional*): text of non-members, see [`with_prefix`].
        tokenizer (`PreTrainedTokenizerBase`, *optional*): needed with a prefix.
    """
    passes = [FurtherPass("lowercase", lowercased, lowercase_ratio)]
    if prefix is not None:
        passes.append(FurtherPass("recall", lambda rows: with_prefix(rows, prefix, tokenizer), recall))
    return passes


# The attacks that read nothing but one table of the audited model; for all, higher = more member-like.
ATTACKS: dict[str, Callable[[Scores], np.ndarray]] = {
    "loss": negative_loss,
    "zlib": zlib_ratio,
    "min_k": min_k,
    "min_k_plus_plus": min_k_plus_plus,
}


def check_same_targets(scores: Scores, others: Scores) -> None:
    """Raise a `ValueError` unless both tables are of the same examples, in the same order, with the same targets."""
    if not scores.same_targets(others):
        raise ValueError(
            "The two tables have different targets. Score the same examples, in the same order and with the same "
            "tokenizer, for both."
        )


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    if len(numerator) != len(denominator):
        raise ValueError(
            f"The two tables hold {len(numerator)} and {len(denominator)} examples. Score one changed row for each row."
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        return numerator / (denominator + 0.0)  # -0.0, the loss of a text that the model is sure of, becomes 0.0


def _share(scores: Scores, k: float) -> np.ndarray:
    if not 0 < k <= 1:
        raise ValueError(f"k is the share of targets that is kept and must be in (0, 1], not {k}.")
    return (k * scores.lengths).astype(np.int64)


def _mean_of_smallest(scores: Scores, values: np.ndarray, k: float) -> np.ndarray:
    keep_count = np.maximum(1, _share(scores, k))
    examples = example_of_target(scores)
    order = np.lexsort((values, examples))
    place = np.arange(len(values)) - np.repeat(scores.offsets[:-1], scores.lengths)
    keep = np.zeros(len(values), dtype=bool)
    keep[order] = place < keep_count[examples]
    return mean_by_example(scores, values, keep)
