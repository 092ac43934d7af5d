"""What the methods share that learn from a teacher: divergences from what it says, and teachers that know less."""

import torch
from torch import Tensor, nn

from hf_unlearn.models import modes


def kl_divergence(p_logits: Tensor, q_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p || q) of each target, in nats, summed over the classes: logits `(n, classes)` -> `(n,)`.

    Where p is 0 a class adds 0. With a temperature T the logits are divided by it and the divergence multiplied by T^2,
    so that its gradient keeps its size (Hinton et al., arXiv 1503.02531).
    """
    log_p = (p_logits / temperature).log_softmax(-1)
    log_q = (q_logits / temperature).log_softmax(-1)
    p = log_p.exp()
    # Where p is 0 so is the term; log p may be -inf there, and 0 times that is NaN, in the gradient too.
    return torch.where(p > 0, p * (log_p.masked_fill(p == 0, 0.0) - log_q), 0.0).sum(-1) * temperature**2


def kl_from_uniform(q_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(u || q) of each target against the uniform distribution u: `(n, classes)` -> `(n,)`."""
    return kl_divergence(torch.zeros_like(q_logits), q_logits, temperature)


def without_target(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits of the distribution that is left when the target is ruled out, the rest in proportion: `(n, classes)`."""
    return logits.scatter(1, targets[:, None], -torch.inf)


def fresh_copy(model: nn.Module, seed: int) -> nn.Module:
    """[`~hf_unlearn.models.modes.fresh_copy`], for a model in dense weights; of one with an adapter it is the base.

    Raises:
        ValueError: the model is quantized.
    """
    if getattr(model, "is_quantized", False):
        raise ValueError(
            "The model is quantized, and a network with new weights cannot be made of it. Either load it without "
            "quantization (no load_in_4bit or load_in_8bit), or choose a teacher without a network "
            '(bad_teacher="uniform", on_forget="uniform").'
        )
    return modes.fresh_copy(model, seed)
