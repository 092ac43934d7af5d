"""The projections of a block by their role: found by shape and name, whatever the class of the module."""

from __future__ import annotations

from torch import nn

from hf_unlearn.models.blocks import layers_of
from hf_unlearn.models.weights import WeightMatrix, weight_matrices


# Names of the projections of an attention module other than the one back to the width of the model.
_ROLES = {"q", "k", "v", "qkv", "wqkv", "query", "key", "value"}


def makes_queries(name: str) -> bool:
    """Whether a projection of this name makes queries, keys or values."""
    return name == "c_attn" or bool(_ROLES & set(name.lower().split("_")))


def second_projections(model: nn.Module) -> list[WeightMatrix]:
    """The projections of the blocks back to the width of the model, without those of attention.

    In a module that projects from width `h` to `m` (or `2 m`, with a gate) it is the last projection from `m` to `h`. The
    fused experts of a mixture are found as the linear layers of an MLP are.
    """
    in_layers = layers_of(model)
    owners: dict[str, list[WeightMatrix]] = {}
    for matrix in weight_matrices(model):
        path, _, leaf = matrix.name.rpartition(".")
        if matrix.name in in_layers:
            owners.setdefault(path.rpartition(".")[0] if leaf == "weight" else path, []).append(matrix)
    found = []
    for owner, matrices in owners.items():
        names = [matrix.name.removesuffix(".weight").rpartition(".")[2] for matrix in matrices]
        if "attn" in owner or "attention" in owner or any(map(makes_queries, names)):
            continue
        shapes = [tuple(matrix.slices()[0].shape) for matrix in matrices]
        second = [
            i
            for i, (h, m) in enumerate(shapes)
            if any(s in shapes[:i] + shapes[i + 1 :] for s in ((m, h), (2 * m, h)))
        ]
        found += [matrices[second[-1]]] if second else []
    return found
