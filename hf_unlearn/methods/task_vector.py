"""Task-vector negation."""

from dataclasses import dataclass, field

import torch

from hf_unlearn.models.likelihood import TargetLogits
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer


@dataclass
class TaskVectorConfig(UnlearningConfig):
    """Options of [`TaskVectorTrainer`].

    Parameters:
        scale (`float`, *optional*, defaults to `1.0`): s, how far to go the other way. 0 changes nothing; MUSE takes 5
            (arXiv 2407.06460). Choose the largest that leaves validation rows unharmed.
    """

    scale: float = field(default=1.0, metadata={"help": "How far to go the other way."})
    retain_loss: str = field(default="none", metadata={"help": "Must be none: only the forget set is learned."})

    def __post_init__(self):
        if not self.scale >= 0:
            raise ValueError(f"You set scale={self.scale}, but below 0 it would teach the forget set. Set 0 or more.")
        for name, needed in (("retain_loss", "none"), ("update_rule", "add")):
            if getattr(self, name) != needed:
                raise ValueError(
                    f"You set {name}={getattr(self, name)!r}, but only the forget set is learned here, to be negated: there "
                    f'are no two gradients. Set it to "{needed}".'
                )
        if self.stop_when_forgotten and self.eval_strategy != "no":
            raise ValueError(
                "You set eval_strategy with stop_when_forgotten, but this method learns the forget set until its end. Set "
                "stop_when_forgotten=False."
            )
        super().__post_init__()


class TaskVectorTrainer(UnlearningTrainer):
    """Learn the forget set even better, then go the other way: `theta = theta_0 - s (theta_ft - theta_0)`.

    Needs no retain set, and does not protect it. With a new LoRA adapter the update of the adapter is negated.

    Source: Ilharco et al., Editing Models with Task Arithmetic, arXiv 2212.04089.

    Example:
        >>> from hf_unlearn import TaskVectorConfig, TaskVectorTrainer
        >>> trainer = TaskVectorTrainer("my-model", TaskVectorConfig("unlearned", scale=1.0), forget)
        >>> trainer.train()
    """

    config_class = TaskVectorConfig
    needs_whole_weights = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if hasattr(self.model, "peft_config"):
            self._check_adapter()

    def _check_adapter(self):
        # The update is B A. It changes its sign with B if B was 0 at the start, and if nothing else belongs to it.
        for name, parameter in self.model.named_parameters():
            if ".lora_B." in name and parameter.count_nonzero():
                raise ValueError(
                    "The LoRA adapter of the model is not a new one, and its update cannot be negated by itself. Give "
                    "a peft_config (use_peft in a recipe): the adapter is then merged, and a new one trained."
                )
        for name in self.trainable_names:
            if ".lora_A." not in name and ".lora_B." not in name and ".modules_to_save." not in name:
                raise ValueError(
                    f"The adapter has a part, {name}, with which its update is not that of a plain LoRA and cannot be "
                    "negated. Give a LoraConfig of linear layers without use_dora and biases, or no adapter."
                )

    def forget_loss(self, forget: TargetLogits):
        return forget.token_mean(-forget.log_probs)

    def prepare(self):
        self._start = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def finish(self):
        parameters, scale = dict(self.model.named_parameters()), self.args.scale
        for name, start in self._start.items():
            p = parameters[name]
            if scale == 0:  # start + 0 * change is not the start where the change has overflown
                p.copy_(start)
            elif ".lora_A." in name:
                continue
            elif ".lora_B." in name:
                p.mul_(-scale)
            else:
                wide = torch.promote_types(p.dtype, torch.float32)
                p.copy_(start.to(wide) - scale * (p.to(wide) - start.to(wide)))
        del self._start
