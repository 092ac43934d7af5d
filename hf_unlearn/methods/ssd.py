"""Selective synaptic dampening."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_unlearn.training import UnlearningConfig
from hf_unlearn.training.edit import TrainingFreeTrainer
from hf_unlearn.training.importance import squared_gradients


def dampening(forget: Tensor, everything: Tensor, alpha: float, lambda_: float) -> Tensor:
    """Factor of each weight: `min(lambda I_D / I_f, 1)` where `I_f > alpha I_D`, else 1.

    Args:
        forget, everything (`Tensor`): importance of each weight to the forget set and to all of the data, >= 0.
    """
    factor = (lambda_ * everything / forget.clamp(min=torch.finfo(forget.dtype).tiny)).clamp(max=1)
    return torch.where(forget > alpha * everything, factor, torch.ones_like(factor))


@dataclass
class SSDConfig(UnlearningConfig):
    """Options of [`SSDTrainer`].

    Parameters:
        alpha (`float`, *optional*, defaults to `10.0`): a weight is dampened if it matters this many times more to the
            forget set than to all data: lower dampens more. Default of the paper's code; for a ViT it takes 5.
        lambda_ (`float`, *optional*, defaults to `1.0`): lower dampens each weight more. Default of the paper's code.
        max_rows (`int`, *optional*): rows of each set that the importance is measured on, evenly spread; default: all.
    """

    alpha: float = field(default=10.0, metadata={"help": "How selective: lower dampens more weights."})
    lambda_: float = field(default=1.0, metadata={"help": "How strong: lower dampens each weight more."})
    max_rows: int | None = field(default=None, metadata={"help": "Rows of each set to measure on."})

    def __post_init__(self):
        for name in ("alpha", "lambda_"):
            if not getattr(self, name) > 0:
                raise ValueError(f"You set {name}={getattr(self, name)}, but it must be positive.")
        super().__post_init__()


class SSDTrainer(TrainingFreeTrainer):
    """Dampen the weights that matter to the forget set much more than to all data, without training.

    Importance is the diagonal of the Fisher information, from the gradient of each row (for text a row is a sequence, its
    loss the sum over the answer). `theta_i <- theta_i min(lambda I_D / I_f, 1)` where `I_f > alpha I_D`, and D is the
    forget and the retain set together.

    Source: Foster et al., Fast Machine Unlearning without Retraining through Selective Synaptic Dampening, arXiv
    2308.07707.
    """

    config_class = SSDConfig
    needs_gradients = True

    def edit(self):
        data, limit = self.train_dataset, self.args.max_rows
        forget = squared_gradients(self.model, self.batches(data.forget, limit=limit), self.trainable_names)
        retain = squared_gradients(self.model, self.batches(data.retain, limit=limit), self.trainable_names)
        share = len(data.forget) / (len(data.forget) + len(data.retain))
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, importance in forget.items():
                everything = share * importance + (1 - share) * retain[name]
                factor = dampening(importance, everything, self.args.alpha, self.args.lambda_)
                parameters[name].mul_(factor.to(parameters[name].dtype))
