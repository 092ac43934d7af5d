"""Models in 8 and 4 bit. Rounding can undo an edit that moved the weights by less than half a step.

Whoever downloads a model may quantize it, and methods that keep the utility move the weights little. Published: 21 % of
the forgotten knowledge left in full precision, 83 % after rounding to 4 bit (Zhang et al., arXiv 2410.16454). A retrained
model is quantized in the same way, and only the difference counts.

| scheme | weights | activations | source |
|---|---|---|---|
| `"int8"` | 8 bit, one scale a row | 8 bit, outliers apart | LLM.int8(), arXiv 2208.07339, by bitsandbytes |
| `"nf4"` | 4 bit, quantiles of a normal distribution, blocks of 64 | as they were | QLoRA, arXiv 2305.14314, by bitsandbytes |
| `"int4-rtn"` | 4 bit, rounded to nearest, groups of 128 | as they were | the baseline of GPTQ, arXiv 2210.17323 |
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_unlearn.audit.attacks.attack import KINDS, attack
from hf_unlearn.audit.attacks.perturbation import PERTURBATIONS
from hf_unlearn.audit.records import AuditRecords, Found
from hf_unlearn.models.linear import linear_modules
from hf_unlearn.models.modes import plain_copy


SCHEMES = ("int8", "nf4", "int4-rtn")


@torch.no_grad()
def quantized(model: nn.Module, scheme: str) -> nn.Module:
    """A copy with quantized linear layers, which [`score`] takes like any model. Embeddings and head stay as they are.

    In 4 bit the weights of the copy are those that a 4-bit layer computes with, in the type that they had: the values are
    those of the real thing, the memory is not. In 8 bit the layers are those of bitsandbytes. Which activations count as
    outliers there is decided for a batch as a whole, so compare models in the same batches.

    Args:
        model (`PreTrainedModel` or `PeftModel`): stays as it is.
        scheme (`str`): `"int8"`, `"nf4"` or `"int4-rtn"`.

    Raises:
        ValueError: the scheme is unknown, the model is quantized already, or has no linear layers.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, not {scheme!r}.")
    model = plain_copy(model)
    for name, module in linear_modules(model, head=False).items():
        if scheme == "int8":
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, _int8_layer(module))
            continue
        change = round_to_nearest if scheme == "int4-rtn" else _nf4
        # GPT-2 keeps its weights the other way round: (inputs, outputs).
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        weight.copy_(change(weight))
    return model


def round_to_nearest(weight: Tensor, bits: int = 4, group_size: int = 128) -> Tensor:
    """Round a weight matrix to `2 ** bits` evenly spaced values in each group of inputs, 0 being one of them.

    Args:
        weight (`Tensor (outputs, inputs)`): of a linear layer.
        bits (`int`, *optional*, defaults to `4`).
        group_size (`int`, *optional*, defaults to `128`): inputs that share a scale and a zero point; the last group of a
            row may be smaller.

    Returns:
        `Tensor (outputs, inputs)`: the rounded weights, in the type of `weight`.
    """
    top = 2**bits - 1
    rounded = []
    for group in weight.to(torch.promote_types(weight.dtype, torch.float32)).split(group_size, dim=1):
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


def _int8_layer(module: nn.Module) -> nn.Module:
    from bitsandbytes.nn import Int8Params

    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    outputs, inputs = weight.shape
    # 6 is where an activation counts as an outlier in the paper, and in transformers.
    layer = _int8_class()(inputs, outputs, bias=False, has_fp16_weights=False, threshold=6.0, device="meta")
    # Being moved to a device is what quantizes the weight.
    of_cpu = Int8Params(weight.detach().contiguous().cpu(), requires_grad=False, has_fp16_weights=False)
    layer.weight, layer.bias = of_cpu.to(weight.device), module.bias
    return layer.eval()


@cache
def _int8_class() -> type[nn.Module]:
    from bitsandbytes.nn import Linear8bitLt

    class Int8Linear(Linear8bitLt):
        """`Linear8bitLt` without its warning at every call."""

        def forward(self, x: Tensor) -> Tensor:
            with _without_cast_warning():
                return super().forward(x)

    return Int8Linear


@contextmanager
def _without_cast_warning() -> Iterator[None]:
    # It comes at every call of every layer, and says what int8 is.
    logger, message = logging.getLogger("bitsandbytes.autograd._functions"), "MatMul8bitLt: inputs will be cast"

    def passes(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(message)

    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


#: What changes the weights of a model without training, by name: quantization, and the attacks of `perturbation`.
WEIGHT_ATTACKS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "int8": lambda model: quantized(model, "int8"),
    "nf4": lambda model: quantized(model, "nf4"),
    "int4-rtn": lambda model: quantized(model, "int4-rtn"),
    **PERTURBATIONS,
}


@attack("quantised", KINDS)
def weight_attacks(model, records: AuditRecords) -> Iterator[Found]:
    """The forget set after the weights were quantized, pruned or disturbed, which can bring back what an edit hid."""
    rows = records.rows("forget")
    for name in records.config.weight_attacks:
        attacked = WEIGHT_ATTACKS[name](model)
        table = records.score(attacked, rows)
        del attacked
        yield Found(
            {records.statistic(f"{measure}_{name}", "quantised"): f(table) for measure, f in records.measures.items()}
        )
