"""Models in 8 and 4 bit. Rounding can undo an edit that moved the weights by less than half a step.

Anyone who downloads a model may quantize it, and methods that keep the utility move the weights little. Zhang et al. (arXiv
2410.16454) found 21 % of the forgotten knowledge in full precision, and 83 % after rounding to 4 bit. The retrained model
is quantized in the same way, and only the difference counts.

| scheme | weights | activations | source |
|---|---|---|---|
| `"int8"` | 8 bit, one scale per row | 8 bit, outliers apart; see below | LLM.int8(), arXiv 2208.07339, by bitsandbytes |
| `"nf4"` | 4 bit, quantiles of a normal distribution, blocks of 64 | unchanged | QLoRA, arXiv 2305.14314, by bitsandbytes |
| `"int4-rtn"` | 4 bit, rounded to nearest, groups of 128 | unchanged | the baseline of GPTQ, arXiv 2210.17323 |

Every weight matrix of the body is quantized, whatever it belongs to (see [`~hf_unlearn.models.weights`]): each expert of a
fused mixture and each kernel of a convolution by itself, a kernel as a matrix of (output channels, everything it reads).
bitsandbytes has layers in 8 bit for linear layers only: other matrices are rounded as there, to one scale per row, and
their activations stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_unlearn.audit.attacks.attack import KINDS, attack
from hf_unlearn.audit.attacks.perturbation import noised, pruned
from hf_unlearn.audit.records import AuditRecords, Found
from hf_unlearn.models.modes import plain_copy, unwrapped
from hf_unlearn.models.weights import ENOUGH, require_weight_matrices, share_changed, share_of_weights


SCHEMES = ("int8", "nf4", "int4-rtn")
# Inputs that share a scale and a zero point in "int4-rtn".
GROUP_SIZE = 128


@torch.no_grad()
def quantized(model: nn.Module, scheme: str) -> nn.Module:
    """A copy with quantized weight matrices, which [`score`] takes like any model. Embeddings and head stay as they are.

    In 4 bit the copy keeps its dtype and gets the weights that a 4-bit layer computes with: the values are exact, but no
    memory is saved. In 8 bit linear layers compute as those of bitsandbytes. These choose the outliers among the activations for
    a batch as a whole, so compare models in the same batches. Fused experts and convolutions get the weights in 8 bit alone.

    Args:
        model (`PreTrainedModel` or `PeftModel`): stays as it is.
        scheme (`str`): `"int8"`, `"nf4"` or `"int4-rtn"`.

    Raises:
        ValueError: the scheme is unknown, the model is quantized already, or has no weight matrices.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, not {scheme!r}.")
    model = plain_copy(model)
    rounded = {"int8": _int8, "nf4": _nf4, "int4-rtn": round_to_nearest}[scheme]
    for matrix in require_weight_matrices(model):
        in_8_bit = None
        if scheme == "int8" and type(matrix.module) in (nn.Linear, Conv1D):  # a subclass may compute something else
            in_8_bit = _int8_layer(matrix.slices()[0], matrix.module.bias)
        for weight in matrix.slices():
            weight.copy_(rounded(weight))
        if in_8_bit is not None:
            parent, _, attribute = matrix.name.removesuffix(".weight").rpartition(".")
            setattr(model.get_submodule(parent), attribute, _Int8(in_8_bit, matrix.parameter))
    return model


class _Int8(nn.Module):
    """A layer of bitsandbytes in 8 bit, with the rounded weight for a model that reads it past the layer, as Mamba does."""

    def __init__(self, layer: nn.Module, weight: nn.Parameter):
        super().__init__()
        self.layer, self.weight, self.bias = layer, weight, layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() <= 3:
            return self.layer(x)
        return self.layer(x.flatten(0, -2)).unflatten(0, x.shape[:-1])  # bitsandbytes 0.50 takes no more axes on CPUs


