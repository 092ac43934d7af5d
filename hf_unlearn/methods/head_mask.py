"""Learned masks on attention heads and neurons."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_unlearn.models.likelihood import TargetLogits, target_logits
from hf_unlearn.models.modes import evaluating
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer
from hf_unlearn.training.checkpoints import load_state
from hf_unlearn.training.gates import Gates, find_gate_points, probability_open


NAME = "unlearning_gates"  # of the module that holds the gates, in the model


@dataclass
class HeadMaskConfig(UnlearningConfig):
    """Options of [`HeadMaskTrainer`].

    Parameters:
        learning_rate (`float`, *optional*, defaults to `0.2`): step of ln alpha, the logits of the gates. Much larger
            than for weights: a gate moves by about this in a step, and is open at 3 and closed at -3.
        neurons (`bool`, *optional*, defaults to `False`): gate the neurons of the MLPs as well.
        warm_start (`float`, *optional*, defaults to `0.1`): share of the gates that start undecided instead of open: those
            with the largest ratio of the effect on the forget set to that on the retain set.
        warm_start_rows (`int`, *optional*, defaults to `128`): rows of each set, evenly spread, to measure effects on.
        cap (`float`, *optional*): loss of a token, in nats, above which it counts as forgotten. Defaults to the loss of
            guessing, ln(number of classes).
        closed_weight (`float`, *optional*, defaults to `1.0`): weight of the share of closed gates above `closed_target`.
        closed_target (`float`, *optional*, defaults to `0.1`): share of gates that may close at no cost.
        purge (`bool`, *optional*, defaults to `True`): also zero the weights that feed closed gates.
    """

    learning_rate: float = field(default=0.2, metadata={"help": "Step of the logits of the gates."})
    neurons: bool = field(default=False, metadata={"help": "Gate the neurons of the MLPs as well."})
    warm_start: float = field(default=0.1, metadata={"help": "Share of the gates that start undecided."})
    warm_start_rows: int = field(default=128, metadata={"help": "Rows of each set for the warm start."})
    cap: float | None = field(default=None, metadata={"help": "Loss of a token from which it is forgotten."})
    closed_weight: float = field(default=1.0, metadata={"help": "Weight of the share of closed gates."})
    closed_target: float = field(default=0.1, metadata={"help": "Share of gates that may close at no cost."})
    purge: bool = field(default=True, metadata={"help": "Also zero the weights that feed closed gates."})

    def __post_init__(self):
        for name in ("warm_start", "closed_target"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"You set {name}={getattr(self, name)}, but a share is between 0 and 1.")
        if self.trainable is not None or self.trainable_layers is not None:
            raise ValueError(
                "You set trainable or trainable_layers, but only gates move here and all weights are frozen. Leave them out, "
                "or choose a method that changes weights."
            )
        super().__post_init__()


class HeadMaskTrainer(UnlearningTrainer):
    """Close the attention heads (and neurons) that the forget set needs, with all weights frozen.

    Each gate is sampled from a hard-concrete distribution. `L = alpha L_r - gamma mean over tokens of min(-ln p(y_t), cap)
    + closed_weight max(0, expected share of closed gates - closed_target)`. When the training ends the gates are
    multiplied into the weights, so that every checkpoint is a plain model.

    A mask hides more than it deletes: the knowledge of a closed head stays, and other parts may have it too. Audit by
    relearning.

    Source: gates of Louizos et al., arXiv 1712.01312; scores of the warm start of Michel et al., arXiv 1905.10650.

    Example:
        >>> from hf_unlearn import HeadMaskConfig, HeadMaskTrainer
        >>> trainer = HeadMaskTrainer("my-model", HeadMaskConfig("unlearned", closed_target=0.1), forget, retain)
        >>> trainer.train()
    """

    config_class = HeadMaskConfig
    architecture = "specific"
    requires = (lambda model, args: find_gate_points(model, args.neurons),)
    needs_whole_weights = True
    needs_dense_weights = True

    def adapt(self, model, args, data, collate):
        gates = Gates(find_gate_points(model, args.neurons))
        model.requires_grad_(False)
        model.add_module(NAME, gates)
        return model

    @property
    def gates(self) -> Gates:
        return getattr(self.model, NAME)

    def prepare(self):
        if self.args.warm_start > 0 and self.train_dataset.retain is not None:
            forget, retain = (self._effects(rows) for rows in (self.train_dataset.forget, self.train_dataset.retain))
            score = forget / (retain + retain.mean())
            chosen = score.topk(math.ceil(self.args.warm_start * len(score))).indices
            with torch.no_grad():
                self.gates.log_alpha[chosen] = 0.0

    def _effects(self, rows) -> Tensor:
        """Taylor score of each gate, E |z dloss/dz| at z = 1: by how much closing it changes the loss of a row."""
        gates, n = self.gates, 0
        total = torch.zeros_like(gates.log_alpha)
        with evaluating(self.model):
            for batch in self.batches(rows, self.args.warm_start_rows):
                # Gates of its own for each row: one backward pass gives the gradients of all rows.
                values = torch.ones(len(batch["labels"]), len(total), dtype=total.dtype, device=total.device)
                with gates.given(values.requires_grad_()):
                    out = target_logits(self.model, batch)
                    loss = (-out.sequence_log_probs / out.lengths.clamp(min=1)).sum()
                total += torch.autograd.grad(loss, values)[0].abs().sum(0)
                n += len(values)
        return total / max(1, n)

    def begin_step(self):
        super().begin_step()
        self.gates.draw(self.args.seed, self.state.global_step)

    def forget_loss(self, forget: TargetLogits):
        cap = math.log(forget.logits.shape[-1]) if self.args.cap is None else self.args.cap
        closed = 1 - probability_open(self.gates.log_alpha).mean()
        excess = (closed - self.args.closed_target).clamp(min=0) * self.args.closed_weight
        return {
            "forget_loss": -forget.token_mean((-forget.log_probs).clamp(max=cap)),
            # Once a step: the shares of the micro-batches sum to one.
            "closed_loss": excess * forget.token_mean(torch.ones_like(forget.log_probs)),
        }

    def finish(self):
        self.gates.bake(self.args.purge)
        self.model._modules.pop(NAME)

    def _save(self, output_dir=None, state_dict=None):
        if NAME in self.model._modules:  # a checkpoint on the way: the weights with the gates multiplied in
            new = self.gates.baked(self.args.purge)
            state_dict = {
                name: new.get(value, value)
                for name, value in self.model.state_dict(keep_vars=True).items()
                if not name.startswith(f"{NAME}.")
            }
        super()._save(output_dir, state_dict)

    def method_state(self):
        return {"log_alpha": self.gates.log_alpha}

    def load_method_state(self, state):
        with torch.no_grad():
            self.gates.log_alpha.copy_(state["log_alpha"])

    def _load_plain(self, folder):
        self.load_method_state(load_state(folder))
        return True
