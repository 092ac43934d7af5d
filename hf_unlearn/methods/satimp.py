"""SatImp: gradient ascent weighted by saturation and importance."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_unlearn.models.likelihood import TargetLogits
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer


def satimp_loss(log_probs: Tensor, beta1: float, beta2: float) -> Tensor:
    """`sg[p^beta1 (1 - p)^beta2] ln p` of each token, from its `ln p`."""
    constant = log_probs.detach()
    return (beta1 * constant).exp() * (-torch.expm1(constant)).pow(beta2) * log_probs


@dataclass
class SatImpConfig(UnlearningConfig):
    """Options of [`SatImpTrainer`]; defaults of the authors' README. The settings file beside it swaps the two weights.

    Parameters:
        beta1 (`float`, *optional*, defaults to `5.0`): exponent of `p`; the larger, the less ascent on tokens that are
            unlikely already.
        beta2 (`float`, *optional*, defaults to `1.0`): exponent of `1 - p`; the larger, the less ascent on tokens that
            the model is sure of. 0 is weighted gradient ascent.
        retain_weight (`float`, *optional*, defaults to `0.1`): weight of the retain loss.
    """

    beta1: float = field(default=5.0, metadata={"help": "Exponent of p: spares tokens that are unlikely already."})
    beta2: float = field(default=1.0, metadata={"help": "Exponent of 1 - p: spares tokens that are sure."})
    retain_weight: float = field(default=0.1, metadata={"help": "Weight of the retain loss."})

    not_negative = ("beta1", "beta2")


class SatImpTrainer(UnlearningTrainer):
    """Gradient ascent in which tokens weigh most that are likely but not sure: `L_f = mean over tokens of
    sg[p(y_t)^beta1 (1 - p(y_t))^beta2] ln p(y_t)`.

    With `beta2 = 0` it is weighted gradient ascent, with both 0 gradient ascent.

    Source: Yang et al., Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning, arXiv 2505.11953.

    Example:
        >>> from hf_unlearn import SatImpConfig, SatImpTrainer
        >>> trainer = SatImpTrainer("my-model", SatImpConfig("unlearned", beta1=5.0, beta2=1.0), forget, retain)
        >>> trainer.train()
    """

    config_class = SatImpConfig

    def forget_loss(self, forget: TargetLogits):
        return forget.token_mean(satimp_loss(forget.log_probs, self.args.beta1, self.args.beta2))
