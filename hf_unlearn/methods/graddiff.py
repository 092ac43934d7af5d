"""Gradient difference."""

from dataclasses import dataclass, field

from hf_unlearn.methods.ga import GradientAscentTrainer
from hf_unlearn.training import UnlearningConfig
from hf_unlearn.training.updates import UPDATE_RULES


@dataclass
class GradDiffConfig(UnlearningConfig):
    """Options of [`GradDiffTrainer`]: those of [`UnlearningConfig`], weights 1 and 1 (TOFU, arXiv 2401.06121).

    `NegGrad+` with mixing weight `a` is `retain_weight=a, forget_weight=1-a`.
    """


class GradDiffTrainer(GradientAscentTrainer):
    """Ascend on the forget set, descend on the retain set: `L = -gamma NLL(forget) + alpha NLL(retain)`.

    With `retain_loss="kl"` the retain term is KL(reference || model), the KL variant of TOFU.

    Source: Liu et al., Continual Learning and Private Unlearning, arXiv 2203.12817; Maini et al., TOFU, arXiv
    2401.06121. Unbounded below, as gradient ascent is.

    Example:
        >>> from hf_unlearn import GradDiffConfig, GradDiffTrainer
        >>> watched = {"forget": forget, "holdout": holdout}
        >>> config = GradDiffConfig("unlearned", retain_loss="kl", eval_strategy="epoch")
        >>> trainer = GradDiffTrainer("my-model", config, forget, retain, watched)
        >>> trainer.train()
    """

    config_class = GradDiffConfig


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

    It is [`GradDiffTrainer`] with `update_rule="project"`, an option that every method with two losses has.

    Source: Yu et al., Gradient Surgery for Multi-Task Learning, arXiv 2001.06782, on the forget side only, as in A-GEM,
    arXiv 1812.00420.

    Example:
        >>> from hf_unlearn import GradientProjectionConfig, GradientProjectionTrainer
        >>> watched = {"forget": forget, "holdout": holdout}
        >>> config = GradientProjectionConfig("unlearned", eval_strategy="epoch")
        >>> trainer = GradientProjectionTrainer("my-model", config, forget, retain, watched)
        >>> trainer.train()
    """

    config_class = GradientProjectionConfig
