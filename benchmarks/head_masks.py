"""Training head masks against full-parameter GradDiff, each to the end of its recipe, in one run.

    python benchmarks/head_masks.py cifar100     # after the fine-tunings of recipes/cifar100/README.md
    python benchmarks/head_masks.py registry     # after `make quickstart`

CPU seconds are those of `trainer.train()` alone, the warm start of the gates included; no evaluation runs in between. What
is left and what is lost is measured after it, in the same run. The retain set is scored on 1,000 of its rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from measure import cpu_seconds

from hf_unlearn.audit import score
from hf_unlearn.cli.checkpoints import load_model
from hf_unlearn.cli.job import Job
from hf_unlearn.evidence.tables import markdown_table
from hf_unlearn.methods import METHODS


ROOT = Path(__file__).resolve().parents[1]

RECIPES = {"cifar100": ("graddiff", "head_mask"), "registry": ("graddiff", "head_mask")}


def run(recipe: Path) -> tuple[float, int, dict[str, float], dict[str, float]]:
    """Train by a recipe: CPU seconds, steps, and the accuracy on each set before and after."""
    off = ["--eval_strategy", "no", "--eval_on_start", "false", "--disable_tqdm", "true", "--save_strategy", "no"]
    job = Job.from_arguments(["--config", str(recipe), *off])
    sets, parts, processor = dict(job.sets), job.parts, job.processing_class
    sets["retain"] = sets["retain"].select(range(0, len(sets["retain"]), max(1, len(sets["retain"]) // 1000)))
    model = load_model(job.model_config)
    before = accuracy(model, processor, sets)
    trainer = METHODS[job.arguments.method](
        model, job.training, parts.forget, parts.retain, processing_class=processor
    )
    _, seconds = cpu_seconds(trainer.train)
    return seconds, trainer.state.global_step, before, accuracy(trainer.model, processor, sets)


def accuracy(model, processor, sets: dict) -> dict[str, float]:
    """Share of targets that are the most likely one, by set."""
    return {name: float(np.mean(score(model, processor, rows, 100).hit)) for name, rows in sets.items()}


def main():
    parser = argparse.ArgumentParser(description="CPU seconds of head masks and of GradDiff, and what they leave.")
    parser.add_argument("benchmark", choices=sorted(RECIPES))
    folder = ROOT / "recipes" / parser.parse_args().benchmark
    torch.set_num_threads(1)
    rows, seconds = [], {}
    for method in RECIPES[folder.name]:
        seconds[method], steps, before, after = run(folder / f"{method}.yaml")
        if not rows:
            rows.append(["before", "", "", *(f"{value:.3f}" for value in before.values())])
        rows.append([method, f"{seconds[method]:.1f}", str(steps), *(f"{value:.3f}" for value in after.values())])
    print(markdown_table([["", "CPU s", "steps", *(f"accuracy, {name}" for name in before)], *rows]))
    graddiff, head_mask = (seconds[method] for method in RECIPES[folder.name])
    print(f"\nhead masks / GradDiff: **{head_mask / graddiff:.2f}**")


if __name__ == "__main__":
    main()
