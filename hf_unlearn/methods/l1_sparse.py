"""Fine-tuning on the retain set with a penalty that makes weights sparse."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hf_unlearn.methods.finetune import FineTuneConfig, FineTuneTrainer
from hf_unlearn.models.likelihood import TargetLogits


def l1_norm(parameters: list[nn.Parameter]) -> Tensor:
    """`||theta||_1`, accumulated in float32 at least."""
    return torch.stack([p.abs().sum(dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]).sum()


@dataclass
class L1SparseConfig(FineTuneConfig):
    """Options of [`L1SparseTrainer`].

    Parameters:
        gamma (`float`, *optional*, defaults to `5e-4`): weight of the penalty at the first step; the paper (arXiv
            2304.04934) uses 1e-5 to 5e-4.
        penalize_vectors (`bool`, *optional*, defaults to `False`): penalize parameters with one axis as well, which are
            biases and the weights of normalization layers.
    """

    gamma: float = field(default=5e-4, metadata={"help": "Weight of the penalty at the first step."})
    penalize_vectors: bool = field(
        default=False, metadata={"help": "Penalize biases and normalization weights as well."}
    )

    not_negative = ("gamma",)


class L1SparseTrainer(FineTuneTrainer):
    """Train on the retain set with a penalty on the size of the weights: `L = mean over retain tokens of -ln p(y_t) +
    gamma_t ||theta||_1`, where `gamma_t` falls linearly to 0 at the last step. Weights that only the forget set needs
    shrink.

    Source: Jia et al., Model Sparsity Can Simplify Machine Unlearning, arXiv 2304.04934.

    Example:
        >>> from hf_unlearn import L1SparseConfig, L1SparseTrainer
        >>> trainer = L1SparseTrainer("my-model", L1SparseConfig("unlearned", gamma=5e-4), forget, retain)
        >>> trainer.train()
    """

    config_class = L1SparseConfig

    def prepare(self):
        if not self.penalized():
            raise ValueError(
                "No parameter that may move has two axes, so nothing is penalized. Either select matrices with trainable "
                "and trainable_layers, or set penalize_vectors=True."
            )

    def penalized(self) -> list[nn.Parameter]:
        moving = [p for p in self.model.parameters() if p.requires_grad]
        return [p for p in moving if self.args.penalize_vectors or p.dim() > 1]

    def retain_loss(self, retain: TargetLogits, reference) -> Tensor:
        gamma = self.args.gamma * (1 - self.state.global_step / max(1, self.state.max_steps - 1))
        # Once per step, not once per micro-batch: the shares of the micro-batches and processes sum to 1.
        share = retain.token_mean(torch.ones_like(retain.log_probs))
        penalty = gamma * share * l1_norm(self.penalized())
        self.record({"l1_penalty": penalty})
        return super().retain_loss(retain, reference) + penalty
