"""Gradient difference."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_unlearn.models.likelihood import TargetLogits
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer
from hf_unlearn.training.updates import UPDATE_RULES


@dataclass
class GradDiffConfig(UnlearningConfig):
    """Options of [`GradDiffTrainer`]: those of [`UnlearningConfig`], weights 1 and 1 (TOFU, arXiv 2401.06121).

    `NegGrad+` with mixing weight `a` is `retain_weight=a, forget_weight=1-a`.
    """


class GradDiffTrainer(UnlearningTrainer):
    """Ascend on the forget set, descend on the retain set: `L = -gamma NLL(forget) + alpha NLL(retain)`.

    With `retain_loss="kl"` the retain term is KL(reference || model), the KL variant of TOFU.

    Source: Liu et al., Continual Learning and Private Unlearning, arXiv 2203.12817; Maini et al., TOFU, arXiv
    2401.06121. Unbounded below, as gradient ascent is.

    Example:
        >>> from hf_unlearn import GradDiffConfig, GradDiffTrainer
        >>> watched = {"forget": parts.forget, "holdout": parts.holdout}
        >>> config = GradDiffConfig(output_dir="unlearned", retain_loss="kl", eval_strategy="epoch")
        >>> trainer = GradDiffTrainer("my-model", config, parts.forget, parts.retain, watched)
        >>> trainer.train()
    """

    config_class = GradDiffConfig
    bounded = False

    def forget_loss(self, forget: TargetLogits):
        return forget.token_mean(forget.log_probs)


@dataclass
class GradientProjectionConfig(GradDiffConfig):
    """Options of [`GradientProjectionTrainer`]: those of [`GradDiffConfig`].

    Parameters:
        update_rule (`str`, *optional*, defaults to `"project"`): how the two gradients become one step.
    """

    update_rule: str = field(
        default="project", metadata={"help": "How two gradients become one step.", "choices": tuple(UPDATE_RULES)}
    )


class GradientProjectionTrainer(GradDiffTrainer):
    """Gradient surgery: ascend on the forget set, without the part of the gradient that conflicts with the retain set.

    It is [`GradDiffTrainer`] with `update_rule="project"`; any other rule, and any other method with this rule, is a
    matter of configuration.

    Source: Yu et al., Gradient Surgery for Multi-Task Learning, arXiv 2001.06782, on the forget side only, as in A-GEM,
    arXiv 1812.00420.

    Example:
        >>> from hf_unlearn import GradientProjectionConfig, GradientProjectionTrainer
        >>> watched = {"forget": parts.forget, "holdout": parts.holdout}
        >>> config = GradientProjectionConfig(output_dir="unlearned", eval_strategy="epoch")
        >>> trainer = GradientProjectionTrainer("my-model", config, parts.forget, parts.retain, watched)
        >>> trainer.train()
    """

    config_class = GradientProjectionConfig
