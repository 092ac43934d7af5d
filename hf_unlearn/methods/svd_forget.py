"""Forgetting by singular value decompositions of activations, without gradients."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hf_unlearn.curvature.covariance import input_covariances, inputs_are_seen
from hf_unlearn.models.weights import WeightMatrix
from hf_unlearn.training import UnlearningConfig
from hf_unlearn.training.edit import TrainingFreeTrainer
from hf_unlearn.training.where import reached_matrices


ORDERS = ("reference", "retain_exact")


def soft_projection(covariance: Tensor, alpha: float) -> Tensor:
    """Projection on the directions of the inputs, each in proportion to its energy: `U diag(l) U^T`, `(d, d)`.

    `l_i = alpha q_i / ((alpha - 1) q_i + 1)`, where q_i is the share of the energy in direction i: for alpha = 1 it is q_i,
    and for a large alpha 1 wherever there is any.
    """
    energies, directions = torch.linalg.eigh(covariance)
    # What is left of a direction without energy is rounding, which a large alpha would make much of.
    rounding = len(energies) * torch.finfo(energies.dtype).eps * energies[-1]
    energies = torch.where(energies > rounding, energies, 0)
    share = energies / energies.sum().clamp(min=torch.finfo(energies.dtype).tiny)
    scale = alpha * share / ((alpha - 1) * share + 1)
    return directions * scale @ directions.T


def removal(forget: Tensor, retain: Tensor, order: str) -> Tensor:
    """Factor `(in, in)` on the right of a weight `(out, in)`, from the two projections.

    `D = P_f - P_f P_r` holds the directions that the forget set uses and the retain set does not. `"reference"`, as the
    authors: `(I - D)^T`; `"retain_exact"`: `I - D`, which leaves inputs in the span of a hard P_r as they are.
    """
    keep = torch.eye(len(forget), dtype=forget.dtype, device=forget.device) - (forget - forget @ retain)
    return keep.T if order == "reference" else keep


@dataclass
class SVDForgetConfig(UnlearningConfig):
    """Options of [`SVDForgetTrainer`].

    Parameters:
        retain_alpha (`float`, *optional*, defaults to `100.0`): higher protects more of the retain set's directions. The
            authors' value for a ViT, as `forget_alpha`.
        forget_alpha (`float`, *optional*, defaults to `10.0`): higher removes more of the forget set's directions.
        order (`str`, *optional*, defaults to `"reference"`): order of the projections, see [`removal`].
        max_rows (`int`, *optional*, defaults to `1000`): rows of each set to take activations from.
    """

    retain_alpha: float = field(default=100.0, metadata={"help": "Higher protects more of the retain set."})
    forget_alpha: float = field(default=10.0, metadata={"help": "Higher removes more of the forget set."})
    order: str = field(default="reference", metadata={"help": "Order of the projections.", "choices": ORDERS})
    max_rows: int | None = field(default=1000, metadata={"help": "Rows of each set to take activations from."})

    positive = ("retain_alpha", "forget_alpha")
    at_least_one = ("max_rows",)
    needs_retain = "the method compares the forget set with the retain set"


class SVDForgetTrainer(TrainingFreeTrainer):
    """Remove from every weight matrix the input directions that the forget set uses and the retain set does not.

    Made for whole classes. Every weight matrix that may move is changed, each expert of a mixture and each kernel of a
    convolution (which reads patches) by itself, including the head, but no embeddings (nor those of patches, nor a head tied
    to them). An expert that no row reaches stays as it is. All activations are those of the model at its start. A few hundred rows of each
    set suffice, and no gradient is taken. Choose the two alphas on rows that are in neither set.

    Source: Kodge et al., Deep Unlearning: Fast and Efficient Gradient-free Class Forgetting, arXiv 2312.00761.

    Example:
        >>> from hf_unlearn import SVDForgetConfig, SVDForgetTrainer
        >>> trainer = SVDForgetTrainer("my-model", SVDForgetConfig("unlearned", forget_alpha=10.0), forget, retain)
        >>> trainer.train()
    """

    config_class = SVDForgetConfig
    architecture = "specific"
    granularity = "batch"
    requires = (lambda model, args: edited_matrices(model, args),)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._matrices = edited_matrices(self.model, self.args)

    @torch.no_grad()
    def edit(self):
        data, limit = self.train_dataset, self.args.max_rows
        forget = input_covariances(self.model, self._matrices, self.batches(data.forget, limit=limit))
        retain = input_covariances(self.model, self._matrices, self.batches(data.retain, limit=limit))
        factors: dict[int, Tensor] = {}  # one for all matrices with the same input
        for matrix in self._matrices:
            if matrix.name not in forget or matrix.name not in retain:
                continue  # no pass uses it
            for weight, f, r in zip(matrix.by_input(), forget[matrix.name], retain[matrix.name], strict=True):
                if id(f) not in factors:
                    p_f, p_r = soft_projection(f, self.args.forget_alpha), soft_projection(r, self.args.retain_alpha)
                    factors[id(f)] = removal(p_f, p_r, self.args.order)
                weight.copy_(weight.double() @ factors[id(f)])


def edited_matrices(model: nn.Module, args: SVDForgetConfig) -> list[WeightMatrix]:
    """The movable matrices whose inputs can be seen; a `ValueError` where those are too few, see [`reached_matrices`]."""
    return reached_matrices(model, args, "svd_forget", inputs_are_seen)