def round_to_nearest(weight: Tensor) -> Tensor:
    """Round `weight (outputs, inputs)` to 16 evenly spaced values, one of them 0, in each group of inputs of a row."""
    top, rounded = 15, []
    for group in weight.to(torch.promote_types(weight.dtype, torch.float32)).split(GROUP_SIZE, dim=1):
        low, high = group.amin(1, keepdim=True).clamp(max=0), group.amax(1, keepdim=True).clamp(min=0)
        scale = torch.where(high > low, (high - low) / top, 1.0)
        zero = (-low / scale).round()
        rounded.append(((group / scale).round() + zero).clamp(0, top).sub(zero) * scale)
    return torch.cat(rounded, dim=1).to(weight.dtype)


def _nf4(weight: Tensor) -> Tensor:
    from bitsandbytes import functional

    dtype = weight.dtype if weight.dtype in (torch.float16, torch.bfloat16) else torch.float32
    packed, state = functional.quantize_4bit(weight.to(dtype).contiguous(), quant_type="nf4")
    return functional.dequantize_4bit(packed, state).to(weight.dtype)


def _int8(weight: Tensor) -> Tensor:
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    scale = wide.abs().amax(1, keepdim=True) / 127
    return ((wide / torch.where(scale > 0, scale, 1)).round() * scale).to(weight.dtype)


def _int8_layer(weight: Tensor, bias: Tensor | None) -> nn.Module:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    outputs, inputs = weight.shape
    # 6 is where an activation counts as an outlier in the paper, and in transformers.
    layer = Linear8bitLt(inputs, outputs, bias=False, has_fp16_weights=False, threshold=6.0, device="meta")
    # Moving the weight to a device quantizes it.
    in_memory = Int8Params(weight.detach().contiguous().cpu(), requires_grad=False, has_fp16_weights=False)
    layer.weight, layer.bias = in_memory.to(weight.device), bias
    # Every call of every layer would warn that inputs are cast, which is what int8 is.
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    layer.register_forward_pre_hook(lambda *_: logger.addFilter(_is_no_cast_warning))
    layer.register_forward_hook(lambda *_: logger.removeFilter(_is_no_cast_warning), always_call=True)
    return layer.eval()


def _is_no_cast_warning(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")


#: What changes the weights of a model without training, by name.
WEIGHT_ATTACKS: dict[str, Callable[[nn.Module], nn.Module]] = {
    **{scheme: partial(quantized, scheme=scheme) for scheme in SCHEMES},
    **{f"pruned {share:.0%}": partial(pruned, fraction=share) for share in (0.1, 0.3, 0.5)},
    **{f"noise {share:.0%}": partial(noised, relative_std=share) for share in (0.01, 0.1, 0.3)},
}


def reaches_the_weights(model: nn.Module) -> None:
    """Refuse a model most of whose weights these attacks would leave as they are.

    Raises:
        ValueError: less than 95 % of the weights are stored as numbers that can be changed.
    """
    _require_enough({"they": share_of_weights(unwrapped(model), lambda matrix: matrix.parameter.is_floating_point())})


def _require_enough(shares: dict[str, float]) -> None:
    low = {name: share for name, share in shares.items() if share < ENOUGH}
    if low:
        raise ValueError(
            f"{', '.join(low)} can change {min(low.values()):.1%} of the weights only, since the others are quantized already "
            "or stored in a form that cannot be changed here. Load the model with plain weights."
        )


@attack("quantised", KINDS, requires=(reaches_the_weights,))
def weight_attacks(model, records: AuditRecords) -> Iterator[Found]:
    """The forget set after the weights are quantized, pruned or disturbed, which can bring back what an edit hid."""
    rows = records.rows("forget")
    start = plain_copy(model) if hasattr(model, "peft_config") else unwrapped(model)
    shares = {}
    for name in records.config.weight_attacks:
        attacked = WEIGHT_ATTACKS[name](start)
        shares[name] = share_changed(start, attacked)
        table = records.score(attacked, rows)
        del attacked
        yield Found(
            {records.statistic(f"{measure}_{name}", "quantised"): f(table) for measure, f in records.measures.items()},
            coverage={name: shares[name]},
        )
    _require_enough(shares)
