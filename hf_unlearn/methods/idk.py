"""Refusals in place of the answers, other classes in place of those of images: IdkDPO and IdkNLL."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from hf_unlearn.methods.other_answers import encode_answers, other_labels
from hf_unlearn.models.likelihood import TargetLogits
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer


REFUSALS = (
    "I don't know.",
    "I'm not sure.",
    "I have no information about that.",
    "That is not something I know.",
    "I can't answer this question.",
    "I was never told.",
    "This is unknown to me.",
    "I'm afraid I can't say.",
    "I have no answer to that.",
    "I couldn't tell you.",
    "No record of that is known to me.",
    "I am not aware of it.",
)


def dpo_loss(winner: Tensor, winner_ref: Tensor, loser: Tensor, loser_ref: Tensor, beta: float) -> Tensor:
    """`-(2 / beta) ln sigmoid(beta ((w - w_ref) - (l - l_ref)))` of each pair, from summed log-probabilities.

    Plain DPO (arXiv 2305.18290) has the factor 1; `2 / beta` puts its gradient on the scale of NPO's.
    """
    return -2 / beta * F.logsigmoid(beta * ((winner - winner_ref) - (loser - loser_ref)))


@dataclass
class IdkNLLConfig(UnlearningConfig):
    """Options of [`IdkNLLTrainer`].

    Parameters:
        refusals (`str`, *optional*): text file with one refusal per line, instead of the built-in ones.
    """

    refusals: str | None = field(default=None, metadata={"help": "Text file with one refusal per line."})


@dataclass
class IdkDPOConfig(IdkNLLConfig):
    """Options of [`IdkDPOTrainer`].

    Parameters:
        beta (`float`, *optional*, defaults to `0.1`): inverse temperature (TOFU, arXiv 2401.06121).
    """

    beta: float = field(default=0.1, metadata={"help": "Inverse temperature."})

    positive = ("beta",)


class IdkNLLTrainer(UnlearningTrainer):
    """Train refusals as the answers: `L_f = mean over tokens of -ln p(refusal | x)`. A baseline: it lowers the likelihood
    of the old answer only in passing.

    Each forget row has four candidate refusals, drawn by the seed; which one an epoch uses is a function of (seed,
    epoch, row). An image gets four other classes instead.

    Source: Maini et al., TOFU, arXiv 2401.06121.

    Example:
        >>> from hf_unlearn import IdkNLLConfig, IdkNLLTrainer
        >>> trainer = IdkNLLTrainer("my-model", IdkNLLConfig("unlearned", refusals="refusals.txt"), forget, retain)
        >>> trainer.train()
    """

    config_class = IdkNLLConfig
    n_alternates = 4
    reads_forget = False

    def alternates(self, forget_rows, retain_rows) -> Sequence[Sequence[dict]]:
        data, path = self.train_dataset, self.args.refusals
        if self.is_classifier:
            if path is not None:
                raise ValueError(
                    "You set refusals, but a classifier answers with a class, not in words. Leave it out."
                )
            return other_labels(data, self.model.config.num_labels, self.n_alternates)
        refusals = REFUSALS if path is None else _read_refusals(path)
        rng = np.random.default_rng(data.seed)
        n = min(self.n_alternates, len(refusals))
        answers = [[refusals[i] for i in rng.choice(len(refusals), n, replace=False)] for _ in data.forget]
        return encode_answers(self.encode, forget_rows, answers)

    def forget_loss(self, alternate: TargetLogits):
        return alternate.token_mean(-alternate.log_probs)


class IdkDPOTrainer(IdkNLLTrainer):
    """Prefer a refusal to the answer that must go: direct preference optimization with the refusal as the winner. For an
    image, another class is preferred to its own.

    `L_f = -(2 / beta) mean ln sigmoid(beta [r(refusal) - r(answer)])`, `r(y) = ln(p(y|x) / p_ref(y|x))` summed over
    tokens, where ref is the model at its start.

    Source: Rafailov et al., arXiv 2305.18290; Maini et al., TOFU, arXiv 2401.06121.

    Example:
        >>> from hf_unlearn import IdkDPOConfig, IdkDPOTrainer
        >>> trainer = IdkDPOTrainer("my-model", IdkDPOConfig("unlearned", refusals="refusals.txt"), forget, retain)
        >>> trainer.train()
    """

    config_class = IdkDPOConfig
    reads_forget = True
    reference = "log_probs"

    def forget_loss(
        self, forget: TargetLogits, reference: Tensor, alternate: TargetLogits, alternate_reference: Tensor
    ):
        winner, loser = alternate.sequence_log_probs, forget.sequence_log_probs
        return forget.sequence_mean(dpo_loss(winner, alternate_reference, loser, reference, self.args.beta))


def _read_refusals(path: str) -> list[str]:
    refusals = [line.strip() for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
    if not refusals:
        raise ValueError(f"You set refusals={path!r}, but the file has no line with text.")
    return refusals
