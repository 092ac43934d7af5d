"""Selective synaptic dampening."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.utils import logging

from hf_unlearn.curvature.importance import squared_gradients
from hf_unlearn.training import UnlearningConfig
from hf_unlearn.training.edit import TrainingFreeTrainer


logger = logging.get_logger(__name__)


def dampening(forget: Tensor, everything: Tensor, alpha: float, lambda_: float) -> Tensor:
    """Factor of each weight: `min(lambda I_D / I_f, 1)` where `I_f > alpha I_D`, else 1, from the importance (>= 0) of
    each weight to the forget set, I_f, and to all data, I_D."""
    factor = (lambda_ * everything / torch.where(forget > 0, forget, 1)).clamp(max=1)
    return torch.where(forget > alpha * everything, factor, 1)


@dataclass
class SSDConfig(UnlearningConfig):
    """Options of [`SSDTrainer`].

    Parameters:
        alpha (`float`, *optional*, defaults to `10.0`): a weight is dampened if it matters this many times more to the
            forget set than to all data: lower dampens more. Default of the paper's code, which takes 5 for a ViT.
        lambda_ (`float`, *optional*, defaults to `1.0`): lower dampens each weight more. Default of the paper's code.
        max_rows (`int`, *optional*): rows of each set, evenly spread, to measure importance on. Defaults to all.
    """

    alpha: float = field(default=10.0, metadata={"help": "How selective: lower dampens more weights."})
    lambda_: float = field(default=1.0, metadata={"help": "How strong: lower dampens each weight more."})
    max_rows: int | None = field(default=None, metadata={"help": "Rows of each set to measure on."})

    positive = ("alpha", "lambda_")
    at_least_one = ("max_rows",)
    needs_retain = "the method compares the forget set with the retain set"


class SSDTrainer(TrainingFreeTrainer):
    """Dampen the weights that matter to the forget set much more than to all data, without training.

    Importance is the diagonal of the Fisher information, from the gradient of each row (for text a row is a sequence, its
    loss the sum over the answer). `theta_i <- theta_i min(lambda I_D / I_f, 1)` where `I_f > alpha I_D`, and D is the
    forget and the retain set together.

    Source: Foster et al., Fast Machine Unlearning without Retraining through Selective Synaptic Dampening, arXiv
    2308.07707.

    Example:
        >>> from hf_unlearn import SSDConfig, SSDTrainer
        >>> trainer = SSDTrainer("my-model", SSDConfig("unlearned", alpha=10.0, lambda_=1.0), forget, retain)
        >>> trainer.train()
    """

    config_class = SSDConfig
    needs_gradients = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        forget, retain = len(self.train_dataset.forget), len(self.train_dataset.retain)
        self._share = forget / (forget + retain)
        if self.args.alpha * self._share >= 1:
            # I_D = share I_f + (1 - share) I_r is at least share I_f.
            raise ValueError(
                f"You set alpha={self.args.alpha}, but the forget set is {self._share:.1%} of all data, and no weight matters "
                f"more than {1 / self._share:.3g} times as much to it: none would be dampened. Either set a lower alpha, or "
                "give all of the retain set."
            )

    def edit(self):
        data, limit = self.train_dataset, self.args.max_rows
        forget = squared_gradients(self.model, self.batches(data.forget, limit=limit), self.trainable_names)
        retain = squared_gradients(self.model, self.batches(data.retain, limit=limit), self.trainable_names)
        parameters = dict(self.model.named_parameters())
        dampened = 0
        with torch.no_grad():
            for name, importance in forget.items():
                everything = self._share * importance + (1 - self._share) * retain[name]
                factor = dampening(importance, everything, self.args.alpha, self.args.lambda_)
                parameters[name].mul_(factor.to(parameters[name].dtype))
                dampened += int((factor < 1).sum())
        self.log({"dampened": dampened / sum(value.numel() for value in forget.values())})
        if not dampened:
            logger.warning("No weight was dampened, so the model is unchanged. Set a lower alpha or lambda_.")
