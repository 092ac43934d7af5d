"""The callback that calls the unlearning trainer during a run."""

from __future__ import annotations

import torch
from transformers import TrainerCallback

from hf_unlearn.models.sharding import whole


class RunCallback(TrainerCallback):
    """Keeps the trainer in step with its run, on every path: a start, a resume, a retry with smaller batches."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.begin_run(state.global_step)

    def on_epoch_begin(self, args, state, control, **kwargs):
        # Here, because not every data loader passes `set_epoch` on to its data set.
        epoch = int(state.epoch or 0)
        self.trainer.train_dataset.set_epoch(epoch)
        self.trainer.train_dataset.set_phase(self.trainer.phase(epoch))

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.begin_step()

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if self.trainer.accelerator.scaler is not None:
            return  # float16: the scaler skips steps with infinite gradients, and lowers its scale
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if gradients:
            norm = torch.stack([g.to(torch.float32).square().sum() for g in gradients]).sum()
            self.trainer.require_finite(whole(norm), "gradient")

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.take_back()
        self.trainer.after_step()
