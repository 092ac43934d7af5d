"""Write a model, and see that what is written is what was trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_unlearn.models.adapters import has_adapter, merged
from hf_unlearn.models.likelihood import target_logits
from hf_unlearn.models.modes import evaluating
from hf_unlearn.models.processes import is_divided
from hf_unlearn.storage.files import replaced_folder


# Mean difference of the log-probabilities, in nats and relative to their size, that rounding and merging may make.
_TOLERANCE, _TOLERANCE_16_BIT = 0.01, 0.1


class NotAsTrainedError(RuntimeError):
    """The checkpoint that was written is not the model that was trained; the message says where its weights are."""


def save_whole(model: nn.Module, processing_class, folder: str, batch: Mapping[str, Tensor] | None = None) -> None:
    """Write a checkpoint that `from_pretrained` loads with no code of this package.

    An adapter is merged into its base, since an unlearned adapter beside the base can be taken off again. A quantized base
    cannot be merged without loss, so there the adapter itself is written. The checkpoint is then loaded from its folder, on
    the device of the model, and its log-probabilities of a few rows are compared with those of the model as it was trained.
    Only after that it takes its place.

    Args:
        model (`PreTrainedModel` or `PeftModel`): its adapter is merged in place.
        processing_class: tokenizer or image processor.
        folder (`str`): the folder around it must exist; an older checkpoint there is replaced.
        batch (`dict`, *optional*): inputs of a few rows with their `labels`. Without it, and where a process has only a part
            of the weights, nothing is compared.

    Raises:
        NotAsTrainedError: the outputs differ by more than rounding and merging explain. The older checkpoint stays.
    """
    quantized = getattr(model, "is_quantized", False)
    compared = batch is not None and not is_divided(model)
    before = _log_probs(model, batch) if compared and not quantized else None
    adapters = _adapter_weights(model) if has_adapter(model) else {}
    if adapters and not quantized:
        model = merged(model)
    with replaced_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        processing_class.save_pretrained(unfinished)
        if before is not None:
            tolerance = _TOLERANCE_16_BIT if any(p.dtype.itemsize < 4 for p in model.parameters()) else _TOLERANCE
            _compare(before, _of_folder(model, unfinished, batch), tolerance, model, adapters, folder)


def _log_probs(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad(), evaluating(model):
        return target_logits(model, dict(batch)).log_probs.double().cpu()


def _of_folder(model: nn.Module, folder: Path, batch: Mapping[str, Tensor]) -> Tensor | str:
    """The log-probabilities under the checkpoint, or why it cannot be loaded."""
    try:
        loaded, found = type(model).from_pretrained(
            folder,
            dtype="auto",
            attn_implementation=model.config._attn_implementation,
            device_map=getattr(model, "hf_device_map", None),
            output_loading_info=True,
        )
        if found["missing_keys"]:
            return f"lacks {len(found['missing_keys'])} weights, such as {sorted(found['missing_keys'])[0]}"
        if not hasattr(loaded, "hf_device_map"):
            loaded.to(model.device)
        return _log_probs(loaded, batch)
    except (torch.OutOfMemoryError, MemoryError):
        print(f"There is no memory for a second copy of the model: {folder} was not compared with what was trained.")
        return "out of memory"
    except Exception as error:
        return f"cannot be loaded ({type(error).__name__})"


def _compare(before: Tensor, after: Tensor | str, tolerance: float, model, adapters, folder: str) -> None:
    if isinstance(after, str):
        if after == "out of memory":
            return
        said = after
    else:
        finite = before.isfinite()
        difference = (before - after)[finite].abs().mean() if finite.any() else torch.zeros(())
        if difference <= tolerance * (1 + before[finite].abs().mean() if finite.any() else 1):
            return
        said = f"differs from the trained model by {difference:.3g} nats a target on average"
    kept = _keep(model, adapters, f"{os.path.abspath(folder)}-as-trained")
    raise NotAsTrainedError(
        f"The checkpoint that was written {said}, more than rounding explains, so it was not put to {folder}. The trained "
        f"weights are in {kept}. Train without an adapter, or with one on other layers (target_modules)."
    )


def _adapter_weights(model: nn.Module) -> dict:
    """The config and the weights of each adapter, on the CPU, as they are before a merge."""
    from peft import get_peft_model_state_dict

    found = {}
    for name, config in model.peft_config.items():
        weights = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        found[name] = config, {key: value.detach().cpu().clone() for key, value in weights.items()}
    return found


def _keep(model: nn.Module, adapters: dict, folder: str) -> str:
    """Write the weights as they were trained: of the adapters where there are any, else of the whole model."""
    from safetensors.torch import save_file

    os.makedirs(folder, exist_ok=True)
    for name, (config, weights) in adapters.items():
        place = Path(folder) if len(adapters) == 1 else Path(folder, name)
        config.save_pretrained(place)
        save_file(weights, place / "adapter_model.safetensors")
    if not adapters:
        torch.save(model.state_dict(), Path(folder, "weights.pt"))
    return folder
