"""The full TOFU suite: one pass of a model over all texts, against a pass a metric and a text.

    python benchmarks/audit.py

Both run the suite on the audited model and on the retrained one, without whose values none of it can be read. Ours scores
everything that a model is asked about in one call of `hf_unlearn.audit.score`, and all metrics are functions of its table;
`audit_textbook.py` is how collections of metrics do it. Every value is compared, record by record. The textbook gets its
token ids for free; ours tokenizes in the time that is counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

import audit_textbook
import numpy as np
import torch
from measure import compare, cpu_seconds, in_own_process, peak_growth, tiny_llama
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hf_unlearn.audit import (
    ATTACKS,
    DEFAULT_SAMPLING,
    Scores,
    answer_probability,
    exact_memorization,
    extraction_strength,
    forget_quality,
    greedy,
    loss,
    model_utility,
    option_probability,
    reference_loss,
    score,
    truth_ratio,
)
from hf_unlearn.audit.measures.text_overlap import rouge_l
from hf_unlearn.data.text import encode
from hf_unlearn.evidence.tables import markdown_table
from hf_unlearn.models.generate import texts_of


# Vocabulary and questions a set: forget, holdout, retain; real authors and world facts have a quarter, as in TOFU.
SETTINGS = ((1_000, 16), (8_000, 8), (32_000, 6), (128_256, 4))
BATCH_SIZE = 8
MAX_NEW_TOKENS = 80
WORDS_A_CHAIN = 80
ASKED = ("forget", "retain", "authors", "facts")


@dataclass
class Suite:
    """Two models, their tokenizer, and the rows of the sets.

    `rows` has `{"prompt", "completion"}` for `forget`, `holdout`, `retain`, `authors` and `facts`; beside them
    `forget_paraphrased` and `retain_paraphrased`, and `<set>_perturbed_<k>` for every wrong answer.
    """

    model: LlamaForCausalLM
    retrained: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    rows: dict[str, list[dict[str, str]]]

    def wrong(self, name: str) -> list[str]:
        return [key for key in self.rows if key.startswith(f"{name}_perturbed_")]


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """One token a word: `w2`, `w3`, ..."""
    words = {"<pad>": 0, "<end>": 1, **{f"w{i}": i for i in range(2, vocab_size)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def following(vocab_size: int, length: int = WORDS_A_CHAIN) -> np.ndarray:
    """The word that a model expects after each word: they form chains `w2 w3 w4 ...`, and each chain ends the answer."""
    after = np.arange(1, vocab_size + 1)
    after[(after - 2) % length == 0] = 1
    after[-1] = 1
    return after


def model_that_expects(after: np.ndarray, surely: float, **size) -> LlamaForCausalLM:
    """An untrained model whose head looks for the next word of the chain in the embedding of the word that was read.

    `surely` is about the log-odds of the next word against all others.
    """
    model = tiny_llama(len(after), **size)
    embedding = model.get_input_embeddings().weight.data
    embedding *= 5  # so that the word that was read outweighs what the layers add
    head = torch.zeros_like(embedding).index_add_(0, torch.as_tensor(after[2:]), embedding[2:])
    model.config.tie_word_embeddings = False
    scale = (np.log(len(after)) + surely) / (0.9 * embedding.shape[1] * embedding.std())
    model.lm_head.weight = nn.Parameter(head * scale)
    return model.eval()


def suite(
    n: int,
    vocab_size: int,
    header: int = 40,
    question: tuple[int, int] = (12, 32),
    answer: tuple[int, int] = (24, 72),
    **size,
) -> Suite:
    """Questions after one header, as a chat template puts it there. The model knows some of the answers word for word
    and others in part; the retrained model is less sure of all.
    """
    rng, after = np.random.default_rng(0), following(vocab_size)
    rows: dict[str, list] = {}
    head = rng.integers(2, vocab_size, header).tolist()

    def changed(words: list[int], share: float, kept: int = 0) -> list[int]:
        """The words, of which this share is another one, but not of the first `kept`."""
        return words[:kept] + [
            int(rng.integers(2, vocab_size)) if rng.random() < share else word for word in words[kept:]
        ]

    def answered(prompt: list[int], words: list[int]) -> dict[str, str]:
        return {
            "prompt": " ".join(f"w{word}" for word in prompt),
            "completion": "".join(f" w{word}" for word in words),
        }

    for name, count, length, n_wrong in (
        ("forget", n, answer, 5),
        ("holdout", n, answer, 0),
        ("retain", n, answer, 5),
        ("authors", n // 4, (2, 8), 3),
        ("facts", n // 4, (2, 8), 3),
    ):
        for i in range(count):
            n_asked, n_answer = rng.integers(*question, endpoint=True), int(rng.integers(*length, endpoint=True))
            chain = int(rng.integers((vocab_size - 2) // WORDS_A_CHAIN)) * WORDS_A_CHAIN + 2
            last = chain + WORDS_A_CHAIN - 1 - n_answer  # so that the chain ends where the answer does
            asked = [*head, *rng.integers(2, vocab_size, n_asked - 1).tolist(), last]
            truth = list(range(last + 1, last + 1 + n_answer))
            unknown = 0.0 if i % 4 == 0 else rng.random() * (0.9 if name == "holdout" else 0.5)
            rows.setdefault(name, []).append(answered(asked, changed(truth, unknown)))
            paraphrased = truth
            if name in ("forget", "retain"):
                paraphrased = changed(truth, 0.2)
                rows.setdefault(f"{name}_paraphrased", []).append(answered(asked, paraphrased))
            for k in range(n_wrong):
                # A wrong answer is the paraphrase up to a point. In TOFU that is three tenths of it, on average.
                wrong = changed(paraphrased, 0.5, kept=int(rng.random() * 0.6 * n_answer))
                rows.setdefault(f"{name}_perturbed_{k}", []).append(answered(asked, wrong))
    model, retrained = (model_that_expects(after, surely, **size) for surely in (3.0, 1.0))
    return Suite(model, retrained, word_tokenizer(vocab_size), rows)


def score_all(model, suite: Suite, sampling) -> dict[str, Scores]:
    """A table for each set of rows, from one call."""
    everything = [row for rows in suite.rows.values() for row in rows]
    table = score(model, suite.tokenizer, everything, batch_size=BATCH_SIZE, sampling=sampling)
    borders = np.cumsum([0, *map(len, suite.rows.values())])
    return {name: table[a:b] for name, a, b in zip(suite.rows, borders[:-1], borders[1:], strict=True)}


def likelihoods(suite: Suite, sampling=()) -> dict[str, np.ndarray]:
    """All that needs no generation: a value a record for each of the models, and the p of forget quality."""
    audited, retrained = (score_all(model, suite, sampling) for model in (suite.model, suite.retrained))
    found = of_tables(audited, suite)
    for name in ("forget", "holdout"):
        found[f"{name} reference"] = reference_loss(audited[name], retrained[name])
    of_retrained = of_tables(retrained, suite)
    found["forget_quality"] = forget_quality(found["forget truth_ratio"], of_retrained["forget truth_ratio"]).p
    return found | {f"retrained {name}": values for name, values in of_retrained.items()}


def of_tables(tables: Mapping[str, Scores], suite: Suite) -> dict[str, np.ndarray]:
    """The metrics of one model."""
    found = {
        "answer_probability": answer_probability(tables["forget"]),
        "exact_memorization": exact_memorization(tables["forget"]),
        "extraction_strength": extraction_strength(tables["forget"]),
        "retain probability": answer_probability(tables["retain"]),
    }
    for name in ("forget", "holdout"):
        for attack, of in ATTACKS.items():
            found[f"{name} {attack}"] = of(tables[name])
    for name in ("forget", "retain", "authors", "facts"):
        wrong = np.stack([loss(tables[key]) for key in suite.wrong(name)], axis=1)
        found[f"{name} truth_ratio"] = truth_ratio(loss(tables.get(f"{name}_paraphrased", tables[name])), wrong)
        if name in ("authors", "facts"):
            found[f"{name} probability"] = option_probability(loss(tables[name]), wrong)
    return found


def generations(suite: Suite) -> dict[str, np.ndarray]:
    """ROUGE-L recall of greedy answers, a value a record for each of the models."""
    asked = [row for name in ASKED for row in suite.rows[name]]
    borders = np.cumsum([len(suite.rows[name]) for name in ASKED])[:-1]
    found = {}
    for prefix, model in (("", suite.model), ("retrained ", suite.retrained)):
        new = greedy(model, suite.tokenizer, asked, MAX_NEW_TOKENS, BATCH_SIZE)
        recall = rouge_l(texts_of(suite.tokenizer, new), [row["completion"] for row in asked])
        found |= {f"{prefix}{name} rouge": v for name, v in zip(ASKED, np.split(recall, borders), strict=True)}
    return found


def utility(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Model utility of both, from its nine parts."""
    values = {}
    for prefix in ("", "retrained "):
        parts = {}
        for name in ("retain", "authors", "facts"):
            parts[f"{name} probability"] = float(found[f"{prefix}{name} probability"].mean())
            parts[f"{name} rouge"] = float(found[f"{prefix}{name} rouge"].mean())
            parts[f"{name} true_better"] = float(np.maximum(0, 1 - found[f"{prefix}{name} truth_ratio"]).mean())
        values[f"{prefix}model_utility"] = model_utility(parts).value
    return values


