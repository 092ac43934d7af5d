"""What the model is compared with while it unlearns: itself at its start, or a model that was given.

Log-probabilities of fixed answers are computed once, before the training: one number per answer. Whole distributions come
in each step from the given model, or from the model itself with the start values of the parameters that may move.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """Gives the target logits of the reference model, without gradient and without dropout.

    The start values of the parameters that may move are kept and put in place for the pass. Under a new adapter that is
    the base model; under an adapter that holds the knowledge itself, which must not be switched off, it is that adapter at
    its start.

    Args:
        model (`nn.Module`): the model before its first step, with `requires_grad` set as it will be trained.
        ref_model (`nn.Module`, *optional*): a model to compare with instead; it is frozen.
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
        """Have the start values in place for a while."""
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
            raise RuntimeError(f"The model was wrapped or changed: it has no parameter {sorted(missing)[0]} any more.")
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


def cached_log_probs(
    model: nn.Module, row: Callable[[int], dict], n: int, collate: Callable, batch_size: int, accelerator, name: str
) -> np.ndarray:
    """ln p(answer) of `n` encoded rows under a model: constants, computed once, so that no second model stays.

    Args:
        row (callable): reads a row, by its index; rows of images are too large to keep them all.
        name (`str`): what the rows are, for the progress bar.

    Returns:
        `float32 (n,)`, in nats, summed over the targets of an answer. Every process computes a share.
    """
    total = torch.zeros(n, dtype=torch.float64, device=accelerator.device)
    mine = range(accelerator.process_index, n, accelerator.num_processes)
    # Rows of similar length go together and need little padding. Images, all of one size, are not read for it.
    order = sorted(mine, key=lambda i: len(row(i)["input_ids"])) if "input_ids" in row(0) else mine
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    with torch.no_grad(), evaluating(model):
        hidden = not accelerator.is_main_process or len(batches) < 20
        for batch in tqdm(batches, desc=f"Reference, {name}", disable=hidden):
            inputs = on_device(collate([row(i) for i in batch]), accelerator.device)
            with accelerator.autocast():
                total[batch] = target_logits(model, inputs).sequence_log_probs.double()
    return accelerator.reduce(total, "sum").float().cpu().numpy()
