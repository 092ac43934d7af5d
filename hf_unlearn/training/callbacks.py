"""Callbacks of the unlearning trainer."""

from __future__ import annotations

from transformers import TrainerCallback


class EpochCallback(TrainerCallback):
    """Tells the paired dataset which epoch it is, on every path: not all data loaders pass `set_epoch` on."""

    def __init__(self, dataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.set_epoch(int(state.epoch or 0))
