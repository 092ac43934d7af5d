"""The weight matrices of a network: which parameters they are, and each as (slices, outputs, inputs).

Parameters decide, not the classes of layers. Transformers fuses the experts of a mixture into one parameter with three axes
that belongs to no linear layer, and the kernel of a convolution is a matrix too.

What is not a weight matrix: embeddings of tokens, positions and patches with learned tokens beside them, the head, and what
is added to an input or scales it entry by entry: biases, norms, and the rates `A_log` of a state space model. Quantization
and pruning libraries leave these as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


#: Share of the weights below which something that claims to reach the weights of a model has not done so.
ENOUGH = 0.95
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_EMBEDDING = re.compile(r"embed|(^|[._])position", re.IGNORECASE)  # in the name of a parameter, with its modules
_NO_PRODUCT = re.compile(r"token|rel_pos|bias|scale|norm|gamma|lambda|A_log|^D$", re.IGNORECASE)  # in its last part


@dataclass(frozen=True, eq=False)
class WeightMatrix:
    """A parameter that is a matrix, or a stack of matrices of one shape.

    Attributes:
        name (`str`): of the parameter in the model.
        module (`nn.Module`): the one that it belongs to.
        parameter (`nn.Parameter`): as it is stored.
        is_transposed (`bool`): whether a matrix is stored as (inputs, outputs), as in `Conv1D` and in the experts of GPT-OSS.
        is_stack (`bool`): whether all axes but the last two count matrices: the experts of a mixture.
    """

    name: str
    module: nn.Module
    parameter: nn.Parameter
    is_transposed: bool
    is_stack: bool

    def stored(self) -> list[Tensor]:
        """Views of the matrices, one by one, in the axes in which they are stored."""
        values = self.parameter.detach()
        return list(values.view(-1, *values.shape[-2:])) if self.is_stack else [values]

    def slices(self) -> list[Tensor]:
        """Views `(outputs, inputs)` of the matrices, one by one: a change of one changes the model."""
        rows = (part.view(len(part), -1) for part in self.stored())
        return [part.T if self.is_transposed else part for part in rows]

    def by_input(self) -> list[Tensor]:
        """As [`~WeightMatrix.slices`], with the rows that read the same inputs together: those of a group of channels."""
        n = self.module.groups if isinstance(self.module, _CONVOLUTIONS) else 1
        return [part for rows in self.slices() for part in rows.chunk(n)]


def weight_matrices(model: nn.Module, names: Iterable[str] | None = None, head: bool = False) -> list[WeightMatrix]:
    """The weight matrices of a model, in the order of its modules. A weight that several layers share counts once.

    Args:
        names (iterable of `str`, *optional*): only those among these parameters.
        head (`bool`, *optional*, defaults to `False`): also the head, unless its weight is that of an embedding.
    """
    wanted = None if names is None else set(names)
    return [
        matrix
        for matrix in _candidates(model, head)
        if matrix.parameter.is_floating_point() and (wanted is None or matrix.name in wanted)
    ]


def require_weight_matrices(model: nn.Module) -> list[WeightMatrix]:
    """The weight matrices without the head.

    Raises:
        ValueError: there are none.
    """
    found = weight_matrices(model)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no weight matrix but its embeddings and its head, so there is nothing to change. "
            "Leave this attack out."
        )
    return found


def share_of_weights(
    model: nn.Module, reached: Callable[[WeightMatrix], float], names: Iterable[str] | None = None, head: bool = False
) -> float:
    """The share of the entries of all weight matrices that something reaches, in [0, 1]; 1 where there are none.

    The total also has matrices that are stored as integers, which nothing here changes.

    Args:
        reached (`Callable`): the share of a matrix that it reaches.
        names, head (*optional*): as for [`weight_matrices`].
    """
    wanted = None if names is None else set(names)
    candidates = [matrix for matrix in _candidates(model, head) if wanted is None or matrix.name in wanted]
    total = sum(matrix.parameter.numel() for matrix in candidates)
    return sum(reached(matrix) * matrix.parameter.numel() for matrix in candidates) / total if total else 1.0


def share_changed(before: nn.Module, after: nn.Module) -> float:
    """The share of the weights of `before` that are in a matrix which `after` has in another form, or with other values.

    A matrix of zeros counts as changed: what scales or rounds it leaves it as it is.
    """
    found: Mapping[str, nn.Parameter] = dict(after.named_parameters())

    def reached(matrix: WeightMatrix) -> float:
        new = found.get(matrix.name)
        if new is None or new.dtype != matrix.parameter.dtype:
            return 1.0
        old = matrix.stored()
        parts = zip(old, WeightMatrix(matrix.name, matrix.module, new, False, matrix.is_stack).stored(), strict=True)
        return sum(not torch.equal(a, b) or not a.any() for a, b in parts) / len(old)

    return share_of_weights(before, reached)


def lora_targets(model: nn.Module, matrices: Iterable[WeightMatrix]) -> dict[str, list[str]]:
    """What a `LoraConfig` must name to adapt these weights of linear layers and fused experts, and no others."""
    names = [matrix.name for matrix in matrices]
    if any(matrix.is_stack for matrix in weight_matrices(model)):
        # All by their parameters: peft takes names of layers in a mixture for those of experts before they were fused.
        return {"target_modules": [], "target_parameters": names}
    return {"target_modules": [name.removesuffix(".weight") for name in names]}


def _candidates(model: nn.Module, head: bool) -> list[WeightMatrix]:
    seen = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    outside = set() if head else {id(part) for module in heads_of(model) for part in module.modules()}
    found = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) or id(module) in outside:
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            if id(parameter) not in seen and _is_matrix(name, leaf, module, parameter):
                seen.add(id(parameter))
                is_stack = parameter.dim() > 2 and not isinstance(module, _CONVOLUTIONS + _TRANSPOSED_CONVOLUTIONS)
                found.append(WeightMatrix(name, module, parameter, _is_transposed(module), is_stack))
    return found


def heads_of(model: nn.Module) -> list[nn.Module]:
    """The modules that make the logits: the output embeddings, or the classifier."""
    heads = (getattr(model, "get_output_embeddings", lambda: None)(), getattr(model, "classifier", None))
    return [module for module in heads if isinstance(module, nn.Module)]


def _is_matrix(name: str, leaf: str, module: nn.Module, parameter: nn.Parameter) -> bool:
    if leaf == "weight" and isinstance(module, (nn.Linear, Conv1D)):
        return True
    # An axis of length one is none: a scale of shape (1, 1, 1, width) is a vector. The kernels of a depthwise convolution
    # over a single position would be one too.
    if sum(size > 1 for size in parameter.shape) < 2:
        return False
    return not _EMBEDDING.search(name) and not _NO_PRODUCT.search(leaf)


def _is_transposed(module: nn.Module) -> bool:
    if isinstance(module, (Conv1D, *_TRANSPOSED_CONVOLUTIONS)):
        return True
    if isinstance(getattr(module, "is_transposed", None), bool):
        return module.is_transposed
    # Experts that do not say so: the outputs of the first projection are twice the inputs of the second.
    up, down = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    both = isinstance(up, Tensor) and isinstance(down, Tensor)
    return both and up.dim() == down.dim() == 3 and up.shape[-1] == 2 * down.shape[-2]
