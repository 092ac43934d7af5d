"""SimNPO: negative preference optimization without a reference model."""

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from hf_unlearn.models.likelihood import TargetLogits
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer


def simnpo_loss(log_probs: Tensor, lengths: Tensor, beta: float, delta: float) -> Tensor:
    """`-(2 / beta) ln sigmoid(beta (NLL - delta))` of each sequence, NLL the mean over its tokens."""
    return -2 / beta * F.logsigmoid(beta * (-log_probs / lengths.clamp(min=1) - delta))


@dataclass
class SimNPOConfig(UnlearningConfig):
    """Options of [`SimNPOTrainer`]; defaults of the TOFU configuration of OpenUnlearning (arXiv 2506.12618).

    Parameters:
        beta (`float`, *optional*, defaults to `4.5`): inverse temperature.
        delta (`float`, *optional*, defaults to `0.0`): margin on the NLL per token, in nats: the paper's gamma / beta.
        forget_weight (`float`, *optional*, defaults to `0.125`): weight of the forget loss.
    """

    beta: float = field(default=4.5, metadata={"help": "Inverse temperature."})
    delta: float = field(default=0.0, metadata={"help": "Margin on the NLL per token, in nats."})
    forget_weight: float = field(default=0.125, metadata={"help": "Weight of the forget loss."})

    positive = ("beta",)


class SimNPOTrainer(UnlearningTrainer):
    """NPO with the length-normalized likelihood instead of the ratio to a reference: short answers weigh like long ones.

    `L_f = -(2 / beta) mean ln sigmoid(beta (NLL(y|x) - delta))`.

    Source: Fan et al., Simplicity Prevails, arXiv 2410.07163 (where delta = 0 for TOFU).

    Example:
        >>> from hf_unlearn import SimNPOConfig, SimNPOTrainer
        >>> trainer = SimNPOTrainer("my-model", SimNPOConfig("unlearned", beta=4.5, delta=0.0), forget, retain)
        >>> trainer.train()
    """

    config_class = SimNPOConfig

    def forget_loss(self, forget: TargetLogits):
        return forget.sequence_mean(
            simnpo_loss(forget.sequence_log_probs, forget.lengths, self.args.beta, self.args.delta)
        )
