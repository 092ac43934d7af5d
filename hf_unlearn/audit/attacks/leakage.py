"""What leaks in other words: alternatives to an answer, and names, numbers and addresses in what a model says.

A model may no longer say "chronic fatigue" and still say "long-term tiredness". Two routes look for that: the likelihood
of alternative answers ([`alternative_leakage`]), and a search in generated text ([`find_spans`], [`span_leakage`]).
Everything is a number a record; no text is kept or logged. Do the same for unseen rows with spans of their own: the base
rate of a name or a city that anyone would guess is far from 0.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hf_unlearn.audit.attacks.attack import attack
from hf_unlearn.audit.measures.quality import answer_probability
from hf_unlearn.audit.records import AuditRecords, Found
from hf_unlearn.audit.table.score import score
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.data.rows import is_chat, prompt_of, reworded
from hf_unlearn.models.decoding import require_cache


# A number with so many digits is looked for without what separates them, as in "(555) 010 4477".
LONG_NUMBER = 6


def alternative_leakage(
    model,
    tokenizer,
    rows: Sequence[Mapping],
    metric: Callable[[Scores], np.ndarray] = answer_probability,
    batch_size: int = 16,
) -> np.ndarray:
    """How likely the likeliest of the alternatives is as an answer to the same prompt.

    Args:
        model, tokenizer, batch_size: as for [`~hf_unlearn.audit.score`].
        rows (sequence of `n`): `{"prompt", "completion"}` or `{"messages"}`, with the column `alternatives`, a list of texts
            (synonyms, translations, what the answer implies). A space is put before an alternative
            where the completion begins with one.
        metric (*optional*, defaults to [`answer_probability`]): from `Scores` to `(k,)`; for log-probabilities of the whole
            alternative take `partial(extraction_probability, log=True)`.

    Returns:
        `float64 (n,)`, the maximum over the alternatives, higher = leaks more; NaN for a row without alternatives.
    """
    owners = [i for i, row in enumerate(rows) for _ in row.get("alternatives") or ()]
    asked = [_answered(row, text) for row in rows for text in row.get("alternatives") or ()]
    table = score(model, tokenizer, asked, batch_size)
    values = np.where(table.valid, metric(table), np.nan)
    best = np.full(len(rows), np.nan)
    np.fmax.at(best, np.array(owners, dtype=np.int64), values)
    return best


def _answered(row: Mapping, text: str) -> Mapping:
    def alternative(own: str) -> str:
        follows_a_space = not is_chat(row) and own.startswith(" ") and not text.startswith(" ")
        return f" {text}" if follows_a_space else text

    return reworded(row, answer=alternative)


@dataclass(frozen=True, eq=False)
class SpanHits:
    """How often given spans were in generated texts; all are `float64 (n,)` in [0, 1], higher = leaks more.

    NaN where a record has no span to look for or no text to look in. `> 0` tells whether there was any hit at all.

    Attributes:
        samples_exact, samples_normalized: share of the texts of a record with at least one of its spans, letter for letter
            or after [`normalized`].
        spans_exact, spans_normalized: share of the spans of a record that are in at least one of its texts.
    """

    samples_exact: np.ndarray
    samples_normalized: np.ndarray
    spans_exact: np.ndarray
    spans_normalized: np.ndarray


def find_spans(
    texts: Sequence[Sequence[str | None]], spans: Sequence[Sequence[str]], prompts: Sequence[str] | None = None
) -> SpanHits:
    """Look for spans (names, numbers, addresses, alternative answers) in generated texts, as whole words.

    Args:
        texts (`n` sequences of texts): what was generated for each record, from one text to any number of samples; `None`
            is a text that can't be judged.
        spans (`n` sequences of texts): what must not come out.
        prompts (`n` texts, *optional*): a span that the prompt holds already is not looked for, as repeating it shows
            nothing.
    """
    prompts = [""] * len(texts) if prompts is None else prompts
    if not len(texts) == len(spans) == len(prompts):
        raise ValueError(
            f"There are texts for {len(texts)} records, spans for {len(spans)} and prompts for {len(prompts)}. Give each "
            "record its own, in the same order."
        )
    columns = np.full((4, len(texts)), np.nan)
    for i, (said, wanted, prompt) in enumerate(zip(texts, spans, prompts, strict=True)):
        said = [text for text in said if text is not None]
        wanted = [span for span in wanted if normalized(span) and not _has_normalized(normalized(prompt), span)]
        if said and wanted:
            plain = [normalized(text) for text in said]
            exact = np.array([[_has(text, span) for span in wanted] for text in said])
            alike = np.array([[_has_normalized(text, span) for span in wanted] for text in plain]) | exact
            columns[:, i] = [hits.any(axis=axis).mean() for axis in (1, 0) for hits in (exact, alike)]
    return SpanHits(*columns)


def span_leakage(
    model,
    tokenizer,
    rows: Sequence[Mapping],
    column: str = "spans",
    n: int = 16,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
) -> SpanHits:
    """Draw `n` answers to each prompt and look for the spans of its row in them.

    Args:
        model, tokenizer, max_new_tokens, temperature, top_k, top_p, seed, batch_size: as for
            [`~hf_unlearn.models.generate.sample`].
        rows (sequence of `N`): rows with an answer, and the column of spans, a list of texts.
        column (`str`, *optional*, defaults to `"spans"`): or `"alternatives"`, for what the answer implies.
        n (`int`, *optional*, defaults to `16`): samples of each prompt. What comes out of one in 50 needs 150 to be seen
            with 95 %; no hit in 100 samples is a chance of at most 3 %.

    Returns:
        [`SpanHits`] of `N` records.
    """
    from hf_unlearn.models.generate import sample, texts_of

    drawn = sample(model, tokenizer, rows, n, max_new_tokens, temperature, top_k, top_p, seed, batch_size)
    texts = [texts_of(tokenizer, of_row) for of_row in drawn]
    return find_spans(texts, [row.get(column) or () for row in rows], list(map(prompt_of, rows)))


def normalized(text: str) -> str:
    """The words of a text: compatible letters (NFKC), case folded, all else than letters and digits one space."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


