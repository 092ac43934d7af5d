"""What the model is compared with while it unlearns: itself, as it was at the start, or a model that was given.

| what the loss needs | who answers | memory |
|---|---|---|
| nothing | nobody | none |
| log-probabilities of fixed answers | one pass before the training, kept with the rows | a number an answer |
| whole distributions | the given model | a second model |
| | the model itself, with the start values of what may move | a copy of what may move: an adapter under LoRA |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from hf_unlearn.data.pairing import on_device
from hf_unlearn.models.likelihood import TargetLogits, target_logits
from hf_unlearn.models.modes import evaluating
from hf_unlearn.models.sharding import is_sharded, placed_like


class Reference:
    """Answers with the target logits of the reference model, without gradient and without dropout.

    The start values of the parameters that may move are kept and put in place for the pass. That serves every case
    with one mechanism: under a new adapter it is the base model, under an adapter that holds the knowledge itself
    (where switching it off would compare with the wrong model) it is that adapter as it came.

    Args:
        model (`nn.Module`): the model before its first step, with `requires_grad` set as it will be trained.
        ref_model (`nn.Module`, *optional*): a model given to compare with instead; it is frozen.
    """

    def __init__(self, model: nn.Module, ref_model: nn.Module | None = None):
        self._given = ref_model
        self._start = None
        if ref_model is not None:
            ref_model.requires_grad_(False).eval()
        else:
            self._start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def target_logits(self, model: nn.Module, inputs) -> TargetLogits:
        """Logits of the reference at the targets of `inputs`; `model` is the unwrapped model in training."""
        with torch.no_grad():
            if self._given is not None:
                return target_logits(self._given.to(inputs["labels"].device), inputs)
            with evaluating(model), self.at_start(model):
                return target_logits(model, inputs)

    @contextmanager
    def at_start(self, model: nn.Module):
        """The start values in place for a while."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    def _swap(self, model: nn.Module):
        for module in model.modules():
            if hasattr(module, "reshard"):
                module.reshard()  # FSDP keeps some weights whole after a pass
        parameters = dict(model.named_parameters())
        if missing := set(self._start) - set(parameters):
            raise RuntimeError(
                f"The model has been wrapped or changed: it has no parameter {sorted(missing)[0]} any more."
            )
        for name, start in self._start.items():
            parameter = parameters[name]
            if is_sharded(parameter):
                # In place: FSDP holds views of the memory. The start was kept whole, before the model was sharded.
                self._start[name] = start = placed_like(start, parameter)
                ours, theirs = start.to_local(), parameter.detach().to_local()
                kept = theirs.clone()
                theirs.copy_(ours)
                ours.copy_(kept)
            else:
                parameter.data, self._start[name] = start.to(parameter.device), parameter.data


class OneCandidate(Sequence):
    """Rows as answers with one candidate each, read when they are asked for."""

    def __init__(self, rows: Sequence[dict]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[dict]:
        return [self.rows[index]]


def cached_log_probs(
    model: nn.Module,
    answers: Sequence[Sequence[dict]],
    collate: Callable,
    batch_size: int,
    accelerator,
    description: str,
) -> np.ndarray:
    """ln p(answer) of candidate answers under a model: constants, computed once, so that no second model stays.

    Args:
        answers (`n` sequences of `k` encoded rows): every row has as many candidates.

    Returns:
        `float32 (n, k)`, in nats, summed over the targets of an answer. Every process computes a share.
    """
    n, k = len(answers), len(answers[0])
    total = torch.zeros(n * k, dtype=torch.float64, device=accelerator.device)
    mine = range(accelerator.process_index, n * k, accelerator.num_processes)
    # Similar lengths together: little padding. Images have one length, and are not read for it.
    is_text = "input_ids" in answers[0][0]
    order = sorted(mine, key=lambda j: len(answers[j // k][j % k]["input_ids"])) if is_text else mine
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    with torch.no_grad(), evaluating(model):
        for batch in tqdm(batches, desc=description, disable=not accelerator.is_main_process or len(batches) < 20):
            inputs = on_device(collate([answers[j // k][j % k] for j in batch]), accelerator.device)
            with accelerator.autocast():
                total[batch] = target_logits(model, inputs).sequence_log_probs.double()
    total = accelerator.reduce(total, "sum")
    return total.float().cpu().numpy().reshape(n, k)
