"""Distillation from a teacher that has been cleaned of the forget set."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hf_unlearn.methods.divergence import kl_divergence, kl_from_uniform, without_target
from hf_unlearn.methods.fresh import fresh_copy
from hf_unlearn.models.likelihood import TargetLogits
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer
from hf_unlearn.training.constraints import constraints_of


CLEANED = ("suppressed", "uniform", "random", "none")


@dataclass
class DistillationConfig(UnlearningConfig):
    """Options of [`DistillationTrainer`].

    Parameters:
        on_forget (`str`, *optional*, defaults to `"suppressed"`): what the teacher says on the forget set: `"suppressed"`,
            its own distribution with the true target ruled out and the rest in proportion; `"uniform"`, all classes
            equally likely; `"random"`, what a network with new weights says; or `"none"`: the student never sees the
            forget set, and an epoch is one over the retain set.
        fresh_student (`bool`, *optional*, defaults to `False`): start the student from new weights, drawn from the seed,
            not from the teacher's.
        temperature (`float`, *optional*, defaults to `1.0`): of teacher and student.
        retain_loss (`str`, *optional*, defaults to `"kl"`): the teacher on the retain set is the model at its start.
    """

    on_forget: str = field(default="suppressed", metadata={"help": "The teacher on forget.", "choices": CLEANED})
    fresh_student: bool = field(default=False, metadata={"help": "Start from new weights."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of teacher and student."})
    retain_loss: str = field(default="kl", metadata={"help": "Must be kl."})

    positive = ("temperature",)
    retain_losses = ("kl",)
    needs_retain = "the student learns from the teacher on the retain set"

    def __post_init__(self):
        if self.on_forget == "none" and self.update_rule != "add":
            raise ValueError(
                f'You set update_rule={self.update_rule!r} with on_forget="none", where there is one loss, and so no two '
                'gradients. Set update_rule="add".'
            )
        if self.fresh_student:
            self._check_fresh()
        super().__post_init__()

    def _check_fresh(self):
        if held := constraints_of(self):
            raise ValueError(
                f"You set fresh_student=True with {' and '.join(held)}, which keeps weights near those of the teacher. "
                "Leave it out, or set fresh_student=False."
            )
        if self.stop_when_forgotten and self.eval_strategy != "no":
            raise ValueError(
                "You set fresh_student=True and eval_strategy with stop_when_forgotten, but a student from new weights has "
                "nothing to forget and would stop at once. Set stop_when_forgotten=False."
            )


class DistillationTrainer(UnlearningTrainer):
    """Teach a student what the model says, except on the forget set.

    `L = gamma mean over forget targets KL(cleaned teacher || p) + alpha mean over retain targets KL(teacher || p)`; the
    teacher is the model at its start. Even a fresh student that never sees the forget set may inherit something of it,
    through what the teacher says on the retain set: this is approximate.

    Source: Hinton et al., arXiv 1503.02531; with suppressed targets, in the manner of Dong et al., UNDIAL, arXiv
    2402.10052, and Yang, CE-U, arXiv 2503.01224.

    Example:
        >>> from hf_unlearn import DistillationConfig, DistillationTrainer
        >>> config = DistillationConfig(output_dir="unlearned", on_forget="uniform")
        >>> trainer = DistillationTrainer("my-model", config, parts.forget, parts.retain)
        >>> trainer.train()
    """

    config_class = DistillationConfig
    reference = "logits"
    retain_reference = True

    def __init__(self, model, args: DistillationConfig | None = None, *positional, **keywords):
        on_forget = getattr(args, "on_forget", "suppressed")
        if on_forget != "suppressed":
            self.reference = "teacher"  # the start is asked on the retain set alone
        self.reads_forget = on_forget != "none"
        super().__init__(model, args, *positional, **keywords)
        if on_forget == "random":
            self.teacher = fresh_copy(self.model, self.args.seed).requires_grad_(False).eval()
        if self.args.fresh_student:
            self._forget_everything()

    @torch.no_grad()
    def _forget_everything(self):
        # Not before: the reference has taken the values of the start by now.
        if not all(p.requires_grad for p in self.model.parameters()):
            raise ValueError(
                "You set fresh_student=True, but some weights may not move and would stay the teacher's. Leave out "
                "trainable, trainable_layers and adapters, or set fresh_student=False."
            )
        fresh = dict(fresh_copy(self.model, self.args.seed).named_parameters())
        for name, parameter in self.model.named_parameters():
            parameter.copy_(fresh[name])

    def forget_loss(self, forget: TargetLogits, reference: TargetLogits | None = None):
        temperature = self.args.temperature
        if reference is None:
            return forget.token_mean(kl_from_uniform(forget.logits, temperature))
        teacher = reference.logits
        if self.args.on_forget == "suppressed":
            teacher = without_target(teacher, reference.targets)
        return forget.token_mean(kl_divergence(teacher, forget.logits, temperature))

    def retain_loss(self, retain: TargetLogits, reference: TargetLogits):
        return retain.token_mean(kl_divergence(reference.logits, retain.logits, self.args.temperature))
