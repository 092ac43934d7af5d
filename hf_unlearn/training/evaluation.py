"""Likelihoods of the evaluation sets, row by row, and the comparisons that are made with them during a run."""

from __future__ import annotations

import numpy as np
import torch
from transformers.trainer_utils import EvalPrediction

from hf_unlearn.models.likelihood import target_logits


class LikelihoodEvaluation:
    """The part of [`UnlearningTrainer`] that evaluates."""

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            out = target_logits(model, inputs)
            hits = out.sequence_sum((out.logits.argmax(-1) == out.targets).float())
        # One row per example: sums, so that the mean over targets does not depend on the batches.
        return None, torch.stack([-out.sequence_log_probs, hits], dim=-1), out.lengths

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if metric_key_prefix.startswith("eval_"):  # one of several sets
            self.eval_losses[metric_key_prefix.removeprefix("eval_")] = self._last_losses
        forget, holdout = (metrics.get(f"{metric_key_prefix}_{name}_loss") for name in ("forget", "holdout"))
        if forget is not None and holdout is not None:
            found = {"gap": abs(forget - holdout), **self.stopping.judge(self.eval_losses)}
            found = {f"{metric_key_prefix}_forget_{name}": value for name, value in found.items()}
            self.log(found)
            metrics |= found
        return metrics

    def _likelihood_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        sums, lengths = np.asarray(prediction.predictions, dtype=np.float64), np.asarray(prediction.label_ids)
        self._last_losses = sums[:, 0] / np.maximum(lengths, 1)
        nll, hits = sums.sum(0) / max(1, lengths.sum())
        return {"loss": float(nll), "accuracy": float(hits)}
