"""What a model knows and how well: perplexity, answer probability, truth ratio and the aggregates made of them.

Where a function takes `Scores` or an array, the array holds losses: mean negative log-likelihoods per target in nats, as
[`loss`] returns them and as published logs store them. The probability of an answer is `exp(-loss)`, the geometric
mean of its token probabilities, end token included.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logsumexp

from hf_unlearn.audit.measures.membership import loss
from hf_unlearn.audit.table.reduction import sum_by_example
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.statistics.estimate import AsDict, Estimate
from hf_unlearn.statistics.intervals import KolmogorovSmirnov, ks, mean


TRUTH_RATIO_VARIANTS = ("tofu", "paper", "probability")


@dataclass(frozen=True)
class Aggregate(AsDict):
    """A number made of others, and these parts.

    Attributes:
        value (`float` or `None`): the number; `None` if a part is missing.
        parts (`dict[str, float or None]`): what it was made of.
        reason (`str` or `None`): which part made it 0 or `None`, or what else to know about it.
    """

    value: float | None
    parts: dict[str, float | None]
    reason: str | None = None


def aggregate(
    parts: Mapping[str, float | None], combine: Callable[..., float], reason: str | None = None
) -> Aggregate:
    """`combine` of the values of all parts; if some are missing (`None` or NaN) there is no value, and `reason` names them."""
    parts = {name: None if value is None or math.isnan(value) else float(value) for name, value in parts.items()}
    missing = [name for name, value in parts.items() if value is None]
    if missing:
        return Aggregate(None, parts, f"missing: {', '.join(missing)}")
    return Aggregate(float(combine(*parts.values())), parts, reason)


def perplexity(scores: Scores | Sequence[np.ndarray]) -> np.ndarray:
    """Perplexity of each text, `exp(loss)`, from `Scores` or from the log-probabilities of each text's targets.

    Returns:
        `float64 (n,)`, low = fits; NaN for a text without targets.
    """
    total, count = _log_prob_sums(scores)
    with np.errstate(over="ignore"):
        return np.exp(-total / np.where(count > 0, count, np.nan))


def corpus_perplexity(scores: Scores | Sequence[np.ndarray]) -> float:
    """Perplexity per target over all texts together, low = fits; NaN if there is no target.

    Long texts weigh more. This is not the mean of [`perplexity`], which a single odd text can dominate.
    """
    total, count = _log_prob_sums(scores)
    with np.errstate(over="ignore"):
        return float(np.exp(-total.sum() / count.sum())) if count.sum() else float("nan")


def answer_probability(scores: Scores) -> np.ndarray:
    """Probability of each answer normalized by its length, `exp(-loss)` (TOFU, Maini et al., arXiv 2401.06121).

    Returns:
        `float64 (n,)` in [0, 1], higher = more memorized on a forget set, better on a retain set; NaN without targets.
    """
    return np.exp(-loss(scores))


def option_probability(correct: Scores | np.ndarray, wrong: Scores | np.ndarray) -> np.ndarray:
    """Probability of the correct answer among the options: `P(correct) / (P(correct) + sum of P(wrong))`.

    TOFU's probability on real authors and world facts (arXiv 2401.06121).

    Args:
        correct ([`Scores`] or `float (n,)`): the correct answers, or their losses.
        wrong ([`Scores`] or `float (n, K)`): the wrong answers as for [`truth_ratio`].

    Returns:
        `float64 (n,)` in [0, 1], higher = knows; NaN where the correct answer or all wrong ones are missing.
    """
    correct, wrong = _losses(correct, wrong)
    log_wrong = logsumexp(np.where(np.isnan(wrong), -np.inf, -wrong), axis=1)
    probability = expit(-correct - log_wrong)
    return np.where(np.isnan(wrong).all(axis=1), np.nan, probability)


def truth_ratio(paraphrased: Scores | np.ndarray, perturbed: Scores | np.ndarray, variant: str = "tofu") -> np.ndarray:
    """How likely wrong answers are against a correct one (TOFU, Maini et al., arXiv 2401.06121).

    Args:
        paraphrased ([`Scores`] or `float (n,)`): a paraphrase of each correct answer (or the answer itself where there
            is none), or its losses.
        perturbed ([`Scores`] or `float (n, K)`): K wrong answers per record. As `Scores` these are `n * K` examples, the
            K answers of the first record first, as in `[answer for row in rows for answer in row["perturbed"]]`. Where
            records have different numbers of answers pass the losses, with NaN for the missing ones.
        variant (`str`, *optional*, defaults to `"tofu"`):
            - `"tofu"`: geometric mean of the wrong probabilities over the correct one, `R = exp(loss of the correct -
              mean loss of the wrong)`. TOFU's scripts and later benchmarks compute this one.
            - `"paper"`: arithmetic mean of the wrong probabilities over the correct one, as printed in the paper.
            - `"probability"`: `1 / (1 + R)`, correct over correct plus geometric mean of the wrong.

    Returns:
        `float64 (n,)`. For `"tofu"` and `"paper"` from 0 (the correct answer is preferred: knows) over 1 (no
        preference) upwards; for `"probability"` in [0, 1], higher = knows. NaN where the correct answer or all wrong
        ones are missing.
    """
    if variant not in TRUTH_RATIO_VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(TRUTH_RATIO_VARIANTS)}, not {variant!r}.")
    correct, wrong = _losses(paraphrased, perturbed)
    present = ~np.isnan(wrong)
    count = np.where(present.any(axis=1), present.sum(axis=1), np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        if variant == "paper":
            return np.where(present, np.exp(correct[:, None] - wrong), 0).sum(axis=1) / count
        log_ratio = correct - np.where(present, wrong, 0).sum(axis=1) / count
        return np.exp(log_ratio) if variant == "tofu" else expit(-log_ratio)


def folded_truth_ratio(ratios: np.ndarray) -> np.ndarray:
    """`min(R, 1 / R)` of each record: what TOFU averages over a forget set. 1 = no preference; best as retrained."""
    ratios = np.asarray(ratios, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.minimum(ratios, 1 / ratios)


def forget_truth_ratio_aggregate(ratios: np.ndarray, seed: int = 0) -> Estimate:
    """TOFU's aggregate on the forget set: mean of `min(R, 1 / R)`, in [0, 1].

    **Best near the value of a retrained model**, which is well below 1. `ratios` are `"tofu"` or `"paper"`.
    """
    return mean(folded_truth_ratio(ratios), seed=seed)


def true_better(ratios: np.ndarray, seed: int = 0) -> Estimate:
    """TOFU's aggregate on retain set, real authors and world facts: mean of `max(0, 1 - R)`, higher = knows better."""
    return mean(np.maximum(0, 1 - np.asarray(ratios, dtype=np.float64)), seed=seed)


