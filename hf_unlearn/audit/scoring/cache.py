"""Tables of scores by the content of what they were computed from."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .scores import Sampling, Scores


# Raised when the same weights and rows would give another table.
FORMAT = "1"
# Fields of a config that change when a model is saved and loaded. The types of the weights count by themselves.
NOT_COMPUTED_FROM = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")


class ScoreCache:
    """A folder of tables, so that the original and the retrained model are run over the same examples once.

    The name of a file is a digest of the weights, their configuration, the encoded examples and the sampling schemes.
    Nothing is found by the name of a model or of a data set, and nothing is stale: other weights are other tables.

    A file holds no text and no token ids ([`Scores.save`]), but log-probabilities of single records: treat the folder
    as private, and delete it with the records. A file that is incomplete, damaged or foreign counts as absent and is
    written anew. Several processes may share the folder.

        cache = ScoreCache("runs/scores")
        before = score(model, tokenizer, rows, cache=cache)

    Args:
        folder (`str` or `Path`): made when the first table is written.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def key(self, model, rows: Sequence[dict | None], zlib_size: Sequence[int], sampling: Sequence[Sampling]) -> str:
        """Name of the table of these encoded rows under this model: 64 hex digits.

        Raises:
            ValueError: what the model computes does not follow from weights in memory.
        """
        parts = [
            FORMAT,
            digest_of_model(model),
            digest_of_rows(rows),
            hashlib.sha256(np.array(zlib_size, dtype=np.int64).tobytes()).hexdigest(),
            *(scheme.key for scheme in sampling),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def load(self, key: str) -> Scores | None:
        """The table of that name, without `target_ids`, or `None` where there is none that is whole."""
        try:
            scores = Scores.load(self._path(key))
            if scores.meta["key"] != key or scores.meta["checksum"] != _checksum(scores):
                return None
        except Exception:  # whatever is in the file, it is not the table
            return None
        return replace(scores, meta=_own_meta(scores))

    def save(self, key: str, scores: Scores) -> None:
        """Write the table. Who reads meanwhile finds all of it or none."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".", suffix=".incomplete")
        os.close(handle)
        try:
            marked = {**scores.meta, "key": key, "checksum": _checksum(scores)}
            replace(scores, meta=marked).save(temporary)
            os.replace(temporary, self._path(key))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def digest_of_model(model) -> str:
    """SHA-256 over all that a model computes from: weights with their types, configuration, and adapters in use.

    Where a model was loaded from does not count. Weights that are spread over processes (FSDP) are put together one by
    one, so each process must call it.

    Raises:
        ValueError: weights are not in memory, or forward hooks may change what the model computes.
    """
    import torch

    sha = hashlib.sha256()
    settings = {key: value for key, value in model.config.to_dict().items() if key not in NOT_COMPUTED_FROM}
    _add(sha, type(model).__name__.removeprefix("FSDP"), json.dumps(settings, sort_keys=True, default=str))
    for name, config in getattr(model, "peft_config", {}).items():
        settings = {key: value for key, value in config.to_dict().items() if key != "base_model_name_or_path"}
        _add(sha, name, json.dumps(settings, sort_keys=True, default=_plain))
    for name, module in model.named_modules():
        _check_hooks(module)
        if hasattr(module, "merged_adapters"):  # a layer of an adapter: which of them is in use is in no weight
            state = [module.active_adapters, module.merged_adapters, module.disable_adapters]
            _add(sha, name, repr(state), repr(sorted(getattr(module, "scaling", {}).items())))
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            _add(sha, name, repr(value))
            continue
        if value.is_meta or hasattr(value, "ds_id"):
            raise ValueError(
                "You gave a cache, but not all weights of the model are in the memory of this process (they were "
                "offloaded, or are divided by ZeRO-3). Either load the model without that, or leave out the cache."
            )
        if hasattr(value, "full_tensor"):
            value = value.full_tensor()
        _add(sha, name)
        _add_tensor(sha, value)
    return sha.hexdigest()


def digest_of_rows(rows: Sequence[dict | None], with_pixels: bool = True) -> str:
    """SHA-256 over encoded rows: ids and labels, or pixels and labels, in their order."""
    import torch

    sha = hashlib.sha256()
    labels = None if with_pixels else getattr(rows, "labels", None)
    if labels is not None:  # without decoding an image
        _add(sha, repr(labels))
        return sha.hexdigest()
    for row in rows:
        for name in ("input_ids", "pixel_values", "labels", "n_end"):
            value = None if row is None else row.get(name)
            if value is None or (name == "pixel_values" and not with_pixels):
                _add(sha, "-")
            else:
                tensor = torch.as_tensor(value)
                _add_tensor(sha, tensor if name == "pixel_values" else tensor.long())
    return sha.hexdigest()


def _check_hooks(module) -> None:
    for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]:
        package = (getattr(hook, "__module__", None) or "").split(".")[0]
        if package not in ("torch", "transformers", "peft", "accelerate"):
            raise ValueError(
                "You gave a cache, but the model has a forward hook, and what it changes is in no weight. Either remove "
                "the hook, or leave out the cache."
            )


def _checksum(scores: Scores) -> str:
    """SHA-256 over all that is saved of a table."""
    sha = hashlib.sha256()
    for name, array in sorted(scores.saved_columns().items()):
        _add(sha, name, str(array.dtype), str(array.shape))
        sha.update(np.ascontiguousarray(array))
    _add(sha, json.dumps(_own_meta(scores), sort_keys=True))
    return sha.hexdigest()


def _own_meta(scores: Scores) -> dict[str, str]:
    """What the table says of itself, without what is written into a file besides."""
    return {name: value for name, value in scores.meta.items() if name not in ("key", "checksum", "target_digest")}


def _add(sha, *texts: str) -> None:
    for text in texts:
        data = text.encode()
        sha.update(len(data).to_bytes(8, "little") + data)


def _add_tensor(sha, tensor) -> None:
    import torch

    _add(sha, str(tensor.dtype), str(tuple(tensor.shape)))
    sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _plain(value):
    # The order of a set is another one in each run of Python.
    return sorted(map(str, value)) if isinstance(value, Iterable) else str(value)
