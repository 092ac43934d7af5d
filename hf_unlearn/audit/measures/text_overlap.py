"""How much of a reference text is in what the model says: ROUGE-L, token F1, exact match, BLEU.

All but corpus BLEU return one number a record. A prediction may be `None` (the model gave no text that can be judged) and
a reference may have nothing to compare; both are NaN, never 0.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np

from hf_unlearn.audit.attacks.prompts import answer, with_examples
from hf_unlearn.statistics.intervals import N_RESAMPLES, Estimate


ROUGE_PARTS = {"recall": "recall", "precision": "precision", "f1": "fmeasure"}


def rouge_l(
    predictions: Sequence[str | None], references: Sequence[str | None], part: str = "recall", stemmer: bool = True
) -> np.ndarray:
    """ROUGE-L of each record: the longest common subsequence of words (Lin, 2004), by the package `rouge-score`.

    Benchmarks differ in both options: TOFU takes recall with the stemmer, MUSE F1 without. There is no resampling.

    Args:
        predictions, references (sequences of `n` texts): what was generated, and what is to be forgotten.
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

    def of(prediction: str, reference: str) -> float:
        if not tokenizer.tokenize(reference):
            return np.nan
        return getattr(scorer.score(reference, prediction)["rougeL"], ROUGE_PARTS[part])

    return _by_record(of, predictions, references)


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
    """F1 of the words that prediction and reference share, order aside, as in SQuAD (arXiv 1606.05250).

    Returns:
        `float64 (n,)` in [0, 1], higher = more memorized; NaN without a prediction or a word in the reference.
    """

    def of(prediction: str, reference: str) -> float:
        ours, theirs = squad_normalized(prediction).split(), squad_normalized(reference).split()
        if not theirs:
            return np.nan
        return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))

    return _by_record(of, predictions, references)


def exact_match(predictions: Sequence[str | None], references: Sequence[str | None]) -> np.ndarray:
    """Whether prediction and reference are the same text after [`squad_normalized`].

    Returns:
        `float64 (n,)`, 1 = the same, 0 = another, higher = more memorized; NaN without a prediction or a word in the
        reference.
    """

    def of(prediction: str, reference: str) -> float:
        reference = squad_normalized(reference)
        return float(squad_normalized(prediction) == reference) if reference else np.nan

    return _by_record(of, predictions, references)


def squad_normalized(text: str) -> str:
    """Lower case, without ASCII punctuation and the articles a, an, the, single spaces (SQuAD, arXiv 1606.05250)."""
    text = text.lower().translate({ord(mark): None for mark in string.punctuation})
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def sentence_bleu(predictions: Sequence[str | None], references: Sequence[str | None]) -> np.ndarray:
    """BLEU of each record by itself, with `sacrebleu`'s smoothing for short texts; their mean is not the corpus BLEU.

    Returns:
        `float64 (n,)` in [0, 100], higher = more memorized; NaN without a prediction or a reference.
    """
    return _by_record(lambda p, r: _sentence_bleu(p, r).score if r.strip() else np.nan, predictions, references)


def corpus_bleu(
    predictions: Sequence[str | None], references: Sequence[str | None], level: float = 0.95, seed: int = 0
) -> tuple[Estimate, str]:
    """BLEU of all records as one corpus (Papineni et al., 2002), by `sacrebleu`.

    Args:
        predictions, references (sequences of `n` texts): records without one of the two are left out and counted.
        level (`float`, *optional*, defaults to `0.95`): confidence level.
        seed (`int`, *optional*, defaults to `0`): of the bootstrap over records.

    Returns:
        [`Estimate`] in [0, 100], higher = more memorized, and the signature of `sacrebleu`, without which a BLEU can't be
        compared with another.
    """
    from sacrebleu.metrics import BLEU

    _check_lengths(predictions, references)
    pairs = [(p, r) for p, r in zip(predictions, references, strict=True) if p is not None and (r or "").strip()]
    n, n_missing, bleu = len(pairs), len(predictions) - len(pairs), BLEU()
    if not pairs:
        return Estimate(np.nan, np.nan, np.nan, (0,), "bootstrap", level, n_missing, "no records"), ""
    value = bleu.corpus_score([p for p, _ in pairs], [[r for _, r in pairs]]).score
    parts = [_sentence_bleu(p, r) for p, r in pairs]
    counts = np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in parts])
    rng, order = np.random.default_rng(seed), bleu.max_ngram_order
    draws = [
        BLEU.compute_bleu(
            list(total[:order]), list(total[order : 2 * order]), *total[2 * order :], smooth_method=bleu.smooth_method
        ).score
        for total in (rng.multinomial(n, np.full(n, 1 / n)) @ counts for _ in range(N_RESAMPLES))
    ]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]) if n > 1 else (np.nan, np.nan)
    reason = None if n > 1 else "one record has no spread"
    estimate = Estimate(value, float(low), float(high), (n,), "bootstrap", level, n_missing, reason)
    return estimate, str(bleu.get_signature())


def _sentence_bleu(prediction: str, reference: str):
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True).sentence_score(prediction, [reference])


