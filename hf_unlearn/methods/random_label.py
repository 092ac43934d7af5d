"""Random labels: train wrong answers in place of the forgotten ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hf_unlearn.methods.other_answers import encode_answers, other_labels, random_answers
from hf_unlearn.models.likelihood import TargetLogits
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer


DRAWS = ("fixed", "per_epoch")


@dataclass
class RandomLabelConfig(UnlearningConfig):
    """Options of [`RandomLabelTrainer`].

    Parameters:
        draw (`str`, *optional*, defaults to `"fixed"`): `"fixed"`, one wrong answer per row, drawn by the seed before the
            training (arXiv 2010.10981); or `"per_epoch"`, drawn again in each epoch, from all other classes for an image
            and from five answers for text (arXiv 2310.10683).
    """

    draw: str = field(default="fixed", metadata={"help": "When wrong answers are drawn.", "choices": DRAWS})


class RandomLabelTrainer(UnlearningTrainer):
    """Train wrong answers: `L_f = mean over tokens of -ln p(y'|x)`.

    For images y' is uniform over all classes except the image's own one and those that are to be forgotten whole. For
    text it is the answer of a random retain row, never the row's own one.

    Source: Graves et al., Amnesiac Machine Learning, arXiv 2010.10981; for text Yao et al., Large Language Model
    Unlearning, arXiv 2310.10683.

    Example:
        >>> from hf_unlearn import RandomLabelConfig, RandomLabelTrainer
        >>> trainer = RandomLabelTrainer("my-model", RandomLabelConfig("unlearned", draw="per_epoch"), forget, retain)
        >>> trainer.train()
    """

    config_class = RandomLabelConfig
    n_alternates = 5
    reads_forget = False

    def alternates(self, forget_rows, retain_rows) -> Sequence[Sequence[dict]]:
        data, fixed = self.train_dataset, self.args.draw == "fixed"
        if self.is_classifier:
            return other_labels(data, self.model.config.num_labels, 1 if fixed else None)
        answers = random_answers(forget_rows, retain_rows, 1 if fixed else self.n_alternates, data.seed)
        return encode_answers(self.encode, forget_rows, answers)

    def forget_loss(self, alternate: TargetLogits):
        return alternate.token_mean(-alternate.log_probs)
