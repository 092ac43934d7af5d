"""Task-vector negation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hf_unlearn.likelihood import TargetLogits
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
        if self.retain_loss != "none":
            raise ValueError(
                f'You set retain_loss={self.retain_loss!r}, but what is learned here is then negated. Set it to "none".'
            )
        if self.update_rule != "add":
            raise ValueError(
                f"You set update_rule={self.update_rule!r}, but there is one loss, and so no two gradients. Set it to "
                '"add".'
            )
        if self.stop_when_forgotten and self.eval_strategy != "no":
            raise ValueError(
                "You set eval_strategy with stop_when_forgotten, but until it ends this method learns the forget set. "
                "Set stop_when_forgotten=False."
            )
        super().__post_init__()


class TaskVectorTrainer(UnlearningTrainer):
    """Learn the forget set even better, then go the other way: `theta = theta_0 - s (theta_ft - theta_0)`.

    Needs no retain set, and takes no care of it. With a new LoRA adapter the update of the adapter is negated.

    Source: Ilharco et al., Editing Models with Task Arithmetic, arXiv 2212.04089.
    """

    config_class = TaskVectorConfig

    def forget_loss(self, forget: TargetLogits):
        return forget.token_mean(-forget.log_probs)

    def prepare(self):
        if self.args.fsdp or self.args.deepspeed:
            raise ValueError("TaskVectorTrainer needs whole weights, which FSDP and DeepSpeed spread. Run DDP.")
        parameters = self.model.named_parameters()
        if any(".lora_B." in name and p.count_nonzero() for name, p in parameters):
            raise ValueError(
                "The LoRA adapter of the model is not a new one, and its update cannot be negated by itself. Merge it "
                "first: model = model.merge_and_unload()."
            )
        self._start = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}

    def finish(self):
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, start in self._start.items():
                p, scale = parameters[name], self.args.scale
                if ".lora_A." in name:
                    continue
                if ".lora_B." in name:  # the update is B A: it starts at 0, and changes its sign with B
                    p.mul_(-scale)
                    continue
                wide = torch.promote_types(p.dtype, torch.float32)
                # Not start + s * 0 for s = 0: rounding would move a weight.
                p.copy_(start if scale == 0 else (start.to(wide) - scale * (p.to(wide) - start.to(wide))).to(p.dtype))
        del self._start
