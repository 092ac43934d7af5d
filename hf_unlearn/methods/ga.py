"""Gradient ascent."""

from dataclasses import dataclass, field

from hf_unlearn.models.likelihood import TargetLogits
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer


@dataclass
class GradientAscentConfig(UnlearningConfig):
    """Options of [`GradientAscentTrainer`]: those of [`UnlearningConfig`], without a retain loss by default."""

    retain_loss: str = field(default="none", metadata={"help": "Loss on the retain set: none, nll or kl."})


class GradientAscentTrainer(UnlearningTrainer):
    """Raise the negative log-likelihood of the forget set: `L_f = mean over tokens of ln p(y_t)`.

    Source: Jang et al., Knowledge Unlearning for Mitigating Privacy Risks in Language Models, arXiv 2210.01504.

    Unbounded below: it goes on to destroy the model. Keep `stop_when_forgotten` on and give `eval_dataset` a
    `"forget"` and a `"holdout"` set.

    Example:
        >>> from hf_unlearn import GradientAscentConfig, GradientAscentTrainer
        >>> watched = {"forget": forget, "holdout": holdout}
        >>> config = GradientAscentConfig("unlearned", eval_strategy="epoch")
        >>> trainer = GradientAscentTrainer("my-model", config, forget, eval_dataset=watched)
        >>> trainer.train()
    """

    config_class = GradientAscentConfig
    bounded = False

    def forget_loss(self, forget: TargetLogits):
        return forget.token_mean(forget.log_probs)