def forget_quality(unlearned: np.ndarray, retrained: np.ndarray) -> KolmogorovSmirnov:
    """TOFU's forget quality: KS test between the truth ratios of the unlearned and of the retrained model.

    Args:
        unlearned (`float (n,)`): [`truth_ratio`] on the forget set under the unlearned model. `R` and `1 / R` give the
            same result; the `"tofu"` and `"paper"` variants do not.
        retrained (`float (n,)`): the same under the model retrained without the forget set.

    Returns:
        [`KolmogorovSmirnov`]: `p` is the forget quality, high = not told apart from the retrained model. It shrinks
        with the size of the forget set, so compare `d` across sizes. A high p is no proof of equality.

    Raises:
        ValueError: there is no retrained model; forget quality does not exist without one.
    """
    check_retrained(retrained, "Forget quality")
    return ks(unlearned, retrained)


def harmonic_mean(parts: Mapping[str, float | None]) -> Aggregate:
    """Harmonic mean of named parts, without a small term added inside: all must be high for it to be high.

    A part of 0 gives 0, a missing part (`None` or NaN) gives `None`; `reason` names it.

    Raises:
        ValueError: there are no parts, or one is negative.
    """
    if not parts:
        raise ValueError("A harmonic mean needs at least one part, but you gave none.")
    negative = [name for name, value in parts.items() if value is not None and value < 0]
    if negative:
        raise ValueError(f"A harmonic mean needs parts of at least 0, but these are negative: {', '.join(negative)}.")
    zero = [name for name, value in parts.items() if value == 0]
    if zero:
        return aggregate(parts, lambda *values: 0.0, f"zero: {', '.join(zero)}")
    return aggregate(parts, lambda *values: len(values) / sum(1 / value for value in values))


