"""How much of a reference text is in what the model says: ROUGE-L, token F1, BLEU.

All functions return one number per record, which is NaN, never 0, where the prediction is `None` (the model gave no text
that can be judged) or the reference has nothing to compare.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np


ROUGE_PARTS = {"recall": "recall", "precision": "precision", "f1": "fmeasure"}


def rouge_l(
    predictions: Sequence[str | None], references: Sequence[str | None], part: str = "recall", stemmer: bool = True
) -> np.ndarray:
    """ROUGE-L of each record: the longest common subsequence of words (Lin, 2004), by the package `rouge-score`.

    Benchmarks differ in both options: TOFU takes recall with the stemmer, MUSE F1 without. There is no resampling.

    Args:
        predictions, references (sequences of `n` texts): the generated texts, and those to forget.
        part (`str`, *optional*, defaults to `"recall"`): `"recall"` (share of the reference that came out), `"precision"`
            or `"f1"`.
        stemmer (`bool`, *optional*, defaults to `True`): compare Porter stems of words of more than three letters.

    Returns:
        `float64 (n,)` in [0, 1], higher = more memorized. NaN without a prediction, and for a reference without a word:
        the package knows only words of the letters a to z and digits, and would score any other script 0.
    """
    from rouge_score import rouge_scorer

    if part not in ROUGE_PARTS:
        raise ValueError(f"part must be one of {', '.join(ROUGE_PARTS)}, not {part!r}.")
    tokenizer = _Words(stemmer)
    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=tokenizer)

    def overlap(prediction: str, reference: str) -> float:
        if not tokenizer.tokenize(reference):
            return np.nan
        return getattr(scorer.score(reference, prediction)["rougeL"], ROUGE_PARTS[part])

    return _by_record(overlap, predictions, references)


class _Words:
    """The tokenizer of `rouge-score`, with the stem of every word computed once: that is where its time goes."""

    def __init__(self, stemmer: bool):
        from nltk.stem.porter import PorterStemmer
        from rouge_score import tokenize

        self._tokenize = tokenize.tokenize
        self.stem = lru_cache(maxsize=None)(PorterStemmer().stem)
        self._stemmer = self if stemmer else None

    def tokenize(self, text: str) -> list[str]:
        return self._tokenize(text, self._stemmer)


def token_f1(predictions: Sequence[str | None], references: Sequence[str | None]) -> np.ndarray:
    """F1 of the words that prediction and reference share in any order, as in SQuAD (arXiv 1606.05250).

    Returns:
        `float64 (n,)` in [0, 1], higher = more memorized; NaN without a prediction or a word in the reference.
    """

    def f1(prediction: str, reference: str) -> float:
        ours, theirs = squad_normalized(prediction).split(), squad_normalized(reference).split()
        if not theirs:
            return np.nan
        return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))

    return _by_record(f1, predictions, references)


def squad_normalized(text: str) -> str:
    """Lower case, without ASCII punctuation and the articles a, an, the, single spaces (SQuAD, arXiv 1606.05250)."""
    text = text.lower().translate({ord(mark): None for mark in string.punctuation})
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def sentence_bleu(predictions: Sequence[str | None], references: Sequence[str | None]) -> np.ndarray:
    """BLEU of each record by itself, with `sacrebleu`'s smoothing for short texts; their mean is not the corpus BLEU.

    Returns:
        `float64 (n,)` in [0, 100], higher = more memorized; NaN without a prediction or a reference.
    """
    from sacrebleu.metrics import BLEU

    bleu = BLEU(effective_order=True)
    return _by_record(lambda p, r: bleu.sentence_score(p, [r]).score if r.strip() else np.nan, predictions, references)


def _by_record(
    overlap: Callable[[str, str], float], predictions: Sequence[str | None], references: Sequence[str | None]
) -> np.ndarray:
    if len(predictions) != len(references):
        raise ValueError(
            f"There are {len(predictions)} predictions but {len(references)} references. Give one prediction per record, "
            "in the order of the references, and None where there is none."
        )
    pairs = zip(predictions, references, strict=True)
    return np.array([np.nan if p is None or r is None else overlap(p, r) for p, r in pairs], dtype=np.float64)
