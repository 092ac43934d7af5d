"""Fine-tuning on the retain set."""

from dataclasses import dataclass, field

from hf_unlearn.training import UnlearningConfig, UnlearningTrainer


@dataclass
class FineTuneConfig(UnlearningConfig):
    """Options of [`FineTuneTrainer`]: those of [`UnlearningConfig`]. `forget_weight` has no effect.

    Parameters:
        disable_dropout (`bool`, *optional*, defaults to `False`): a plain training, which compares with nothing, keeps the
            dropout of the model.
    """

    disable_dropout: bool = field(default=False, metadata={"help": "Train without the dropout of the model."})

    retain_losses = ("nll",)
    needs_retain = "the likelihood of the retain answers is all that is trained here"


class FineTuneTrainer(UnlearningTrainer):
    """Train on the retain set alone: `L = mean over retain tokens of -ln p(y_t)`. Forgetting is left to chance.

    An epoch is one pass over the retain set. The baseline that any other method must beat.

    Source: Golatkar et al., Eternal Sunshine of the Spotless Net, arXiv 1911.04933.

    Example:
        >>> from hf_unlearn import FineTuneConfig, FineTuneTrainer
        >>> trainer = FineTuneTrainer("my-model", FineTuneConfig("unlearned", num_train_epochs=5), forget, retain)
        >>> trainer.train()
    """

    config_class = FineTuneConfig
    reads_forget = False
