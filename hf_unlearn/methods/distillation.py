"""Distillation from a teacher that has been cleaned of the forget set."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hf_unlearn.likelihood import TargetLogits
from hf_unlearn.methods.divergence import kl_divergence, kl_from_uniform, without_target
from hf_unlearn.methods.fresh import fresh_copy
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer


CLEANED = ("suppressed", "uniform")


@dataclass
class DistillationConfig(UnlearningConfig):
    """Options of [`DistillationTrainer`].

    Parameters:
        on_forget (`str`, *optional*, defaults to `"suppressed"`): what the teacher says on the forget set: `"suppressed"`,
            its own distribution with the true target ruled out and the rest in proportion; or `"uniform"`, nothing. A
            teacher with random weights is [`BadTeacherTrainer`]'s. With `forget_weight=0` the student never learns of it.
        fresh_student (`bool`, *optional*, defaults to `False`): start the student from new weights, not from the teacher's.
        temperature (`float`, *optional*, defaults to `1.0`): of teacher and student.
        retain_loss (`str`, *optional*, defaults to `"kl"`): the teacher on the retain set is the model at its start.
    """

    on_forget: str = field(default="suppressed", metadata={"help": "The teacher on forget.", "choices": CLEANED})
    fresh_student: bool = field(default=False, metadata={"help": "Start from new weights."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of teacher and student."})
    retain_loss: str = field(default="kl", metadata={"help": "Must be kl."})

    def __post_init__(self):
        if self.on_forget not in CLEANED:
            raise ValueError(f"You set on_forget={self.on_forget!r}, which is none of {', '.join(CLEANED)}.")
        if self.retain_loss != "kl" or not self.retain_weight > 0:
            raise ValueError(
                f"You set retain_loss={self.retain_loss!r} with retain_weight={self.retain_weight}, but the student "
                'learns from the teacher on the retain set. Set retain_loss="kl" and a positive retain_weight.'
            )
        if not self.temperature > 0:
            raise ValueError(f"You set temperature={self.temperature}, but it must be positive.")
        super().__post_init__()


class DistillationTrainer(UnlearningTrainer):
    """Teach a student what the model says, except on the forget set.

    `L = gamma mean over forget targets KL(cleaned teacher || p) + alpha mean over retain targets KL(teacher || p)`; the
    teacher is the model at its start. Even a fresh student that never sees the forget set may inherit something of it,
    through what the teacher says on the retain set: this is approximate.

    Source: Hinton et al., arXiv 1503.02531; with suppressed targets, in the manner of Dong et al., UNDIAL, arXiv
    2402.10052, and Yang, CE-U, arXiv 2503.01224.
    """

    config_class = DistillationConfig
    reference = "logits"
    retain_reference = True

    def prepare(self):
        if self.args.fresh_student:
            # Not before: the reference has taken the values of the start by now.
            model = self.accelerator.unwrap_model(self.model)
            fresh = dict(fresh_copy(model, self.args.seed).named_parameters())
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if not parameter.requires_grad:
                        raise ValueError(
                            "You set fresh_student=True, but some weights may not move and would stay the teacher's. "
                            "Leave out trainable and trainable_layers, or set fresh_student=False."
                        )
                    parameter.copy_(fresh[name])

    def forget_loss(self, forget: TargetLogits, reference: TargetLogits):
        if self.args.on_forget == "uniform":
            return forget.token_mean(kl_from_uniform(forget.logits))
        cleaned = without_target(reference.logits, reference.targets)
        return forget.token_mean(kl_divergence(cleaned, forget.logits, self.args.temperature))

    def retain_loss(self, retain: TargetLogits, reference: TargetLogits):
        return retain.token_mean(kl_divergence(reference.logits, retain.logits, self.args.temperature))
