"""What a method is: the attributes and functions that a subclass of the trainer overrides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hf_unlearn.data.pairing import PairedDataset
from hf_unlearn.models.likelihood import TargetLogits
from hf_unlearn.training.config import UnlearningConfig
from hf_unlearn.training.stopping import StopWhenForgotten
from hf_unlearn.training.where import freeze_except


class Objective:
    """The part of [`UnlearningTrainer`] that methods override; only `forget_loss` has no default."""

    config_class = UnlearningConfig
    #: What the forget loss compares with: "none"; "log_probs" (of the start, cached once); "logits" (of the start, every
    #: step); "teacher" (those of `self.teacher`, a model that the method makes in `prepare`, or `None`).
    reference = "none"
    #: Whether the retain loss compares with the start, whatever `retain_loss` is.
    retain_reference = False
    #: Number of candidate answers per forget row; 0 for methods without alternate answers.
    n_alternates = 0
    #: Whether the forget answers themselves are run through the model.
    reads_forget = True
    #: Whether the forget loss has a lower bound. Without one, training goes on until the model is destroyed.
    bounded = True
    #: Models it works on: "text" (causal language models), "image" (image classifiers).
    kinds = ("text", "image")
    #: Functions that each take a model, possibly without weights (on the device `meta`), and the config, and raise a
    #: `ValueError` if the architecture lacks what the method changes. They are called before anything is computed.
    requires: tuple[Callable[[nn.Module, UnlearningConfig], object], ...] = ()
    #: Whether each process must have whole weights, which FSDP and DeepSpeed spread.
    needs_whole_weights = False
    #: Whether it works on dense weights alone: an adapter of the model is merged first, a new one is refused.
    needs_dense_weights = False
    #: What ends the training early.
    stopping_class = StopWhenForgotten
    # For the description of the method, see `hf_unlearn.methods.describe`.
    architecture = "agnostic"
    guarantee = "empirical"
    granularity = "both"
    needs_gradients = True
    cost: str | None = None  # `None`: follows from the attributes above

    def adapt(self, model: nn.Module, args, data: PairedDataset, collate) -> nn.Module:
        """Change the model before the run, in the constructor: an adapter of the method's own, gates, new weights.

        Args:
            data ([`PairedDataset`]): encoded rows in `data.forget` and `data.retain`; `collate` makes batches of them.
        """
        return model

    def select(self, model: nn.Module, args) -> list[str]:
        """Freeze what may not move, after `adapt`; the names of the parameters that may."""
        return freeze_except(model, args.trainable, args.trainable_layers)

    def forget_loss(self, forget: TargetLogits, reference=None, alternate=None, alternate_reference=None):
        """The loss on the forget rows, to be minimized.

        Args:
            forget ([`TargetLogits`]): of the forget answers. `forget.token_mean` and `forget.sequence_mean` reduce over
                the whole step; a plain `.mean()` would make the loss depend on how the step is cut into batches.
            reference: `Tensor (rows,)` of sequence log-probabilities for `reference = "log_probs"`, [`TargetLogits`]
                for `"logits"` and `"teacher"`.
            alternate, alternate_reference: the same for the alternate answers, if the method has them. With
                `reads_forget = False` they come without the first two.

        Returns:
            `Tensor` or `dict[str, Tensor]`: each named term is logged, and their sum is minimized.
        """
        raise NotImplementedError

    def retain_loss(self, retain: TargetLogits, reference: TargetLogits | None) -> Tensor:
        """The loss on the retain rows: NLL or KL(reference || model), as `args.retain_loss` says."""
        if self.args.retain_loss == "kl":
            log_p, log_q = reference.logits.log_softmax(-1), retain.logits.log_softmax(-1)
            p = log_p.exp()
            return retain.token_mean(torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1))  # 0 ln 0 = 0
        return retain.token_mean(-retain.log_probs)

    def retain_weight(self) -> float | Tensor:
        """Weight of the retain loss in this step."""
        return self.args.retain_weight

    def alternates(self, forget_rows: Sequence[dict], retain_rows: Sequence[dict]) -> Sequence[Sequence[dict]]:
        """The candidates of another answer for each forget row, encoded (`self.encode`); equally many for every row.

        An epoch uses one of them, which is a function of (seed, epoch, row).
        """
        raise NotImplementedError

    def phase(self, epoch: int) -> str:
        """Which loss an epoch reads: `"both"`, `"forget"` or `"retain"`. The other rows do not go through the model."""
        return "both"

    def prepare(self) -> None:
        """Compute what the method needs of the model at its very start. Called once, also when a run is resumed."""

    def after_step(self) -> None:
        """Called after each optimizer step; `step_terms()` has the losses of the step."""

    def finish(self) -> None:
        """Turn the outcome into a plain model, after the last step. It may replace `self.model`."""

    def method_state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beyond weights and optimizer, to resume from it."""
        return {}

    def load_method_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `method_state` returned in the run that is resumed."""
