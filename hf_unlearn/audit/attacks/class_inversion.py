"""What a model thinks a class looks like, drawn by optimizing an image for it.

Whoever has the weights can ask for the image that a class is most likely of (Fredrikson et al., 2015,
10.1145/2810103.2813677). Where a class is a person, that is a portrait. Run it on the original, the unlearned and the
retrained model with the same seed and compare start by start: an image for a class that the model never saw can be drawn,
too, and only the difference says something.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from hf_unlearn.audit.attacks.gradient_inversion import optimize_pixels, random_pixels, to_images, total_variation
from hf_unlearn.audit.measures.image_similarity import image_chunks, pixel_scale, psnr, ssim
from hf_unlearn.models.modes import plain_copy


@dataclass(frozen=True)
class ClassInversion:
    """Images of a class, one a start, and what they show of it; **higher = the model gives away more**.

    Attributes:
        images (`float64 (n, channels, height, width)`): in [0, 1].
        confidence (`float64 (n,)`): the probability that the model itself gives the class, which says little.
        evaluator_confidence (`float64 (n,)`): the probability that another model gives it, which did not see how the image
            was made; NaN without one.
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
    learning_rate: float = 0.05,
    tv_weight: float = 10.0,
    l2_weight: float = 0.1,
    seed: int = 0,
) -> ClassInversion:
    """Images with a large logit for a class, smooth and of moderate contrast.

    Minimizes `-logit + tv_weight * TV + l2_weight * mean square` of the pixels with Adam, from noise.

    Args:
        model (`PreTrainedModel` or `PeftModel`): an image classifier; stays as it is.
        label (`int`): the class.
        processor (`BaseImageProcessor`, *optional*): without one, the model reads images in [0, 1].
        forget (`float (m, channels, height, width)` in [0, 1], or rows, *optional*): images of the class.
        evaluator (`PreTrainedModel`, *optional*): a classifier for the same classes that reads pixels of the same
            processor and was never unlearned, trained with another seed.
        n_starts, n_steps (`int`, *optional*, default to `8` and `200`).
        learning_rate, tv_weight, l2_weight (`float`, *optional*): of the optimization, for `pixel_values`.
        seed (`int`, *optional*, defaults to `0`): of the starts; with the same seed models start from the same noise.

    Raises:
        ValueError: the model has no such class.
    """
    model = plain_copy(model).requires_grad_(False)
    if not 0 <= label < model.config.num_labels:
        raise ValueError(f"There is no class {label}: the model has {model.config.num_labels}.")
    pixels = random_pixels(model, n_starts, processor, seed)

    def objective(x: torch.Tensor) -> torch.Tensor:
        # Sums, so that a start does not depend on how many there are.
        logits = model(pixel_values=x).logits[:, label].sum()
        return -logits + len(x) * (tv_weight * total_variation(x) + l2_weight * x.square().mean())

    optimize_pixels(pixels, objective, processor, n_steps, learning_rate)
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
    model, (mean, std) = plain_copy(model), pixel_scale(processor)
    weight = next(model.parameters())
    pixels = torch.as_tensor((images - mean) / std).to(weight.device, weight.dtype)
    return model(pixel_values=pixels).logits.double().softmax(-1)[:, label].cpu().numpy()
