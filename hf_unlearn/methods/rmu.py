"""Representation misdirection."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hf_unlearn.data.rows import IGNORE_INDEX
from hf_unlearn.models.blocks import backbone_config, find_blocks, layers_of, run_to_block
from hf_unlearn.models.modes import evaluating
from hf_unlearn.models.projections import second_projections
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer
from hf_unlearn.training.reference import Reference


SCOPES = ("all", "answer")


def misdirection(hidden: Tensor, target: Tensor) -> Tensor:
    """Mean over the width of the squared difference of each token: `(..., width)`, `(..., width)` -> `(...)`."""
    return (hidden - target).square().mean(-1)


@dataclass
class RMUConfig(UnlearningConfig):
    """Options of [`RMUTrainer`]. Defaults of the paper's setting for a model of 32 blocks (arXiv 2403.03218).

    Parameters:
        layer (`int`, *optional*): block whose output is steered; negative counts from the last. Defaults to a quarter of
            the depth (7 of 32), but not before the third block.
        steering (`float`, *optional*, defaults to `6.5`): c, length of the target; with `adaptive` a factor.
        adaptive (`bool`, *optional*, defaults to `False`): adaptive RMU (arXiv 2408.06223): the target is `steering` times
            as long as the token's own activation at the start.
        token_scope (`str`, *optional*, defaults to `"all"`): `"all"` tokens of a row, as in the paper, or those of its
            `"answer"`. All tokens of an image always count.
        retain_weight (`float`, *optional*, defaults to `1200.0`): alpha.
    """

    layer: int | None = field(default=None, metadata={"help": "Block whose output is steered."})
    steering: float = field(default=6.5, metadata={"help": "Length of the target, or factor if adaptive."})
    adaptive: bool = field(default=False, metadata={"help": "As a multiple of the length at the start."})
    token_scope: str = field(default="all", metadata={"help": "Tokens that are steered.", "choices": SCOPES})
    retain_weight: float = field(default=1200.0, metadata={"help": "Weight of the retain loss."})
    retain_loss: str = field(default="activations", metadata={"help": "Loss on the retain set: activations or none."})

    positive = ("steering",)
    retain_losses = ("activations", "none")


def steerable_blocks(model: nn.Module, args: RMUConfig | None = None) -> nn.ModuleList:
    """The blocks whose states can be steered; a `ValueError` where they are not found or differ in width."""
    otherwise = "its activations cannot be steered. Choose a method on the outputs (npo, graddiff)"
    return getattr(*find_blocks(_inner(model), otherwise))


class RMUTrainer(UnlearningTrainer):
    """Steer the activations of the forget set towards a random direction, and keep those of the retain set.

    `L_f = mean over tokens and width of (h - c u)^2`, `L_r = mean of (h - h_ref)^2`, where h is the output of the block
    `layer` and u a direction drawn once from the seed, uniform in [0, 1]^width and of length 1.

    By default only the second MLP projections of the three blocks up to `layer` move, in a mixture those of all experts. Later blocks are not run, and the
    reference reuses the input of the first trained block, so that a step costs little. The frozen blocks before it run
    without dropout.

    Source: Li et al., The WMDP Benchmark, arXiv 2403.03218; adaptive: Huu-Tien et al., arXiv 2408.06223.

    Example:
        >>> from hf_unlearn import RMUConfig, RMUTrainer
        >>> trainer = RMUTrainer("my-model", RMUConfig("unlearned", layer=7, steering=6.5), forget, retain)
        >>> trainer.train()
    """

    config_class = RMUConfig
    architecture = "specific"
    requires = (steerable_blocks,)
    retain_reference = True
    cost = "a forward and backward pass of forget + retain rows up to one block; the trained blocks for the reference"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        of_name = layers_of(self.model)
        layers = {name: of_name.get(name) for name in self.trainable_names}
        if outside := [name for name, layer in layers.items() if layer is None or layer > self._layer]:
            raise ValueError(
                f"RMU steers the output of block {self._layer}, but {len(outside)} of the weights that may move, such as "
                f"{outside[0]}, are outside the blocks up to it and would get no gradient. Either set trainable and "
                "trainable_layers to weights before it, or set another layer."
            )
        self._first = min(layers.values())
        if self._reference is None:
            self._reference = Reference(self.model)
        width = backbone_config(self.model).hidden_size
        generator = torch.Generator().manual_seed(self.args.seed)
        direction = torch.rand(width, generator=generator, dtype=torch.float64)
        self._direction = direction / direction.norm()

    def adapt(self, model, args, data, collate):
        depth = len(steerable_blocks(model))
        layer = args.layer if args.layer is not None else max(depth // 4 - 1, min(2, depth - 1))
        if not -depth <= layer < depth:
            raise ValueError(f"You set layer={layer}, but the model has {depth} blocks. Set one of 0 to {depth - 1}.")
        self._layer = layer % depth
        if args.trainable is None and args.trainable_layers is None:
            chosen = self._default_weights(model)
            for key, parameter in model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and key in chosen)
        return model

    def _default_weights(self, model) -> set[str]:
        """Second MLP projections of the three blocks up to the layer; with an adapter, all parameters of these blocks."""
        near = range(max(0, self._layer - 2), self._layer + 1)
        names = {name for name, layer in layers_of(model).items() if layer in near}
        if hasattr(model, "peft_config"):
            return names
        chosen = {matrix.name for matrix in second_projections(model)} & names
        if not chosen:
            raise ValueError(
                f"No second MLP projection was found in the blocks of {type(model).__name__}. Set trainable to the weights that "
                "may move."
            )
        return chosen

    def losses(self, model, inputs, counts):
        inputs = dict(inputs)
        sizes = inputs.pop("parts")
        inputs.pop("reference_log_probs")
        base = self.accelerator.unwrap_model(self.model)
        with self._prefix_without_dropout(base):
            seen = run_to_block(model, _inner(base), inputs, self._first, self._layer)
        # The reference starts from the input of the first trained block: all weights before it are the same.
        n, start = sizes["forget"], None
        if self.args.adaptive or "retain" in sizes:
            with torch.no_grad(), evaluating(base), self._reference.at_start(base):
                start = seen.replay()

        target = self.args.steering * self._direction.to(seen.output)
        if self.args.adaptive:
            target = start[:n].norm(dim=-1, keepdim=True) * target
        parts = {"forget": misdirection(seen.output[:n], target)}
        if "retain" in sizes:
            parts["retain"] = misdirection(seen.output[n:], start[n:])
        losses, row = {}, 0
        for name, values in parts.items():
            counted = self._counted(inputs, slice(row, row + sizes[name]), values)
            n_tokens = counted.sum() if counts is None else self._tokens(counts[name], values)
            losses[name] = (values * counted).sum() / n_tokens.clamp(min=1e-9)
            row += sizes[name]
        self.record({f"{name}_loss": value for name, value in losses.items()})
        self.require_finite(sum(losses.values()))
        retain = self.retain_weight() * losses["retain"] if "retain" in losses else None
        return self.args.forget_weight * losses["forget"], retain

    def _counted(self, inputs, rows: slice, values: Tensor) -> Tensor:
        """Which tokens are steered, `(rows, length)`."""
        if "attention_mask" not in inputs:
            return torch.ones_like(values)
        if self.args.token_scope == "answer":
            return (inputs["labels"][rows] != IGNORE_INDEX).to(values)
        return inputs["attention_mask"][rows].to(values)

    def _tokens(self, counts: Tensor, values: Tensor) -> Tensor:
        """How many tokens the step has in all, divided by the number of processes."""
        if self.is_classifier:
            return counts[1] * values.shape[1]
        return counts[0] if self.args.token_scope == "answer" else counts[2]

    def _prefix_without_dropout(self, base):
        trained = steerable_blocks(base)[self._first :]
        training = {id(module) for block in trained for module in block.modules()}
        return evaluating(*(m for m in _inner(base).modules() if not list(m.children()) and id(m) not in training))

    def method_state(self):
        return {"direction": self._direction}

    def load_method_state(self, state):
        self._direction = state["direction"]


def _inner(model):
    return model.get_base_model() if hasattr(model, "peft_config") else model
