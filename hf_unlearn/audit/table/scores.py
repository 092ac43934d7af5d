"""The table that every likelihood audit reads: a few numbers per target, from one pass of the model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy as safetensors


TARGET_COLUMNS = ("target_ids", "log_prob", "hit", "rank", "mean", "std", "margin", "is_end")


@dataclass(frozen=True, eq=False)
class Scores:
    """Per-target scalars of `n` examples with `t` targets in all; example `i` owns `offsets[i]:offsets[i + 1]`.

    All logarithms are natural. An example without a target (an empty answer) has an empty slice. An example with NaN or
    infinite logits keeps its slice, with NaN for every value, no hit and a rank behind every token. For both, every metric
    returns NaN (or `False`); `valid` tells which examples can be scored, and `missing` why the others cannot.

    Attributes:
        offsets (`int64 (n + 1,)`): borders of the examples in the arrays over targets.
        target_ids (`int32 (t,)`): the target token, or the label of an image. Target tokens spell out the text, so they
            are in no file and are -1 in a table that was loaded. Labels are kept.
        log_prob (`float (t,)`): ln p(target | all tokens before it).
        hit (`bool (t,)`): whether the target is the most likely token (the first one, on ties).
        rank (`int32 (t,)`): number of tokens with a strictly larger logit; 0 is the top. With the model, it tells the
            target: see [`save`].
        mean (`float (t,)`): sum over the vocabulary of p ln p, the mean log-probability (negative entropy).
        std (`float (t,)`): standard deviation of ln p under p, over the whole vocabulary, population form.
        margin (`float (t,)`): largest minus second largest logit; tells near ties, which 16 bit may flip.
        is_end (`bool (t,)`): the target is the end token of the answer. Exact match and extraction leave it out,
            likelihoods keep it.
        zlib_size (`int32 (n,)`): bytes of the zlib-compressed UTF-8 target text (0 if there is no text).
        sampled (`dict[str, float (t,)]`): ln probability of drawing the target under a sampling scheme, by
            `Sampling.key`; `-inf` if the scheme removes the target.
        meta (`dict[str, str]`): dtype of the computation, number of batches, and under `"targets"` `"tokens"`, or
            `"label"` for images, which have one target each.
        class_log_probs (`float (n, classes)`, *optional*): for images, ln p of every class; `None` for text.
    """

    offsets: np.ndarray
    target_ids: np.ndarray
    log_prob: np.ndarray
    hit: np.ndarray
    rank: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    margin: np.ndarray
    is_end: np.ndarray
    zlib_size: np.ndarray
    sampled: dict[str, np.ndarray] = field(default_factory=dict)
    meta: dict[str, str] = field(default_factory=dict)
    class_log_probs: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Number of targets per example, end token included: `int64 (n,)`."""
        return np.diff(self.offsets)

    @property
    def not_finite(self) -> np.ndarray:
        """Which examples had NaN or infinite logits at a target: `bool (n,)`."""
        broken = np.repeat(np.arange(len(self)), self.lengths)[np.isnan(self.log_prob)]
        return np.isin(np.arange(len(self)), broken)

    @property
    def valid(self) -> np.ndarray:
        """Which examples have at least one target, and finite logits at all of them: `bool (n,)`."""
        return (self.lengths > 0) & ~self.not_finite

    @property
    def missing(self) -> dict[str, list[int]]:
        """Indices of the examples that cannot be scored, by reason: `"no_target"` and `"not_finite"`."""
        unscored = {"no_target": self.lengths == 0, "not_finite": self.not_finite}
        return {reason: np.flatnonzero(mask).tolist() for reason, mask in unscored.items()}

    @property
    def has_target_ids(self) -> bool:
        """Whether `target_ids` are known: in a table of text that was loaded from a file they are not."""
        return not (self.target_ids < 0).any()

    def same_targets(self, other: Scores) -> bool:
        """Whether both tables have the same targets in the same order, as those of two models must.

        Tables from files are compared by a digest of all their targets, saved in place of the ids. So a slice of such a
        table has the same targets only as the same slice of an equal table.
        """
        return np.array_equal(self.offsets, other.offsets) and self._target_digest() == other._target_digest()

    def _target_digest(self) -> str:
        if self.has_target_ids:
            return hashlib.sha256(self.target_ids.astype("<i4").tobytes()).hexdigest()
        return self.meta.get("target_digest", "unknown")

    def example(self, i: int) -> slice:
        """Slice of the arrays over targets that belongs to example `i`."""
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))

    def __getitem__(self, examples: slice) -> Scores:
        """The table of a slice of consecutive examples."""
        if not isinstance(examples, slice) or examples.step not in (None, 1):
            raise TypeError("Scores take a slice of consecutive examples, as in scores[2:5]. For one, use example(i).")
        start, stop, _ = examples.indices(len(self))
        stop = max(start, stop)
        targets = slice(int(self.offsets[start]), int(self.offsets[stop]))
        meta = self.meta
        if "target_digest" in meta and stop - start < len(self):
            part = f"{meta['target_digest']}[{start}:{stop}]"
            meta = {**meta, "target_digest": hashlib.sha256(part.encode()).hexdigest()}
        return Scores(
            offsets=self.offsets[start : stop + 1] - self.offsets[start],
            **{name: getattr(self, name)[targets] for name in TARGET_COLUMNS},
            zlib_size=self.zlib_size[start:stop],
            sampled={key: values[targets] for key, values in self.sampled.items()},
            meta=meta,
            class_log_probs=None if self.class_log_probs is None else self.class_log_probs[start:stop],
        )

    @property
    def of_labels(self) -> bool:
        """Whether the targets are labels of images, and not tokens."""
        return self.meta.get("targets") == "label"

    def to_bytes(self) -> bytes:
        """The table, without the ids of target tokens, as a safetensors file, see [`save`]."""
        columns = {name: getattr(self, name) for name in ("offsets", *TARGET_COLUMNS, "zlib_size", "class_log_probs")}
        columns |= {f"sampled/{key}": values for key, values in self.sampled.items()}
        if not self.of_labels:
            del columns["target_ids"]
        columns = {name: np.ascontiguousarray(values) for name, values in columns.items() if values is not None}
        meta = {**self.meta, "target_digest": self._target_digest()}
        return safetensors.save(columns, metadata={"meta": json.dumps(meta, sort_keys=True)})

    @classmethod
    def from_bytes(cls, content: bytes) -> Scores:
        """The table that `to_bytes` wrote, without the ids of target tokens."""
        columns = safetensors.load(content)
        # The header, which `load` found intact: its length in 8 bytes, then JSON.
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        meta = json.loads(header.get("__metadata__", {}).get("meta", "{}"))
        names = sorted(name for name in columns if name.startswith("sampled/"))
        sampled = {name.removeprefix("sampled/"): columns.pop(name) for name in names}
        columns.setdefault("target_ids", np.full(len(columns["log_prob"]), -1, dtype=np.int32))
        return cls(**columns, sampled=sampled, meta=meta)

    def save(self, path: str | Path) -> None:
        """Write one plain safetensors file, **from which everybody with the model can read the texts**.

        It holds no text and no token ids, but the rank of every target. Whoever runs the same model over the beginning of
        a text (a BOS token, a known prompt, or every token of the vocabulary in turn) and appends the token of that rank,
        again and again, gets the text back word for word. So treat the file like the texts, and delete it with them. To
        keep tables between runs use [`ScoreCache`], whose files are encrypted.
        """
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what `save` wrote."""
        return cls.from_bytes(Path(path).read_bytes())
