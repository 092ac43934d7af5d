"""UNDIAL: self-distillation with the logit of the true token lowered."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_unlearn.models.likelihood import TargetLogits
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer


def soft_cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """`-sum_v q_v ln p_v` of each position: `target` are probabilities q, `logits` those of p, `(n, n_classes)`."""
    return -torch.where(target > 0, target * logits.log_softmax(-1), 0.0).sum(-1)  # 0 ln 0 = 0


def undial_loss(logits: Tensor, reference_logits: Tensor, targets: Tensor, beta: float) -> Tensor:
    """`-sum_v q_v ln p_v` of each position, `q = softmax(reference_logits - beta 1_y)`, from logits `(n, n_classes)`."""
    lowered = reference_logits.scatter_add(1, targets[:, None], torch.full_like(reference_logits[:, :1], -beta))
    return soft_cross_entropy(lowered.softmax(-1), logits)


@dataclass
class UNDIALConfig(UnlearningConfig):
    """Options of [`UNDIALTrainer`]. The paper has no retain loss; `retain_loss="nll"` adds one.

    Parameters:
        beta (`float`, *optional*, defaults to `10.0`): by how much the logit of the true token is lowered. The paper
            (arXiv 2402.10052) searches 3, 10 and 30.
    """

    beta: float = field(default=10.0, metadata={"help": "By how much the logit of the true token is lowered."})
    retain_loss: str = field(default="none", metadata={"help": "Loss on the retain set: none, nll or kl."})

    not_negative = ("beta",)


class UNDIALTrainer(UnlearningTrainer):
    """Distil the model into itself, with the logit of the true token lowered in the teacher: `L_f = mean over tokens of
    -sum_v q(v) ln p(v)`, `q = softmax(z_ref - beta 1_y)`, where ref is the model at its start.

    The teacher stays where it is, so that the loss has a minimum and does not run away.

    Source: Dong et al., UNDIAL, arXiv 2402.10052.

    Example:
        >>> from hf_unlearn import UNDIALConfig, UNDIALTrainer
        >>> trainer = UNDIALTrainer("my-model", UNDIALConfig("unlearned", beta=10.0), forget)
        >>> trainer.train()
    """

    config_class = UNDIALConfig
    reference = "logits"

    def forget_loss(self, forget: TargetLogits, reference: TargetLogits):
        return forget.token_mean(undial_loss(forget.logits, reference.logits, forget.targets, self.args.beta))
