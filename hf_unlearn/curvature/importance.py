"""How much each weight matters to a set of rows: the diagonal of the Fisher information."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from hf_unlearn.models.likelihood import target_logits
from hf_unlearn.models.modes import evaluating


def squared_gradients(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], names: Iterable[str]
) -> dict[str, Tensor]:
    """Mean over the rows of the squared gradient of each row's own loss, `E[(d loss / d theta_i)^2]`.

    There is one gradient per row. The square of a batch's gradient is another statistic, which shrinks with the size of
    the batch. The loss of a row is -ln p(answer), summed over its tokens.

    Args:
        batches (iterable of `dict`): what the model's forward takes, and `labels`.
        names (iterable of `str`): the parameters, which must require a gradient.

    Returns:
        `dict[str, Tensor]`: by name, the shape of the parameter, in float32 or wider; zeros where no row uses it, as for
        an expert that no token reaches.
    """
    wanted = {name: model.get_parameter(name) for name in names}
    total = {
        name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for name, p in wanted.items()
    }
    parameters, n = list(wanted.values()), 0
    with evaluating(model):
        for batch in batches:
            # Row by row, without padding: attention has no rule for vmap, which falls back to a slower loop.
            for i in range(len(batch["labels"])):
                row = {key: value[i : i + 1] for key, value in batch.items()}
                if "attention_mask" in row:
                    real = row["attention_mask"][0].bool()
                    row = {key: value[:, real] for key, value in row.items()}
                loss = -target_logits(model, row).sequence_log_probs.sum()
                for name, g in zip(wanted, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                    if g is not None:
                        total[name] += g.to(total[name].dtype).square()
            n += len(batch["labels"])
    return {name: value / max(1, n) for name, value in total.items()}
