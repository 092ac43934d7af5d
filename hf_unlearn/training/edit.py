"""Base of the methods that change the weights without training."""

from __future__ import annotations

import time

from transformers.trainer_utils import TrainOutput

from hf_unlearn.training.config import UnlearningConfig
from hf_unlearn.training.trainer import UnlearningTrainer


class TrainingFreeTrainer(UnlearningTrainer):
    """Base of the methods that compute the new weights at once: `train()` calls `edit`, all else is as for other methods.

    Every process computes the same edit of the same rows, so that all have the same weights. `learning_rate`,
    `num_train_epochs` and the like have no effect; changes of what `saliency` or `singular_rank` hold are undone after the
    edit.

    Raises:
        ValueError: for an update rule or a checkpoint to resume from, since there are no steps; for a new adapter,
            which has nothing to edit; for weights that are spread over processes.
    """

    needs_gradients = False
    needs_whole_weights = True
    cost = "a few passes, no training"

    def __init__(self, model, args: UnlearningConfig | None = None, *positional, **keywords):
        name = type(self).__name__
        if args is not None and args.update_rule != "add":
            raise ValueError(
                f"You set update_rule={args.update_rule!r}, but {name} takes no steps that a rule could change. Either "
                'set update_rule="add", or choose a method that trains (graddiff, npo).'
            )
        super().__init__(model, args, *positional, **keywords)
        adapter = [p for n, p in self.model.named_parameters() if ".lora_B." in n]
        if adapter and not any(p.count_nonzero() for p in adapter):
            raise ValueError(
                f"{name} changes weights in proportion to what they are, and those of a new adapter are 0. Leave "
                "peft_config out."
            )

    def edit(self) -> None:
        """Change the parameters of `self.model` that require a gradient."""
        raise NotImplementedError

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        if resume_from_checkpoint:
            name = type(self).__name__
            raise ValueError(f"{name} takes no steps, so there is no checkpoint to resume from. Run it anew.")
        start = time.time()
        self.is_in_train = True
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self.model.eval()
        self._prepare()
        self.edit()
        self.take_back()
        self._finish()
        self.is_in_train = False
        metrics = {"train_runtime": time.time() - start}
        self.log(metrics)
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        return TrainOutput(0, 0.0, metrics)
