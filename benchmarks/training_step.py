"""One optimizer step of NPO and of GradDiff: our trainer against the way research scripts are written.

    python benchmarks/training_step.py

Ours is the trainer itself: one forward pass over forget and retain rows together, logits at the answers only, and the
log-probabilities of NPO's reference computed before the training. The textbook has a forward pass for the forget batch
and one for the retain batch, logits at every position, and for NPO a second model that runs in every step. Both take
the same steps on the same rows from the same weights; the losses and gradients of every step are compared.
"""

from __future__ import annotations

import argparse
import copy
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from measure import VOCABULARIES, compare, cpu_seconds, in_own_process, markdown_table, peak_growth, tiny_llama

from hf_unlearn.methods import METHODS
from hf_unlearn.training import UnlearningTrainer


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
        **({"beta": BETA} if method == "npo" else {}),
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

    def __init__(self, method: str, model: torch.nn.Module):
        self.method, self.model = method, model
        self.reference = copy.deepcopy(model).eval() if method == "npo" else None
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)

    def step(self, batch: dict) -> torch.Tensor:
        forget, retain = separate(batch)
        self.model.train()
        self.optimizer.zero_grad()
        outputs = self.model(**forget)
        if self.method == "npo":
            with torch.no_grad():
                reference = self.reference(**forget).logits
            log_ratio = answer_nll(reference, forget["labels"]) - answer_nll(outputs.logits, forget["labels"])
            loss = -2 / BETA * F.logsigmoid(-BETA * log_ratio).mean()
        else:
            loss = -outputs.loss
        loss = loss + self.model(**retain).loss
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def answer_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-ln p(answer | prompt), summed over the answer: `(rows,)`."""
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none").sum(-1)


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


def run(method: str, vocab_size: int, steps: int, **size) -> dict[str, list[float]]:
    """Take the steps with both, in turn: seconds, losses and differences of the gradients of each."""
    results: dict[str, list[float]] = {name: [] for name in ("ours", "textbook", "our_loss", "loss", "gradient")}
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(method, vocab_size, folder, steps, **size)
        textbook = Textbook(method, copy.deepcopy(trainer.model))
        ours = Ours(trainer)
        for batch in trainer.get_train_dataloader():
            our_loss, our_seconds = cpu_seconds(lambda batch=batch: ours.step(dict(batch)))
            loss, seconds = cpu_seconds(lambda batch=batch: textbook.step(batch))
            gradient = gradient_difference(ours.model, textbook.model)
            values = (our_seconds, seconds, float(our_loss), float(loss), gradient)
            for name, value in zip(results, values, strict=True):
                results[name].append(value)
    return results


def check_identical(result: dict[str, list[float]], vocab_size: int):
    """Losses equal to 1e-5 of ln(vocabulary), which is what the two terms that GradDiff subtracts are made of."""
    np.testing.assert_allclose(result["our_loss"], result["loss"], rtol=0, atol=1e-5 * np.log(vocab_size))
    np.testing.assert_allclose(result["gradient"], 0, atol=1e-4)


def memory(method: str, vocab_size: int, form: str, steps: int = 3) -> float:
    """Peak growth in MiB of some steps of one form; the model is there before."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(method, vocab_size, folder, steps)

        def take_steps():
            taker = Ours(trainer) if form == "ours" else Textbook(method, trainer.model)
            for batch in trainer.get_train_dataloader():
                taker.step(batch)

        return peak_growth(take_steps)


def main():
    parser = argparse.ArgumentParser(description="CPU seconds and peak memory of a training step.")
    parser.add_argument("--steps", type=int, default=9, help="steps of each form; the first is not counted")
    parser.add_argument("--memory", nargs=3, metavar=("METHOD", "VOCABULARY", "FORM"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        method, vocab_size, form = args.memory
        print(memory(method, int(vocab_size), form))
        return

    rows = []
    for vocab_size in VOCABULARIES:
        for method in ("npo", "graddiff"):
            result = run(method, vocab_size, args.steps)
            check_identical(result, vocab_size)
            grown = [in_own_process(__file__, method, str(vocab_size), form) for form in ("ours", "textbook")]
            rows.append(
                [method, f"{vocab_size:,}", *compare(result["ours"][1:], result["textbook"][1:])]
                + [f"{grown[0]:.0f}", f"{grown[1]:.0f}", f"{grown[0] / grown[1]:.2f}"]
            )
    columns = ["method", "vocabulary", "ours, CPU s", "textbook, CPU s", "ratio", "ratio of single steps"]
    print(markdown_table([*columns, "ours, peak MiB", "textbook, peak MiB", "ratio"], rows))


if __name__ == "__main__":
    main()
