"""Tables of scores that only somebody with the content they were computed from can find and read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.models.sampling import Sampling
from hf_unlearn.storage.digest import add_tensor, add_texts
from hf_unlearn.storage.encryption import ContentKey, decrypted, encrypted, key_of_content
from hf_unlearn.storage.files import write_whole


# Raised when the same weights and rows would give another table, or a table another file.
FORMAT = "2"
# No other digest over rows begins with it: a digest from a report or another tool must not open a table.
DOMAIN = f"hf_unlearn score cache {FORMAT}"
# Packages whose forward hooks do not change what a model computes.
KNOWN_HOOKS = ("torch", "transformers", "peft", "accelerate")
# Fields of a config that change when a model is saved and loaded. The types of the weights count by themselves.
NOT_COMPUTED_FROM = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")


class ScoreCache:
    """A folder of tables, so that the original and the retrained model are run over the same examples only once.

    A table is found by a digest of the weights, their configuration, the encoded examples and the sampling schemes, never
    by the name of a model or data set. So no table is stale: other weights have other tables.

    With the model, a plain table is as good as the texts, as the rank of a target tells its token ([`Scores.save`]). So
    each table is encrypted (AES-256-GCM) with a key that is made from all of the encoded examples, in their order, and is
    stored nowhere. Only somebody with the examples, or with the memory of a process that has them, can read the table, and
    deleting the examples makes it unreadable. Two limits remain:

    * Somebody who guesses all the examples of a table, word for word, can test the guess. A guess costs 16 MiB and some
      hundredths of a second (scrypt), which is little if there is little to guess: a name, a date, the one unknown short
      row of a list, or what the model recites by itself.
    * A file shows about how many targets its table has, and when it was written.

    So delete the folder together with the records. A file that is incomplete, damaged or foreign counts as absent and is
    written again. Several processes may share the folder.

        cache = ScoreCache("runs/scores")
        before = score(model, tokenizer, rows, cache=cache)

    Args:
        folder (`str` or `Path`): created when the first table is written.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def key(
        self, model, rows: Sequence[dict | None], zlib_size: Sequence[int], sampling: Sequence[Sampling]
    ) -> ContentKey:
        """Name and secret of the table of these encoded rows under this model; errors as of [`digest_of_model`]."""
        sha = hashlib.sha256()
        add_texts(sha, DOMAIN, digest_of_model(model), repr([scheme.key for scheme in sampling]))
        add_texts(sha, repr([int(size) for size in zlib_size]))
        _add_rows(sha, rows)
        return key_of_content(sha.digest(), DOMAIN)

    def load(self, key: ContentKey) -> Scores | None:
        """The table of a key, without `target_ids`, or `None` if there is no intact one."""
        try:
            scores = Scores.from_bytes(decrypted(self._path(key).read_bytes(), key, DOMAIN))
        except Exception:  # whatever is in the file, it is not the table
            return None
        # `to_bytes` adds the digest for tables that are read without their examples.
        return replace(scores, meta={name: value for name, value in scores.meta.items() if name != "target_digest"})

    def save(self, key: ContentKey, scores: Scores) -> None:
        """Write the table, whole or not at all, with no part of it unencrypted on disk."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(self._path(key), encrypted(scores.to_bytes(), key, DOMAIN), mode=0o600)

    def _path(self, key: ContentKey) -> Path:
        return self.folder / f"{key.name}.encrypted.safetensors"


def digest_of_model(model) -> str:
    """SHA-256 over what determines the outputs of a model: weights with their types, configuration, and adapters in use.

    Weights that are spread over processes (FSDP) are gathered one by one, so every process must call it.

    Raises:
        ValueError: weights are not in memory, or forward hooks may change what the model computes.
    """
    import torch

    sha = hashlib.sha256()
    settings = {key: value for key, value in model.config.to_dict().items() if key not in NOT_COMPUTED_FROM}
    add_texts(sha, type(model).__name__.removeprefix("FSDP"), json.dumps(settings, sort_keys=True, default=str))
    for name, config in getattr(model, "peft_config", {}).items():
        settings = {key: value for key, value in config.to_dict().items() if key != "base_model_name_or_path"}
        add_texts(sha, name, json.dumps(settings, sort_keys=True, default=_plain))
    for name, module in model.named_modules():
        for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]:
            if (getattr(hook, "__module__", None) or "").split(".")[0] not in KNOWN_HOOKS:
                raise ValueError(
                    "You gave a cache, but the model has a forward hook, whose effect is in no weight. Either remove the "
                    "hook, or leave out the cache."
                )
        if hasattr(module, "merged_adapters"):  # no weight tells which adapters of a layer are in use
            state = [module.active_adapters, module.merged_adapters, module.disable_adapters]
            add_texts(sha, name, repr(state), repr(sorted(getattr(module, "scaling", {}).items())))
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            add_texts(sha, name, repr(value))
            continue
        if value.is_meta or hasattr(value, "ds_id"):
            raise ValueError(
                "You gave a cache, but some weights of the model are not in the memory of this process (offloading or "
                "ZeRO-3). Either load the model without that, or leave out the cache."
            )
        if hasattr(value, "full_tensor"):
            value = value.full_tensor()
        add_texts(sha, name)
        add_tensor(sha, value)
    return sha.hexdigest()


def digest_of_rows(rows: Sequence[dict | None], with_pixels: bool = True) -> str:
    """SHA-256 over encoded rows in their order: ids and labels, or pixels (`with_pixels`) and labels."""
    sha = hashlib.sha256()
    _add_rows(sha, rows, with_pixels)
    return sha.hexdigest()


def _add_rows(sha, rows: Sequence[dict | None], with_pixels: bool = True) -> None:
    import torch

    labels = None if with_pixels else getattr(rows, "labels", None)
    if labels is not None:  # without decoding an image
        add_texts(sha, repr(labels))
        return
    for row in rows:
        for name in ("input_ids", "pixel_values", "labels", "n_end"):
            value = None if row is None else row.get(name)
            if value is None or (name == "pixel_values" and not with_pixels):
                add_texts(sha, "-")
            else:
                tensor = torch.as_tensor(value)
                add_tensor(sha, tensor if name == "pixel_values" else tensor.long())


def _plain(value):
    # The order of a set differs between runs of Python.
    return sorted(map(str, value)) if isinstance(value, Iterable) else str(value)
