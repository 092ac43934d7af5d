"""What a model thinks a class looks like, drawn by optimizing an image for it.

Whoever has the weights can ask for the image that is most likely of a class (Fredrikson et al., 2015,
10.1145/2810103.2813677). Where a class is a person, that is a portrait. Run it on the original, the unlearned and the
retrained model with the same seed and compare start by start: an image can also be drawn for a class that the model never
saw, so only the difference says something.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from hf_unlearn.audit.attacks.gradient_inversion import (
    optimize_pixels,
    random_pixels,
    to_images,
    to_pixels,
    total_variation,
)
from hf_unlearn.audit.measures.image_similarity import image_chunks, psnr, ssim
from hf_unlearn.models.modes import plain_copy


#: Step of Adam, and weights of the total variation and of the mean square, for `pixel_values`.
LEARNING_RATE, TV_WEIGHT, L2_WEIGHT = 0.05, 10.0, 0.1


@dataclass(frozen=True)
class ClassInversion:
    """Images of a class, one per start, and what they show of it; **higher = the model gives away more**.

    Attributes:
        images (`float64 (n, channels, height, width)`): in [0, 1].
        confidence (`float64 (n,)`): the probability that the model itself gives the class, which says little.
        evaluator_confidence (`float64 (n,)`): the probability that an independent model gives it; NaN without one.
        nearest_psnr, nearest_ssim (`float64 (n,)`): to the image of the class that is most like it; NaN without images.
    """

    images: np.ndarray = field(repr=False)
    confidence: np.ndarray
    evaluator_confidence: np.ndarray
    nearest_psnr: np.ndarray
    nearest_ssim: np.ndarray


def invert_class(
    model,
    label: int,
    processor=None,
    forget=None,
    evaluator=None,
    n_starts: int = 8,
    n_steps: int = 200,
    seed: int = 0,
) -> ClassInversion:
    """Images with a large logit for a class, smooth and of moderate contrast.

    Minimizes `-logit + 10 * TV + 0.1 * mean square` of the pixels with Adam, from noise.

    Args:
        model (`PreTrainedModel` or `PeftModel`): an image classifier; stays as it is.
        label (`int`): the class.
        processor (`BaseImageProcessor`, *optional*): without one, the model reads images in [0, 1].
        forget (`float (m, channels, height, width)` in [0, 1], or rows, *optional*): images of the class.
        evaluator (`PreTrainedModel`, *optional*): a classifier for the same classes and pixels that was never unlearned,
            trained with another seed.
        n_starts, n_steps (`int`, *optional*, default to `8` and `200`): random starts, and steps from each.
        seed (`int`, *optional*, defaults to `0`): of the starts; with the same seed models start from the same noise.

    Raises:
        ValueError: the model has no such class.
    """
    model = plain_copy(model).requires_grad_(False)
    if not 0 <= label < model.config.num_labels:
        raise ValueError(f"There is no class {label}: the model has {model.config.num_labels}.")
    pixels = random_pixels(model, n_starts, processor, seed)

    def objective(x: torch.Tensor) -> torch.Tensor:
        # Sums, so that a start does not depend on their number.
        logits = model(pixel_values=x).logits[:, label].sum()
        return -logits + len(x) * (TV_WEIGHT * total_variation(x) + L2_WEIGHT * x.square().mean())

    optimize_pixels(pixels, objective, processor, n_steps, LEARNING_RATE)
    images = to_images(pixels, processor)
    nearest = np.full((2, n_starts), np.nan)
    if forget is not None and len(forget):
        for chunk in image_chunks(forget, processor):
            for i, image in enumerate(images):
                best = [psnr(image, chunk).max(), ssim(image, chunk).max()]
                nearest[:, i] = np.fmax(nearest[:, i], best)
    return ClassInversion(
        images,
        _confidence(model, images, label, processor),
        np.full(n_starts, np.nan) if evaluator is None else _confidence(evaluator, images, label, processor),
        *nearest,
    )


@torch.no_grad()
def _confidence(model, images: np.ndarray, label: int, processor) -> np.ndarray:
    model = plain_copy(model)
    pixels = to_pixels(images, model, processor)
    return model(pixel_values=pixels).logits.double().softmax(-1)[:, label].cpu().numpy()