def answer_rouge(
    model,
    tokenizer,
    rows: Sequence[Mapping],
    max_new_tokens: int = 200,
    part: str = "recall",
    stemmer: bool = True,
    batch_size: int = 16,
) -> np.ndarray:
    """ROUGE-L of the greedy answer with the true one; the defaults are those of TOFU (arXiv 2401.06121).

    Args:
        model, tokenizer, batch_size: as for [`~hf_unlearn.models.generate.greedy`].
        rows (sequence of `n`): `{"prompt", "completion"}` or `{"messages"}`.
        max_new_tokens (`int`, *optional*, defaults to `200`).
        part, stemmer (*optional*): see [`rouge_l`].

    Returns:
        `float64 (n,)` in [0, 1], higher = more memorized; NaN as for [`rouge_l`].
    """
    from hf_unlearn.models.generate import greedy, texts_of

    said = texts_of(tokenizer, greedy(model, tokenizer, rows, max_new_tokens, batch_size))
    return rouge_l(said, list(map(answer, rows)), part, stemmer)


def verbatim_memorization(
    model,
    tokenizer,
    rows: Sequence[Mapping[str, str]],
    max_new_tokens: int = 128,
    part: str = "f1",
    stemmer: bool = False,
    batch_size: int = 16,
) -> np.ndarray:
    """How far a text is continued as it went on: VerbMem of MUSE (arXiv 2407.06460).

    ROUGE-L of a greedy continuation of at most 128 tokens with as many tokens of the true one. The prompt is a text, not
    a piece of the tokenized whole, so it may end anywhere, also where the tokenizer would merge across the border.

    Args:
        model, tokenizer, batch_size: as for [`~hf_unlearn.models.generate.greedy`].
        rows (sequence of `n`): `{"prompt", "completion"}`.
        max_new_tokens (`int`, *optional*, defaults to `128`): length of the continuation, and of the reference.
        part, stemmer (*optional*): see [`rouge_l`]. MUSE has the stemmer off, open-unlearning has it on.

    Returns:
        `float64 (n,)` in [0, 1], higher = more memorized; NaN as for [`rouge_l`].
    """
    from hf_unlearn.models.generate import greedy, texts_of

    prompts = [row["prompt"] for row in rows]
    said = texts_of(tokenizer, greedy(model, tokenizer, prompts, max_new_tokens, batch_size))
    cut = [tokenizer(row["completion"], add_special_tokens=False)["input_ids"][:max_new_tokens] for row in rows]
    return rouge_l(said, texts_of(tokenizer, cut), part, stemmer)


#: Where an answer to a few-shot prompt ends: the next question follows a blank line.
NEXT_QUESTION = ("\n\n", "\nQuestion", "Question:")


def knowledge_memorization(
    model,
    tokenizer,
    rows: Sequence[Mapping[str, str]],
    examples: Sequence[Mapping[str, str]],
    max_new_tokens: int = 32,
    part: str = "f1",
    stemmer: bool = False,
    stop: Sequence[str] = NEXT_QUESTION,
    batch_size: int = 16,
) -> np.ndarray:
    """How well questions are answered: KnowMem of MUSE (arXiv 2407.06460).

    ROUGE-L of the greedy answer, of at most 32 tokens and cut where the next question would begin, after a prompt of
    examples (10 in MUSE).

    Args:
        model, tokenizer, batch_size: as for [`~hf_unlearn.models.generate.greedy`].
        rows (sequence of `n`): `{"prompt", "completion"}`, such as `"Question: Who?\\nAnswer:"` and `" Ada"`.
        examples (sequence): rows of the same form, which must not be among those asked; they are put before each.
        max_new_tokens (`int`, *optional*, defaults to `32`).
        part, stemmer (*optional*): see [`rouge_l`]. MUSE has the stemmer off, open-unlearning has it on.
        stop (sequence of `str`, *optional*): the answer ends before the first of these strings.

    Returns:
        `float64 (n,)` in [0, 1], higher = knows more; NaN as for [`rouge_l`].
    """
    from hf_unlearn.models.generate import greedy, texts_of

    asked = {row["prompt"] for row in rows}
    if known := [i for i, example in enumerate(examples) if example["prompt"] in asked]:
        raise ValueError(
            f"The examples {known} are among the questions that are asked, and would give their answers away. Remove them."
        )
    prompts = [with_examples(row, examples)["prompt"] for row in rows]
    said = texts_of(tokenizer, greedy(model, tokenizer, prompts, max_new_tokens, batch_size), stop)
    return rouge_l(said, list(map(answer, rows)), part, stemmer)


def _by_record(
    of: Callable[[str, str], float], predictions: Sequence[str | None], references: Sequence[str | None]
) -> np.ndarray:
    _check_lengths(predictions, references)
    pairs = zip(predictions, references, strict=True)
    return np.array([np.nan if p is None or r is None else of(p, r) for p, r in pairs], dtype=np.float64)


def _check_lengths(predictions: Sequence, references: Sequence) -> None:
    if len(predictions) != len(references):
        raise ValueError(
            f"There are {len(predictions)} predictions but {len(references)} references. Give one prediction a record, in "
            "the order of the references, and None where there is none."
        )
