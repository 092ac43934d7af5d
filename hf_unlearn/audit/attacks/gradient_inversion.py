"""Images whose gradient is the change of the weights, found by optimization.

For models and edits that have no closed form in `inversion`. An adversary who has the model before and after an edit
searches for images on which a step of unlearning would have changed the weights in the same direction. Source: Geiping et
al., Inverting Gradients, arXiv 2003.14053: the cosine of the two, total variation as a prior, Adam on the sign of the
gradient, pixels in a box, several starts.

It finds less the smaller the share of weights that moved, the longer the edit and the larger the batch. On a trained ViT it
is a weak attack: if it finds nothing, that says little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from hf_unlearn.audit.measures.image_similarity import pixel_scale
from hf_unlearn.models.likelihood import target_logits
from hf_unlearn.models.modes import plain_copy


#: Step of Adam on the sign, for `pixel_values`, and weight of the total variation beside the mismatch.
LEARNING_RATE, TV_WEIGHT = 0.1, 0.2


@dataclass(frozen=True)
class GradientInversion:
    """What the search found.

    Attributes:
        images (`float64 (n, channels, height, width)`): in [0, 1], of the start that matched best.
        labels (`int (n,)`): the classes they were taken to have.
        mismatch (`float64 (n_starts,)`): `1 - cos` of the gradient and the change of the weights, in [0, 2], per start;
            0 = the images explain the change.
    """

    images: np.ndarray = field(repr=False)
    labels: np.ndarray
    mismatch: np.ndarray


def invert_gradient(
    before,
    after,
    labels: int | Sequence[int] | None = None,
    processor=None,
    n_starts: int = 2,
    n_steps: int = 300,
    seed: int = 0,
) -> GradientInversion:
    """Search for the images that an image classifier was made to forget, by steps up their loss.

    Args:
        before, after (`PreTrainedModel` or `PeftModel`): of one architecture; both stay as they are. Only weights that
            changed are compared; adapters are merged first.
        labels (`int` or sequence, *optional*): classes of the images, in any order; one image is searched for per label. By
            default one image, of the class whose bias in the classifier fell most.
        processor (`BaseImageProcessor`, *optional*): its normalization is undone in the result, and its range is the box.
            Without one, the model reads images in [0, 1].
        n_starts, n_steps (`int`, *optional*, default to `2` and `300`): random starts, and steps from each.
        seed (`int`, *optional*, defaults to `0`): of the starts.

    Raises:
        ValueError: the models do not have the same weights by name and shape, no weight changed, or no label was given and
            the bias of the classifier did not change.
    """
    model, change = _changed(before, after)
    labels = [_label(change)] if labels is None else labels
    labels = torch.as_tensor(labels, device=model.device).reshape(-1)
    parameters = [model.get_parameter(name) for name in change]
    length = torch.sqrt(sum(step.square().sum() for step in change.values()))

    def mismatch(pixels: Tensor) -> Tensor:
        out = target_logits(model, {"pixel_values": pixels, "labels": labels})
        loss = out.sequence_mean(-out.sequence_log_probs)
        # Weight decay also moves what the loss does not read.
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        dot = sum((g * step).sum() for g, step in zip(gradients, change.values(), strict=True))
        return 1 - dot / (length * torch.sqrt(sum(g.square().sum() for g in gradients)))

    def objective(pixels: Tensor) -> Tensor:
        return mismatch(pixels) + TV_WEIGHT * total_variation(pixels)

    found, values = [], []
    for start in range(n_starts):
        pixels = random_pixels(model, len(labels), processor, seed=seed + start)
        optimize_pixels(pixels, objective, processor, n_steps, LEARNING_RATE, sign=True)
        found.append(to_images(pixels, processor))
        values.append(float(mismatch(pixels).detach()))
    return GradientInversion(found[int(np.argmin(values))], labels.cpu().numpy(), np.array(values))


def _changed(before, after) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy of the model before that can be differentiated twice, and the change of each parameter that changed."""
    model, other = plain_copy(before), dict(plain_copy(after).named_parameters())
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")  # the fused kernels have no second derivative
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    if shapes != {name: parameter.shape for name, parameter in other.items()}:
        raise ValueError("The models have weights of different names or shapes. Give two models of one architecture.")
    change = {}
    for name, parameter in model.named_parameters():
        step = other[name].detach().to(parameter.device, parameter.dtype) - parameter.detach()
        parameter.requires_grad_(bool(step.any()))
        if parameter.requires_grad:
            change[name] = step
    if not change:
        raise ValueError("No weight differs between the two models, so there is no gradient to match.")
    return model, change


def _label(change: dict[str, Tensor]) -> int:
    # The gradient of the bias is the probability, less 1 for the label: the only negative one (Zhao et al., iDLG,
    # arXiv 2001.02610).
    bias = next((step for name, step in change.items() if name.endswith("classifier.bias")), None)
    if bias is None:
        raise ValueError("The bias of the classifier, which would tell the label, did not change. Give labels.")
    return int(bias.argmin())


def random_pixels(model: nn.Module, n: int, processor=None, seed: int = 0) -> Tensor:
    """Noise `(n, channels, height, width)` in the box of [`optimize_pixels`], to start from; the same on every device."""
    config = model.config
    size = config.image_size if isinstance(config.image_size, (tuple, list)) else (config.image_size,) * 2
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(n, config.num_channels, *size, generator=generator, dtype=torch.float64)
    return to_pixels(noise.numpy(), model, processor)


def optimize_pixels(
    pixels: Tensor, objective, processor, n_steps: int, learning_rate: float, sign: bool = False
) -> None:
    """Minimize `objective(pixels)` with Adam, in place. Pixels stay in the box of what an image in [0, 1] can give.

    The learning rate falls to a tenth after 3/8, 5/8 and 7/8 of the steps.

    Args:
        pixels (`Tensor (n, channels, height, width)`): where it starts.
        sign (`bool`, *optional*, defaults to `False`): use only the sign of the gradient.
    """
    mean, std = (torch.as_tensor(values).to(pixels) for values in pixel_scale(processor))
    low, high = -mean / std, (1 - mean) / std
    pixels.requires_grad_(True)
    optimizer = torch.optim.Adam([pixels], lr=learning_rate)
    milestones = [int(n_steps * share) for share in (0.375, 0.625, 0.875)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    for _ in range(n_steps):
        (gradient,) = torch.autograd.grad(objective(pixels), [pixels])
        pixels.grad = gradient.sign() if sign else gradient
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            pixels.copy_(torch.minimum(torch.maximum(pixels, low), high))
    pixels.requires_grad_(False)


def total_variation(pixels: Tensor) -> Tensor:
    """Mean absolute difference of vertical neighbors plus that of horizontal ones: lower = smoother."""
    return pixels.diff(dim=-2).abs().mean() + pixels.diff(dim=-1).abs().mean()


def to_pixels(images: np.ndarray, model: nn.Module, processor=None) -> Tensor:
    """Images in [0, 1] as `pixel_values`, on the device and in the type of the model."""
    (mean, std), weight = pixel_scale(processor), next(model.parameters())
    return torch.as_tensor((images - mean) / std).to(weight.device, weight.dtype)


def to_images(pixels: Tensor, processor=None) -> np.ndarray:
    """`pixel_values` as images in [0, 1]: `float64 (n, channels, height, width)`."""
    mean, std = pixel_scale(processor)
    return np.clip(pixels.detach().cpu().double().numpy() * std + mean, 0, 1)
