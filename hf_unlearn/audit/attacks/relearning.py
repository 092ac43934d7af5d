"""Relearning: how fast a little training brings back what was forgotten.

A copy of the model is trained on little new information, and sets of rows are scored after certain numbers of steps. What
comes back faster than in a model that never saw the records was hidden, not removed. Sources: Lynch et al., arXiv
2402.16835; Hu et al., arXiv 2406.13356; Deeb and Roger, arXiv 2410.08827.

There are three protocols, by the rows to train on:

* unrelated text: whatever comes back was still there;
* related text about other facts, such as rows of the retain set;
* one half of the forget set, to recover the other ([`split_in_half`]). Rows that depend on each other must be in one
  group: an answer that follows from the first half is taught, not recovered.

Every model gets the same rows, order, optimizer and budget. A retrained model relearns too, so only the difference between
the curves counts. Try several learning rates, and take the [`strongest`] curve of each model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_unlearn.audit.attacks.attack import KINDS, attack
from hf_unlearn.audit.attacks.relearning_curves import RelearningCurve, strongest
from hf_unlearn.audit.records import AuditRecords, Curve, Found, picked
from hf_unlearn.audit.table.cache import digest_of_rows
from hf_unlearn.audit.table.score import score
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.data.images import has_images
from hf_unlearn.data.pairing import UnlearningCollator, on_device
from hf_unlearn.data.text import context_length, encode, encode_dataset, limits_of
from hf_unlearn.models.likelihood import is_image_classifier, target_logits
from hf_unlearn.models.modes import plain_copy
from hf_unlearn.models.weights import lora_targets, weight_matrices


STEPS = (0, 1, 2, 5, 10, 20)


def relearn(
    model,
    processing_class,
    rows,
    evaluate: Mapping[str, Any],
    steps: Sequence[int] = STEPS,
    learning_rate: float = 1e-4,
    **options,
) -> RelearningCurve:
    """The curve of a single learning rate; arguments and `options` as for [`relearn_grid`]."""
    return relearn_grid(model, processing_class, rows, evaluate, [learning_rate], steps, **options)[0]


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
    """Train a copy of the model on some rows with each learning rate, and score sets of rows after each number of steps.

    AdamW with a constant learning rate, without weight decay and dropout; the loss is the mean negative log-likelihood
    over the answer tokens of a batch. The order of the rows depends on the seed alone. Memory holds one copy of the model
    at a time, in float32 if the model is in 16 bit (where small steps would round away). With several processes each trains
    the same copy and scores a share of the rows.

    Args:
        model (`PreTrainedModel` or `PeftModel`): causal language model or image classifier; stays as it is. The copy merges
            an adapter.
        processing_class (`PreTrainedTokenizerBase` or `BaseImageProcessor`): `None` if the rows are encoded images.
        rows (`Dataset` or sequence): rows to train on.
        evaluate (`dict[str, rows]`): sets to score, such as `{"forget": ..., "holdout": ...}`.
        learning_rates (sequence of `float`): one curve for each.
        steps (sequence of `int`, *optional*, defaults to `(0, 1, 2, 5, 10, 20)`): rising numbers of optimizer steps.
        batch_size (`int`, *optional*, defaults to `8`): rows per step; all rows if there are fewer.
        lora (`bool`, *optional*, defaults to `False`): train an adapter of rank 8 on all linear layers, and on fused experts,
            instead of the weights.
        seed (`int`, *optional*, defaults to `0`): for the order of the rows, and the adapter.
        score_batch_size, max_length, truncate (*optional*): as for [`score`]; the lengths hold for the training, too.

    Raises:
        ValueError: `steps` do not rise, a learning rate is not positive, there are no rows, a row can't be encoded (the
            message has its index and no text), or see [`~hf_unlearn.models.modes.plain_copy`].
    """
    steps = tuple(int(step) for step in steps)
    if not steps or steps[0] < 0 or any(a >= b for a, b in zip(steps, steps[1:], strict=False)):
        raise ValueError(f"steps must be rising numbers from 0 on, such as {STEPS}, not {steps}.")
    if not len(learning_rates) or not all(rate > 0 for rate in learning_rates):
        raise ValueError(f"Learning rates must be positive, and at least one is needed, not {list(learning_rates)}.")
    lengths = {"max_length": max_length or context_length(model), "truncate": truncate}
    limits = lengths | limits_of(model.config, is_image_classifier(model))
    encoded = encode_dataset(rows, processing_class, name="relearning set", **limits)
    if not len(encoded) or not evaluate:
        raise ValueError("There are no rows to relearn from, or no sets to score after it. Give at least one of each.")
    injected = _injected(encoded, evaluate, processing_class, lengths)
    collate = UnlearningCollator(getattr(processing_class, "pad_token_id", None))
    cut = {} if any(map(has_images, evaluate.values())) else lengths

    def scored(trained) -> dict[str, Scores]:
        return {
            name: score(trained, processing_class, examples, score_batch_size, sampling=(), **cut)
            for name, examples in evaluate.items()
        }

    curves, at_start = [], None
    for rate in learning_rates:
        training = _Training(model, encoded, collate, rate, min(batch_size, len(encoded)), lora, seed)
        tables, targets = [], []
        for step in steps:
            training.go_to(step)
            if step == 0:
                at_start = at_start or scored(training.model)
            tables.append(at_start if step == 0 else scored(training.model))
            targets.append(training.targets)
        settings = {
            "learning_rate": float(rate),
            "batch_size": training.batch_size,
            "lora": lora,
            "seed": seed,
            "rows": len(encoded),
            "dtype": str(training.model.dtype).removeprefix("torch."),
        }
        by_set = {name: tuple(table[name] for table in tables) for name in evaluate}
        curves.append(RelearningCurve(steps, tuple(targets), by_set, injected, settings))
        del training
    return curves


class _Training:
    """A copy of a model, trained step by step."""

    def __init__(
        self, model, rows: Sequence[dict], collate, learning_rate: float, batch_size: int, lora: bool, seed: int
    ):
        self.rows, self.collate, self.batch_size, self.seed = rows, collate, batch_size, seed
        copied = plain_copy(model)
        if lora:
            self.model = _with_adapter(copied, seed)
        else:
            in_16_bit = copied.dtype in (torch.float16, torch.bfloat16)
            self.model = (copied.float() if in_16_bit else copied).requires_grad_(True)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
        self.order = self._order()
        self.step = self.targets = 0

    def _order(self) -> Iterator[int]:
        """Indices of rows without end, each once per epoch."""
        for epoch in count():
            yield from np.random.default_rng([self.seed, epoch]).permutation(len(self.rows)).tolist()

    def go_to(self, step: int) -> None:
        self.model.eval()  # without dropout two models differ in their weights alone
        while self.step < step:
            batch = self.collate([self.rows[next(self.order)] for _ in range(self.batch_size)])
            out = target_logits(self.model, on_device(batch, self.model.device))
            out.token_mean(-out.log_probs).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.targets += len(out.targets)
            self.step += 1


def _with_adapter(model, seed: int):
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft warns about GPT-2's layers, whose weights are transposed, and then sets the option by itself.
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        torch.default_generator.manual_seed(seed)
        matrices = [m for m in weight_matrices(model) if m.is_stack or isinstance(m.module, nn.Linear)]
        fused = any(matrix.is_stack for matrix in matrices)  # which peft does not count among the linear layers
        targets = lora_targets(model, matrices) if fused else {"target_modules": "all-linear"}
        return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, **targets))


def _injected(encoded: Sequence[dict], evaluate: Mapping[str, Any], processing_class, lengths) -> dict[str, int]:
    """How many rows of each set are among those trained on."""
    trained = {digest_of_rows([row]) for row in encoded}

    def is_among(row) -> bool:
        try:
            return digest_of_rows([encode(row, processing_class, **lengths)]) in trained
        except ValueError:  # `score` reports a row that can't be encoded
            return False

    found = {}
    for name, examples in evaluate.items():
        if has_images(examples):
            examples = encode_dataset(examples, processing_class, name=f"{name} set")
        found[name] = sum(map(is_among, examples))
    return found


def split_in_half(rows, groups=None, seed: int = 0):
    """Two random halves of the rows: one to train on, one to recover. All rows of a group are in the same half.

    Args:
        rows (`Dataset` or sequence).
        groups (`(n,)`, *optional*): a label per row, such as its author: rows with the same label depend on each other.
        seed (`int`, *optional*, defaults to `0`).

    Returns:
        `tuple` of two, of the type of `rows` and in their order. Without groups their sizes differ by at most one row.

    Raises:
        ValueError: there are fewer than two rows or two groups, or not one label per row.
    """
    labels = np.arange(len(rows)) if groups is None else np.asarray(groups)
    if labels.shape != (len(rows),):
        raise ValueError(f"You gave groups of shape {labels.shape} for {len(rows)} rows. Give one label per row.")
    names, codes = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"{len(rows)} rows in {len(names)} groups can't be divided: one half would be empty. Give more rows, or other groups."
        )
    sizes, halves, totals = np.bincount(codes), ([], []), [0, 0]
    # The largest group first, each to the smaller half; groups of equal size in random order.
    for group in sorted(np.random.default_rng(seed).permutation(len(names)), key=lambda group: -sizes[group]):
        smaller = int(totals[1] < totals[0])
        halves[smaller].append(group)
        totals[smaller] += sizes[group]
    return tuple(picked(rows, np.flatnonzero(np.isin(codes, half)).tolist()) for half in halves)


@attack("relearn", KINDS)
def relearning(model, records: AuditRecords) -> Iterator[Found]:
    """The forget set after steps of training on other rows, or on one half of itself.

    Protocols: `related` trains on as many rows of the retain set, `unrelated` on as many of the set of that name, and `half`
    on one half of the forget set to recover the other.
    """
    config, forget = records.config, records.rows("forget")
    everything = list(range(len(forget)))
    # By protocol the rows to train on, and the positions of the forget rows that this may bring back.
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
        for name, measure in records.measures.items():
            # For each model the learning rate counts that brings back most.
            best = strongest(runs, measure)
            curve = Curve(f"relearning from {protocol}, {name}", "forget", "steps", best.steps)
            found.curves[curve] = best.values(measure)
            statistic = records.statistic(f"{name}_relearned_from_{protocol}", "relearn", "relearn", recovered)
            found.values[statistic] = best.area(measure)
        yield found
