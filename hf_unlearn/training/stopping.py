"""When the training stops: where the forget set is like data never trained on, and no further."""

from __future__ import annotations

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.utils import logging


logger = logging.get_logger(__name__)


def compare_losses(forget: np.ndarray, never_trained: np.ndarray) -> dict[str, float]:
    """Whether the losses of the forget rows are lower than those of rows never trained on.

    Args:
        forget, never_trained (`(n,)`, `(m,)`): mean loss per target of each row, in nats.

    Returns:
        `auc`: share of pairs in which the forget row has the higher loss, ties half; 0.5 where the sets cannot be told
        apart, lower where the forget set is remembered, higher where it is over-forgotten. One minus it is the AUC of
        the membership attack by loss. `p_value`: of the one-sided Mann-Whitney U test with the alternative that the
        forget losses are lower: small while the set is remembered.
    """
    from scipy.stats import mannwhitneyu  # half a second, for a test that not every run makes

    test = mannwhitneyu(forget, never_trained, alternative="less")
    return {"auc": float(test.statistic) / (len(forget) * len(never_trained)), "p_value": float(test.pvalue)}


class StopWhenForgotten(TrainerCallback):
    """Ends the training when the forget set is like data never trained on, and goes back to the nearest evaluation.

    Stops at the first evaluation in which a one-sided Mann-Whitney U test does not find the losses of the forget rows
    lower at `level`. At 0.5 they are higher as often as lower; the usual 0.05 stops as soon as the test sees no
    difference, which with few rows is early. The weights kept are those of the evaluation whose AUC is nearest to 0.5,
    which may be the one before the last.

    Args:
        trainer ([`UnlearningTrainer`])
        level (`float` or `None`): of the test; with `None` it compares, and never stops.

    Attributes:
        never_trained (`(m,)` or `None`): losses to compare with, e.g. of the forget rows under a retrained model; `None`
            for those of the set `"holdout"` under the model in training.
    """

    def __init__(self, trainer, level: float | None):
        self.trainer, self.level = trainer, level
        self.never_trained: np.ndarray | None = None
        self._reset()

    def _reset(self):
        self._best, self._step, self._stopped_at = float("inf"), None, None
        self._weights: dict[str, torch.Tensor] | None = None

    def judge(self, losses: dict[str, np.ndarray]) -> dict[str, float]:
        """Compare after an evaluation, and keep the weights or stop. Returns what is to be logged."""
        never_trained = losses["holdout"] if self.never_trained is None else self.never_trained
        result = compare_losses(losses["forget"], never_trained)
        if self.trainer.is_in_train and self.level is not None:
            self.decide(result, losses)
        return result

    def decide(self, result: dict[str, float], losses: dict[str, np.ndarray]) -> None:
        """Keep the weights of this evaluation if they are the best so far, and stop if it is time."""
        self.keep_if_better(abs(result["auc"] - 0.5))
        if result["p_value"] >= self.level:
            self.stop()

    def stop(self):
        self._stopped_at = self.trainer.state.global_step
        self.trainer.control.should_training_stop = True

    def keep_if_better(self, distance: float):
        if distance < self._best:
            self._best = distance
            self.keep()

    def keep(self):
        self._step = self.trainer.state.global_step
        movable = ((name, p) for name, p in self.trainer.model.named_parameters() if p.requires_grad)
        self._weights = {name: p.detach().to("cpu", copy=True) for name, p in movable}

    def on_train_begin(self, args, state, control, **kwargs):
        self._reset()

    def on_train_end(self, args, state, control, model=None, **kwargs):
        # Only after a stop: a run that ended by itself did not stop too late.
        if self._stopped_at in (None, self._step) or self._weights is None or args.load_best_model_at_end:
            self._weights = None
            return
        logger.info(f"Going back from step {self._stopped_at} to step {self._step}.")
        parameters = dict(self.trainer.model.named_parameters())
        with torch.no_grad():
            for name, value in self._weights.items():
                parameters[name].copy_(value)
        self._weights = None


class StopWhenRelearned(StopWhenForgotten):
    """Ends a repair when the forget set begins to come back, and goes back to the best evaluation before that.

    Stops at the first evaluation in which the test finds the losses of the forget rows lower, at `level`. The weights kept
    are those of the earlier evaluation with the lowest loss on the set `"retain"`; where there is none, those of the start.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.level is not None:
            self.keep()  # to go back to where no evaluation is good

    def decide(self, result, losses):
        if result["p_value"] < self.level:
            self.stop()
        else:
            step = self.trainer.state.global_step
            self.keep_if_better(float(losses["retain"].mean()) if "retain" in losses else -step)
