"""Eight likelihood metrics of an audit: one pass of the model for all of them, against one pass a metric.

    python benchmarks/audit.py

Ours is `hf_unlearn.audit.score`, once, and eight functions of its table. The textbook loops over the batches in every
metric, takes the logits of every position and reduces them to its own number, as collections of metrics do. Values are
compared example by example. The textbook gets its token ids for free; ours tokenizes in the time that is counted.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from measure import compare, cpu_seconds, in_own_process, markdown_table, peak_growth, tiny_llama
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from hf_unlearn.audit import (
    DEFAULT_SAMPLING,
    Scores,
    answer_probability,
    exact_memorization,
    extraction_strength,
    min_k,
    min_k_plus_plus,
    perplexity,
    score,
    verbatim_extracted,
    zlib_ratio,
)
from hf_unlearn.data.pairing import UnlearningCollator
from hf_unlearn.data.text import encode


# Vocabulary and number of examples: the textbook takes half a CPU second an example with the larger one.
SETTINGS = ((1_000, 200), (50_257, 32))
BATCH_SIZE = 8

OURS: dict[str, Callable[[Scores], np.ndarray]] = {
    "perplexity": perplexity,
    "zlib": zlib_ratio,
    "min_k": min_k,
    "min_k_plus_plus": min_k_plus_plus,
    "answer_probability": answer_probability,
    "exact_memorization": exact_memorization,
    "extraction_strength": extraction_strength,
    "verbatim_extracted": verbatim_extracted,
}


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """One token a word: `w2`, `w3`, ..."""
    words = {"<pad>": 0, "<end>": 1, **{f"w{i}": i for i in range(2, vocab_size)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def random_examples(
    n: int, vocab_size: int, prompt: tuple[int, int] = (16, 64), answer: tuple[int, int] = (16, 64), seed: int = 0
) -> list[dict[str, str]]:
    """Prompts and completions of varied length, some of which the model "knows".

    An untrained model whose head is tied to its embedding expects the word that it just read. So the completions
    repeat words with a chance that differs between examples, and one in eight does nothing else.
    """
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(n):
        n_prompt, n_answer = rng.integers(*prompt, endpoint=True), rng.integers(*answer, endpoint=True)
        repeat = 1.0 if i % 8 == 0 else rng.random()
        words = rng.integers(2, vocab_size, n_prompt).tolist()
        for _ in range(n_answer):
            words.append(words[-1] if rng.random() < repeat else int(rng.integers(2, vocab_size)))
        texts = [" ".join(f"w{word}" for word in part) for part in (words[:n_prompt], words[n_prompt:])]
        examples.append({"prompt": texts[0], "completion": f" {texts[1]}"})
    return examples


def ours(model: nn.Module, tokenizer, examples: list[dict], sampling=()) -> dict[str, np.ndarray]:
    """The eight metrics, `(n,)` each, from one pass. None of them needs a sampling scheme, so none is scored."""
    scores = score(model, tokenizer, examples, batch_size=BATCH_SIZE, sampling=sampling)
    return {name: metric(scores) for name, metric in OURS.items()}


# The textbook: `rows` are the encoded examples.


def forward(model: nn.Module, rows: list[dict]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Logits `(batch, length - 1, vocabulary)`, targets and mask `(batch, length - 1)` of each batch, in their order."""
    collate = UnlearningCollator(0)
    for start in range(0, len(rows), BATCH_SIZE):
        batch = collate(rows[start : start + BATCH_SIZE])
        labels = batch.pop("labels")[:, 1:]
        with torch.inference_mode():
            logits = model(**batch).logits[:, :-1]
            yield logits, labels.clamp(min=0), labels >= 0


def losses(model: nn.Module, rows: list[dict]) -> np.ndarray:
    found = []
    for logits, targets, mask in forward(model, rows):
        log_prob = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        found.append(-(log_prob * mask).sum(-1) / mask.sum(-1))
    return torch.cat(found).numpy()


def textbook_zlib(model: nn.Module, rows: list[dict], examples: list[dict]) -> np.ndarray:
    return -losses(model, rows) / [len(zlib.compress(example["completion"].encode())) for example in examples]


def mean_of_smallest(values: Tensor, k: float = 0.2) -> Tensor:
    return values.sort().values[: max(1, int(k * len(values)))].mean()


def textbook_min_k(model: nn.Module, rows: list[dict]) -> np.ndarray:
    found = []
    for logits, targets, mask in forward(model, rows):
        log_prob = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        found += [mean_of_smallest(values[keep]) for values, keep in zip(log_prob, mask, strict=True)]
    return torch.stack(found).numpy()


