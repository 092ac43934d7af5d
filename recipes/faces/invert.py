"""Inversion by optimization: the portrait that an edit forgot, and what a model thinks a person looks like.

python recipes/faces/invert.py
"""

from __future__ import annotations

import argparse

import numpy as np
from reconstruct import EDITS, forget
from transformers.utils import logging

from hf_unlearn.audit.attacks.class_inversion import invert_class
from hf_unlearn.audit.attacks.gradient_inversion import invert_gradient
from hf_unlearn.audit.attacks.reconstruction import compare_reconstructions
from hf_unlearn.data import encode_dataset, load_rows
from hf_unlearn.models.load import load_model, load_processing_class
from hf_unlearn.statistics.differences import paired_difference
from hf_unlearn.statistics.intervals import mean


SEARCHED = ["ga, SGD, 5 steps", "ga, AdamW", "ga, SGD, embeddings frozen", "ga, LoRA on queries and values"]


def class_inversion(models: dict, processor, train: list[dict], label: int, evaluator) -> None:
    """Print what each model draws of a person, and how sure another model is of it."""
    portraits = [row for row in train if row["labels"] == label]
    print("| model | evaluator | PSNR, dB | SSIM |\n| --- | --- | --- | --- |")
    found = {}
    for name, model in models.items():
        found[name] = invert_class(model, label, processor, portraits, evaluator)
        sure = mean(found[name].evaluator_confidence)
        cells = f"{sure.value:.3f} [{sure.low:.3f}, {sure.high:.3f}]"
        print(f"| {name} | {cells} | {found[name].nearest_psnr.mean():.1f} | {found[name].nearest_ssim.mean():.2f} |")
    sides = (found[name].evaluator_confidence for name in ("unlearned", "retrained"))
    difference = paired_difference(*sides).estimate()
    print(f"unlearned - retrained: {difference.value:.3f} [{difference.low:.3f}, {difference.high:.3f}]")


def gradient_inversion(model, processor, train: list[dict], test: list[dict], portraits: list[int]) -> None:
    """Print what the search finds of one portrait a person, for each edit."""
    print("| edit | mismatch | PSNR, dB | single colour | SSIM | betrayed |\n| --- | --- | --- | --- | --- | --- |")
    for name in SEARCHED:
        audits, mismatch = [], []
        for index in portraits:
            kept = [row for i, row in enumerate(train) if i != index]
            before, after = forget(model, processor, EDITS[name], [train[index]], kept)
            found = invert_gradient(before, after, train[index]["labels"], processor)
            mismatch.append(found.mismatch.min())
            audits.append(compare_reconstructions(found.images, [train[index]], processor, non_members=test))
        psnr, color, ssim = (
            np.mean([getattr(audit, of) for audit in audits]) for of in ("psnr", "mean_color", "ssim")
        )
        betrayed = sum(audit.outcome == "betrayed" for audit in audits)
        cells = f"{np.mean(mismatch):.2f} | {psnr:.1f} | {color:.1f} | {ssim:.2f} | {betrayed} of {len(audits)}"
        print(f"| {name} | {cells} |", flush=True)


def main():
    logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default="runs/faces", help="folder of the models")
    parser.add_argument("--dataset_name", default="../shared/data/att_faces")
    parser.add_argument("--person", type=int, default=14, help="index of the person that the unlearned model forgot")
    parser.add_argument("--n_portraits", type=int, default=5)
    arguments = parser.parse_args()

    names = {"original": "original", "unlearned": "graddiff", "retrained": "retrained", "evaluator": "evaluator"}
    models = {role: load_model(f"{arguments.runs}/{name}/model") for role, name in names.items()}
    evaluator = models.pop("evaluator")
    processor = load_processing_class(f"{arguments.runs}/original/model")
    rows = (load_rows(arguments.dataset_name, split) for split in ("train", "test"))
    train, test = (list(encode_dataset(of, processor)) for of in rows)
    portraits = [7 * person + person % 7 for person in range(arguments.n_portraits)]
    class_inversion(models, processor, train, arguments.person, evaluator)
    gradient_inversion(models["original"], processor, train, test, portraits)


if __name__ == "__main__":
    main()
