"""What kind of model it is: one that predicts the next token, or one that names the class of an image, and no other.

The auto classes of transformers put a new head on any checkpoint, and a masked language model passes for a causal one: its
loss is finite and means nothing. So the architecture is read before anything is loaded, and a model is asked once.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING


# torch and transformers are imported inside the functions, so that importing this module is fast.
if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

# Mappings of transformers by what their models are, the first that has an architecture names it.
_OTHERS = {
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": "a masked language model",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES": "an encoder-decoder",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "a model of images and text",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES": "a multimodal model",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "a classifier of texts",
    "MODEL_MAPPING_NAMES": "a model without a head",
}
_NEEDED = (
    "Needed is a causal language model (such as LlamaForCausalLM) or an image classifier (such as "
    "ViTForImageClassification): give the checkpoint that was trained as one."
)
# Tokens of the small pass, of which the first half is the same in both rows, and how often it is tried.
_LENGTH, _TRIES = 8, 3
#: Models that were asked already.
_causal: weakref.WeakSet = weakref.WeakSet()


def kind_of(config: PretrainedConfig) -> str:
    """`"text"` for the config of a causal language model, `"image"` for that of an image classifier.

    The class is that of `architectures`. A config without it is taken for what its `model_type` says; code that comes with
    the checkpoint for what its `auto_map` says.

    Raises:
        ValueError: it is of another kind; the message names the architecture and what is needed.
    """
    from transformers.models.auto import modeling_auto

    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    image = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    kind = config.model_type
    name, code = _architecture(config), _code(config)
    of_code = {"text": code.get("AutoModelForCausalLM", ""), "image": code.get("AutoModelForImageClassification", "")}
    for found, reference in of_code.items():
        if reference and name in (None, reference.rpartition(".")[2]):
            return found
    if name is None:
        found = "text" if kind in causal else "image" if kind in image else None
        name = f"a {kind}"
    elif name in _classes(image):
        found = "image" if kind not in image or name in _classes({kind: image[kind]}) else None
    elif name in _classes(causal):
        if kind in causal and name not in _classes({kind: causal[kind]}):
            raise ValueError(
                f"The architecture is {name}, but the model_type {kind!r} is of {causal[kind]}: the same weights would be "
                "another model. Correct config.json, or load the checkpoint that it came from."
            )
        found = "text"
    elif _known_as(name) is None and (kind in causal) != (kind in image):
        found = "text" if kind in causal else "image"  # a class of somebody's own, on an architecture of transformers
    else:
        found = None
    if found is None:
        raise ValueError(f"The architecture is {name}, {_known_as(name) or 'of another kind'}. {_NEEDED}")
    if found == "text":
        _require_decoder(config, name)
    return found


def _architecture(config) -> str | None:
    """The first of `architectures`, if there is one."""
    named = config.architectures or []
    if not isinstance(named, (list, tuple)) or not all(isinstance(name, str) for name in named):
        raise ValueError(
            "The architectures in config.json are no list of names. Correct it, as in architectures: [LlamaForCausalLM]."
        )
    return named[0] if named else None


def _code(config) -> dict[str, str]:
    """The classes of `auto_map`, which come with the checkpoint."""
    code = getattr(config, "auto_map", None)
    return {auto: name for auto, name in code.items() if isinstance(name, str)} if isinstance(code, dict) else {}


def needs_code(config: PretrainedConfig) -> bool:
    """Whether the model of a config is one that comes with its own code, and that transformers does not have."""
    from transformers.models.auto import modeling_auto

    code, name = _code(config), _architecture(config)
    mappings = {
        "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForImageClassification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    }
    for auto, mapping in mappings.items():
        if auto in code and name in (None, code[auto].rpartition(".")[2]):
            own = _classes({0: mapping[config.model_type]}) if config.model_type in mapping else set()
            return name not in own if name is not None else not own
    return False


def _classes(mapping) -> set[str]:
    """The names of classes in a mapping of transformers, which has one or several for a type of model."""
    return {name for names in mapping.values() for name in ((names,) if isinstance(names, str) else names)}


def _known_as(name: str) -> str | None:
    from transformers.models.auto import modeling_auto

    return next(
        (title for mapping, title in _OTHERS.items() if name in _classes(getattr(modeling_auto, mapping))), None
    )


def _require_decoder(config, name: str) -> None:
    """Raise for what can be in the table of causal models and yet is none, by its settings or its inputs."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as masked

    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"The architecture is {name}, an encoder-decoder (is_encoder_decoder). {_NEEDED}")
    if config.model_type in masked and getattr(config, "is_decoder", None) is False:
        raise ValueError(
            f"The architecture is {name} with is_decoder=False, so that each token sees those after it. {_NEEDED} If it was "
            "trained as a decoder, set is_decoder=true in its config.json."
        )
    parts = set(getattr(config, "sub_configs", {}))
    if any("vision" in part or "audio" in part for part in parts) and (
        "text_config" not in parts or name.endswith("ForConditionalGeneration")
    ):
        raise ValueError(f"The architecture is {name}, a multimodal model. {_NEEDED}")