def model_utility(parts: Mapping[str, float | None]) -> Aggregate:
    """[`harmonic_mean`] of `parts`: TOFU's model utility (arXiv 2401.06121), higher = better.

    TOFU's nine parts are answer probability, ROUGE-L recall and [`true_better`] on retain set, real authors and world
    facts, where the probability of the last two is [`option_probability`]. The original code scores the first 300 rows
    of the retain set, later benchmarks 400.
    """
    return harmonic_mean(parts)


def privleak(unlearned_auc: float, retrained_auc: float) -> float:
    """PrivLeak of MUSE in percent (Shi et al., arXiv 2407.06460): `100 * (A_r - A_u) / (1 - A_r)`.

    Args:
        unlearned_auc (`float`): AUC of `min_k(scores, k=0.4)`, forget set against holdout, under the unlearned model.
        retrained_auc (`float`): the same under the model retrained without the forget set.

    Returns:
        `float`: 0 = as after retraining; **negative = still memorized, positive = over-forgotten**; unbounded as the
        AUC of the retrained model nears 1, NaN at 1.

    Raises:
        ValueError: there is no retrained model. 0.5 is no substitute: real retrained models are often far from it.
    """
    check_retrained(retrained_auc, "PrivLeak")
    warn_if_reference_is_member(retrained_auc, "PrivLeak")
    return float("nan") if retrained_auc == 1 else 100 * (retrained_auc - unlearned_auc) / (1 - retrained_auc)


def check_retrained(given, name: str) -> None:
    """Raise a `ValueError` where the number of the retrained model, with which `name` compares, is missing."""
    if given is None:
        raise ValueError(
            f"{name} compares with a model retrained without the forget set, but you gave none. Either measure that "
            "model too, or report the measure of the unlearned model with its interval."
        )


def warn_if_reference_is_member(retrained_auc: float, name: str) -> None:
    """Warn where the AUC of an attack on the retrained model says that it may have seen the forget set."""
    if retrained_auc > 0.9:
        warnings.warn(
            f"The retrained model itself has an AUC of {retrained_auc:.3f}: it looks as if it had seen the forget set, or "
            f"forget set and holdout differ in kind. {name} means little here.",
            stacklevel=3,
        )


def _log_prob_sums(scores: Scores | Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the log-probabilities and number of targets of each text: two `(n,)`."""
    if isinstance(scores, Scores):
        return sum_by_example(scores, scores.log_prob), scores.lengths
    totals = np.array([np.sum(row, dtype=np.float64) for row in scores], dtype=np.float64)
    return totals, np.array([len(row) for row in scores], dtype=np.int64)


def _losses(correct: Scores | np.ndarray, wrong: Scores | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses `(n,)` of the correct and `(n, K)` of the wrong answers."""
    correct = loss(correct) if isinstance(correct, Scores) else np.asarray(correct, dtype=np.float64)
    if isinstance(wrong, Scores):
        wrong = loss(wrong)
        if len(correct) == 0 or len(wrong) % len(correct) or len(wrong) == 0:
            raise ValueError(
                f"{len(wrong)} wrong answers can't be split evenly over {len(correct)} records. Either score the same "
                "number K for every record, or pass an array of losses (n, K) with NaN for missing ones."
            )
        wrong = wrong.reshape(len(correct), -1)
    wrong = np.asarray(wrong, dtype=np.float64)
    if wrong.ndim != 2 or len(wrong) != len(correct):
        raise ValueError(f"The losses of the wrong answers must have shape ({len(correct)}, K), not {wrong.shape}.")
    return correct, wrong
