"""Arguments of an unlearning run: transformers' `TrainingArguments` and the four axes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import ClassVar

from transformers import TrainingArguments

from hf_unlearn.training.updates import UPDATE_RULES


@dataclass
class UnlearningConfig(TrainingArguments):
    """`TrainingArguments` and what every method shares. The loss is `forget_weight * L_f + retain_weight * L_r`.

    Parameters:
        forget_weight (`float`, *optional*, defaults to `1.0`): gamma, the weight of the forget loss.
        retain_weight (`float`, *optional*, defaults to `1.0`): alpha, the weight of the retain loss.
        retain_loss (`str`, *optional*, defaults to `"nll"`): `"nll"`, mean negative log-likelihood of the retain
            answers; `"kl"`, mean KL(reference || model) over their positions; or `"none"`.
        update_rule (`str`, *optional*, defaults to `"add"`): how the forget and the retain gradient become one step:
            `"add"`, `"project"`, `"orthogonal"`, `"gru"` or `"subspace"` (see `hf_unlearn.training.updates`).
        gru_gamma (`float`, *optional*, defaults to `0.8`): for `update_rule="gru"`, the weight of the new retain gradient
            in the running average (arXiv 2503.09117).
        subspace_energy (`float`, *optional*, defaults to `0.95`): for `update_rule="subspace"`, the share of the energy of
            the retain set's inputs that is protected (0.95 to 0.99 in arXiv 2103.09762).
        trainable (`str`, *optional*): regular expression; only parameters whose whole name matches may move.
        trainable_layers (`list[int]`, *optional*): only parameters of these layers may move, counted through all stages
            of a backbone with stages; negative indices count from the last. With `trainable`, both must hold.
        saliency (`float`, *optional*): only this share of the entries of the weights may move: those with the largest
            gradient of the forget set's likelihood (arXiv 2310.12508 takes 0.5).
        singular_rank (`int`, *optional*): only weight matrices may move, and only within this many of their
            singular directions (see [`~hf_unlearn.training.constraints.SingularSubspace`]).
        singular_part (`str`, *optional*, defaults to `"top"`): directions with the `"top"` or `"bottom"` singular values.
        disable_dropout (`bool`, *optional*, defaults to `True`): train without the dropout of the model (stochastic depth,
            `lora_dropout` and noise of routers as well). What a loss compares with has none, and nor has an audit. The saved
            config keeps it.
        max_length (`int`, *optional*): longest row in tokens. Defaults to the context of the model.
        truncate (`bool`, *optional*, defaults to `False`): cut longer rows instead of raising an error.
        stop_when_forgotten (`bool`, *optional*, defaults to `True`): stop at the first evaluation in which the losses of
            the forget set are no longer lower than those of data never trained on, and keep the weights of the nearest
            evaluation (see [`~hf_unlearn.training.stopping.StopWhenForgotten`]). Needs evaluation sets named
            `"forget"` and `"holdout"`. More forgotten than never seen is over-forgetting, and can be detected.
        stop_level (`float`, *optional*, defaults to `0.5`): level of the one-sided Mann-Whitney U test that decides.
    """

    retain_losses: ClassVar = ("nll", "kl", "none")
    #: Options that must be above 0, at least 0 and at least 1, where they are set; each config class names its own.
    positive: ClassVar = ()
    not_negative: ClassVar = ()
    at_least_one: ClassVar = ()
    #: Why the method cannot do without its retain loss, where it cannot.
    needs_retain: ClassVar[str | None] = None

    forget_weight: float = field(default=1.0, metadata={"help": "Weight of the forget loss."})
    retain_weight: float = field(default=1.0, metadata={"help": "Weight of the retain loss."})
    retain_loss: str = field(default="nll", metadata={"help": "Loss on the retain set: nll, kl or none."})
    update_rule: str = field(
        default="add", metadata={"help": "How two gradients become one step.", "choices": tuple(UPDATE_RULES)}
    )
    gru_gamma: float = field(default=0.8, metadata={"help": "Weight of the new retain gradient in GRU's average."})
    subspace_energy: float = field(default=0.95, metadata={"help": "Share of the retain set's energy to protect."})
    trainable: str | None = field(
        default=None, metadata={"help": "Regular expression of the parameters that may move."}
    )
    trainable_layers: list[int] | None = field(default=None, metadata={"help": "Layers whose parameters may move."})
    saliency: float | None = field(default=None, metadata={"help": "Share of the weights' entries that may move."})
    singular_rank: int | None = field(
        default=None, metadata={"help": "Singular directions of a weight that may move."}
    )
    singular_part: str = field(default="top", metadata={"help": "Which of them.", "choices": ("top", "bottom")})
    disable_dropout: bool = field(default=True, metadata={"help": "Train without the dropout of the model."})
    max_length: int | None = field(default=None, metadata={"help": "Longest row in tokens; default: the context."})
    truncate: bool = field(default=False, metadata={"help": "Cut longer rows instead of raising an error."})
    stop_when_forgotten: bool = field(
        default=True, metadata={"help": "Stop when the forget losses are no longer below those of the holdout."}
    )
    stop_level: float = field(default=0.5, metadata={"help": "Level of the one-sided test that stops."})
    # The rows are pairs of forget and retain, not columns of a model's forward.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay false."})
    # A loss that is not finite ends the training with an error, so nothing is left to filter from the log.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A loss that is not finite is an error."})

    @property
    def reads_retain(self) -> bool:
        """Whether there is a retain loss, so that retain rows are run through the model."""
        return self.retain_loss != "none" and self.retain_weight > 0

    def __post_init__(self):
        if self.push_to_hub:
            raise ValueError(
                "You set push_to_hub=True, but the Trainer uploads the whole output folder, with optimizer states and weights "
                "that still remember. Leave it off, and push the final checkpoint after its audit: model.push_to_hub(...)."
            )
        if "wandb" in self.report_to and os.environ.get("WANDB_LOG_MODEL", "false").lower() not in ("false", "0", ""):
            raise ValueError(
                "WANDB_LOG_MODEL is set, which uploads checkpoints with optimizer states. Either unset it, or leave wandb out "
                "of report_to."
            )
        if self.needs_retain and not (self.retain_loss in self.retain_losses and self.reads_retain):
            raise ValueError(
                f"You set retain_loss={self.retain_loss!r} with retain_weight={self.retain_weight}, but {self.needs_retain}. "
                f'Set retain_loss="{self.retain_losses[0]}" and a positive retain_weight.'
            )
        if self.retain_loss not in self.retain_losses:
            raise ValueError(
                f"You set retain_loss={self.retain_loss!r}, which is none of {', '.join(self.retain_losses)}."
            )
        for option in fields(self):
            value, choices = getattr(self, option.name), option.metadata.get("choices")
            if choices and value not in choices and option.name not in TrainingArguments.__dataclass_fields__:
                raise ValueError(f"You set {option.name}={value!r}, which is none of {', '.join(choices)}.")
        bounds = [(name, lambda value: value > 0, "be positive") for name in self.positive]
        bounds += [(name, lambda value: value >= 0, "not be negative") for name in self.not_negative]
        bounds += [(name, lambda value: value >= 1, "be at least 1") for name in ("singular_rank", *self.at_least_one)]
        for name, holds, must in bounds:
            if (value := getattr(self, name)) is not None and not holds(value):
                raise ValueError(f"You set {name}={value}, but it must {must}.")
        for name in ("forget_weight", "retain_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"You set {name}={getattr(self, name)}, but a weight is not negative: all losses are minimized, and "
                    "one that is ascended has its sign inside."
                )
        for name in ("gru_gamma", "subspace_energy", "saliency"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) <= 1:
                raise ValueError(f"You set {name}={getattr(self, name)}, but it is a share, above 0 and at most 1.")
        if not 0 < self.stop_level < 1:
            raise ValueError(f"You set stop_level={self.stop_level}, but the level of a test is between 0 and 1.")
        if self.remove_unused_columns:
            raise ValueError("You set remove_unused_columns=True, which would drop the pairs. Leave it false.")
        if self.label_smoothing_factor or self.use_liger_kernel:
            raise ValueError(
                "label_smoothing_factor and use_liger_kernel change the loss that a model computes, but here the method "
                "computes it. Leave both off."
            )
        super().__post_init__()