def require_class(model: nn.Module) -> str | None:
    """The kind of a model in memory by its class, `None` for a class that is not of transformers. Nothing is run.

    Raises:
        ValueError: it is another model; the message names its class.
    """
    inner = _inner(model)
    name = next((c.__name__ for c in type(inner).__mro__ if c.__module__.startswith("transformers.models.")), None)
    return None if name is None or not hasattr(inner, "config") else _class_kind(name, inner.config)


def require_kind(model: nn.Module) -> None:
    """Raise unless a model is a causal language model or an image classifier, by its class and, once, by what it does.

    The predictions of a causal model at the first positions are the same whatever comes after. Two short rows show it, up to
    the rounding of the model's type. It is not asked where a process has only a part of the weights, nor of a quantized
    model, whose weights a first pass may repack.

    Raises:
        ValueError: it is another model; the message names its class.
    """
    from hf_unlearn.models.modes import unwrapped

    model = unwrapped(model)
    if model in _causal:
        return
    if require_class(model) != "image" and getattr(model, "main_input_name", "input_ids") == "input_ids":
        _require_causal(model, type(_inner(model)).__name__)
    _causal.add(model)


def _inner(model: nn.Module) -> nn.Module:
    """The model inside a wrapper and under an adapter."""
    from hf_unlearn.models.modes import unwrapped

    model = unwrapped(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _class_kind(name: str, config) -> str:
    """The kind of a model that is in memory: its class counts, not what its config says that a checkpoint held."""
    from transformers.models.auto import modeling_auto

    if name in _classes(modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES):
        return "image"
    if name not in _classes(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        raise ValueError(f"The model is a {name}, {_known_as(name) or 'of another kind'}. {_NEEDED}")
    _require_decoder(config, name)
    return "text"


def _require_causal(model: nn.Module, name: str) -> None:
    import torch

    from hf_unlearn.models.modes import evaluating
    from hf_unlearn.models.processes import is_divided

    partly = is_divided(model) or any(parameter.is_meta for parameter in model.parameters())
    if partly or not hasattr(model, "config") or getattr(model, "is_quantized", False):
        return
    vocabulary = model.config.get_text_config().vocab_size
    coarse = any(p.dtype.itemsize < 4 for p in model.parameters())
    generator = torch.Generator().manual_seed(0)
    half = _LENGTH // 2
    with torch.no_grad(), evaluating(model):
        # Rounding can send a token to another expert. It does not do so in every try, as the eyes of an encoder would.
        for _ in range(_TRIES):
            ids = torch.randint(vocabulary, (2, _LENGTH), generator=generator)
            ids[1, :half] = ids[0, :half]
            ids[1, half:] = (ids[0, half:] + 1 + vocabulary // 2) % vocabulary
            try:
                logits = model(
                    input_ids=ids.to(model.device), attention_mask=torch.ones_like(ids).to(model.device)
                ).logits
            except Exception:  # what it needs beside tokens is said where it is run in earnest
                return
            first = logits[:, :half].float()
            difference, spread = (first[0] - first[1]).abs().max(), first[0].std()
            if not difference > (0.1 if coarse else 1e-3) * spread:  # NaN has errors of its own
                return
    raise ValueError(
        f"The model is a {name} whose predictions change with the tokens that come after them, so that it is no causal "
        f"language model. {_NEEDED}"
    )
