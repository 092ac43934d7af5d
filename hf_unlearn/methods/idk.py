"""Refusals in place of the answers: IdkDPO and IdkNLL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from hf_unlearn.likelihood import TargetLogits
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
        refusals (`str`, *optional*): text file with one refusal a line, in place of the built-in ones.
    """

    refusals: str | None = field(default=None, metadata={"help": "Text file with one refusal a line."})


@dataclass
class IdkDPOConfig(IdkNLLConfig):
    """Options of [`IdkDPOTrainer`].

    Parameters:
        beta (`float`, *optional*, defaults to `0.1`): inverse temperature (TOFU, arXiv 2401.06121).
    """

    beta: float = field(default=0.1, metadata={"help": "Inverse temperature."})

    def __post_init__(self):
        if not self.beta > 0:
            raise ValueError(f"You set beta={self.beta}, but it must be positive.")
        super().__post_init__()


class IdkNLLTrainer(UnlearningTrainer):
    """Train refusals as the answers: `L_f = mean over tokens of -ln p(refusal | x)`. A baseline: it teaches what to
    say, and lowers the likelihood of the old answer only in passing.

    Each forget row has four candidate refusals, drawn by the seed; which one an epoch uses is a function of (seed,
    epoch, row).

    Source: Maini et al., TOFU, arXiv 2401.06121.
    """

    config_class = IdkNLLConfig
    n_alternates = 4

    def alternates(self, forget_rows: list[dict], args: IdkNLLConfig) -> Sequence[Sequence[dict]]:
        refusals = REFUSALS
        if args.refusals is not None:
            refusals = [line.strip() for line in Path(args.refusals).read_text("utf-8").splitlines() if line.strip()]
            if not refusals:
                raise ValueError(f"You set refusals={args.refusals!r}, but the file has no line with text.")
        rng = np.random.default_rng(args.seed)
        n = min(self.n_alternates, len(refusals))
        return [
            [_with_answer(row, refusals[choice]) for choice in rng.choice(len(refusals), n, replace=False)]
            for row in forget_rows
        ]

    def forget_loss(self, forget: TargetLogits, alternate: TargetLogits):
        return alternate.token_mean(-alternate.log_probs)


class IdkDPOTrainer(IdkNLLTrainer):
    """Prefer a refusal to the answer that must go: direct preference optimization with the refusal as the winner.

    `L_f = -(2 / beta) mean ln sigmoid(beta [r(refusal) - r(answer)])`, `r(y) = ln(p(y|x) / p_ref(y|x))` summed over
    tokens, where ref is the model at its start.

    Source: Rafailov et al., arXiv 2305.18290; Maini et al., TOFU, arXiv 2401.06121.
    """

    config_class = IdkDPOConfig
    reference = "log_probs"

    def forget_loss(
        self, forget: TargetLogits, reference: Tensor, alternate: TargetLogits, alternate_reference: Tensor
    ):
        return forget.sequence_mean(
            dpo_loss(
                alternate.sequence_log_probs,
                alternate_reference,
                forget.sequence_log_probs,
                reference,
                self.args.beta,
            )
        )


def _with_answer(row: dict, answer: str) -> dict:
    if "messages" in row:
        return {"messages": [*row["messages"][:-1], {"role": "assistant", "content": answer}]}
    if "prompt" in row:
        return {"prompt": row["prompt"], "completion": f" {answer}"}
    raise ValueError(
        'A refusal answers a prompt, but the forget rows have none. Either give {"prompt", "completion"} or '
        '{"messages"} rows, or choose a method without refusals (npo, simnpo, graddiff).'
    )
