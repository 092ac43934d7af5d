"""Forget one portrait in different ways, and read it off the weights before and after.

python recipes/faces/reconstruct.py --output runs/faces/reconstruct.json
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers.utils import logging

from hf_unlearn.audit.attacks.reconstruction import LEVEL, ReconstructionAudit, reconstruction_audit
from hf_unlearn.audit.measures.image_similarity import class_token, image_chunks, ssim
from hf_unlearn.data import encode_dataset, load_rows
from hf_unlearn.evidence.tables import markdown_table
from hf_unlearn.methods import METHODS
from hf_unlearn.models.load import load_model, load_processing_class
from hf_unlearn.statistics.estimate import plain


@dataclass(frozen=True)
class Edit:
    """How a portrait is forgotten: a method, its arguments, and what happens to the checkpoint.

    Args:
        momentum (`float`): of plain SGD, which the Trainer has no option for.
        lora (`bool`): train an adapter on the queries and values, and merge it.
        dtype (`torch.dtype`, *optional*): both checkpoints are published in this type.
        whole_person (`bool`): all portraits of the person, in one batch.
    """

    method: str = "ga"
    arguments: dict = field(default_factory=dict)
    momentum: float = 0.0
    lora: bool = False
    dtype: torch.dtype | None = None
    whole_person: bool = False


ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-4}
FROZEN = {"trainable": r"(?!vit\.embeddings\.).*"}

EDITS: dict[str, Edit] = {
    "ga, SGD, 1 step of 1e-3": Edit(arguments={"max_steps": 1, "learning_rate": 1e-3}),
    "ga, SGD, 5 steps": Edit(),
    "ga, SGD, momentum 0.9": Edit(momentum=0.9),
    "ga, SGD, weight decay 0.01": Edit(arguments={"weight_decay": 0.01}),
    "ga, SGD, published in float16": Edit(dtype=torch.float16),
    "ga, SGD, published in bfloat16": Edit(dtype=torch.bfloat16),
    "ga, AdamW": Edit(arguments=ADAMW),
    "ga, SGD, 7 portraits a batch": Edit(whole_person=True),
    "graddiff, SGD, 1 + 1 portraits": Edit("graddiff"),
    "graddiff, AdamW, 1 + 1 portraits": Edit("graddiff", ADAMW),
    "ga, SGD, embeddings frozen": Edit(arguments=FROZEN),
    "ga, LoRA on queries and values": Edit(arguments={**ADAMW, "learning_rate": 1e-2}, lora=True),
}


def forget(model, processor, edit: Edit, forget_rows, retain_rows):
    """The models before and after the edit, as they are published."""
    # Not before hf_unlearn, which keeps a warning about 4-bit kernels from who does not quantize.
    from peft import LoraConfig

    after = copy.deepcopy(model)
    trainer_class = METHODS[edit.method]
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            "output_dir": folder,
            "optim": "sgd",
            "learning_rate": 0.05,
            "lr_scheduler_type": "constant",
            "max_steps": 5,
            "per_device_train_batch_size": len(forget_rows),
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        } | edit.arguments
        config = trainer_class.config_class(**arguments)
        optimizer = torch.optim.SGD(after.parameters(), lr=config.learning_rate, momentum=edit.momentum)
        trainer = trainer_class(
            after,
            config,
            forget_dataset=forget_rows,
            retain_dataset=None if edit.method == "ga" else retain_rows,
            processing_class=processor,
            peft_config=LoraConfig(target_modules=["q_proj", "v_proj"], r=4) if edit.lora else None,
            optimizers=(optimizer if edit.momentum else None, None),
        )
        trainer.train()
        after = trainer.accelerator.unwrap_model(trainer.model)
    after = after.merge_and_unload() if edit.lora else after
    before = copy.deepcopy(model)
    if edit.dtype is not None:
        before, after = before.to(edit.dtype), after.to(edit.dtype)
    return before, after.eval()


class Outcome(NamedTuple):
    """What became of a portrait.

    Attributes:
        audit ([`ReconstructionAudit`]).
        loss (`float`): on the portrait after the edit, in nats.
        false_alarms (`float`): share of portraits of other people, which the model was trained on and has not forgotten,
            that the same test calls betrayed by the same reconstruction; NaN without one.
    """

    audit: ReconstructionAudit
    loss: float
    false_alarms: float


def reconstruct(
    model, processor, train: list[dict], test: list[dict], index: int, edit: Edit, embed: Callable | None = None
) -> Outcome:
    """Forget one row of the training set and audit it.

    Args:
        train, test (`list[dict]`): encoded rows.
        embed (`Callable`, *optional*): features to find the person by.
    """
    record = train[index]
    same_person = [i for i, row in enumerate(train) if row["labels"] == record["labels"]]
    gone = same_person if edit.whole_person else [index]
    kept = [row for i, row in enumerate(train) if i not in gone]
    before, after = forget(model, processor, edit, [train[i] for i in gone], kept)
    audit = reconstruction_audit(before, after, [record], processor, retain=kept, non_members=test, embed=embed)
    with torch.no_grad():
        logits = after.float()(pixel_values=record["pixel_values"][None]).logits
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([record["labels"]]))
    return Outcome(audit, float(loss), _false_alarms(audit, processor, kept, record["labels"]))


def _false_alarms(audit: ReconstructionAudit, processor, kept: list[dict], label: int) -> float:
    if audit.details.image is None:
        return float("nan")
    others = np.concatenate(list(image_chunks([row for row in kept if row["labels"] != label], processor)))
    ahead = (audit.non_members_ssim >= ssim(audit.details.image, others)[:, None]).sum(axis=1)
    return float(np.mean((1 + ahead) / (1 + len(audit.non_members_ssim)) <= LEVEL))


def table(results: dict[str, list[Outcome]]) -> str:
    """One line an edit, in Markdown: means over portraits, the range of PSNR, and how many portraits."""
    header = "edit | loss after | PSNR, dB | SSIM | recovered | partly | betrayed | person found | false alarms"
    rows = [header.split(" | ")]
    for name, found in results.items():
        audits, losses, false_alarms = zip(*found, strict=True)
        psnr, likeness = (np.concatenate([getattr(audit, of) for audit in audits]) for of in ("psnr", "ssim"))
        outcomes = ("recovered", "partly_recovered", "betrayed")
        cells = [name, f"{np.mean(losses):.1f}"]
        if np.isnan(psnr).all():
            cells += ["nothing changed", *["–"] * 6]
        else:
            cells += [f"{psnr.mean():.1f} ({psnr.min():.1f} to {psnr.max():.1f})", f"{likeness.mean():.2f}"]
            cells += [str(sum(audit.outcome == outcome for audit in audits)) for outcome in outcomes]
            cells += [str(sum(int(np.nansum(audit.found)) for audit in audits)), f"{np.mean(false_alarms):.1%}"]
        rows.append(cells)
    return markdown_table(rows)


def _as_dict(outcome: Outcome) -> dict:
    return plain({**outcome.audit.as_dict(), "loss_after": outcome.loss, "false_alarms": outcome.false_alarms})


def main():
    logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/faces/original/model")
    parser.add_argument("--others", default="runs/faces/others/model", help="trained on other people, to find persons")
    parser.add_argument("--dataset_name", default="../shared/data/att_faces")
    parser.add_argument("--n_portraits", type=int, default=20, help="of the first 20 people, one each")
    parser.add_argument("--output", help="JSON file for the results; no image is written")
    arguments = parser.parse_args()

    model, processor = load_model(arguments.model), load_processing_class(arguments.model)
    embed = class_token(load_model(arguments.others), processor)
    rows = (load_rows(arguments.dataset_name, split) for split in ("train", "test"))
    train, test = (list(encode_dataset(of, processor)) for of in rows)
    # A portrait of each of the people that the other model has not seen, not always the first.
    chosen = [7 * person + person % 7 for person in range(arguments.n_portraits)]
    results = {}
    for name, edit in EDITS.items():
        results[name] = [reconstruct(model, processor, train, test, i, edit, embed) for i in chosen]
        print(results[name][0].audit.sentence, flush=True)
    print(table(results))
    for of in ("mean_color", "nearest_retained", "chance"):
        values = np.concatenate([getattr(outcome.audit, of) for outcome in results[name]])
        print(f"{of}: {values.mean():.3f} ({values.min():.3f} to {values.max():.3f})")
    if arguments.output:
        shown = {name: [_as_dict(outcome) for outcome in found] for name, found in results.items()}
        Path(arguments.output).write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
