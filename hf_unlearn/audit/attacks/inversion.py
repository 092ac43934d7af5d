"""Reading an erased image off the difference of two public checkpoints, in closed form.

A ViT turns patch p of an image into `W x_p + b + pos_p`, so the gradients of the patch weights and of the position table
belong together: `dL/dW = sum over p of (dL/dpos_p) x_p^T`. Steps of plain SGD add up gradients, with momentum or without.
If all of them were of one image, the changes fulfil `dW = dPos^T X`, where the rows of X are its patches: the learning rate
drops out, and one least-squares solve gives the image. It is exact if the change of the position table has as large a rank
as there are patches, which needs a hidden size of at least that (ViT-B/16: 196 patches, 768). A mixture of images, an
adaptive optimizer or rounding to 16 bit make it a regression with errors, of which something may still be seen.

Source: Lu et al., APRIL, arXiv 2112.14087, for a gradient. Here the difference of weights takes its place, and the class
token, whose gradient is that of its position, gives away the weight decay.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_unlearn.audit.measures.image_similarity import pixel_scale
from hf_unlearn.models.load import load_model
from hf_unlearn.models.modes import plain_copy
from hf_unlearn.statistics.estimate import plain


#: The penalty on the pixels, over the variance of the errors. For errors of their own, and pixels in [-1, 1] with a variance
#: of 0.3, the best is 3. It is 16 times that, as the other images of a batch are in what one image explains, too. Measured:
#: it brings 5 dB there, and costs nothing where the errors are those of rounding.
RIDGE = 50.0


@dataclass(frozen=True)
class Reconstruction:
    """What the closed form gives.

    Attributes:
        status (`str`): `"applicable"`: there is one solution. `"rank_deficient"`: only a part of the image is determined.
            `"nothing_changed"`: one of the two tables is bit for bit the same in both models. `"not_finite"`: a table has
            values that are no numbers. `"not_applicable"`: the model has no such tables.
        reason (`str`): the same in a sentence.
        image (`float64 (channels, height, width)` or `None`): in [0, 1] with a processor, else in the units of
            `pixel_values`.
        n_patches, rank (`int` or `None`): the rank of the change of the position table, counted above rounding.
        condition (`float`): its condition number; rounding errors grow with it.
        residual (`float`): the part of the change of the patch weights that the image does not explain, as a share. Near
            0 where all steps were of one image; it says nothing where there are as many patches as hidden units.
        decay (`float`): by which share the weights shrank besides, as weight decay makes them.
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
        return plain({name: value for name, value in asdict(self).items() if name != "image"})


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
        if hasattr(model, "merge_and_unload"):
            model = plain_copy(model)
        for module in model.modules():
            patches = getattr(getattr(module, "patch_embeddings", None), "projection", None)
            positions = getattr(module, "position_embeddings", None)
            if isinstance(patches, nn.Conv2d) and isinstance(positions, nn.Parameter):
                size, patch = module.patch_embeddings.image_size, patches.kernel_size
                token = getattr(module, "cls_token", None)
                return cls(
                    _array(patches.weight),
                    _array(positions)[0],
                    None if token is None else _array(token).reshape(-1),
                    (size[0] // patch[0], size[1] // patch[1]),
                    _rounding(positions.detach()),
                )
        return None

    @property
    def n_patches(self) -> int:
        return self.grid[0] * self.grid[1]


def _array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().cpu().double().numpy()


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
        processor (`BaseImageProcessor`, *optional*): its normalization is undone, and what is outside of [0, 1] cut off.

    Returns:
        [`Reconstruction`].

    Raises:
        ValueError: the models are not of one architecture.
    """
    old, new = PatchTables.of(before), PatchTables.of(after)
    if old is None or new is None:
        return Reconstruction(
            "not_applicable",
            "The model has no learned position table beside a patch embedding, so this route is closed.",
        )
    if (old.weight.shape, old.positions.shape, old.grid) != (new.weight.shape, new.positions.shape, new.grid):
        raise ValueError(
            f"The models have patch weights of shape {old.weight.shape} and {new.weight.shape}, and position tables of shape "
            f"{old.positions.shape} and {new.positions.shape}. Give two models of one architecture."
        )
    n_patches = new.n_patches
    if not all(np.isfinite(table).all() for of in (old, new) for table in (of.weight, of.positions)):
        reason = "The patch weights or positions of a model are not all finite, so their change tells nothing."
        return Reconstruction("not_finite", reason, n_patches=n_patches)
    same = [
        name
        for name, a, b in (
            ("patch-embedding weights", old.weight, new.weight),
            ("position table", old.positions, new.positions),
        )
        if np.array_equal(a, b)
    ]
    if same:
        reason = f"In both models these are bit for bit the same: {' and '.join(same)}. This route needs a change of both tables."
        return Reconstruction("nothing_changed", reason, n_patches=n_patches)

    solutions = [_solve(old, new, decay) for decay in (_decay(old, new), 0.0)]
    patches, rank, condition, residual, decay = min(solutions, key=lambda solution: solution[3])
    image = _assemble(patches, new.grid, new.weight.shape[1:])
    if processor is not None:
        mean, std = pixel_scale(processor)
        image = np.clip(image * std + mean, 0, 1)
    if rank == n_patches:
        status, reason = "applicable", f"The position table changed with full rank ({rank}), so there is one solution."
    else:
        status = "rank_deficient"
        reason = (
            f"The position table changed with rank {rank}, and there are {n_patches} patches: only a part of the image is "
            "determined."
        )
    return Reconstruction(status, reason, image, n_patches, rank, condition, residual, decay)


def _decay(old: PatchTables, new: PatchTables) -> float:
    """The share by which weight decay shrank the weights.

    The class token and its position have the same gradient, so what their changes differ in is what they lost. That is
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
    d_positions = (new.positions - (1 - decay) * old.positions)[-new.n_patches :]
    left, values, right = np.linalg.svd(d_positions, full_matrices=False)
    explained = right @ d_weight
    unexplained, noise = np.linalg.norm(d_weight - right.T @ explained), _noise(new)
    # What no image explains shows how large the errors are in the part that one does explain. With fewer hidden units than
    # patches nothing is left over, and the errors are those of rounding.
    left_over = (len(d_weight) - len(values)) * d_weight.shape[1]
    variance = unexplained**2 / left_over if left_over else 0.0
    penalty = max(RIDGE * variance, noise**2)
    patches = left @ (explained * (values / (values**2 + penalty))[:, None])
    share = unexplained / np.linalg.norm(new.weight - old.weight)
    condition = values[0] / values[-1] if values[-1] > 0 else np.inf
    return patches, int((values > noise).sum()), float(condition), float(share), decay


def _noise(new: PatchTables) -> float:
    """The largest singular value that rounding gives the change of the positions.

    The error of a rounded number is uniform, with a standard deviation of about a fifth of the distance to the next one. A
    random matrix of that many rows and columns has no singular value above the sum of their roots. The weights before the
    edit are where it started from, and count as exact.
    """
    n, d = new.positions.shape
    scale = np.sqrt(np.square(new.positions).mean())
    return float(new.rounding / 4 * scale * (np.sqrt(n) + np.sqrt(d)))


def _assemble(patches: np.ndarray, grid: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """Patches `(patches, channels * height * width)` as one image `(channels, height, width)`."""
    channels, height, width = shape
    image = patches.reshape(*grid, channels, height, width).transpose(2, 0, 3, 1, 4)
    return image.reshape(channels, grid[0] * height, grid[1] * width)
