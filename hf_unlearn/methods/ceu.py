"""CE-U: cross-entropy to the model's own distribution without the true token."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hf_unlearn.data.pairing import PairedDataset
from hf_unlearn.data.rows import IGNORE_INDEX
from hf_unlearn.methods.other_answers import answer_positions
from hf_unlearn.methods.undial import soft_cross_entropy
from hf_unlearn.models.likelihood import TargetLogits, is_image_classifier
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer


def ceu_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """`-sum_v q_v ln p_v` of each position, where q is p without the true class, renormalized and constant."""
    others = logits.detach().scatter(1, targets[:, None], -torch.inf).softmax(-1)
    return soft_cross_entropy(others, logits)


@dataclass
class CEUConfig(UnlearningConfig):
    """Options of [`CEUTrainer`]. The paper has no retain loss; `retain_loss="nll"` adds one.

    Parameters:
        n_skip (`int`, *optional*, defaults to `1`): how many tokens at the start of a forget answer are left out, which
            keeps the way the model begins an answer. An image classifier ignores it.
    """

    n_skip: int = field(default=1, metadata={"help": "Tokens left out at the start of a forget answer."})
    retain_loss: str = field(default="none", metadata={"help": "Loss on the retain set: none, nll or kl."})

    not_negative = ("n_skip",)


class CEUTrainer(UnlearningTrainer):
    """Teach the model what it would say if the true token did not exist: `L_f = mean over tokens of -sum_v q(v) ln p(v)`,
    `q = sg[softmax of the logits with that of y set to -inf]`.

    Source: Yang, CE-U: Cross Entropy Unlearning, arXiv 2503.01224.

    Example:
        >>> from hf_unlearn import CEUConfig, CEUTrainer
        >>> trainer = CEUTrainer("my-model", CEUConfig("unlearned", n_skip=1), forget)
        >>> trainer.train()
    """

    config_class = CEUConfig

    def adapt(self, model: nn.Module, args: CEUConfig, data: PairedDataset, collate) -> nn.Module:
        # In the data, so that skipped tokens count nowhere and their logits are not computed.
        if args.n_skip and not is_image_classifier(model):
            data.forget = [skip_tokens(row, args.n_skip, index) for index, row in enumerate(data.forget)]
        return super().adapt(model, args, data, collate)

    def forget_loss(self, forget: TargetLogits):
        return forget.token_mean(ceu_loss(forget.logits, forget.targets))


def skip_tokens(row: dict, n: int, index: int = 0) -> dict:
    """An encoded row of text whose first `n` scored tokens are not scored any more.

    Raises:
        ValueError: no scored token is left; the message names `index`.
    """
    scored = answer_positions(row)
    if len(scored) <= n:
        raise ValueError(
            f"You set n_skip={n}, but the answer of row {index} of the forget set has only {len(scored)} tokens. Either "
            "set n_skip=0, or remove the row."
        )
    labels = list(row["labels"])
    labels[: scored[n]] = [IGNORE_INDEX] * scored[n]
    return {**row, "labels": labels}
