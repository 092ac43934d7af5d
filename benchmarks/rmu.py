"""One optimizer step of RMU: our trainer against the way research scripts are written; and the memory of NPO on LoRA.

    python benchmarks/rmu.py

Ours stops the forward pass after the steered block, computes no logits, gives gradients to the selected weights alone,
and starts the reference from what the first trained block was given. The textbook takes the hidden state out of a full
pass over the forget batch and another over the retain batch, runs a second, resident model over the retain batch, and
takes gradients of every parameter, of which the optimizer uses the selected ones. Losses and the gradients of these are
compared in every step. "selected" is the textbook with gradients for the selected weights alone.
"""

from __future__ import annotations

import argparse
import copy
import tempfile

import numpy as np
import torch
import training_step
from measure import compare, cpu_seconds, in_own_process, peak_growth, tiny_llama
from peft import LoraConfig
from training_step import LEARNING_RATE, Ours, Textbook, random_rows, separate

from hf_unlearn.evidence.tables import markdown_table
from hf_unlearn.methods import NPOConfig, NPOTrainer, RMUTrainer


VOCABULARIES = (1_000, 8_000, 50_257)
LAYERS = 12
ALPHA = 10.0


def build_trainer(vocab_size: int, output_dir: str, steps: int, batch_size: int = 8, layers: int = LAYERS, **size):
    """An RMU trainer with the default layer and weights, on rows for some steps."""
    options = {"config": {"retain_weight": ALPHA}, "layers": layers, **size}
    return training_step.build_trainer("rmu", vocab_size, output_dir, steps, batch_size, **options)


class TextbookRMU:
    """Two full passes with gradients and one of the resident reference model."""

    def __init__(self, trainer: RMUTrainer, model: torch.nn.Module, only_selected: bool = False):
        self.model, self.layer = model, trainer._layer
        self.target = trainer.args.steering * trainer._direction.float()
        self.reference = copy.deepcopy(model).eval()
        chosen = set(trainer.trainable_names)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen or not only_selected)
        selected = [p for name, p in model.named_parameters() if name in chosen]
        self.optimizer = torch.optim.AdamW(selected, lr=LEARNING_RATE, weight_decay=0.0)

    def hidden(self, model: torch.nn.Module, batch: dict) -> torch.Tensor:
        return model(**batch, output_hidden_states=True).hidden_states[self.layer + 1]

    def step(self, batch: dict) -> torch.Tensor:
        forget, retain = separate(batch)
        self.model.train()
        self.model.zero_grad()
        forget_loss = _masked_mean((self.hidden(self.model, forget) - self.target).square(), forget)
        with torch.no_grad():
            start = self.hidden(self.reference, retain)
        retain_loss = _masked_mean((self.hidden(self.model, retain) - start).square(), retain)
        loss = forget_loss + ALPHA * retain_loss
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def _masked_mean(values: torch.Tensor, batch: dict) -> torch.Tensor:
    mask = batch["attention_mask"]
    return (values.mean(-1) * mask).sum() / mask.sum()


