"""Reading an erased image off the difference of two public checkpoints, in closed form.

A ViT turns patch p of an image into `W x_p + b + pos_p`, so the gradients of the patch weights and of the position table
belong together: `dL/dW = sum over p of (dL/dpos_p) x_p^T`. Steps of plain SGD add up gradients, with momentum or without.
If all steps were on one image, the changes fulfill `dW = dPos^T X`, where the rows of X are its patches: the learning rate
drops out, and one least-squares solve gives the image. It is exact if the rank of the change of the position table is the
number of patches, which needs a hidden size of at least that (ViT-B/16: 196 patches, 768). A mixture of images, an adaptive
optimizer or rounding to 16 bit make it a regression with errors, from which something may still be seen.

Source: Lu et al., APRIL, arXiv 2112.14087, for a gradient. Here the difference of weights takes its place, and the class
token, whose gradient is that of its position, gives away the weight decay.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_unlearn.audit.measures.image_similarity import pixel_scale
from hf_unlearn.models.adapters import has_adapter
from hf_unlearn.models.load import load_model
from hf_unlearn.models.modes import plain_copy
from hf_unlearn.statistics.estimate import plain


#: The penalty on the pixels, over the variance of the errors. For independent errors, and pixels in [-1, 1] with a variance
#: of 0.3, the best is 3. This is 16 times as much, since one image also explains a part of the others in its batch: there
#: it gains 5 dB (measured), and it costs nothing where the errors are those of rounding.
RIDGE = 50.0


@dataclass(frozen=True)
class Reconstruction:
    """What the closed form gives.

    Attributes:
        status (`str`): `"applicable"`: there is one solution. `"rank_deficient"`: only a part of the image is determined.
            `"nothing_changed"`: one of the two tables is bit for bit the same in both models. `"not_finite"`: a table has
            values that are NaN or infinite. `"not_applicable"`: the model has no such tables.
        reason (`str`): the same in a sentence.
        image (`float64 (channels, height, width)` or `None`): in [0, 1] with a processor, else in the units of
            `pixel_values`.
        n_patches, rank (`int` or `None`): number of patches; rank of the change of the position table, above rounding.
        condition (`float`): condition number of that change; rounding errors grow with it.
        residual (`float`): share of the change of the patch weights that the image does not explain. Near 0 where all
            steps were on one image; without meaning where there are as many patches as hidden units.
        decay (`float`): share by which the weights shrank besides, as by weight decay.
    """

    status: str
    reason: str
    image: np.ndarray | None = field(default=None, repr=False)
    n_patches: int | None = None
    rank: int | None = None
    condition: float = float("nan")
    residual: float = float("nan")
    decay: float = float("nan")

    def as_dict(self) -> dict[str, Any]:
        """Plain types for JSON, without the image."""
        return plain({name: value for name, value in vars(self).items() if name != "image"})


@dataclass(frozen=True)
class PatchTables:
    """The first layer of a ViT, in float64.

    Attributes:
        weight (`(hidden, channels, patch height, patch width)`): of the patch embedding.
        positions (`(special tokens + patches, hidden)`).
        class_token (`(hidden,)` or `None`).
        grid (`tuple[int, int]`): patches from top to bottom and from left to right.
        rounding (`float`): distance of 1 to the next number in the type that the positions were stored in.
    """

    weight: np.ndarray
    positions: np.ndarray
    class_token: np.ndarray | None
    grid: tuple[int, int]
    rounding: float

    @classmethod
    def of(cls, model) -> PatchTables | None:
        """Those of a model, of a `PeftModel` after its merge, or of a checkpoint by its name; `None` if it has none."""
        if isinstance(model, (str, os.PathLike)):
            # Not the file itself: its names may be those of an older layout.
            model = load_model(os.fspath(model), dtype="auto")
        if has_adapter(model):
            model = plain_copy(model)
        module = _embeddings(model)
        if module is None:
            return None
        patches, positions = module.patch_embeddings.projection, module.position_embeddings
        (height, width), patch = module.patch_embeddings.image_size, patches.kernel_size
        tables = (patches.weight, positions[0], getattr(module, "cls_token", None))
        weight, rows, token = (None if t is None else t.detach().cpu().double().numpy() for t in tables)
        token = None if token is None else token.reshape(-1)
        return cls(weight, rows, token, (height // patch[0], width // patch[1]), _rounding(positions.detach()))


def _embeddings(model: nn.Module) -> nn.Module | None:
    """The module with a patch embedding and a position table beside it; `None` if there is none."""
    for module in model.modules():
        patches = getattr(getattr(module, "patch_embeddings", None), "projection", None)
        positions = getattr(module, "position_embeddings", None)
        # Where patches overlap (Hiera), they are no tiles that an image can be put together from.
        tiled = isinstance(patches, nn.Conv2d) and patches.kernel_size == patches.stride
        if tiled and isinstance(positions, nn.Parameter):
            return module
    return None


def require_tables(model: nn.Module) -> None:
    """Raise a `ValueError` if the model has no tables to read an image off; it needs no weights."""
    if _embeddings(model) is None:
        raise ValueError(
            f"{type(model).__name__} has no learned position table beside a patch embedding, so no image can be read off "
            "the change of its weights in closed form. Leave this attack out."
        )


def _rounding(table: Tensor) -> float:
    # A checkpoint in 16 bit may have been loaded in 32: its values tell.
    types = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
    return max(
        torch.finfo(t).eps for t in types if torch.equal(table.to(t).to(table.dtype), table) or t == table.dtype
    )


def reconstruct_from_weights(before, after, processor=None) -> Reconstruction:
    """The image that explains how the first layer of a ViT changed, if a single one does.

    Args:
        before, after (`PreTrainedModel`, `PeftModel`, or `str`): the two models, or the names of their checkpoints. They
            stay as they are.
        processor (`BaseImageProcessor`, *optional*): its normalization is undone, and values are clipped to [0, 1].

    Raises:
        ValueError: the models have different architectures.
    """
    old, new = PatchTables.of(before), PatchTables.of(after)
    if old is None or new is None:
        reason = "The model has no learned position table beside a patch embedding, so this route is closed."
        return Reconstruction("not_applicable", reason)
    tables = {"patch-embedding weights": (old.weight, new.weight), "position table": (old.positions, new.positions)}
    if old.grid != new.grid or any(a.shape != b.shape for a, b in tables.values()):
        raise ValueError(
            f"The models have patch weights of shape {old.weight.shape} and {new.weight.shape}, and position tables of shape "
            f"{old.positions.shape} and {new.positions.shape}. Give two models of one architecture."
        )
    n_patches = math.prod(new.grid)
    if not all(np.isfinite(pair).all() for pair in tables.values()):
        reason = "The patch weights or positions of a model are not all finite, so their change tells nothing."
        return Reconstruction("not_finite", reason, n_patches=n_patches)
    same = " and ".join(name for name, pair in tables.items() if np.array_equal(*pair))
    if same:
        reason = f"In both models these are bit for bit the same: {same}. This route needs a change of both tables."
        return Reconstruction("nothing_changed", reason, n_patches=n_patches)

    solutions = [_solve(old, new, decay) for decay in (_decay(old, new), 0.0)]
    patches, rank, condition, residual, decay = min(solutions, key=lambda solution: solution[3])
    (rows, columns), (channels, height, width) = new.grid, new.weight.shape[1:]
    image = patches.reshape(rows, columns, channels, height, width).transpose(2, 0, 3, 1, 4)
    image = image.reshape(channels, rows * height, columns * width)
    if processor is not None:
        mean, std = pixel_scale(processor)
        image = np.clip(image * std + mean, 0, 1)
    status, reason = "applicable", f"The position table changed with full rank ({rank}), so there is one solution."
    if rank < n_patches:
        status = "rank_deficient"
        reason = (
            f"The position table changed with rank {rank}, and there are {n_patches} patches: only a part of the image is "
            "determined."
        )
    return Reconstruction(status, reason, image, n_patches, rank, condition, residual, decay)


def _decay(old: PatchTables, new: PatchTables) -> float:
    """The share by which weight decay shrank the weights.

    The class token and its position have the same gradient, so the difference of their changes is what decay took. That is
    not so where one of them was frozen; then 0 explains the change better.
    """
    if old.class_token is None:
        return 0.0
    start = old.class_token - old.positions[0]
    change = (new.class_token - new.positions[0]) - start
    return float(-(change @ start) / max(start @ start, np.finfo(float).tiny))


def _solve(old: PatchTables, new: PatchTables, decay: float) -> tuple[np.ndarray, int, float, float, float]:
    """The patches `(patches, pixels)` with `dPos^T patches = dW`, by ridge regression.

    Returns:
        The patches, the rank and the condition number of `dPos`, the share of `dW` left unexplained, and the decay.
    """
    d_weight = (new.weight - (1 - decay) * old.weight).reshape(len(new.weight), -1)
    d_positions = (new.positions - (1 - decay) * old.positions)[-math.prod(new.grid) :]
    left, values, right = np.linalg.svd(d_positions, full_matrices=False)
    explained = right @ d_weight
    unexplained = np.linalg.norm(d_weight - right.T @ explained)
    # The largest singular value that rounding gives the change of the positions. The error of a rounded number is uniform,
    # with a standard deviation of about a fifth of the distance to the next one, and a random matrix has no singular value
    # above the sum of the roots of its sides. The weights before the edit are where it started from, and count as exact.
    scale = np.sqrt(np.square(new.positions).mean())
    noise = float(new.rounding / 4 * scale * np.sqrt(new.positions.shape).sum())
    # What no image explains shows how large the errors are in the part that one does explain. With fewer hidden units than
    # patches nothing is left over, and the errors are those of rounding.
    left_over = (len(d_weight) - len(values)) * d_weight.shape[1]
    variance = unexplained**2 / left_over if left_over else 0.0
    penalty = max(RIDGE * variance, noise**2)
    patches = left @ (explained * (values / (values**2 + penalty))[:, None])
    share = unexplained / np.linalg.norm(new.weight - old.weight)
    condition = values[0] / values[-1] if values[-1] > 0 else np.inf
    return patches, int((values > noise).sum()), float(condition), float(share), decay