def textbook_min_k_plus_plus(model: nn.Module, rows: list[dict]) -> np.ndarray:
    found = []
    for logits, targets, mask in forward(model, rows):
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        mean = (p * log_p).sum(-1)
        variance = (p * (log_p - mean[..., None]).square()).sum(-1)
        log_prob = log_p.gather(-1, targets[..., None])[..., 0]
        standardized = (log_prob - mean) / variance.clamp(min=1e-6).sqrt()
        found += [mean_of_smallest(values[keep]) for values, keep in zip(standardized, mask, strict=True)]
    return torch.stack(found).numpy()


def hits(model: nn.Module, rows: list[dict]) -> Iterator[Tensor]:
    """Whether each answer token is the most likely one, without the end token, example by example."""
    for logits, targets, mask in forward(model, rows):
        hit = logits.argmax(-1) == targets
        yield from (values[keep][:-1] for values, keep in zip(hit, mask, strict=True))


def strength(hit: Tensor) -> float:
    missed = (~hit).nonzero()
    return 1 - (int(missed[-1]) + 1) / len(hit) if len(missed) else 1.0


def textbook(model: nn.Module, rows: list[dict], examples: list[dict]) -> dict[str, np.ndarray]:
    """The same metrics, each with a pass of its own."""
    model.eval()
    return {
        "perplexity": np.exp(losses(model, rows)),
        "zlib": textbook_zlib(model, rows, examples),
        "min_k": textbook_min_k(model, rows),
        "min_k_plus_plus": textbook_min_k_plus_plus(model, rows),
        "answer_probability": np.exp(-losses(model, rows)),
        "exact_memorization": np.array([float(hit.double().mean()) for hit in hits(model, rows)]),
        "extraction_strength": np.array([strength(hit) for hit in hits(model, rows)]),
        "verbatim_extracted": np.array([bool(hit.all()) for hit in hits(model, rows)]),
    }


def check_identical(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]):
    """Equal to 1e-5, relative; absolute for Min-K%++, which is a mean around 0 in units of standard deviations."""
    assert list(found) == list(expected)
    for name in expected:
        atol = 1e-5 if name == "min_k_plus_plus" else 0
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=atol, err_msg=name)


def setting(n: int, vocab_size: int, **lengths):
    """Model, tokenizer, examples and their encoded rows."""
    model, tokenizer = tiny_llama(vocab_size), word_tokenizer(vocab_size)
    model.get_input_embeddings().weight.data *= 5  # so that the word that was read outweighs what the layers add
    examples = random_examples(n, vocab_size, **lengths)
    return model, tokenizer, examples, [encode(example, tokenizer) for example in examples]


def memory(vocab_size: int, form: str, n: int = 16) -> float:
    """MiB that the metrics of `n` examples need on top of the model; they depend on the batch, hardly on `n`."""
    model, tokenizer, examples, encoded = setting(n, vocab_size)
    if form == "ours":
        return peak_growth(lambda: ours(model, tokenizer, examples))
    return peak_growth(lambda: textbook(model, encoded, examples))


def main():
    parser = argparse.ArgumentParser(description="CPU seconds and peak memory of eight metrics.")
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)

    rows = []
    for vocab_size, _ in SETTINGS:
        mib = [in_own_process(memory, vocab_size, form) for form in ("ours", "textbook")]
        rows.append([f"{vocab_size:,}", *(f"{m:.0f}" for m in mib), f"**{mib[0] / mib[1]:.2f}**"])
    print(markdown_table(["vocabulary", "ours, peak MiB", "textbook, peak MiB", "ratio"], rows), end="\n\n")

    rows = []
    for vocab_size, n in SETTINGS:
        model, tokenizer, examples, encoded = setting(n, vocab_size)
        forms = {
            "eight metrics": lambda m=model, t=tokenizer, e=examples: ours(m, t, e),
            "and three sampling schemes": lambda m=model, t=tokenizer, e=examples: ours(m, t, e, DEFAULT_SAMPLING),
            "textbook": lambda m=model, r=encoded, e=examples: textbook(m, r, e),
        }
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(args.repetitions):
            values = {}
            for name, form in forms.items():
                values[name], taken = cpu_seconds(form)
                seconds[name].append(taken)
            check_identical(values["eight metrics"], values["textbook"])
        slow = seconds.pop("textbook")
        rows += [[name, f"{vocab_size:,}", str(n), *compare(fast, slow)] for name, fast in seconds.items()]
    columns = ["ours computes", "vocabulary", "examples", "ours, CPU s", "textbook, CPU s", "ratio", "of single runs"]
    print(markdown_table(columns, rows))


if __name__ == "__main__":
    main()
