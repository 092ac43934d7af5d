"""PDU: forget as far as a bound on the retain loss allows, by a primal-dual rule."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_unlearn.models.likelihood import TargetLogits, target_logits
from hf_unlearn.models.modes import evaluating
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer


#: Retain rows that the retain loss at the start is measured on, evenly spread; all, if there are fewer.
SAMPLE = 512


def flatness_loss(logits: Tensor) -> Tensor:
    """`(max_v z_v - mean_v z_v)^2` of each position, from logits `(n, n_classes)`: 0 where all are equal."""
    return (logits.amax(-1) - logits.mean(-1)).square()


@dataclass
class PDUConfig(UnlearningConfig):
    """Options of [`PDUTrainer`]; defaults of the authors' TOFU scripts (arXiv 2506.05314).

    Parameters:
        epsilon (`float`, *optional*, defaults to `0.3`): bound on the retain loss, in nats per target. Set it a little
            above the retain loss of the model at its start, which is measured on 512 rows before the first step.
        force_epsilon (`bool`, *optional*, defaults to `False`): allow a bound below the retain loss at the start.
        retain_weight (`float`, *optional*, defaults to `100.0`): the multiplier lambda at the start.
        dual_lr (`float`, *optional*, defaults to `5.0`): step size of the multiplier per nat above the bound.
        dual_warmup (`float`, *optional*, defaults to `0.5`): share of the run before the multiplier moves (5 of 10 epochs).
    """

    epsilon: float = field(default=0.3, metadata={"help": "Bound on the retain loss, in nats per target."})
    force_epsilon: bool = field(default=False, metadata={"help": "Allow a bound below the retain loss at the start."})
    retain_weight: float = field(default=100.0, metadata={"help": "The multiplier at the start."})
    dual_lr: float = field(default=5.0, metadata={"help": "Step size of the multiplier."})
    dual_warmup: float = field(default=0.5, metadata={"help": "Share of the run before the multiplier moves."})

    positive = ("epsilon",)
    not_negative = ("dual_lr",)
    needs_retain = "the retain loss is the constraint and retain_weight its multiplier at the start"

    def __post_init__(self):
        if not 0 <= self.dual_warmup <= 1:
            raise ValueError(f"You set dual_warmup={self.dual_warmup}, but a share is between 0 and 1.")
        super().__post_init__()


class PDUTrainer(UnlearningTrainer):
    """Flatten the logits on the forget answers, subject to a bound on the retain loss: `L_f = mean over tokens of
    (max_v z_v - mean_v z_v)^2` subject to `L_r <= epsilon`.

    The weight of the retain loss is the multiplier of the constraint, `lambda <- max(0, lambda + dual_lr (L_r -
    epsilon))` after each optimizer step, with the `L_r` of the whole step. It is logged as `multiplier`.

    Source: Entesari et al., Constrained Entropic Unlearning, arXiv 2506.05314.

    Example:
        >>> from hf_unlearn import PDUConfig, PDUTrainer
        >>> trainer = PDUTrainer("my-model", PDUConfig("unlearned", epsilon=0.5), forget, retain)
        >>> trainer.train()
    """

    config_class = PDUConfig

    def forget_loss(self, forget: TargetLogits):
        return forget.token_mean(flatness_loss(forget.logits))

    def prepare(self):
        self.multiplier = self.args.retain_weight
        if self.args.retain_loss == "kl" or self.args.force_epsilon:
            return  # the divergence of the start from itself is 0
        start = self._start_retain_loss()
        if self.args.epsilon < start:
            raise ValueError(
                f"You set epsilon={self.args.epsilon}, but the retain loss of the model is {start:.4g} nats per target "
                "already, so that the multiplier could only grow. Set epsilon a little above it, or force_epsilon=True."
            )

    def _start_retain_loss(self) -> float:
        nll, n_targets = 0.0, 0
        with torch.no_grad(), evaluating(self.model), self.accelerator.autocast():
            for batch in self.batches(self.train_dataset.retain, SAMPLE):
                out = target_logits(self.model, batch)
                nll, n_targets = nll - out.log_probs.double().sum(), n_targets + len(out.targets)
        return float(nll) / n_targets

    def retain_weight(self) -> float:
        return self.multiplier

    def after_step(self):
        if self.state.global_step >= self.args.dual_warmup * self.state.max_steps:
            excess = self.step_terms()["retain_loss"] - self.args.epsilon
            self.multiplier = max(0.0, self.multiplier + self.args.dual_lr * excess)
        self.record({"multiplier": torch.tensor(self.multiplier, device=self.args.device)})

    def method_state(self) -> dict[str, Tensor]:
        return {"multiplier": torch.tensor(self.multiplier, dtype=torch.float64)}

    def load_method_state(self, state: dict[str, Tensor]) -> None:
        self.multiplier = float(state["multiplier"])
