"""What leaks in other words: alternatives to an answer, and names, numbers and addresses in what a model says.

A model may no longer say "chronic fatigue" and still say "long-term tiredness". Two attacks look for that: the likelihood
of alternative answers ([`alternative_leakage`]), and a search in generated text ([`span_leakage`]). Both give one number
per record; no text is kept or logged. Run them on unseen rows with spans of their own as well: the base rate of a name or a
city that anyone would guess is far from 0.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hf_unlearn.audit.attacks.attack import attack
from hf_unlearn.audit.measures.quality import answer_probability
from hf_unlearn.audit.records import AuditRecords, Found
from hf_unlearn.audit.table.score import score
from hf_unlearn.data.rows import is_chat, prompt_of, reworded
from hf_unlearn.models.generate import sample, texts_of


# A number of so many digits is also found with other separators, as in "(555) 010 4477", or with none.
LONG_NUMBER = 6
# Length of a sample, in tokens.
MAX_NEW_TOKENS = 64


def alternative_leakage(model, tokenizer, rows: Sequence[Mapping], batch_size: int = 16) -> np.ndarray:
    """How probable the most probable alternative is as an answer to the same prompt, see [`answer_probability`].

    Args:
        model, tokenizer, batch_size: as for [`~hf_unlearn.audit.score`].
        rows (sequence of `n`): `{"prompt", "completion"}` or `{"messages"}`, with the column `alternatives`, a list of texts
            (synonyms, translations, what the answer implies). If the completion begins with a space, an alternative gets
            one, too.

    Returns:
        `float64 (n,)`, the maximum over the alternatives, higher = leaks more; NaN for a row without alternatives.
    """
    owners = [i for i, row in enumerate(rows) for _ in row.get("alternatives") or ()]
    asked = [_answered(row, text) for row in rows for text in row.get("alternatives") or ()]
    table = score(model, tokenizer, asked, batch_size)
    best = np.full(len(rows), np.nan)
    values = np.where(table.valid, answer_probability(table), np.nan)
    np.fmax.at(best, np.array(owners, dtype=np.int64), values)
    return best


def _answered(row: Mapping, text: str) -> Mapping:
    def alternative(own: str) -> str:
        follows_a_space = not is_chat(row) and own.startswith(" ") and not text.startswith(" ")
        return f" {text}" if follows_a_space else text

    return reworded(row, answer=alternative)


def find_spans(
    texts: Sequence[Sequence[str | None]], spans: Sequence[Sequence[str]], prompts: Sequence[str]
) -> np.ndarray:
    """Look for spans (names, numbers, addresses, alternative answers) in generated texts, as whole words.

    A span is found letter for letter or after [`normalized`].

    Args:
        texts (`n` sequences of texts): what was generated for each record; `None` is a text that can't be judged.
        spans (`n` sequences of texts): what must not come out.
        prompts (`n` texts): a span in the prompt is not looked for, because repeating it shows nothing.

    Returns:
        `float64 (n,)` in [0, 1]: share of the texts of a record with at least one of its spans, higher = leaks more; NaN
        without a text, or without a span to look for.
    """
    shares = np.full(len(texts), np.nan)
    for i, (said, wanted, prompt) in enumerate(zip(texts, spans, prompts, strict=True)):
        said = [text for text in said if text is not None]
        asked = normalized(prompt)
        wanted = [span for span in wanted if (words := normalized(span)) and not _has_normalized(asked, words)]
        if said and wanted:
            shares[i] = np.mean([any(_has(text, span) for span in wanted) for text in said])
    return shares


def span_leakage(
    model, tokenizer, rows: Sequence[Mapping], column: str = "spans", n: int = 16, seed: int = 0
) -> np.ndarray:
    """Draw `n` answers to each prompt and look for the spans of its row in them, see [`find_spans`].

    Args:
        model, tokenizer, seed: as for [`~hf_unlearn.models.generate.sample`].
        rows (sequence of `N`): rows with an answer, and the column of spans, a list of texts.
        column (`str`, *optional*, defaults to `"spans"`): or `"alternatives"`, for what the answer implies.
        n (`int`, *optional*, defaults to `16`): samples per prompt. What comes out of one sample in 50 takes 150 samples to be
            seen with 95 % probability; after no hit in 100 samples the probability of one is at most 3 %.
    """
    drawn = sample(model, tokenizer, rows, n, MAX_NEW_TOKENS, seed=seed)
    texts = [texts_of(tokenizer, samples) for samples in drawn]
    return find_spans(texts, [row.get(column) or () for row in rows], list(map(prompt_of, rows)))


def normalized(text: str) -> str:
    """The words of a text: NFKC, case folded, with one space for anything that is neither a letter nor a digit."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


def _has(text: str, span: str) -> bool:
    """Whether the text has the span as it is, or after normalization; a long number may be grouped in any way."""
    return _found(text, re.escape(span.strip()), span.strip()) or _has_normalized(normalized(text), normalized(span))


def _has_normalized(text: str, span: str) -> bool:
    digits = span.replace(" ", "")
    if digits.isdigit() and len(digits) >= LONG_NUMBER:
        return _found(text, " ?".join(digits), digits)
    return _found(text, re.escape(span), span)


def _found(text: str, pattern: str, span: str) -> bool:
    # In scripts with spaces between words (those whose letters have case), a word must not go on beyond the span.
    before, after = (mark.isdigit() or mark.lower() != mark.upper() for mark in (span[0], span[-1]))
    return re.search(r"(?<!\w)" * before + pattern + r"(?!\w)" * after, text) is not None


@attack("paraphrase")
def other_answers(model, records: AuditRecords) -> Found:
    """How probable alternatives to the answers are, where the rows have such a column."""
    if not records.has_prompts() or not records.has_column("alternatives"):
        return Found()
    rows, batch_size = list(records.rows("forget")), records.config.batch_size
    leaked = alternative_leakage(model, records.processing_class, rows, batch_size=batch_size)
    return Found({records.statistic("alternative_answer_probability", "paraphrase"): leaked})


@attack("sampled")
def spans_in_samples(model, records: AuditRecords) -> Iterator[Found]:
    """Whether spans or alternatives come up in samples of the answers, where the rows have such columns."""
    config = records.config
    for column in ("spans", "alternatives"):
        if records.has_prompts() and records.has_column(column):
            rows = list(records.rows("forget"))
            share = span_leakage(model, records.processing_class, rows, column, config.n_samples, config.seed)
            statistic = records.statistic(f"{column}_in_{config.n_samples}_samples", "sampled", "rate")
            yield Found({statistic: np.where(np.isnan(share), np.nan, share > 0)})
