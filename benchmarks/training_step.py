"""One optimizer step of NPO and of GradDiff: our trainer against the way research scripts are written.

    python benchmarks/training_step.py

Ours is the trainer itself: one forward pass over forget and retain rows together, logits at the answers only, and the
log-probabilities of NPO's reference computed before the training. The textbook has a forward pass for the forget batch
and one for the retain batch, logits at every position, and for NPO a second model that runs in every step. All take
the same steps on the same rows from the same weights; the losses and gradients of every step are compared.

Scripts for NPO give the labels to the model, whose loss they then do not use, and take their own from transposed
logits. Since neither is needed, NPO has a third form, "tightened", that is the textbook without the two.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from measure import compare, cpu_seconds, in_own_process, peak_growth, tiny_llama

from hf_unlearn.evidence.tables import markdown_table
from hf_unlearn.methods import METHODS
from hf_unlearn.training import UnlearningTrainer


VOCABULARIES = (1_000, 8_000, 50_257)
BETA = 0.1
LEARNING_RATE = 1e-4


def random_rows(n: int, vocab_size: int, prompt: tuple[int, int], answer: tuple[int, int], seed: int) -> list[dict]:
    """`n` encoded rows; the lengths of prompts and answers are uniform in the (closed) ranges."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        n_prompt, n_answer = rng.integers(*prompt, endpoint=True), rng.integers(*answer, endpoint=True)
        ids = rng.integers(2, vocab_size, n_prompt + n_answer).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * n_prompt + ids[n_prompt:]})
    return rows


def build_trainer(
    method: str,
    vocab_size: int,
    output_dir: str,
    steps: int,
    batch_size: int = 8,
    prompt: tuple[int, int] = (32, 64),
    answer: tuple[int, int] = (16, 64),
    config: dict | None = None,
    **model_options,
) -> UnlearningTrainer:
    """A trainer with rows for some steps of `batch_size` forget and as many retain rows."""
    cls = METHODS[method]
    args = cls.config_class(
        output_dir=output_dir,
        per_device_train_batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        optim="adamw_torch",
        report_to="none",
        use_cpu=True,
        seed=0,
        **({"beta": BETA} if method == "npo" else {}) | (config or {}),
    )
    forget, retain = (random_rows(steps * batch_size, vocab_size, prompt, answer, seed) for seed in (1, 2))
    return cls(tiny_llama(vocab_size, **model_options), args, forget_dataset=forget, retain_dataset=retain)


class Ours:
    """A step of the trainer. Gradient clipping, schedule and logging, which would be the same for both, are left out."""

    def __init__(self, trainer: UnlearningTrainer):
        self.trainer, self.model = trainer, trainer.model
        if trainer.reference == "log_probs":
            trainer._cache_log_probs()  # the first thing that train() does
        trainer.create_optimizer()

    def step(self, batch: dict) -> torch.Tensor:
        self.model.zero_grad()
        batches, counts = self.trainer.get_batch_samples(iter([batch]), 1, self.trainer.args.device)
        loss = self.trainer.training_step(self.model, batches[0], counts)
        self.trainer.optimizer.step()
        return loss