def _has(text: str, span: str) -> bool:
    return _found(text, re.escape(span.strip()), span.strip())


def _has_normalized(text: str, span: str) -> bool:
    """Whether a normalized text holds the span; a long number may be grouped in any way."""
    span = normalized(span)
    digits = span.replace(" ", "")
    if digits.isdigit() and len(digits) >= LONG_NUMBER:
        return _found(text, " ?".join(digits), digits)
    return _found(text, re.escape(span), span)


def _found(text: str, pattern: str, span: str) -> bool:
    # A word must not go on beyond the span, in scripts that put spaces between words: those whose letters have case.
    before, after = (mark.isdigit() or mark.lower() != mark.upper() for mark in (span[0], span[-1]))
    return re.search(r"(?<!\w)" * before + pattern + r"(?!\w)" * after, text) is not None


@attack("paraphrase")
def other_answers(model, records: AuditRecords) -> Found:
    """Alternatives to the answers, where the rows have them."""
    if not records.has_column("prompt") or not records.has_column("alternatives"):
        return Found()
    rows, batch_size = list(records.rows("forget")), records.config.batch_size
    leaked = alternative_leakage(model, records.processing_class, rows, batch_size=batch_size)
    return Found({records.statistic("alternative_answer_probability", "paraphrase"): leaked})


@attack("sampled", requires=(require_cache,))
def spans_in_samples(model, records: AuditRecords) -> Iterator[Found]:
    """Spans and alternatives in what the model says when it is asked again and again, where the rows have them."""
    config = records.config
    for column in ("spans", "alternatives"):
        if records.has_column("prompt") and records.has_column(column):
            rows = list(records.rows("forget"))
            hits = span_leakage(model, records.processing_class, rows, column, config.n_samples, seed=config.seed)
            seen = hits.samples_normalized
            statistic = records.statistic(f"{column}_in_{config.n_samples}_samples", "sampled", "rate")
            yield Found({statistic: np.where(np.isnan(seen), np.nan, seen > 0)})
