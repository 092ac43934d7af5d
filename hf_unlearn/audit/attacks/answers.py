"""How much of the true answer is in the greedy answer of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hf_unlearn.audit.attacks.attack import attack
from hf_unlearn.audit.attacks.prompts import with_examples
from hf_unlearn.audit.measures.statistic import MEMORY, UTILITY, Statistic
from hf_unlearn.audit.measures.text_overlap import rouge_l, sentence_bleu, token_f1
from hf_unlearn.audit.records import AuditRecords, Found
from hf_unlearn.data.rows import answer_of, is_chat, prompt_of
from hf_unlearn.models.generate import greedy, texts_of


@attack("knowledge")
def greedy_answers(model, records: AuditRecords) -> Iterator[Found]:
    """ROUGE-L recall, F1 and BLEU of the greedy answers on the forget and the retain set. Only ROUGE-L gets a verdict."""
    if not records.has_prompts():
        return
    for name, direction, surface in (("forget", MEMORY, "knowledge"), ("retain", UTILITY, None)):
        if not records.has_prompts(name):
            continue
        rows = list(records.rows(name))
        length, batch_size = records.longest_answer(rows), records.config.batch_size
        said = texts_of(records.processing_class, greedy(model, records.processing_class, rows, length, batch_size))
        truth = list(map(answer_of, rows))
        positions = records.positions(name=name) if name == "forget" else None
        rouge = Statistic("rouge_l_recall", name, direction, surface, records=positions)
        f1 = Statistic("answer_f1", name, direction, records=positions)
        bleu = Statistic("answer_bleu", name, f"{direction}, at most 100", records=positions, bounds=(0.0, 100.0))
        yield Found({rouge: rouge_l(said, truth), f1: token_f1(said, truth), bleu: sentence_bleu(said, truth)})


def answer_rouge(
    model, tokenizer, rows: Sequence[Mapping], max_new_tokens: int = 200, batch_size: int = 16
) -> np.ndarray:
    """ROUGE-L recall of the greedy answer against the true one, as in TOFU (arXiv 2401.06121).

    Args:
        model, tokenizer, batch_size: as for [`~hf_unlearn.models.generate.greedy`].
        rows (sequence of `n`): `{"prompt", "completion"}` or `{"messages"}`.

    Returns:
        `float64 (n,)` in [0, 1], higher = more memorized; NaN as for [`rouge_l`].
    """
    said = texts_of(tokenizer, greedy(model, tokenizer, rows, max_new_tokens, batch_size))
    return rouge_l(said, list(map(answer_of, rows)))


def verbatim_memorization(
    model,
    tokenizer,
    rows: Sequence[Mapping[str, str]],
    max_new_tokens: int = 128,
    stemmer: bool = False,
    batch_size: int = 16,
) -> np.ndarray:
    """How closely the model continues a text as it went on: VerbMem of MUSE (arXiv 2407.06460).

    ROUGE-L F1 of the greedy continuation against as many tokens of the true one. The prompt is tokenized by itself, so it
    may also end where the tokenizer would merge letters of the prompt and of the completion.

    Args:
        model, tokenizer, batch_size: as for [`~hf_unlearn.models.generate.greedy`].
        rows (sequence of `n`): `{"prompt", "completion"}`.
        max_new_tokens (`int`, *optional*, defaults to `128`): tokens of the continuation, and of the reference.
        stemmer (`bool`, *optional*, defaults to `False`): see [`rouge_l`]; `False` in MUSE, `True` in open-unlearning.

    Returns:
        `float64 (n,)` in [0, 1], higher = more memorized; NaN as for [`rouge_l`].
    """
    said = texts_of(tokenizer, greedy(model, tokenizer, _prompts(rows), max_new_tokens, batch_size))
    cut = [tokenizer(answer_of(row), add_special_tokens=False)["input_ids"][:max_new_tokens] for row in rows]
    return rouge_l(said, texts_of(tokenizer, cut), "f1", stemmer)


def _prompts(rows: Sequence[Mapping]) -> list:
    """What is asked: the text of a prompt by itself, or a whole chat, whose template says where the answer begins."""
    return [row if is_chat(row) else prompt_of(row) for row in rows]


#: Where an answer to a few-shot prompt ends: the next question follows a blank line.
NEXT_QUESTION = ("\n\n", "\nQuestion", "Question:")


def knowledge_memorization(
    model,
    tokenizer,
    rows: Sequence[Mapping[str, str]],
    examples: Sequence[Mapping[str, str]],
    max_new_tokens: int = 32,
    stemmer: bool = False,
    batch_size: int = 16,
) -> np.ndarray:
    """How well the model answers questions: KnowMem of MUSE (arXiv 2407.06460).

    ROUGE-L F1 of the greedy answer, cut where the next question would begin, after a prompt of examples (10 in MUSE).

    Args:
        model, tokenizer, stemmer, batch_size: as for [`verbatim_memorization`].
        rows (sequence of `n`): `{"prompt", "completion"}`, such as `"Question: Who?\\nAnswer:"` and `" Ada"`.
        examples (sequence): rows of the same form, put before each question; they must not be among the questions.

    Returns:
        `float64 (n,)` in [0, 1], higher = knows more; NaN as for [`rouge_l`].
    """
    asked = set(map(prompt_of, rows))
    if known := [i for i, example in enumerate(examples) if prompt_of(example) in asked]:
        raise ValueError(
            f"The examples {known} are among the questions, and would give the answers away. Remove these examples."
        )
    prompts = _prompts([with_examples(row, examples) for row in rows])
    said = texts_of(tokenizer, greedy(model, tokenizer, prompts, max_new_tokens, batch_size), NEXT_QUESTION)
    return rouge_l(said, list(map(answer_of, rows)), "f1", stemmer)
