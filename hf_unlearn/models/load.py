"""A model by its name: the only place that knows how a checkpoint is loaded.

A name is a Hub id or a folder, of a model or of an adapter. No code of a repository runs unless `trust_remote_code` says so,
and nobody is asked at a prompt. What is loaded is what was saved: no weight is new, and none is left out without a word.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hf_unlearn.models.adapters import base_of, merged, put_on
from hf_unlearn.models.files import CheckpointError, code_files, require_weights
from hf_unlearn.models.kinds import kind_of, needs_code, require_kind


# transformers is imported inside the functions, so that importing this module is fast.
if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

_IN_A_LIST = re.compile(r"(^|\.)\d+\.")  # of layers, of blocks in stages, of experts


@contextmanager
def _in_one_line(name: str, part: str) -> Iterator[None]:
    """Turn what other libraries raise at a wrong or damaged checkpoint into one line with the cause and the remedy."""
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except BaseException as error:
        # A panic in compiled code, as of a tokenizer's file, is no `Exception`; that of torch about memory says what to do.
        kind = type(error).__name__
        if kind == "OutOfMemoryError" or not isinstance(error, Exception) and kind != "PanicException":
            raise
        if "trust_remote_code" in str(error):
            raise CheckpointError(_own_code(name, part)) from error
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise ValueError(
            f"The {part} of {name!r} cannot be loaded ({type(error).__name__}: {said[:300]}). The folder is incomplete or "
            "damaged, or needs something that is not installed: copy it again, or save it again with save_pretrained."
        ) from error


def _own_code(name: str, part: str) -> str:
    files = code_files(name)
    where = f" ({', '.join(files)})" if files else ""
    return (
        f"The {part} {name!r} comes with Python code of its own{where}, which does not run unasked. Either read that code and "
        "set trust_remote_code: --trust_remote_code true on a command line, or load_model(name, trust_remote_code=True) of "
        "hf_unlearn.models.load in Python, and give the model; or give a model of an architecture that transformers has."
    )


def load_config(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a checkpoint, or of the base of an adapter, whose `revision` on the Hub is the default one.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    from transformers import AutoConfig

    model, revision = _model_below(name, revision)
    try:
        with _in_one_line(model, "config"):
            config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
        if not trust_remote_code and needs_code(config):
            raise CheckpointError(_own_code(model, "model"))
        return config
    except ValueError as error:
        there = (Path(model) / "config.json").exists()
        if there or not (Path(model).is_dir() or isinstance(error.__cause__, OSError)):
            raise
        inside = Path(name) / "model"
        hint = f" Did you mean {inside}?" if (inside / "config.json").exists() else ""
        if model != name:
            hint = f" It is an adapter, and its adapter_config.json names a base that was not found: {model!r}."
        raise ValueError(f"There is no model {name!r}. Give a folder with a checkpoint, or a Hub id.{hint}") from error


def _model_below(name: str, revision: str | None) -> tuple[str, str | None]:
    """The model that an adapter is for, be it through further adapters, and its revision; a model is its own."""
    seen = [name]
    while (base := base_of(name, revision)) is not None:
        if base in seen:
            raise CheckpointError(
                f"The adapter {name!r} names {base!r} as its base, which leads back to it. Set base_model_name_or_path in "
                "its adapter_config.json to the model that it was trained on."
            )
        name, revision = base, None
        seen.append(name)
    return name, revision


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype="float32",
    attn_implementation: str | None = None,
    quantization_config=None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal language model or an image classifier, with exactly the weights that were saved.

    An adapter comes as a `PeftModel` on its base, with weights that may move. Where its base is an adapter too, that one is
    merged first.

    Args:
        name (`str`): Hub id or folder.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"float32"`): not the 16 bit of many checkpoints, in which
            small steps round away. `"auto"` is the one that the checkpoint was stored in.
        attn_implementation, quantization_config (*optional*): as for `from_pretrained` of transformers.
        trust_remote_code (`bool`, *optional*, defaults to `False`): run Python code that comes with the checkpoint.

    Raises:
        ValueError: it is a model of another kind; weights are missing in its files, or there are some that it has no place
            for; files are missing or damaged; or it brings code that was not allowed to run.

    Example:
        >>> model = load_model("outputs/model")
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification

    options = {
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        # Not even `None` where nobody asked for it: a model with code of its own need not know the option.
        **({} if quantization_config is None else {"quantization_config": quantization_config}),
        "trust_remote_code": trust_remote_code,
    }
    config = load_config(name, revision, trust_remote_code)
    with _named(name):
        auto = AutoModelForImageClassification if kind_of(config) == "image" else AutoModelForCausalLM
    require_weights(name)
    if (base := base_of(name, revision)) is not None:
        model = load_model(base, **options)
        if hasattr(model, "merge_and_unload"):
            _require_whole_base(model, name)
            model = merged(model)
        with _in_one_line(name, "adapter"):
            return put_on(model, name, revision)
    with _in_one_line(name, "weights"), _quiet():
        model, found = auto.from_pretrained(
            name, revision=revision, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    require_complete(name, found)
    _leave_unpacked(model)
    require_kind(model)
    return model


def _leave_unpacked(model: nn.Module) -> None:
    """Have bitsandbytes 0.50 leave 4-bit weights as they are where it cannot repack them for CPUs with AVX512-BF16."""
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if hasattr(module, "support_avx512bf16_for_cpu") and state is not None:
            if state.shape[-1] % state.blocksize:  # a block over the end of a row
                module.support_avx512bf16_for_cpu = False


def _require_whole_base(model: nn.Module, name: str) -> None:
    if getattr(model, "is_quantized", False):
        raise ValueError(
            f"The base of the adapter {name!r} is an adapter on a quantized model, which cannot be merged without loss. "
            "Load it without quantization."
        )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say of which checkpoint an error is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name!r} is not a model that can be unlearned or audited. {error}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own table of missing weights, which follows here as an error."""
    log = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    log.addFilter(is_other)
    try:
        yield
    finally:
        log.removeFilter(is_other)


