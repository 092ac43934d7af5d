"""Bad Teacher: one teacher that knows nothing, and one that knows everything."""

from dataclasses import dataclass, field

from hf_unlearn.methods.teachers import fresh_copy, kl_divergence, kl_from_uniform
from hf_unlearn.models.likelihood import TargetLogits
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer
from hf_unlearn.training.checks import check_sharding
from hf_unlearn.training.reference import Reference


TEACHERS = ("auto", "random", "uniform")


@dataclass
class BadTeacherConfig(UnlearningConfig):
    """Options of [`BadTeacherTrainer`].

    Parameters:
        bad_teacher (`str`, *optional*, defaults to `"auto"`): `"random"`, a network of the same shape with new weights
            (the paper's); `"uniform"`, all classes equally likely, which needs no second network; `"auto"` is the
            `ref_model` if one is given, else random for image classifiers and uniform for language models.
        temperature (`float`, *optional*, defaults to `1.0`): of the distributions on the forget set.
    """

    bad_teacher: str = field(default="auto", metadata={"help": "Teacher on the forget set.", "choices": TEACHERS})
    temperature: float = field(default=1.0, metadata={"help": "Temperature on the forget set."})
    retain_loss: str = field(default="kl", metadata={"help": "Loss on the retain set: kl, nll or none."})

    positive = ("temperature",)


class BadTeacherTrainer(UnlearningTrainer):
    """Learn from a teacher that knows nothing on the forget set, and from the model at its start on the retain set.

    `L = gamma mean over forget targets KL(bad || p) + alpha mean over retain targets KL(p_ref || p)`. A `ref_model`, such
    as the pretrained model that never saw the forget set, becomes the bad teacher; p_ref is the model at its start.

    Source: Chundawat et al., Can Bad Teaching Induce Forgetting?, arXiv 2205.08096.

    Example:
        >>> from hf_unlearn import BadTeacherConfig, BadTeacherTrainer
        >>> trainer = BadTeacherTrainer("my-model", BadTeacherConfig("unlearned", temperature=2.0), forget, retain)
        >>> trainer.train()
    """

    config_class = BadTeacherConfig
    reference = "teacher"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        given, self._ref_model = self._ref_model, None
        kind = self.args.bad_teacher
        if given is not None:
            if kind != "auto":
                raise ValueError(
                    f"You set bad_teacher={kind!r} and gave a ref_model, which is a bad teacher too. Leave one of them out."
                )
            if self._reference is not None:
                self._reference = Reference(self.model)
                check_sharding(self, None)
            self.teacher = given
        elif kind == "random" or kind == "auto" and self.is_classifier:
            self.teacher = fresh_copy(self.model, self.args.seed)
        if self.teacher is not None:
            self.teacher.to(self.args.device).requires_grad_(False).eval()

    def forget_loss(self, forget: TargetLogits, reference: TargetLogits | None = None):
        if reference is None:
            return forget.token_mean(kl_from_uniform(forget.logits, self.args.temperature))
        return forget.token_mean(kl_divergence(reference.logits, forget.logits, self.args.temperature))
