"""Bad Teacher: one teacher that knows nothing, and one that knows everything."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_unlearn.likelihood import TargetLogits
from hf_unlearn.methods.divergence import kl_divergence, kl_from_uniform
from hf_unlearn.methods.fresh import fresh_copy
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer


TEACHERS = ("auto", "random", "uniform")


@dataclass
class BadTeacherConfig(UnlearningConfig):
    """Options of [`BadTeacherTrainer`].

    Parameters:
        bad_teacher (`str`, *optional*, defaults to `"auto"`): `"random"`, a network of the same shape with new weights
            (the paper's); `"uniform"`, all classes equally likely, which needs no second network; `"auto"` is random for
            image classifiers and uniform for language models.
        temperature (`float`, *optional*, defaults to `1.0`): of the distributions on the forget set.
        retain_loss (`str`, *optional*, defaults to `"kl"`): the competent teacher is the model at its start.
    """

    bad_teacher: str = field(default="auto", metadata={"help": "Teacher on the forget set.", "choices": TEACHERS})
    temperature: float = field(default=1.0, metadata={"help": "Temperature on the forget set."})
    retain_loss: str = field(default="kl", metadata={"help": "Loss on the retain set: kl, nll or none."})

    def __post_init__(self):
        if self.bad_teacher not in TEACHERS:
            raise ValueError(f"You set bad_teacher={self.bad_teacher!r}, which is none of {', '.join(TEACHERS)}.")
        if not self.temperature > 0:
            raise ValueError(f"You set temperature={self.temperature}, but it must be positive.")
        super().__post_init__()


class BadTeacherTrainer(UnlearningTrainer):
    """Learn from a teacher that knows nothing on the forget set, and from the start on the retain set.

    `L = gamma mean over forget targets KL(bad || p) + alpha mean over retain targets KL(p_ref || p)`.

    Source: Chundawat et al., Can Bad Teaching Induce Forgetting?, arXiv 2205.08096.
    """

    config_class = BadTeacherConfig
    reference = "teacher"

    def prepare(self):
        kind = self.args.bad_teacher
        if kind == "random" or kind == "auto" and self.is_classifier:
            model = self.accelerator.unwrap_model(self.model)
            self.teacher = fresh_copy(model, self.args.seed).requires_grad_(False).eval()

    def forget_loss(self, forget: TargetLogits, reference: TargetLogits | None = None):
        if reference is None:
            return forget.token_mean(kl_from_uniform(forget.logits))
        return forget.token_mean(kl_divergence(reference.logits, forget.logits, self.args.temperature))
