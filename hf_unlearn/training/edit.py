"""Methods that change the weights without training them."""

from __future__ import annotations

import time

from transformers.trainer_utils import TrainOutput

from hf_unlearn.training.config import UnlearningConfig
from hf_unlearn.training.trainer import UnlearningTrainer


class TrainingFreeTrainer(UnlearningTrainer):
    """Base of the methods that compute the new weights in one go: `train()` calls `edit`, `save_model()` is as ever.

    Every process computes the same edit. `learning_rate`, `num_train_epochs` and the like have no effect.

    Raises:
        ValueError: an update rule, or a checkpoint to resume from: there are no steps.
    """

    needs_gradients = False

    def __init__(self, model, args: UnlearningConfig | None = None, *positional, **keywords):
        if args is not None and args.update_rule != "add":
            raise ValueError(
                f"You set update_rule={args.update_rule!r}, but {type(self).__name__} takes no steps that a rule could "
                'change. Either set update_rule="add", or choose a method that trains (graddiff, npo).'
            )
        if args is not None and (args.fsdp or args.deepspeed):
            raise ValueError(
                f"{type(self).__name__} needs whole weights, which FSDP and DeepSpeed spread. Run one process, or DDP."
            )
        super().__init__(model, args, *positional, **keywords)

    def edit(self) -> None:
        """Change the weights of `self.model`, of the parameters that require a gradient."""
        raise NotImplementedError

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        if resume_from_checkpoint:
            raise ValueError(
                f"{type(self).__name__} takes no steps, so there is no checkpoint to resume from. Run it."
            )
        start = time.time()
        self.is_in_train = True
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self.model.eval()
        self._prepare()
        self.edit()
        self._finish()
        self.is_in_train = False
        metrics = {"train_runtime": time.time() - start}
        self.log(metrics)
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        return TrainOutput(0, 0.0, metrics)