def ours(suite: Suite) -> dict[str, np.ndarray]:
    """The whole suite."""
    found = likelihoods(suite) | generations(suite)
    return found | utility(found)


def check_identical(found: Mapping, expected: Mapping):
    """Equal to 2e-5, relative: sums over 128,256 tokens in float32 differ by a little more than 1e-5 with their order.

    Absolute for Min-K%++, which is a mean around 0 in units of standard deviations.
    """
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name in expected:
        atol = 1e-5 if name.endswith(("min_k_plus_plus", "reference")) else 0
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-5, atol=atol, err_msg=name)


def encoded(suite: Suite) -> dict[str, list[dict]]:
    return {name: [encode(row, suite.tokenizer) for row in rows] for name, rows in suite.rows.items()}


def memory(vocab_size: int, form: str, n: int = 6) -> float:
    """MiB that the likelihoods of the suite need on top of the models; they depend on the batch, hardly on `n`."""
    given = suite(n, vocab_size)
    rows = encoded(given)
    if form == "ours":
        return peak_growth(lambda: likelihoods(given))
    return peak_growth(lambda: audit_textbook.likelihoods(given, rows, BATCH_SIZE))


def main():
    parser = argparse.ArgumentParser(description="CPU seconds and peak memory of the TOFU suite.")
    parser.add_argument("--repetitions", type=int, default=3)
    sizes = [size for size, _ in SETTINGS]
    parser.add_argument("--vocabulary", type=int, nargs="+", choices=sizes, default=sizes)
    args = parser.parse_args()
    torch.set_num_threads(1)

    rows = []
    settings = [(size, n) for size, n in SETTINGS if size in args.vocabulary]
    for vocab_size, _ in settings:
        mib = [in_own_process(memory, vocab_size, form) for form in ("ours", "textbook")]
        rows.append([f"{vocab_size:,}", *(f"{m:.0f}" for m in mib), f"**{mib[0] / mib[1]:.2f}**"])
    print(markdown_table([["vocabulary", "ours, peak MiB", "textbook, peak MiB", "ratio"], *rows]), end="\n\n")

    rows = []
    for vocab_size, n in settings:
        given = suite(n, vocab_size)
        n_texts = sum(map(len, given.rows.values()))
        seconds = in_turn(given, encoded(given), args.repetitions)
        for part, fast, slow in PARTS:
            sums = [
                [sum(turn) for turn in zip(*(seconds[name] for name in names), strict=True)] for names in (fast, slow)
            ]
            rows.append([part, f"{vocab_size:,}", str(n_texts), *compare(*sums)])
    columns = ["part", "vocabulary", "texts", "ours, CPU s", "textbook, CPU s", "ratio", "of single runs"]
    print(markdown_table([columns, *rows]))


