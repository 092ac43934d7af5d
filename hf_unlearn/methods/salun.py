"""SalUn: random labels for the weights that matter to the forget set."""

from dataclasses import dataclass, field

from hf_unlearn.methods.random_label import DRAWS, RandomLabelConfig, RandomLabelTrainer


@dataclass
class SalUnConfig(RandomLabelConfig):
    """Options of [`SalUnTrainer`]; defaults of the paper (arXiv 2310.12508).

    Parameters:
        saliency (`float`, *optional*, defaults to `0.5`): share of the weights that may move, those with the largest
            gradient of the loss of the forget set.
        draw (`str`, *optional*, defaults to `"per_epoch"`): when wrong answers are drawn, `"fixed"` or `"per_epoch"`.
    """

    saliency: float | None = field(default=0.5, metadata={"help": "Share of the weights that may move."})
    draw: str = field(default="per_epoch", metadata={"help": "When wrong answers are drawn.", "choices": DRAWS})


class SalUnTrainer(RandomLabelTrainer):
    """Train wrong answers with the salient weights alone: those with the largest gradient of the forget loss at the start.

    It is [`RandomLabelTrainer`] with `saliency=0.5`; any other method with `saliency` is a matter of configuration.

    Source: Fan et al., SalUn, arXiv 2310.12508.

    Example:
        >>> from hf_unlearn import SalUnConfig, SalUnTrainer
        >>> trainer = SalUnTrainer("my-model", SalUnConfig("unlearned", saliency=0.5), forget, retain)
        >>> trainer.train()
    """

    config_class = SalUnConfig
