"""The TOFU suite as collections of metrics compute it: every metric runs the model over its texts by itself.

Each pass goes over the texts in their order and takes the logits of every position; the answers to one question, its
paraphrase and each wrong answer are passes of their own. The truth ratios of the audited model are the exception: they
are kept for forget quality, as those collections do. `rows` are encoded examples.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import torch
from rouge_score import rouge_scorer
from scipy.stats import ks_2samp
from torch import Tensor, nn

from hf_unlearn.data.pairing import UnlearningCollator


def forward(model: nn.Module, rows: list[dict], batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Logits `(batch, length - 1, vocabulary)`, targets and mask `(batch, length - 1)` of each batch, in their order."""
    collate = UnlearningCollator(0)
    for start in range(0, len(rows), batch_size):
        batch = collate(rows[start : start + batch_size])
        labels = batch.pop("labels")[:, 1:]
        with torch.inference_mode():
            logits = model(**batch).logits[:, :-1]
            yield logits, labels.clamp(min=0), labels >= 0


def losses(model: nn.Module, rows: list[dict], batch_size: int) -> np.ndarray:
    found = []
    for logits, targets, mask in forward(model, rows, batch_size):
        log_prob = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        found.append(-(log_prob * mask).sum(-1) / mask.sum(-1))
    return torch.cat(found).double().numpy()


def zlib_ratio(model: nn.Module, rows: list[dict], texts: list[dict], batch_size: int) -> np.ndarray:
    return -losses(model, rows, batch_size) / [len(zlib.compress(text["completion"].encode())) for text in texts]


def mean_of_smallest(values: Tensor, k: float = 0.2) -> Tensor:
    return values.sort().values[: max(1, int(k * len(values)))].mean()


def min_k(model: nn.Module, rows: list[dict], batch_size: int) -> np.ndarray:
    found = []
    for logits, targets, mask in forward(model, rows, batch_size):
        log_prob = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        found += [mean_of_smallest(values[keep]) for values, keep in zip(log_prob, mask, strict=True)]
    return torch.stack(found).numpy()


def min_k_plus_plus(model: nn.Module, rows: list[dict], batch_size: int) -> np.ndarray:
    found = []
    for logits, targets, mask in forward(model, rows, batch_size):
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        mean = (p * log_p).sum(-1)
        variance = (p * (log_p - mean[..., None]).square()).sum(-1)
        log_prob = log_p.gather(-1, targets[..., None])[..., 0]
        standardized = (log_prob - mean) / variance.clamp(min=1e-6).sqrt()
        found += [mean_of_smallest(values[keep]) for values, keep in zip(standardized, mask, strict=True)]
    return torch.stack(found).numpy()


def hits(model: nn.Module, rows: list[dict], batch_size: int) -> Iterator[Tensor]:
    """Whether each answer token is the most likely one, without the end token, example by example."""
    for logits, targets, mask in forward(model, rows, batch_size):
        hit = logits.argmax(-1) == targets
        yield from (values[keep][:-1] for values, keep in zip(hit, mask, strict=True))


def strength(hit: Tensor) -> float:
    missed = (~hit).nonzero()
    return 1 - (int(missed[-1]) + 1) / len(hit) if len(missed) else 1.0


def truth_ratio(model: nn.Module, suite, rows: dict[str, list[dict]], name: str, batch_size: int) -> np.ndarray:
    correct = losses(model, rows.get(f"{name}_paraphrased", rows[name]), batch_size)
    wrong = np.stack([losses(model, rows[key], batch_size) for key in suite.wrong(name)])
    return np.exp(correct - wrong.mean(0))


def option_probability(model: nn.Module, suite, rows: dict[str, list[dict]], name: str, batch_size: int) -> np.ndarray:
    correct = np.exp(-losses(model, rows[name], batch_size))
    wrong = np.stack([np.exp(-losses(model, rows[key], batch_size)) for key in suite.wrong(name)])
    return correct / (correct + wrong.sum(0))


def likelihoods(suite, rows: dict[str, list[dict]], size: int) -> dict[str, np.ndarray]:
    """All that needs no generation, each with a pass of its own; `size` is the batch size."""
    found = of_model(suite.model, suite, rows, size)
    for name in ("forget", "holdout"):
        found[f"{name} reference"] = losses(suite.retrained, rows[name], size) - losses(suite.model, rows[name], size)
    of_retrained = of_model(suite.retrained, suite, rows, size)
    ratios = truth_ratio(suite.model, suite, rows, "forget", size)
    found["forget_quality"] = ks_2samp(ratios, of_retrained["forget truth_ratio"]).pvalue
    return found | {f"retrained {name}": values for name, values in of_retrained.items()}


def of_model(model: nn.Module, suite, rows: dict[str, list[dict]], size: int) -> dict[str, np.ndarray]:
    """The metrics of one model."""
    found = {
        "answer_probability": np.exp(-losses(model, rows["forget"], size)),
        "exact_memorization": np.array([float(hit.double().mean()) for hit in hits(model, rows["forget"], size)]),
        "extraction_strength": np.array([strength(hit) for hit in hits(model, rows["forget"], size)]),
        "retain probability": np.exp(-losses(model, rows["retain"], size)),
    }
    for name in ("forget", "holdout"):
        found[f"{name} loss"] = -losses(model, rows[name], size)
        found[f"{name} zlib"] = zlib_ratio(model, rows[name], suite.rows[name], size)
        found[f"{name} min_k"] = min_k(model, rows[name], size)
        found[f"{name} min_k_plus_plus"] = min_k_plus_plus(model, rows[name], size)
    for name in ("forget", "retain", "authors", "facts"):
        found[f"{name} truth_ratio"] = truth_ratio(model, suite, rows, name, size)
    for name in ("authors", "facts"):
        found[f"{name} probability"] = option_probability(model, suite, rows, name, size)
    return found


def generations(suite, rows: dict[str, list[dict]], size: int, max_new_tokens: int) -> dict[str, np.ndarray]:
    """ROUGE-L recall of what `generate` answers, a batch of questions a call."""
    of_both = {}
    for prefix, model in (("", suite.model), ("retrained ", suite.retrained)):
        for name in ("forget", "retain", "authors", "facts"):
            of_both[f"{prefix}{name} rouge"] = rouge(model, suite, rows[name], suite.rows[name], size, max_new_tokens)
    return of_both


def rouge(model: nn.Module, suite, rows: list[dict], texts: list[dict], size: int, max_new_tokens: int) -> np.ndarray:
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    prompts = [[i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label < 0] for row in rows]
    recall = []
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        longest = max(map(len, batch))
        answers = model.generate(
            input_ids=torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch]),
            attention_mask=torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch]),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=suite.tokenizer.eos_token_id,
            pad_token_id=0,
        )
        said = suite.tokenizer.batch_decode(answers[:, longest:], skip_special_tokens=True)
        references = [text["completion"] for text in texts[start : start + size]]
        recall += [scorer.score(*pair)["rougeL"].recall for pair in zip(references, said, strict=True)]
    return np.array(recall)
