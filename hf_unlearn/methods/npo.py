"""Negative preference optimization."""

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from hf_unlearn.models.likelihood import TargetLogits
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer


def npo_loss(log_probs: Tensor, reference_log_probs: Tensor, beta: float) -> Tensor:
    """`-(2 / beta) ln sigmoid(-beta (ln p - ln p_ref))` of each sequence, from log-probabilities summed over tokens."""
    return -2 / beta * F.logsigmoid(-beta * (log_probs - reference_log_probs))


@dataclass
class NPOConfig(UnlearningConfig):
    """Options of [`NPOTrainer`].

    Parameters:
        beta (`float`, *optional*, defaults to `0.1`): inverse temperature; towards 0 the loss becomes gradient ascent.
            Default of the paper (arXiv 2404.05868).
    """

    beta: float = field(default=0.1, metadata={"help": "Inverse temperature; towards 0 it is gradient ascent."})

    positive = ("beta",)


class NPOTrainer(UnlearningTrainer):
    """Preference optimization with only a losing answer: bounded, it slows down as the answer becomes unlikely.

    `L_f = -(2 / beta) mean ln sigmoid(-beta ln(p(y|x) / p_ref(y|x)))`, where ref is the model at its start.

    Source: Zhang et al., Negative Preference Optimization, arXiv 2404.05868.

    Example:
        >>> from hf_unlearn import NPOConfig, NPOTrainer
        >>> trainer = NPOTrainer("my-model", NPOConfig("unlearned", beta=0.1, retain_weight=2.0), forget, retain)
        >>> trainer.train()
    """

    config_class = NPOConfig
    reference = "log_probs"

    def forget_loss(self, forget: TargetLogits, reference: Tensor):
        return forget.sequence_mean(npo_loss(forget.sequence_log_probs, reference, self.args.beta))
