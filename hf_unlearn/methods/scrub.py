"""SCRUB: away from the teacher on the forget set, back to it on the retain set, in turn."""

import math
from dataclasses import dataclass, field

from transformers import TrainerCallback

from hf_unlearn.methods.teachers import kl_divergence
from hf_unlearn.models.likelihood import TargetLogits
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer


@dataclass
class SCRUBConfig(UnlearningConfig):
    """Options of [`SCRUBTrainer`]. Defaults of the authors' notebook.

    Parameters:
        max_phases (`int`, *optional*, defaults to `3`): number of phases on the forget set. Each is an epoch followed by
            one on as many retain rows; all later epochs are on the retain set.
        num_train_epochs (`float`, *optional*, defaults to `13`): 3 epochs on the forget set, 10 on the retain set.
        kl_weight (`float`, *optional*, defaults to `0.5`): weight of the divergence from the teacher on the retain set.
        nll_weight (`float`, *optional*, defaults to `1.0`): weight of the negative log-likelihood there.
        temperature (`float`, *optional*, defaults to `2.0`): temperature of the divergences.
        rewind (`bool`, *optional*, defaults to `False`): SCRUB+R: keep a checkpoint of each epoch on the retain set, and
            end with the one whose forget loss is nearest to that of data never trained on. Needs evaluation sets
            `"forget"` and `"holdout"`, with the same classes or topics.
        stop_when_forgotten (`bool`, *optional*, defaults to `False`): must stay `False`; see `rewind`.
    """

    max_phases: int = field(default=3, metadata={"help": "Phases on the forget set."})
    num_train_epochs: float = field(default=13.0, metadata={"help": "Epochs of both kinds."})
    kl_weight: float = field(default=0.5, metadata={"help": "Weight of the divergence on the retain set."})
    nll_weight: float = field(default=1.0, metadata={"help": "Weight of the likelihood on the retain set."})
    temperature: float = field(default=2.0, metadata={"help": "Temperature of the divergences."})
    rewind: bool = field(default=False, metadata={"help": "End with the epoch nearest to data never trained on."})
    stop_when_forgotten: bool = field(default=False, metadata={"help": "Must stay false: see rewind."})

    positive = ("temperature",)
    not_negative = ("kl_weight", "nll_weight")
    needs_retain = "every second phase is on the retain set, with kl_weight and nll_weight"

    def __post_init__(self):
        if self.stop_when_forgotten:
            raise ValueError(
                "You set stop_when_forgotten=True, but SCRUB would stop in a phase on the forget set, which harms the "
                "retain set. Set rewind=True, which chooses among the ends of the epochs on the retain set."
            )
        if self.update_rule != "add":
            raise ValueError(
                f'You set update_rule={self.update_rule!r}, but SCRUB has one loss at a time. Set it to "add".'
            )
        if self.max_steps <= 0 and not self.num_train_epochs >= 2 * self.max_phases:
            raise ValueError(
                f"You set num_train_epochs={self.num_train_epochs} with max_phases={self.max_phases}, but each phase on the "
                f"forget set needs one after it. Set at least {2 * self.max_phases} epochs, or fewer phases."
            )
        if self.rewind:
            self.load_best_model_at_end = True
            self.metric_for_best_model, self.greater_is_better = "forget_gap", False
            self.eval_strategy = self.save_strategy = "epoch"
        super().__post_init__()


class SCRUBTrainer(UnlearningTrainer):
    """Move away from the teacher on the forget set and back to it on the retain set, in turn.

    In a phase on the forget set `L = -mean KL(p_ref || p)`, in one on the retain set `L = kl_weight mean KL(p_ref || p) +
    nll_weight NLL`; the teacher is the model at its start. The last phase is always on the retain set. Without dropout the
    first phase changes nothing: there the divergence has its minimum, 0, and no direction leads away from it.

    Source: Kurmanji et al., Towards Unbounded Machine Unlearning, arXiv 2302.09880.

    Example:
        >>> from hf_unlearn import SCRUBConfig, SCRUBTrainer
        >>> trainer = SCRUBTrainer("my-model", SCRUBConfig("unlearned", max_phases=3), forget, retain)
        >>> trainer.train()
    """

    config_class = SCRUBConfig
    reference = "logits"
    retain_reference = True  # the phases away from it are counted, so nothing goes on without end

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        epochs = math.ceil(self.args.num_train_epochs)
        if self.args.max_steps > 0:
            steps = math.ceil(len(self.get_train_dataloader()) / self.args.gradient_accumulation_steps)
            epochs = math.ceil(self.args.max_steps / max(1, steps))
        if self.phase(epochs - 1) == "forget":
            raise ValueError(
                f"The training would end in epoch {epochs}, which is on the forget set. Set more steps, or set "
                "num_train_epochs instead of max_steps."
            )
        if self.args.rewind:
            self.add_callback(RewindToRetain(self))

    def phase(self, epoch: int) -> str:
        return "forget" if epoch < 2 * self.args.max_phases and epoch % 2 == 0 else "retain"

    def forget_loss(self, forget: TargetLogits, reference: TargetLogits):
        return -forget.token_mean(kl_divergence(reference.logits, forget.logits, self.args.temperature))

    def retain_loss(self, retain: TargetLogits, reference: TargetLogits):
        kl = retain.token_mean(kl_divergence(reference.logits, retain.logits, self.args.temperature))
        return self.args.kl_weight * kl + self.args.nll_weight * retain.token_mean(-retain.log_probs)


class RewindToRetain(TrainerCallback):
    """Skips evaluation and checkpoint at the end of a phase on the forget set, so that it is never chosen."""

    def __init__(self, trainer: SCRUBTrainer):
        self.trainer = trainer

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.trainer.phase(math.ceil(state.epoch) - 1) == "forget":
            control.should_evaluate = control.should_save = False
