"""Localised low-rank editing: find the layers that matter, adapt these alone, merge."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_unlearn.curvature.importance import squared_gradients
from hf_unlearn.data.pairing import batches
from hf_unlearn.methods.ihl import InvertedHingeConfig, InvertedHingeTrainer
from hf_unlearn.models.blocks import layers_of
from hf_unlearn.models.linear import linear_modules


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
        n_modules (`int`, *optional*, defaults to `4`): number of linear layers of the blocks that are adapted.
        rank (`int`, *optional*, defaults to `8`): rank of the adapters; the paper takes 4 to 32, with alpha twice the rank.
        importance_rows (`int`, *optional*, defaults to `128`): rows of each set to measure importance on.
        learning_rate (`float`, *optional*, defaults to `2e-4`): value of the paper.
    """

    n_modules: int = field(default=4, metadata={"help": "Linear layers that are adapted."})
    rank: int = field(default=8, metadata={"help": "Rank of the adapters."})
    importance_rows: int = field(default=128, metadata={"help": "Rows of each set to measure importance on."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Step size of the adapters."})

    at_least_one = ("n_modules", "rank", "importance_rows")
    needs_retain = "the method compares the forget set with the retain set"


class LoRAEditTrainer(InvertedHingeTrainer):
    """Adapt only the linear layers that matter more to the forget set than to the retain set, then merge.

    Layers are ranked by the sum of their Fisher information on the forget set over that on the retain set. Each of the
    first `n_modules` gets a LoRA adapter that starts from its own most important part (FILA), and the inverted hinge loss
    trains these. In the end they are merged into a plain checkpoint. A `checkpoint-*` on the way holds the adapters
    alone, whose base is not the original model: use it only to resume.

    Attributes:
        chosen (`list[str]`): names of the adapted layers, highest ratio first.

    Source: Cha et al., Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs (LoKU), arXiv 2408.06621.

    Example:
        >>> from hf_unlearn import LoRAEditConfig, LoRAEditTrainer
        >>> trainer = LoRAEditTrainer("my-model", LoRAEditConfig("unlearned", n_modules=4, rank=8), forget, retain)
        >>> trainer.train()
    """

    config_class = LoRAEditConfig
    architecture = "specific"
    needs_whole_weights = True

    def adapt(self, model, args, data, collate):
        from peft import LoraConfig, get_peft_model

        if getattr(model, "is_quantized", False) or hasattr(model, "peft_config"):
            raise ValueError(
                f"{type(self).__name__} makes adapters of its own from dense weights. Load the model without quantization "
                "and without peft_config, and merge an adapter (merge_and_unload). For QLoRA choose ihl with a peft_config."
            )
        model.to(args.device)
        in_layers = layers_of(model)
        names = [n for n, p in model.named_parameters() if p.requires_grad and n in in_layers]
        modules = linear_modules(model, names)
        weights = [f"{name}.weight" for name in modules]
        size, limit = args.per_device_eval_batch_size, args.importance_rows
        forget, retain = (
            squared_gradients(model, batches(rows, collate, size, args.device, limit), weights)
            for rows in (data.forget, data.retain)
        )
        score = {name: float(forget[f"{name}.weight"].sum() / retain[f"{name}.weight"].sum()) for name in modules}
        self.chosen = sorted(modules, key=lambda name: (-score[name], name))[: args.n_modules]

        config = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, lora_dropout=0.0, target_modules=self.chosen)
        with torch.random.fork_rng(devices=[]):
            model = get_peft_model(model, config)
        for name in self.chosen:
            key = f"{name}.weight"
            relative = forget[key] / (retain[key] + 1e-5 * retain[key].mean())
            _start_from_weight(model.get_base_model().get_submodule(name), relative)
        return model

    def finish(self):
        self.model = self.accelerator.unwrap_model(self.model).merge_and_unload()


@torch.no_grad()
def _start_from_weight(layer: nn.Module, importance: Tensor) -> None:
    base, scaling = layer.get_base_layer(), layer.scaling["default"]
    transposed = isinstance(base, Conv1D)
    weight = base.weight.T if transposed else base.weight
    rank = layer.r["default"]
    a, b = weighted_factors(weight, importance.T if transposed else importance, rank, scaling)
    rank = len(a)  # a narrow layer has fewer directions
    lora_a, lora_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    lora_b.zero_()
    lora_a[:rank].copy_(a)
    lora_b[:, :rank].copy_(b)
    change = scaling * (lora_b.double() @ lora_a.double())
    rest = (weight.double() - change).to(base.weight.dtype)
    base.weight.copy_(rest.T if transposed else rest)