class Textbook:
    """A forward pass for each batch and, for NPO, one of the resident reference model."""

    def __init__(self, method: str, model: torch.nn.Module, answer_nll: Callable | None = None):
        self.method, self.model = method, model
        self.answer_nll = answer_nll or script_nll
        self.reference = copy.deepcopy(model).eval() if method == "npo" else None
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)

    def step(self, batch: dict) -> torch.Tensor:
        forget, retain = separate(batch)
        self.model.train()
        self.optimizer.zero_grad()
        if self.method == "npo":
            nll = self.answer_nll(self.model, forget)
            with torch.no_grad():
                reference_nll = self.answer_nll(self.reference, forget)
            forget_loss = -2 / BETA * F.logsigmoid(BETA * (nll - reference_nll)).mean()
        else:
            forget_loss = -self.model(**forget).loss
        loss = forget_loss + self.model(**retain).loss
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def script_nll(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """-ln p(answer | prompt), summed over the answer: `(rows,)`."""
    logits, labels = model(**batch).logits[:, :-1], batch["labels"][:, 1:]
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(-1)


def tightened_nll(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """The same without the loss of the model, and with classes in the last dimension."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).sum(-1)


def separate(batch: dict) -> tuple[dict, dict]:
    """The forget and the retain batch, each padded to its own longest row."""
    parts, start = [], 0
    for size in batch["parts"].values():
        rows = {name: batch[name][start : start + size] for name in ("input_ids", "attention_mask", "labels")}
        longest = int(rows["attention_mask"].sum(-1).max())
        parts.append({name: value[:, :longest] for name, value in rows.items()})
        start += size
    return tuple(parts)


def gradient_difference(ours: torch.nn.Module, textbook: torch.nn.Module) -> float:
    """Norm of the difference of all gradients, over the norm of the gradients."""
    pairs = [(p.grad, q.grad) for p, q in zip(ours.parameters(), textbook.parameters(), strict=True)]
    return float(sum((a - b).square().sum() for a, b in pairs).sqrt() / sum(b.square().sum() for _, b in pairs).sqrt())


def run(method: str, vocab_size: int, steps: int, **size) -> dict[str, dict[str, list[float]]]:
    """Take the steps with every form, in turn: seconds, losses and differences of the gradients from ours."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(method, vocab_size, folder, steps, **size)
        forms = {"textbook": Textbook(method, copy.deepcopy(trainer.model))}
        if method == "npo":
            forms["tightened"] = Textbook(method, copy.deepcopy(trainer.model), tightened_nll)
        forms = {"ours": Ours(trainer), **forms}
        results = {name: {"seconds": [], "loss": [], "gradient": []} for name in forms}
        for batch in trainer.get_train_dataloader():
            for name, form in forms.items():
                loss, seconds = cpu_seconds(lambda form=form, batch=batch: form.step(dict(batch)))
                results[name]["seconds"].append(seconds)
                results[name]["loss"].append(float(loss))
                results[name]["gradient"].append(gradient_difference(form.model, forms["ours"].model))
    return results


def check_identical(results: dict[str, dict[str, list[float]]], vocab_size: int):
    """Losses equal to 1e-5 of ln(vocabulary), the size of the two terms that GradDiff subtracts; gradients to 1e-5."""
    ours = results["ours"]
    for result in results.values():
        np.testing.assert_allclose(result["loss"], ours["loss"], rtol=0, atol=1e-5 * np.log(vocab_size))
        np.testing.assert_allclose(result["gradient"], 0, atol=1e-5)


def memory(method: str, vocab_size: int, form: str, steps: int = 2) -> float:
    """MiB that some steps of one form need on top of the model."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(method, vocab_size, folder, steps)

        def take_steps():
            taker = Ours(trainer) if form == "ours" else Textbook(method, trainer.model)
            for batch in trainer.get_train_dataloader():
                taker.step(batch)

        return peak_growth(take_steps)


def main():
    parser = argparse.ArgumentParser(description="CPU seconds and peak memory of a training step.")
    parser.add_argument("--steps", type=int, default=6, help="steps of each form; the first is not counted")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = [(method, vocab_size) for vocab_size in VOCABULARIES for method in ("npo", "graddiff")]

    rows = []
    for method, vocab_size in settings:
        mib = [in_own_process(memory, method, vocab_size, form) for form in ("ours", "textbook")]
        rows.append([method, f"{vocab_size:,}", *(f"{m:.0f}" for m in mib), f"**{mib[0] / mib[1]:.2f}**"])
    print(
        markdown_table([["method", "vocabulary", "ours, peak MiB", "textbook, peak MiB", "ratio"], *rows]), end="\n\n"
    )

    rows = []
    for method, vocab_size in settings:
        results = run(method, vocab_size, args.steps)
        check_identical(results, vocab_size)
        ours = results.pop("ours")["seconds"][1:]
        rows += [
            [method, f"{vocab_size:,}", name, *compare(ours, result["seconds"][1:])]
            for name, result in results.items()
        ]
    columns = ["method", "vocabulary", "against", "ours, CPU s", "the other, CPU s", "ratio", "of single steps"]
    print(markdown_table([columns, *rows]))


if __name__ == "__main__":
    main()
