"""The second stage of a hybrid: gentle repair on the retain set after an edit."""

from dataclasses import dataclass, field

from hf_unlearn.methods.finetune import FineTuneConfig, FineTuneTrainer
from hf_unlearn.training.stopping import StopWhenRelearned


@dataclass
class RepairConfig(FineTuneConfig):
    """Options of [`RepairTrainer`].

    Parameters:
        stop_level (`float`, *optional*, defaults to `0.05`): level of the one-sided Mann-Whitney U test that finds the
            forget set remembered again.
    """

    stop_level: float = field(default=0.05, metadata={"help": "Level of the test that finds the forget set again."})


class RepairTrainer(FineTuneTrainer):
    """Fine-tune on the retain set after an edit, no further than the forget set stays forgotten.

    An edit harms the retain set, and a few steps on it repair that. They can also undo the edit and so bring back the
    forget set. With evaluation sets named `"forget"`, `"holdout"` and `"retain"` the training ends when the forget set
    becomes easier than data never trained on, and keeps the weights of the evaluation with the lowest retain loss before
    that (see [`~hf_unlearn.training.stopping.StopWhenRelearned`]).

    Source: the pattern of impair and repair of Tarun et al., Fast Yet Effective Machine Unlearning, arXiv 2111.08947.

    Example:
        >>> from hf_unlearn import RepairConfig, RepairTrainer
        >>> watched = {"forget": forget, "retain": retain, "holdout": holdout}
        >>> config = RepairConfig("repaired", eval_strategy="epoch")
        >>> trainer = RepairTrainer("edited-model", config, forget, retain, watched)
        >>> trainer.train()
    """

    config_class = RepairConfig
    stopping_class = StopWhenRelearned
