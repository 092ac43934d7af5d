"""How much an audit tries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class AuditConfig:
    """How much an audit tries. Every field is an option of `hf-unlearn audit` and of the recipes too.

        AuditConfig(max_rows=50, relearning_steps=(0, 1, 5))

    Args:
        batch_size (`int`, *optional*, defaults to `32`): examples per forward pass.
        max_rows (`int`, *optional*, defaults to `200`): records per set for the attacks that generate, train or look into
            the layers, evenly spread over the set. Likelihoods are computed for all records.
        max_new_tokens (`int`, *optional*, defaults to `200`): length of a generated answer, as in TOFU, and never more than
            twice that of the longest true one.
        relearning_steps (sequence of `int`, *optional*): steps of relearning after which the model is scored.
        relearning_rates (sequence of `float`, *optional*): learning rates. For each model the one that brings back most
            counts, so give several.
        relearning_batch_size (`int`, *optional*, defaults to `8`): examples per step of relearning.
        weight_attacks (sequence of `str`, *optional*): names of `WEIGHT_ATTACKS`: quantization, pruning, noise.
        guidance_weights (sequence of `float`, *optional*): how far an adversary who has both checkpoints goes from the
            unlearned model back to the original, and beyond.
        n_samples (`int`, *optional*, defaults to `16`): samples per prompt where the forget rows have a column of spans or
            alternatives to look for.
        stability (`bool`, *optional*, defaults to `True`): measure the distance of the predictions to those of the
            retrained model, for which both are in memory.
        seed (`int`, *optional*, defaults to `0`): seed of everything that is drawn.
        max_length, truncate (*optional*): how texts are cut, as for [`score`].
    """

    batch_size: int = _option(32, "Examples per forward pass of the audit.")
    max_rows: int = _option(200, "Rows per set for attacks that generate, train or look into the layers.")
    max_new_tokens: int = _option(200, "Longest generated answer.")
    relearning_steps: Sequence[int] = _option((0, 1, 2, 5, 10, 20), "Steps of relearning to measure after.")
    relearning_rates: Sequence[float] = _option((1e-4, 1e-3), "Learning rates of relearning.")
    relearning_batch_size: int = _option(8, "Examples per step of relearning.")
    weight_attacks: Sequence[str] = _option(
        ("int8", "nf4", "int4-rtn", "pruned 10%", "noise 1%"), "Quantization, pruning, noise."
    )
    guidance_weights: Sequence[float] = _option(
        (0.5, 1.0, 1.5, 2.0), "How far guidance goes from the unlearned model back to the original, and beyond."
    )
    n_samples: int = _option(16, "Samples per prompt where rows have spans or alternatives to look for.")
    stability: bool = _option(True, "Measure how far predictions are from those of the retrained model.")
    seed: int = _option(0, "Seed of the bootstrap intervals and of what is drawn.")
    max_length: int | None = _option(None, "Longest row in tokens; default: the context.")
    truncate: bool = _option(False, "Cut longer rows instead of raising an error.")
