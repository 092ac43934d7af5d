"""Models in 8 and 4 bit. Rounding can undo an edit that moved the weights by less than half a step.

Anyone who downloads a model may quantize it, and methods that keep the utility move the weights little. Zhang et al. (arXiv
2410.16454) found 21 % of the forgotten knowledge in full precision, and 83 % after rounding to 4 bit. The retrained model
is quantized in the same way, and only the difference counts.

| scheme | weights | activations | source |
|---|---|---|---|
| `"int8"` | 8 bit, one scale per row | 8 bit, outliers apart | LLM.int8(), arXiv 2208.07339, by bitsandbytes |
| `"nf4"` | 4 bit, quantiles of a normal distribution, blocks of 64 | unchanged | QLoRA, arXiv 2305.14314, by bitsandbytes |
| `"int4-rtn"` | 4 bit, rounded to nearest, groups of 128 | unchanged | the baseline of GPTQ, arXiv 2210.17323 |
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
from hf_unlearn.models.linear import linear_modules
from hf_unlearn.models.modes import plain_copy


SCHEMES = ("int8", "nf4", "int4-rtn")
# Inputs that share a scale and a zero point in "int4-rtn".
GROUP_SIZE = 128


@torch.no_grad()
def quantized(model: nn.Module, scheme: str) -> nn.Module:
    """A copy with quantized linear layers, which [`score`] takes like any model. Embeddings and head stay as they are.

    In 4 bit the copy keeps its dtype and gets the weights that a 4-bit layer computes with: the values are exact, but no
    memory is saved. In 8 bit the layers are those of bitsandbytes. These choose the outliers among the activations for a
    batch as a whole, so compare models in the same batches.

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
        # GPT-2 keeps its weights as (inputs, outputs).
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        if scheme == "int8":
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, _int8_layer(weight, module.bias))
        else:
            weight.copy_(round_to_nearest(weight) if scheme == "int4-rtn" else _nf4(weight))
    return model


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


@attack("quantised", KINDS)
def weight_attacks(model, records: AuditRecords) -> Iterator[Found]:
    """The forget set after the weights are quantized, pruned or disturbed, which can bring back what an edit hid."""
    rows = records.rows("forget")
    for name in records.config.weight_attacks:
        attacked = WEIGHT_ATTACKS[name](model)
        table = records.score(attacked, rows)
        del attacked
        yield Found(
            {records.statistic(f"{measure}_{name}", "quantised"): f(table) for measure, f in records.measures.items()}
        )
