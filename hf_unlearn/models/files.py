"""What can be seen of a checkpoint without loading it: whether its weights are there and whole, and which code it brings."""

from __future__ import annotations

import json
from pathlib import Path


# Files that a run leaves beside weights, and of which none holds any.
_STATES = ("optimizer.pt", "optimizer.bin", "scheduler.pt", "trainer_state.json", "rng_state.pth")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_CONFIGS = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")


class CheckpointError(ValueError):
    """A checkpoint is damaged, or not what it is taken for: the message says so in one line, with the remedy."""


def require_weights(name: str) -> None:
    """Raise unless the folder of a checkpoint has all its weights in whole files. Nothing is asked of a Hub id.

    Only the headers of the files are read.

    Raises:
        CheckpointError: there are no weights, a shard is missing, or a file is cut short.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    if (folder / "adapter_config.json").exists():
        files = [folder / file for file in _ADAPTER_WEIGHTS if (folder / file).exists()]
        what = "adapter"
    else:
        files, what = _model_files(folder), "model"
    if not files:
        states = [file for file in _STATES if (folder / file).exists()]
        only = f", only {' and '.join(states[:2])}, from which no {what} can be made" if states else ""
        raise CheckpointError(
            f"{name!r} holds no weights of the {what}{only}. Give a folder that has them, or save it again with "
            "save_pretrained."
        )
    for file in files:
        if file.suffix == ".safetensors":
            _require_whole(file)


def _model_files(folder: Path) -> list[Path]:
    try:
        explicit = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("transformers_weights")
    except (OSError, ValueError, AttributeError):
        explicit = None
    for weights in (explicit, *_WEIGHTS):
        if not weights:
            continue
        if (folder / weights).exists():
            return [folder / weights]
        index = folder / f"{weights}.index.json"
        if index.exists():
            try:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise CheckpointError(f"{index} lists no files of weights. It is damaged: copy it again.") from None
            if missing := [shard for shard in shards if not (folder / shard).exists()]:
                raise CheckpointError(
                    f"{len(missing)} of the {len(shards)} files with the weights of {str(folder)!r} are missing, such as "
                    f"{missing[0]}. Copy them there."
                )
            return [folder / shard for shard in shards]
    return list(folder.glob("*.gguf")) + list(folder.glob("*.distcp"))


def _require_whole(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is cut short or damaged ({type(error).__name__}). Copy it again, or save the model again."
        ) from None


def code_files(name: str) -> list[str]:
    """The Python files that a folder asks to run, as its configs name them. Empty for a Hub id."""
    files = set()
    for config in _CONFIGS:
        try:
            references = json.loads((Path(name) / config).read_text(encoding="utf-8")).get("auto_map") or {}
        except (OSError, ValueError, AttributeError):
            continue
        for reference in references.values() if isinstance(references, dict) else [references]:
            for one in reference if isinstance(reference, (list, tuple)) else [reference]:
                if isinstance(one, str):
                    repository, _, path = one.rpartition("--")
                    file = path.rpartition(".")[0].replace(".", "/") + ".py"
                    files.add(f"{file} of {repository}" if repository else file)
    return sorted(files)