def run(vocab_size: int, steps: int, **size) -> dict[str, dict[str, list[float]]]:
    """Take the steps with every form, in turn: seconds, losses and differences of the selected gradients from ours."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(vocab_size, folder, steps, **size)
        models = [copy.deepcopy(trainer.model) for _ in range(2)]
        forms = {
            "ours": Ours(trainer),
            "textbook": TextbookRMU(trainer, models[0]),
            "selected": TextbookRMU(trainer, models[1], only_selected=True),
        }
        results = {name: {"seconds": [], "loss": [], "gradient": []} for name in forms}
        for batch in trainer.get_train_dataloader():
            for name, form in forms.items():
                loss, seconds = cpu_seconds(lambda form=form, batch=batch: form.step(dict(batch)))
                results[name]["seconds"].append(seconds)
                results[name]["loss"].append(float(loss))
                results[name]["gradient"].append(_difference(form.model, trainer.model, trainer.trainable_names))
    return results


def _difference(model, ours, names) -> float:
    a, b = (dict(m.named_parameters()) for m in (model, ours))
    off = sum((a[name].grad - b[name].grad).square().sum() for name in names)
    return float(off.sqrt() / sum(b[name].grad.square().sum() for name in names).sqrt())


def check_identical(results: dict[str, dict[str, list[float]]]):
    """Losses and gradients equal to 1e-4 of their size."""
    for result in results.values():
        np.testing.assert_allclose(result["loss"], results["ours"]["loss"], rtol=1e-4)
        np.testing.assert_allclose(result["gradient"], 0, atol=1e-4)


def rmu_memory(vocab_size: int, form: str, steps: int = 2) -> float:
    """MiB that some steps of one form need on top of the model."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(vocab_size, folder, steps)

        def take_steps():
            taker = Ours(trainer) if form == "ours" else TextbookRMU(trainer, trainer.model, form == "selected")
            for batch in trainer.get_train_dataloader():
                taker.step(batch)

        return peak_growth(take_steps)


def lora_memory(vocab_size: int, form: str, steps: int = 2, batch_size: int = 2) -> float:
    """MiB that some steps of NPO on a LoRA adapter need on top of the base model."""
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
    size = {"prompt": (8, 16), "answer": (8, 16)}
    args = {"per_device_train_batch_size": batch_size, "learning_rate": LEARNING_RATE, "report_to": "none"}
    forget, retain = (random_rows(steps * batch_size, vocab_size, seed=seed, **size) for seed in (1, 2))
    # Large against the activations, as real models are.
    model = tiny_llama(vocab_size, hidden_size=768, layers=LAYERS)
    with tempfile.TemporaryDirectory() as folder:
        config = NPOConfig(folder, use_cpu=True, beta=0.1, **args)

        def take_steps():
            if form == "ours":
                trainer = NPOTrainer(model, config, forget, retain, peft_config=lora)
                taker = Ours(trainer)
            else:
                reference = copy.deepcopy(model)
                trainer = NPOTrainer(model, config, forget, retain, peft_config=lora)
                taker = Textbook("graddiff", trainer.model)
                taker.method, taker.reference = "npo", reference.eval()
            for batch in trainer.get_train_dataloader():
                taker.step(
                    {key: value for key, value in batch.items() if key != "reference_log_probs" or form == "ours"}
                )

        return peak_growth(take_steps)


def main():
    parser = argparse.ArgumentParser(
        description="CPU seconds and peak memory of a step of RMU, and memory of NPO on LoRA."
    )
    parser.add_argument("--steps", type=int, default=6, help="steps of each form; the first is not counted")
    args = parser.parse_args()
    torch.set_num_threads(1)

    rows = []
    for form in ("ours", "textbook"):
        rows.append([form, f"{in_own_process(lora_memory, 8_000, form):.0f}"])
    print(markdown_table([["NPO on LoRA", "peak MiB"], *rows]), end="\n\n")

    rows = []
    for vocab_size in VOCABULARIES:
        mib = {form: in_own_process(rmu_memory, vocab_size, form) for form in ("ours", "textbook", "selected")}
        rows += [
            [f"{vocab_size:,}", form, f"{mib['ours']:.0f}", f"{mib[form]:.0f}", f"**{mib['ours'] / mib[form]:.2f}**"]
            for form in ("textbook", "selected")
        ]
    print(
        markdown_table([["vocabulary", "against", "ours, peak MiB", "the other, peak MiB", "ratio"], *rows]),
        end="\n\n",
    )

    rows = []
    for vocab_size in VOCABULARIES:
        results = run(vocab_size, args.steps)
        check_identical(results)
        ours = results.pop("ours")["seconds"][1:]
        rows += [[f"{vocab_size:,}", name, *compare(ours, r["seconds"][1:])] for name, r in results.items()]
    columns = ["vocabulary", "against", "ours, CPU s", "the other, CPU s", "ratio", "of single steps"]
    print(markdown_table([columns, *rows]))


if __name__ == "__main__":
    main()
