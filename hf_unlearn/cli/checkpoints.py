"""Load the models that the options name, and write the one that was made."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_unlearn.models import load


# What loads models is imported where it is used: `--help` and a mistyped option should not take seconds.
if TYPE_CHECKING:
    from hf_unlearn.cli.model_arguments import ModelArguments


def loading(arguments: ModelArguments, name: str) -> dict[str, Any]:
    """The options to load a checkpoint with; the revision is that of `model_name_or_path` and of no other."""
    revision = arguments.model_revision if name == arguments.model_name_or_path else None
    return {"revision": revision, "trust_remote_code": arguments.trust_remote_code}


def load_config(arguments: ModelArguments, name: str | None = None):
    """The config of `model_name_or_path`, or of `name`; see [`~hf_unlearn.models.load.load_config`]."""
    name = name or arguments.model_name_or_path
    return load.load_config(name, **loading(arguments, name))


def load_processing_class(arguments: ModelArguments):
    """The tokenizer or image processor of `model_name_or_path`."""
    name = arguments.model_name_or_path
    return load.load_processing_class(name, **loading(arguments, name))


def load_model(arguments: ModelArguments, name: str | None = None):
    """`model_name_or_path`, or `name` with the other options the same; see [`~hf_unlearn.models.load.load_model`]."""
    from trl import get_quantization_config

    name = name or arguments.model_name_or_path
    return load.load_model(
        name,
        dtype=arguments.dtype,
        attn_implementation=arguments.attn_implementation,
        quantization_config=get_quantization_config(arguments),
        **loading(arguments, name),
    )


def require_models(arguments: ModelArguments, *names: str | None) -> None:
    """Find out before hours of work that a model to compare with does not exist.

    Raises:
        ValueError: no model was given, or see [`~hf_unlearn.models.load.require_model`].
    """
    if arguments.model_name_or_path is None:
        raise ValueError("No model was given. Set model_name_or_path, in the recipe or on the command line.")
    for name in (arguments.model_name_or_path, *names):
        if name is not None:
            load.require_model(name, **loading(arguments, name))


def require_writable(folder: str, *inputs: str | None) -> None:
    """Find out before hours of work that the result cannot be written, or would be written over what it came from.

    Raises:
        OSError: with the cause and what to do.
        ValueError: the checkpoint would replace one of the `inputs`, or a folder that holds something else.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"Nothing can be written to output_dir={folder!r} ({error.strerror}). Either make it writable, or set "
            "another output_dir."
        ) from None
    checkpoint = Path(folder) / "model"
    if checkpoint.exists():
        if any(name is not None and checkpoint.resolve() == Path(name).resolve() for name in inputs):
            raise ValueError(
                f"The checkpoint would replace {checkpoint}, which this run reads. Set another output_dir."
            )
        if not (checkpoint / "config.json").exists() and not (checkpoint / "adapter_config.json").exists():
            raise ValueError(
                f"{checkpoint} exists and is no checkpoint. Either move it away, or set another output_dir."
            )


def save_plain(model, processing_class, folder: str, batch=None) -> str:
    """Write a checkpoint, compared with `model` on a `batch`, see [`~hf_unlearn.models.saved.save_whole`]; return `folder`."""
    from hf_unlearn.models.saved import save_whole

    save_whole(model, processing_class, folder, batch)
    print(f"The checkpoint is in {folder}.")
    return folder


def save_trained(trainer, processing_class, cost, folder: str) -> str:
    """Write `<folder>/model`, and what it cost beside it, for an audit to compare; return the checkpoint.

    One process writes, and the others wait for it: all of them read it in an audit, which they share. The checkpoint is
    compared with the trained model on a few rows of the training.

    Raises:
        NotAsTrainedError: the checkpoint is not the trained model; the message says where its weights are.
    """
    from hf_unlearn.data.pairing import on_device
    from hf_unlearn.models.processes import is_divided, of_the_first
    from hf_unlearn.models.sharding import whole_copy

    checkpoint, trained = f"{folder}/model", trainer.accelerator.unwrap_model(trainer.model)
    # Every process must take part in this, while one alone writes.
    state = trainer.accelerator.get_state_dict(trainer.model) if is_divided(trained) else None

    def save() -> None:
        model = trained if state is None else whole_copy(trained, state)
        cost.save(f"{folder}/cost.json")
        batch = on_device(trainer.data_collator(_few_rows(trainer.train_dataset)), model.device)
        save_plain(model, processing_class, checkpoint, batch)

    of_the_first(save)
    return checkpoint


def _few_rows(rows, n: int = 2) -> list[dict]:
    """Encoded rows of a training, evenly spread: of the forget set and of the retain set, where there are the two."""
    sets = [rows] if not hasattr(rows, "forget") else [s for s in (rows.forget, rows.retain) if s is not None]
    return [dict(s[i * len(s) // n]) for s in sets for i in range(min(n, len(s)))]
