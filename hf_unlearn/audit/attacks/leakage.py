"""What leaks in other words: alternatives to an answer, and names, numbers and addresses in what a model says.

A model may no longer say "chronic fatigue" and still say "long-term tiredness". Two routes look for that: the likelihood
of alternative answers ([`alternative_leakage`]), and a search in generated text ([`find_spans`], [`span_leakage`]).
Everything is a number a record; no text is kept or logged. Do the same for unseen rows with spans of their own: the base
rate of a name or a city that anyone would guess is far from 0.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hf_unlearn.audit.attacks.prompts import answer
from hf_unlearn.audit.measures.quality import answer_probability
from hf_unlearn.audit.table.score import score
from hf_unlearn.audit.table.scores import Scores


# A number with so many digits is looked for without what separates them, as in "(555) 010 4477".
LONG_NUMBER = 6
# Shorter words are left as they are when alternatives are made up.
CONTENT_WORD = re.compile(r"[^\W\d_]{4,}")


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
            (synonyms, translations, what the answer implies; see also [`alternatives_by_embedding`]). A space is put
            before an alternative where the completion begins with one.
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
    if row.get("messages"):
        return {"messages": [*row["messages"][:-1], {**row["messages"][-1], "content": text}]}
    space = " " if row["completion"].startswith(" ") and not text.startswith(" ") else ""
    return {"prompt": row["prompt"], "completion": space + text}


def alternatives_by_embedding(
    model,
    tokenizer,
    rows: Sequence[Mapping],
    k: int = 5,
    embed: Callable[[list[str]], np.ndarray] | None = None,
    words: Sequence[str] | None = None,
) -> list[list[str]]:
    """Make up alternatives: each content word of the answer replaced by its nearest neighbours.

    This is weak: neighbours in a model's input embeddings are often rivals ("Paris" and "Rome") or fragments, not
    synonyms, and a phrase has none at all. Read it as a net with wide meshes, and prefer alternatives that someone wrote.

    Args:
        model, tokenizer: a causal language model, of whose input embeddings a word is the mean of its tokens.
        rows (sequence of `n`): `{"prompt", "completion"}` or `{"messages"}`.
        k (`int`, *optional*, defaults to `5`): neighbours of a word, by cosine.
        embed (callable, *optional*): from a list of `m` words to `float (m, d)`, instead of the input embeddings, such as
            the `encode` of a sentence-transformers model.
        words (sequence of `str`, *optional*): the candidates. Defaults to the whole words among the tokens.

    Returns:
        For each row a list of texts, for the column `alternatives`. Words of fewer than four letters and those that are in
        the prompt already are kept. They are made of the answer: treat them as forget text.
    """
    embed = embed or _input_embeddings(model, tokenizer)
    words = sorted(set(words) if words is not None else _whole_words(tokenizer))
    if not words:
        raise ValueError(
            "The tokenizer has no token that is a whole word of four letters. Give the candidates as words."
        )
    directions = _unit(embed(words))
    made: list[list[str]] = []
    for row in rows:
        text, known = answer(row) or "", set(normalized(_prompt_text(row)).split())
        found = [match for match in CONTENT_WORD.finditer(text) if match[0].casefold() not in known]
        made.append([])
        if not found:
            continue
        similar = _unit(embed([match[0] for match in found])) @ directions.T
        for match, of_word in zip(found, similar, strict=True):
            others = (words[i] for i in np.argsort(-of_word, kind="stable"))
            others = [word for word in others if word.casefold() != match[0].casefold()][:k]
            made[-1] += [text[: match.start()] + other + text[match.end() :] for other in others]
    return made


def _input_embeddings(model, tokenizer) -> Callable[[list[str]], np.ndarray]:
    matrix = model.get_input_embeddings().weight.detach().float().cpu().numpy()

    def embed(words: list[str]) -> np.ndarray:
        ids = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
        return np.stack([matrix[of_word].mean(axis=0) for of_word in ids])

    return embed


def _whole_words(tokenizer) -> set[str]:
    special = set(tokenizer.all_special_ids)
    # The marks with which byte-level BPE and SentencePiece write the space before a word.
    words = {token[1:] for token, i in tokenizer.get_vocab().items() if token[:1] in "Ġ▁" and i not in special}
    return {word for word in words if CONTENT_WORD.fullmatch(word)}


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


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
            with 95 %: see [`~hf_unlearn.statistics.sampling.leakage_bounds`] for what "no hit" means.

    Returns:
        [`SpanHits`] of `N` records.
    """
    from hf_unlearn.models.generate import sample, texts_of

    drawn = sample(model, tokenizer, rows, n, max_new_tokens, temperature, top_k, top_p, seed, batch_size)
    texts = [texts_of(tokenizer, of_row) for of_row in drawn]
    return find_spans(texts, [row.get(column) or () for row in rows], [_prompt_text(row) for row in rows])


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


def _prompt_text(row: Mapping) -> str:
    if row.get("messages"):
        return "\n".join(message["content"] for message in row["messages"][:-1])
    return row.get("prompt") or ""