def require_complete(name: str, found: dict[str, Collection]) -> None:
    """Raise unless every weight of the model came from its file, and every weight of a layer in the file has a place.

    Tied weights and buffers that are not saved are in neither list.

    Args:
        found (`dict`): the loading info of `from_pretrained`.

    Raises:
        ValueError: with the number of weights and one name.
    """
    missing, mismatched = sorted(found["missing_keys"]), sorted(key for key, *_ in found["mismatched_keys"])
    unexpected = sorted(found["unexpected_keys"])
    remedy = (
        "config.json and the weights are not of the same model: copy both again, or save the model again with "
        "save_pretrained."
    )
    if missing:
        raise ValueError(
            f"{len(missing)} weights of the model {name!r} are not in its files, such as {missing[0]}, and would be random. "
            f"Either it is a checkpoint of another kind, without this head, or {remedy}"
        )
    if mismatched:
        raise ValueError(
            f"{len(mismatched)} weights of the model {name!r} have another shape in its files than config.json asks for, "
            f"such as {mismatched[0]}, and would be random. {remedy}"
        )
    if in_layers := [key for key in unexpected if _IN_A_LIST.search(key)]:
        raise ValueError(
            f"{len(in_layers)} weights in the files of {name!r}, such as {in_layers[0]}, have no place in a model of its "
            f"config.json, so that another model would be run. {remedy}"
        )
    if unexpected:
        logger.warning(f"{len(unexpected)} weights in the files of {name!r} are left out, such as {unexpected[0]}.")


def architecture_of(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a config without its weights (on the device `meta`), to ask what it has the parts for."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification

    auto = AutoModelForImageClassification if kind_of(config) == "image" else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=trust_remote_code)


def load_processing_class(name: str, *, revision: str | None = None, trust_remote_code: bool = False):
    """The tokenizer of a language model, the image processor of an image classifier; of an adapter without one, its base's.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    image = kind_of(load_config(name, revision, trust_remote_code)) == "image"
    auto = AutoImageProcessor if image else AutoTokenizer
    while (base := base_of(name, revision)) is not None and not _has_processing_class(name):
        name, revision = base, None
    with _in_one_line(name, "image processor" if image else "tokenizer"):
        loaded = auto.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        if hasattr(loaded, "backend_tokenizer"):
            loaded("a")  # some faults of its file show at the first text
        return loaded


def _has_processing_class(name: str) -> bool:
    return not Path(name).is_dir() or any(
        (Path(name) / file).exists()
        for file in ("tokenizer_config.json", "tokenizer.json", "preprocessor_config.json", "processor_config.json")
    )


def require_model(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> None:
    """Find out before hours of work that a model does not exist or is none of those that can be run.

    Only its config and the headers of its files are read.

    Raises:
        ValueError: the name is neither a folder with a model nor on the Hub, or the base of an adapter is not; it is a
            model of another kind; its weights are missing or cut short; or it comes with code of its own, which was not
            allowed to run.
    """
    config = load_config(name, revision, trust_remote_code)
    with _named(name):
        kind_of(config)
    while name is not None:
        require_weights(name)
        name, revision = base_of(name, revision), None
