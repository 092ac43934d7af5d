"""A model by its name: the only place that knows how a checkpoint is loaded.

A name is a Hub id or a folder. No code of a repository runs unless `trust_remote_code` says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING


# transformers is imported inside the functions, so that importing this module is fast.
if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def load_config(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a checkpoint, or of the base of an adapter, whose `revision` on the Hub is the default one."""
    from transformers import AutoConfig

    adapter = Path(name) / "adapter_config.json"
    if adapter.exists():
        name, revision = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"], None
    return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)


def names_image_classifier(config: PretrainedConfig) -> bool:
    """Whether the config of a checkpoint is that of an image classifier."""
    return any("ForImageClassification" in name for name in config.architectures or ())


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype="float32",
    attn_implementation: str | None = None,
    quantization_config=None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal language model or an image classifier; an adapter is loaded onto its base.

    Args:
        name (`str`): Hub id or folder.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"float32"`): not the 16 bit of many checkpoints, in which
            small steps round away. `"auto"` is the one that the checkpoint was stored in.
        attn_implementation, quantization_config (*optional*): as for `from_pretrained` of transformers.
        trust_remote_code (`bool`, *optional*, defaults to `False`): run Python code that comes with the checkpoint.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification

    image = names_image_classifier(load_config(name, revision, trust_remote_code))
    auto = AutoModelForImageClassification if image else AutoModelForCausalLM
    return auto.from_pretrained(
        name,
        revision=revision,
        dtype=dtype,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
        # Not even `None` where nobody asked for it: a model with code of its own need not know the option.
        **({} if quantization_config is None else {"quantization_config": quantization_config}),
    )


def architecture_of(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a config without its weights (on the device `meta`), to ask what it has the parts for."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification

    auto = AutoModelForImageClassification if names_image_classifier(config) else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=trust_remote_code)


def load_processing_class(name: str, *, revision: str | None = None, trust_remote_code: bool = False):
    """The tokenizer of a language model, the image processor of an image classifier."""
    from transformers import AutoImageProcessor, AutoTokenizer

    image = names_image_classifier(load_config(name, revision, trust_remote_code))
    auto = AutoImageProcessor if image else AutoTokenizer
    return auto.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)


def require_model(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> None:
    """Find out before hours of work that a model does not exist. Only its config is read.

    Raises:
        ValueError: the name is neither a folder with a model nor on the Hub, or the base of an adapter is not; or the
            checkpoint comes with code of its own, which was not allowed to run.
    """
    try:
        load_config(name, revision, trust_remote_code)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error) and not trust_remote_code:
            raise ValueError(
                f"The model {name!r} comes with Python code of its own. Either read that code and set trust_remote_code, or "
                "give a model of an architecture that transformers has."
            ) from error
        inside = Path(name) / "model"
        hint = f" Did you mean {inside}?" if (inside / "config.json").exists() else ""
        if (Path(name) / "adapter_config.json").exists():
            hint = " It is an adapter, and its adapter_config.json names a base that was not found."
        raise ValueError(f"There is no model {name!r}. Give a folder with a checkpoint, or a Hub id.{hint}") from error