# Rows of the table: what is added up of ours, and of the textbook.
PARTS = (
    ("likelihoods", ["likelihoods"], ["textbook likelihoods"]),
    ("likelihoods and three sampling schemes", ["sampled"], ["textbook likelihoods"]),
    ("generation", ["generations"], ["textbook generations"]),
    ("everything", ["likelihoods", "generations"], ["textbook likelihoods", "textbook generations"]),
)


def in_turn(given: Suite, ids: dict[str, list[dict]], repetitions: int) -> dict[str, list[float]]:
    """CPU seconds of each part, in turn; the values must be the same."""
    forms = {
        "likelihoods": lambda: likelihoods(given),
        "generations": lambda: generations(given),
        "sampled": lambda: likelihoods(given, DEFAULT_SAMPLING),
        "textbook likelihoods": lambda: audit_textbook.likelihoods(given, ids, BATCH_SIZE),
        "textbook generations": lambda: audit_textbook.generations(given, ids, BATCH_SIZE, MAX_NEW_TOKENS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repetitions):
        values = {}
        for name, form in forms.items():
            values[name], taken = cpu_seconds(form)
            seconds[name].append(taken)
        found, expected = (
            {} | values[f"{form}likelihoods"] | values[f"{form}generations"] for form in ("", "textbook ")
        )
        check_identical(found | utility(found), expected | utility(expected))
    return seconds


if __name__ == "__main__":
    main()
