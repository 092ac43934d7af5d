"""Weighted gradient ascent."""

from dataclasses import dataclass, field

from hf_unlearn.models.likelihood import TargetLogits
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer


@dataclass
class WGAConfig(UnlearningConfig):
    """Options of [`WGATrainer`].

    Parameters:
        beta (`float`, *optional*, defaults to `1.0`): exponent of the weight; 0 is gradient ascent. Default of the paper
            (arXiv 2502.19301).
    """

    beta: float = field(default=1.0, metadata={"help": "Exponent of the weight; 0 is gradient ascent."})

    not_negative = ("beta",)


class WGATrainer(UnlearningTrainer):
    """Gradient ascent in which a token weighs as much as it is still likely: `L_f = mean over tokens of
    sg[p(y_t)^beta] ln p(y_t)`.

    Plain ascent has the largest gradient on tokens that are unlikely already, and next to none on those the model is sure
    of. The weight turns that around, so that forgotten answers end up about as unlikely as unseen ones.

    Source: Wang et al., Rethinking LLM Unlearning Objectives, arXiv 2502.19301.

    Example:
        >>> from hf_unlearn import WGAConfig, WGATrainer
        >>> trainer = WGATrainer("my-model", WGAConfig("unlearned", beta=1.0), forget, retain)
        >>> trainer.train()
    """

    config_class = WGAConfig

    def forget_loss(self, forget: TargetLogits):
        weight = (self.args.beta * forget.log_probs.detach()).exp()
        return forget.token_mean(weight * forget.log_probs)
