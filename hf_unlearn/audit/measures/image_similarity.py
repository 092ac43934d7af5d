"""How alike two images are, and which person one shows. Images are arrays with values in [0, 1], as a viewer shows them.

Nothing is scored on pixels that a processor has normalized: a wider range would make every difference look smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.ndimage import gaussian_filter


#: The Gaussian window of SSIM (Wang et al., 2004, 10.1109/TIP.2003.819861).
SSIM_SIGMA, SSIM_TAPS = 1.5, 11
#: Images that are in memory at a time, and in a pass of a model.
CHUNK, BATCH = 256, 64


def pixel_scale(processor=None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation `(channels, 1, 1)` that turn images in [0, 1] into what the model reads.

    `pixel_values = (image - mean) / std`. Without a processor they are 0 and 1: the model reads images in [0, 1].
    """
    processor = getattr(processor, "image_processor", processor)  # the part for images of one for images and text
    mean, std = np.zeros((1, 1, 1)), np.ones((1, 1, 1))
    if processor is None:
        return mean, std
    if getattr(processor, "do_normalize", False):
        scale = processor.image_mean, processor.image_std
        mean, std = (np.asarray(values, dtype=np.float64).reshape(-1, 1, 1) for values in scale)
    # The value of white: 1 for the usual factor of 1/255.
    white = 255 * (processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0)
    return mean / white, std / white


def image_chunks(images, processor=None) -> Iterator[np.ndarray]:
    """Images in [0, 1] of the size the model reads: `float64 (at most 256, channels, height, width)` at a time.

    Args:
        images (`float (n, channels, height, width)` in [0, 1], or rows): rows are encoded by the processor, and then its
            normalization is undone.
        processor (`BaseImageProcessor`, *optional*): needed for rows.
    """
    if hasattr(images, "shape") and not hasattr(images, "column_names"):  # an array, not a table
        images = np.asarray(images, dtype=np.float64)
        if images.ndim != 4:
            raise ValueError(f"Images must have the shape (n, channels, height, width), not {images.shape}.")
        yield from (images[start : start + CHUNK] for start in range(0, len(images), CHUNK))
        return
    from hf_unlearn.data.text import encode_dataset

    mean, std = pixel_scale(processor)
    rows = encode_dataset(images, processor, name="images")
    for start in range(0, len(rows), CHUNK):
        pixels = [np.asarray(rows[i]["pixel_values"]) for i in range(start, min(start + CHUNK, len(rows)))]
        yield np.stack(pixels).astype(np.float64) * std + mean


