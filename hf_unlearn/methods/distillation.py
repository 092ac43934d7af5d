"""Distillation from a teacher that has been cleaned of the forget set."""

from dataclasses import dataclass, field

import torch

from hf_unlearn.methods.teachers import fresh_copy, kl_divergence, kl_from_uniform, without_target
from hf_unlearn.models.likelihood import TargetLogits
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer
from hf_unlearn.training.constraints import constraints_of


CLEANED = ("suppressed", "uniform", "random", "none")


@dataclass
class DistillationConfig(UnlearningConfig):
    """Options of [`DistillationTrainer`].

    Parameters:
        on_forget (`str`, *optional*, defaults to `"suppressed"`): the teacher's answer on the forget set: `"suppressed"`,
            its own distribution with the true target ruled out and the rest in proportion; `"uniform"`, all classes
            equally likely; `"random"`, the answer of a network with new weights; or `"none"`: the student never sees the
            forget set, and an epoch is one pass over the retain set.
        fresh_student (`bool`, *optional*, defaults to `False`): start the student from new weights, drawn from the seed.
        temperature (`float`, *optional*, defaults to `1.0`): of teacher and student.
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
        if self.fresh_student and (held := constraints_of(self)):
            raise ValueError(
                f"You set fresh_student=True with {' and '.join(held)}, which keeps weights near those of the teacher. "
                "Leave it out, or set fresh_student=False."
            )
        if self.fresh_student and self.stop_when_forgotten and self.eval_strategy != "no":
            raise ValueError(
                "You set fresh_student=True and eval_strategy with stop_when_forgotten, but a student from new weights has "
                "nothing to forget and would stop at once. Set stop_when_forgotten=False."
            )
        super().__post_init__()


class DistillationTrainer(UnlearningTrainer):
    """Teach a student the answers of the model, except on the forget set.

    `L = gamma mean over forget targets KL(cleaned teacher || p) + alpha mean over retain targets KL(teacher || p)`; the
    teacher is the model at its start. Even a fresh student that never sees the forget set may inherit some of it through
    the teacher's answers on the retain set: the forgetting is approximate.

    Source: Hinton et al., arXiv 1503.02531; with suppressed targets as in Dong et al., UNDIAL, arXiv 2402.10052, and
    Yang, CE-U, arXiv 2503.01224.

    Example:
        >>> from hf_unlearn import DistillationConfig, DistillationTrainer
        >>> config = DistillationConfig("unlearned", on_forget="uniform")
        >>> trainer = DistillationTrainer("my-model", config, forget, retain)
        >>> trainer.train()
    """

    config_class = DistillationConfig
    reference = "logits"
    retain_reference = True

    def __init__(self, model, args: DistillationConfig | None = None, *positional, **keywords):
        on_forget = getattr(args, "on_forget", "suppressed")
        if on_forget != "suppressed":
            self.reference = "teacher"  # the model at its start is used on the retain set alone
        self.reads_forget = on_forget != "none"
        super().__init__(model, args, *positional, **keywords)
        if on_forget == "random":
            self.teacher = fresh_copy(self.model, self.args.seed).requires_grad_(False).eval()
        if self.args.fresh_student:
            self._renew_weights()  # not before: the reference has the values of the start by now

    @torch.no_grad()
    def _renew_weights(self):
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
