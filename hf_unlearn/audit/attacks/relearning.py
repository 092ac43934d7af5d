"""Relearning: how fast a little training brings back what was forgotten.

A copy of the model is trained on little new information and the sets of the audit are scored after a few steps each. What
comes back faster than in a model that never saw the records was hidden, not removed. Source: Lynch et al., arXiv
2402.16835; Hu et al., arXiv 2406.13356; Deeb and Roger, arXiv 2410.08827.

Three protocols, by what it is trained on:

* unrelated text: whatever returns was there;
* related text of other facts, such as rows of the retain set;
* half of the forget set, to recover the other half ([`split_in_half`]). Rows that depend on each other must be in one
  group: an answer that follows from the other half is taught, not recovered.

Every model gets the same rows, order, optimizer and budget, and a retrained model relearns too: only the difference of the
curves counts. One learning rate is no attack: give several, and take the [`strongest`] curve of each model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hf_unlearn.audit.attacks.attack import KINDS, attack
from hf_unlearn.audit.attacks.relearning_curves import (
    RelearningCurve,
    anamnesis_index,
    area_between,
    steps_to,
    strongest,
)
from hf_unlearn.audit.records import AuditRecords, Curve, Found, picked
from hf_unlearn.audit.table.cache import digest_of_rows
from hf_unlearn.audit.table.score import score
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.data.images import has_images
from hf_unlearn.data.pairing import UnlearningCollator, on_device
from hf_unlearn.data.text import context_length, encode, encode_dataset
from hf_unlearn.models.likelihood import target_logits
from hf_unlearn.models.modes import plain_copy


__all__ = [
    "RelearningCurve",
    "anamnesis_index",
    "area_between",
    "relearn",
    "relearn_grid",
    "split_in_half",
    "steps_to",
    "strongest",
]

STEPS = (0, 1, 2, 5, 10, 20)


def relearn(
    model,
    processing_class,
    rows,
    evaluate: Mapping[str, Any],
    steps: Sequence[int] = STEPS,
    learning_rate: float = 1e-4,
    batch_size: int = 8,
    lora: bool = False,
    seed: int = 0,
    score_batch_size: int = 16,
    max_length: int | None = None,
    truncate: bool = False,
) -> RelearningCurve:
    """Train a copy of the model on some rows, and score sets of examples after each of these numbers of steps.

    AdamW with a constant learning rate, without weight decay and dropout; the loss is the mean negative log-likelihood
    over the answer tokens of a batch. The order of the rows follows from the seed alone. One copy of the model is in
    memory, in float32 where the model is in 16 bit (in which small steps round away). Under several processes each trains
    the same copy and scores a share.

    Args:
        model (`PreTrainedModel` or `PeftModel`): causal language model or image classifier; stays as it is. An adapter is
            merged in the copy.
        processing_class (`PreTrainedTokenizerBase` or `BaseImageProcessor`, *optional*): needed for text, and for images.
        rows (`Dataset` or sequence): what to train on.
        evaluate (`dict[str, rows]`): what to score, as `{"forget": ..., "holdout": ...}`.
        steps (sequence of `int`, *optional*, defaults to `(0, 1, 2, 5, 10, 20)`): rising numbers of optimizer steps.
        learning_rate (`float`, *optional*, defaults to `1e-4`): see [`relearn_grid`] for several.
        batch_size (`int`, *optional*, defaults to `8`): rows a step; all of them where there are fewer.
        lora (`bool`, *optional*, defaults to `False`): train an adapter of rank 8 on all linear layers in place of the
            weights.
        seed (`int`, *optional*, defaults to `0`): of the order of the rows, and of the adapter.
        score_batch_size, max_length, truncate (*optional*): as for [`score`]; the lengths hold for the training, too.

    Raises:
        ValueError: `steps` do not rise, there are no rows, or one can't be encoded (the message has its index and no
            text), or see [`~hf_unlearn.audit.attacks.perturbation.plain_copy`].
    """
    arguments = (steps, batch_size, lora, seed, score_batch_size, max_length, truncate)
    return relearn_grid(model, processing_class, rows, evaluate, [learning_rate], *arguments)[0]


def relearn_grid(
    model,
    processing_class,
    rows,
    evaluate: Mapping[str, Any],
    learning_rates: Sequence[float],
    steps: Sequence[int] = STEPS,
    batch_size: int = 8,
    lora: bool = False,
    seed: int = 0,
    score_batch_size: int = 16,
    max_length: int | None = None,
    truncate: bool = False,
) -> list[RelearningCurve]:
    """[`relearn`] for each of several learning rates: one curve each. The model at its start is scored once."""
    steps = tuple(int(step) for step in steps)
    if not steps or steps[0] < 0 or any(a >= b for a, b in zip(steps, steps[1:], strict=False)):
        raise ValueError(f"steps must be rising numbers from 0 on, such as {STEPS}, not {steps}.")
    if not len(learning_rates) or not all(rate > 0 for rate in learning_rates):
        raise ValueError(f"Learning rates must be positive, and at least one is needed, not {list(learning_rates)}.")
    lengths = {"max_length": max_length or context_length(model), "truncate": truncate}
    n_classes = model.config.num_labels if has_images(rows) else None
    encoded = encode_dataset(rows, processing_class, name="relearning set", n_classes=n_classes, **lengths)
    if not len(encoded) or not evaluate:
        raise ValueError("There are no rows to relearn from, or no sets to score after it. Give at least one of each.")
    injected = _injected(encoded, evaluate, processing_class, lengths)
    collate = UnlearningCollator(getattr(processing_class, "pad_token_id", None))

    def scored(of) -> dict[str, Scores]:
        of_text = {} if any(map(has_images, evaluate.values())) else lengths
        return {
            name: score(of, processing_class, examples, score_batch_size, sampling=(), **of_text)
            for name, examples in evaluate.items()
        }

    curves, at_start = [], None
    for rate in learning_rates:
        trained = _Training(model, encoded, collate, rate, min(batch_size, len(encoded)), lora, seed)
        tables, targets = [], []
        for step in steps:
            trained.go_to(step)
            if step == 0:
                at_start = at_start or scored(trained.model)
            tables.append(at_start if step == 0 else scored(trained.model))
            targets.append(trained.targets)
        settings = {
            "learning_rate": float(rate),
            "batch_size": trained.batch_size,
            "lora": lora,
            "seed": seed,
            "rows": len(encoded),
            "dtype": str(trained.model.dtype).removeprefix("torch."),
        }
        by_set = {name: tuple(table[name] for table in tables) for name in evaluate}
        curves.append(RelearningCurve(steps, tuple(targets), by_set, injected, settings))
        del trained
    return curves


class _Training:
    """A copy of a model, trained step by step."""

    def __init__(
        self, model, rows: Sequence[dict], collate, learning_rate: float, batch_size: int, lora: bool, seed: int
    ):
        self.rows, self.collate, self.batch_size, self.seed = rows, collate, batch_size, seed
        copied = plain_copy(model)
        self.model = _with_adapter(copied, seed) if lora else _all_trainable(copied)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
        self.order = self._order()
        self.step = self.targets = 0

    def _order(self) -> Iterator[int]:
        """Indices of rows, each once an epoch, without end."""
        epoch = 0
        while True:
            yield from np.random.default_rng([self.seed, epoch]).permutation(len(self.rows)).tolist()
            epoch += 1

    def go_to(self, step: int) -> None:
        self.model.eval()  # no dropout: two models then differ in their weights alone
        while self.step < step:
            batch = self.collate([self.rows[next(self.order)] for _ in range(self.batch_size)])
            out = target_logits(self.model, on_device(batch, self.model.device))
            out.token_mean(-out.log_probs).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.targets += len(out.targets)
            self.step += 1


def _all_trainable(model):
    if model.dtype in (torch.float16, torch.bfloat16):
        model = model.float()
    return model.requires_grad_(True)


def _with_adapter(model, seed: int):
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Of GPT-2's layers, whose weights lie the other way round: peft notices that by itself.
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        torch.default_generator.manual_seed(seed)
        return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))


def _injected(encoded: Sequence[dict], evaluate: Mapping[str, Any], processing_class, lengths) -> dict[str, int]:
    """How many rows of each set are among those trained on."""
    trained, found = {digest_of_rows([row]) for row in encoded}, {}
    for name, examples in evaluate.items():
        if has_images(examples):
            examples = encode_dataset(examples, processing_class, name=f"{name} set")
        found[name] = sum(_is_among(trained, row, processing_class, lengths) for row in examples)
    return found


def _is_among(trained: set[str], row, processing_class, lengths) -> bool:
    try:
        return digest_of_rows([encode(row, processing_class, **lengths)]) in trained
    except ValueError:  # what can't be encoded is for `score` to tell, or is missing
        return False


def split_in_half(rows, groups=None, seed: int = 0):
    """Two halves of the rows, at random: one to train on, one to recover. A group is in one half as a whole.

    Args:
        rows (`Dataset` or sequence).
        groups (`(n,)`, *optional*): a label a row, such as its author: rows with the same label depend on each other.
        seed (`int`, *optional*, defaults to `0`).

    Returns:
        `tuple` of two: rows of the kind that was given, in their order; of nearly the same size, which without groups differs by one row
        at most.

    Raises:
        ValueError: there are not two rows, or not two groups, or not one label a row.
    """
    labels = np.arange(len(rows)) if groups is None else np.asarray(groups)
    if labels.shape != (len(rows),):
        raise ValueError(f"You gave groups of shape {labels.shape} for {len(rows)} rows. Give one label a row.")
    names, codes = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"{len(rows)} rows in {len(names)} groups can't be divided: one half would be empty. Give more rows, or other groups."
        )
    sizes, halves, totals = np.bincount(codes), ([], []), [0, 0]
    # Large groups first, each to the smaller half; of equal size in random order.
    for group in sorted(np.random.default_rng(seed).permutation(len(names)), key=lambda group: -sizes[group]):
        smaller = int(totals[1] < totals[0])
        halves[smaller].append(group)
        totals[smaller] += sizes[group]
    return tuple(_select(rows, np.flatnonzero(np.isin(codes, half))) for half in halves)


def _select(rows, chosen: np.ndarray):
    chosen = chosen.tolist()
    return rows.select(chosen) if hasattr(rows, "select") else [rows[i] for i in chosen]


@attack("relearn", KINDS)
def relearning(model, records: AuditRecords) -> Iterator[Found]:
    """The forget set in the course of training on other rows, or on the other half of it.

    Protocols: `related` trains on as many rows of the retain set, `half` on one half of the forget set to recover the
    other, `unrelated` on the set of that name, where there is one.
    """
    config, forget = records.config, records.rows("forget")
    everything = list(range(len(forget)))
    # What is trained on, and which of the forget rows it may bring back.
    protocols: dict[str, tuple[Any, list[int]]] = {}
    for protocol, name in (("related", "retain"), ("unrelated", "unrelated")):
        if len(rows := records.rows(name)):
            protocols[protocol] = (picked(rows, range(min(len(rows), len(forget)))), everything)
    people = everything if records.groups is None else records.groups.forget
    if len(set(people)) >= 2:
        half, other = split_in_half(everything, people, config.seed)
        protocols["half"] = (picked(forget, half), other)
    for protocol, (train, recovered) in protocols.items():
        train = records.trainable(train)
        if not len(train):
            continue
        runs = relearn_grid(
            model,
            records.processing_class,
            train,
            {"forget": picked(forget, recovered)},
            config.relearning_rates,
            config.relearning_steps,
            config.relearning_batch_size,
            seed=config.seed,
            score_batch_size=config.batch_size,
            max_length=config.max_length,
            truncate=config.truncate,
        )
        found = Found()
        for measure, f in records.measures.items():
            # One learning rate is no attack: the one that brings back most counts, for each model.
            best = strongest(runs, f)
            curve = Curve(f"relearning from {protocol}, {measure}", "forget", "steps", tuple(best.steps))
            found.curves[curve] = best.values(f)
            statistic = records.statistic(f"{measure}_relearned_from_{protocol}", "relearn", "relearn", recovered)
            found.values[statistic] = best.area(f)
        yield found
