"""Localised low-rank editing: find the layers that matter, adapt these alone, merge."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from hf_unlearn.curvature.importance import squared_gradients
from hf_unlearn.data.pairing import batches
from hf_unlearn.methods.ihl import InvertedHingeConfig, InvertedHingeTrainer
from hf_unlearn.models.blocks import layers_of
from hf_unlearn.models.weights import WeightMatrix, lora_targets
from hf_unlearn.training.where import other_weights, reached_matrices


# Types of models whose `out_proj` peft refuses to adapt, as their kernels read its weight past the module.
_MAMBA = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}


def weighted_factors(weight: Tensor, importance: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """The start of FILA (arXiv 2408.06621): the factors A, B that hold the part of a weight that matters most.

    Rows weigh `rho = sqrt(sum over columns of the importance)`. From the SVD of `diag(rho) W = U S V^T`, cut at `rank`:
    `A = (V sqrt(S / scaling))^T`, `B = diag(1 / rho) U sqrt(S / scaling)`. What the base keeps is `W - scaling B A`, so
    that nothing changes at the start. `weight` and `importance` (>= 0) are `(out, in)`.

    Returns:
        A `(rank, in)`, B `(out, rank)` in float64.
    """
    rho = importance.double().sum(1).sqrt()
    rho = rho / rho.mean().clamp(min=torch.finfo(rho.dtype).tiny) + 1e-5  # relative, as Fisher values have no scale
    u, s, vh = torch.linalg.svd(rho[:, None] * weight.double(), full_matrices=False)
    root = (s[:rank] / scaling).sqrt()
    return root[:, None] * vh[:rank], (u[:, :rank] * root) / rho[:, None]


@dataclass
class LoRAEditConfig(InvertedHingeConfig):
    """Options of [`LoRAEditTrainer`].

    Parameters:
        n_modules (`int`, *optional*, defaults to `4`): number of weights of the blocks that are adapted: those of linear
            layers, or the fused experts of a mixture, which count as one.
        rank (`int`, *optional*, defaults to `8`): rank of the adapters; the paper takes 4 to 32, with alpha twice the rank.
        importance_rows (`int`, *optional*, defaults to `128`): rows of each set to measure importance on.
        learning_rate (`float`, *optional*, defaults to `2e-4`): value of the paper.
    """

    n_modules: int = field(default=4, metadata={"help": "Linear layers, or fused experts, that are adapted."})
    rank: int = field(default=8, metadata={"help": "Rank of the adapters."})
    importance_rows: int = field(default=128, metadata={"help": "Rows of each set to measure importance on."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Step size of the adapters."})

    at_least_one = ("n_modules", "rank", "importance_rows")
    needs_retain = "the method compares the forget set with the retain set"


class LoRAEditTrainer(InvertedHingeTrainer):
    """Adapt only the layers that matter more to the forget set than to the retain set, then merge.

    Layers are ranked by the sum of their Fisher information on the forget set over that on the retain set. Each of the
    first `n_modules` gets a LoRA adapter that starts from its own most important part (FILA), and the inverted hinge loss
    trains these. The experts of a mixture are one parameter that is ranked as a whole; each expert gets its own adapter. In the end they are merged into a plain checkpoint. A `checkpoint-*` on the way holds the adapters
    alone, whose base is not the original model: use it only to resume.

    Attributes:
        chosen (`list[str]`): names of the adapted layers, or of the parameters that hold fused experts, highest ratio first.

    Source: Cha et al., Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs (LoKU), arXiv 2408.06621.

    Example:
        >>> from hf_unlearn import LoRAEditConfig, LoRAEditTrainer
        >>> trainer = LoRAEditTrainer("my-model", LoRAEditConfig("unlearned", n_modules=4, rank=8), forget, retain)
        >>> trainer.train()
    """

    config_class = LoRAEditConfig
    architecture = "specific"
    requires = (lambda model, args: adaptable_matrices(model, args),)
    needs_whole_weights = True
    needs_dense_weights = True

    def adapt(self, model, args, data, collate):
        from peft import LoraConfig, get_peft_model

        model.to(args.device)
        matrices = adaptable_matrices(model, args)
        names = [matrix.name for matrix in matrices.values()]
        size, limit = args.per_device_eval_batch_size, args.importance_rows
        with _noting_calls(matrices) as called:
            forget, retain = (
                squared_gradients(model, batches(rows, collate, size, args.device, limit), names)
                for rows in (data.forget, data.retain)
            )
        # The adapter of a module that is not called would take part in no pass, while its base has lost what it holds.
        matrices = _not_none({name: matrix for name, matrix in matrices.items() if name in called}, model, args)
        score = {name: _ratio(forget[m.name], retain[m.name]) for name, m in matrices.items()}
        self.chosen = sorted(matrices, key=lambda name: (-score[name], name))[: args.n_modules]

        targets = lora_targets(model, map(matrices.get, self.chosen))
        config = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, lora_dropout=0.0, **targets)
        with torch.random.fork_rng(devices=[]):
            model = get_peft_model(model, config)
        for matrix in map(matrices.get, self.chosen):
            r = retain[matrix.name]
            relative = forget[matrix.name] / (r + 1e-5 * r.mean() if r.any() else 1.0)
            _start_from_weight(_adapter_of(model.get_base_model(), matrix), matrix, relative)
        return model

    def select(self, model, args):
        return [name for name, parameter in model.named_parameters() if parameter.requires_grad]  # chosen in `adapt`

    def finish(self):
        self.model = self.accelerator.unwrap_model(self.model).merge_and_unload()


def adaptable_matrices(model: nn.Module, args: LoRAEditConfig) -> dict[str, WeightMatrix]:
    """The movable matrices of the blocks that peft can adapt, by the name that it knows them by.

    Raises:
        ValueError: there are none, or see [`~hf_unlearn.training.where.reached_matrices`].
    """
    in_layers, kind = layers_of(model), getattr(model.config, "model_type", None)
    found = reached_matrices(model, args, "lora_edit", lambda matrix: _adaptable(matrix, kind))
    return _not_none({_name(matrix): matrix for matrix in found if matrix.name in in_layers}, model, args)


def _not_none(matrices: dict[str, WeightMatrix], model: nn.Module, args: LoRAEditConfig) -> dict[str, WeightMatrix]:
    if not matrices:
        raise ValueError(
            "lora_edit adapts linear layers and fused experts of the blocks, but none of these may move in this "
            f"{type(model).__name__}. {other_weights(args)}"
        )
    return matrices


def _adaptable(matrix: WeightMatrix, kind: str | None) -> bool:
    """Whether peft can adapt it: a linear layer, or experts that are fused into one parameter and say how."""
    past = isinstance(matrix.module, NonDynamicallyQuantizableLinear)  # torch's attention reads its weight
    if past or kind in _MAMBA and matrix.name.endswith(".out_proj.weight"):
        return False
    known = not matrix.is_transposed or hasattr(matrix.module, "is_transposed")
    return isinstance(matrix.module, (nn.Linear, Conv1D)) or matrix.is_stack and matrix.parameter.dim() == 3 and known


@contextmanager
def _noting_calls(matrices: Mapping[str, WeightMatrix]) -> Iterator[set[str]]:
    """The names of the matrices whose modules are called in a while: some models read weights past their modules."""
    called: set[str] = set()
    with ExitStack() as hooks:
        for name, matrix in matrices.items():
            hooks.enter_context(matrix.module.register_forward_pre_hook(lambda *_, name=name: called.add(name)))
        yield called


def _name(matrix: WeightMatrix) -> str:
    """What peft calls it: a layer by its module, fused experts by the parameter."""
    return matrix.name if matrix.is_stack else matrix.name.removesuffix(".weight")


def _ratio(forget: Tensor, retain: Tensor) -> float:
    f, r = float(forget.sum()), float(retain.sum())
    return f / r if r else math.inf if f else 0.0  # a weight that no row uses matters to none


def _adapter_of(model: nn.Module, matrix: WeightMatrix) -> nn.Module:
    path, _, leaf = matrix.name.rpartition(".")
    layer = model.get_submodule(path)
    while getattr(layer, "parameter_name", leaf) != leaf:  # the adapters of two parameters of a module are nested
        layer = layer.base_layer
    return layer


@torch.no_grad()
def _start_from_weight(layer: nn.Module, matrix: WeightMatrix, importance: Tensor) -> None:
    scaling, rank = layer.scaling["default"], layer.r["default"]
    lora_a, lora_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    lora_b.zero_()
    n = len(matrix.slices())
    # One adapter for each expert: peft has them in order in the rows of A, and in turn in the columns of B.
    factors_a, factors_b = lora_a.view(n, rank, -1), lora_b.view(-1, rank, n)
    important = replace(matrix, parameter=nn.Parameter(importance, requires_grad=False)).slices()
    for i, (weight, relative) in enumerate(zip(matrix.slices(), important, strict=True)):
        a, b = weighted_factors(weight, relative, rank, scaling)
        k = len(a)  # a narrow layer has fewer directions
        factors_a[i, :k].copy_(a)
        factors_b[:, :k, i].copy_(b)
        change = scaling * (factors_b[:, :, i].double() @ factors_a[i].double())
        weight.copy_(weight.double() - change)