def psnr(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, `-10 log10(mean squared error)`: higher = more alike, infinite = the same.

    Over 40 dB the eye sees no difference; a single color in place of a portrait gives about 13 dB.

    Args:
        images, references (`float (n, channels, height, width)` in [0, 1]): one of them may be a single image.

    Returns:
        `float64 (n,)`; NaN where an image is not finite.
    """
    images, references = _pairs(images, references)
    error = np.square(images - references).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return -10 * np.log10(error)


def ssim(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Structural similarity, at most 1 = the same: higher = more alike.

    A Gaussian window of 11 taps with a standard deviation of 1.5, population covariances, K1 = 0.01, K2 = 0.03, range 1;
    the mean over all positions where the window is inside the image, and over channels. Source: Wang et al., 2004,
    10.1109/TIP.2003.819861.

    Returns:
        `float64 (n,)`; NaN where an image is not finite, or smaller than the window of 11 pixels.
    """
    images, references = _pairs(images, references)
    if min(images.shape[2:]) < SSIM_TAPS:
        return np.full(len(images), np.nan)
    border = SSIM_TAPS // 2

    def smooth(values: np.ndarray) -> np.ndarray:
        sigma = (0, 0, SSIM_SIGMA, SSIM_SIGMA)
        smoothed = gaussian_filter(values, sigma, truncate=border / SSIM_SIGMA)
        return smoothed[:, :, border:-border, border:-border]

    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = smooth(images), smooth(references)
    var_x, var_y = smooth(images**2) - mean_x**2, smooth(references**2) - mean_y**2
    covariance = smooth(images * references) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return similarity.mean(axis=(1, 2, 3))


def _pairs(images, references) -> tuple[np.ndarray, np.ndarray]:
    images, references = (np.asarray(side, dtype=np.float64) for side in (images, references))
    images, references = (side[None] if side.ndim == 3 else side for side in (images, references))
    if images.shape[1:] != references.shape[1:] or len({len(images), len(references)} - {1}) > 1:
        raise ValueError(
            f"Images of shape {images.shape} cannot be compared with images of shape {references.shape}. Give pairs of one "
            "size, or one image and several."
        )
    return tuple(np.broadcast_arrays(images, references))


def nearest_psnr(images: np.ndarray, gallery, processor=None) -> np.ndarray:
    """PSNR of each image to the most similar image of the gallery: `float64 (n,)` in dB, NaN without a gallery.

    Args:
        images (`float (n, channels, height, width)` in [0, 1]).
        gallery: images or rows, see [`image_chunks`]; one chunk is in memory at a time.
    """
    best = np.full(len(images), np.nan)
    for chunk in image_chunks(gallery, processor):
        for i, image in enumerate(images):
            best[i] = np.fmax(best[i], psnr(chunk, image).max())
    return best


def reidentified(
    images: np.ndarray,
    labels: Sequence[int],
    gallery: np.ndarray,
    gallery_labels: Sequence[int],
    embed: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Whether the image of the gallery most like a reconstruction is of the same person: rank-1 accuracy.

    **Higher = more of the identity is in the image.** Chance is the share of the gallery that the person has.

    Args:
        images (`float (n, channels, height, width)` in [0, 1]): reconstructions.
        labels (`int (n,)`): the persons they should show.
        gallery (`float (m, channels, height, width)` in [0, 1]): *other* images of the same and of other people.
        gallery_labels (`int (m,)`).
        embed (`Callable`, *optional*): images `(n, ...)` to features `(n, d)`, see [`class_token`]; compared by their
            cosine. Use a model that was trained on other people. By default the pixels, less the mean of the image.

    Returns:
        `float64 (n,)`: 1 = found, 0 = somebody else was nearer; NaN where the image is not finite, or the gallery has no
        image of that person.
    """
    embed = embed or _centered_pixels
    labels, gallery_labels = np.asarray(labels), np.asarray(gallery_labels)
    known = np.isfinite(images).all(axis=(1, 2, 3)) & np.isin(labels, gallery_labels)
    found = np.full(len(images), np.nan)
    if known.any():
        similarity = _unit(embed(np.asarray(images)[known])) @ _unit(embed(np.asarray(gallery))).T
        found[known] = gallery_labels[similarity.argmax(axis=1)] == labels[known]
    return found


def class_token(model, processor=None) -> Callable[[np.ndarray], np.ndarray]:
    """Features of images under a ViT, for [`reidentified`]: the class token after the last layer.

    Returns:
        `Callable`: images `(n, channels, height, width)` in [0, 1], of the size that the model reads, to `float64 (n, d)`.
    """
    import torch

    from hf_unlearn.models.modes import plain_copy

    (mean, std), encoder = pixel_scale(processor), plain_copy(model).base_model
    weight = next(encoder.parameters())

    @torch.no_grad()
    def embed(images: np.ndarray) -> np.ndarray:
        features = []
        for start in range(0, len(images), BATCH):
            pixels = torch.as_tensor((images[start : start + BATCH] - mean) / std)
            hidden = encoder(pixels.to(weight.device, weight.dtype)).last_hidden_state
            features.append(hidden[:, 0].double().cpu().numpy())
        return np.concatenate(features)

    return embed


def _centered_pixels(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(len(images), -1)
    return flat - flat.mean(axis=1, keepdims=True)


def _unit(features: np.ndarray) -> np.ndarray:
    # A single color has no direction; it is as like one image as any other.
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float64).tiny)
