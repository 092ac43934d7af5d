"""How the next token is sampled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """A way to sample the next token, in the order of the warpers of transformers: temperature, top-k, top-p.

    Args:
        temperature (`float`, *optional*, defaults to `1.0`): logits are divided by it.
        top_k (`int`, *optional*, defaults to `0`): keep the k most likely tokens (ties with the k-th are kept); 0 keeps all.
        top_p (`float`, *optional*, defaults to `1.0`): keep the smallest set of most likely tokens with at least this mass.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}. For greedy decoding read `hit`.")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or positive, not {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}.")

    @property
    def key(self) -> str:
        return f"temperature={self.temperature:.12g},top_k={self.top_k},top_p={self.top_p:.12g}"


# The schemes of (n, p)-discoverable extraction (Hayes et al., arXiv 2410.19482) that the audit reports.
DEFAULT_SAMPLING = (Sampling(), Sampling(top_k=40), Sampling(temperature=0.7))
