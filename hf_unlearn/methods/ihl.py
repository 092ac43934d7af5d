"""Inverted hinge loss."""

from dataclasses import dataclass

from torch import Tensor

from hf_unlearn.models.likelihood import TargetLogits
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer


def inverted_hinge_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """`1 + p_y - max_{v != y} p_v` of each position, from logits `(n, n_classes)`; between 0 and 2."""
    p = logits.softmax(-1)
    own = p.gather(1, targets[:, None])[:, 0]
    runner_up = p.scatter(1, targets[:, None], -1.0).amax(-1)
    return 1 + own - runner_up


@dataclass
class InvertedHingeConfig(UnlearningConfig):
    """Options of [`InvertedHingeTrainer`]: those of [`UnlearningConfig`]."""


class InvertedHingeTrainer(UnlearningTrainer):
    """Let the next best token overtake the true one: `L_f = mean over tokens of 1 + p(y_t) - max over v != y_t of p(v)`.

    Only the logits of these two are moved by much, while gradient ascent raises all the others. The gradient is bounded
    and vanishes once the runner-up is sure. The loss of LoKU, without the initialization of its adapter.

    Source: Cha et al., Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs, arXiv 2408.06621.

    Example:
        >>> from hf_unlearn import InvertedHingeConfig, InvertedHingeTrainer
        >>> trainer = InvertedHingeTrainer("my-model", InvertedHingeConfig("unlearned"), forget, retain)
        >>> trainer.train()
    """

    config_class = InvertedHingeConfig

    def forget_loss(self, forget: TargetLogits):
        return forget.token_mean(inverted_hinge_loss(forget.logits, forget.targets))
