"""The table that every likelihood audit reads: a few numbers a target, from one pass of the model."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file


@dataclass(frozen=True)
class Sampling:
    """A way to sample the next token, in the order of the warpers of transformers: temperature, top-k, top-p.

    Args:
        temperature (`float`, *optional*, defaults to `1.0`): logits are divided by it.
        top_k (`int`, *optional*, defaults to `0`): keep the k most likely tokens (ties with the k-th are kept); 0 keeps all.
        top_p (`float`, *optional*, defaults to `1.0`): keep the smallest set of most likely tokens with at least this mass.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(
                f"temperature must be positive, not {self.temperature}. Greedy decoding is the `hit` column."
            )
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or positive, not {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}.")

    @property
    def key(self) -> str:
        return f"temperature={self.temperature:.12g},top_k={self.top_k},top_p={self.top_p:.12g}"


# The schemes of (n, p)-discoverable extraction (Hayes et al., arXiv 2410.19482) that the audit reports.
DEFAULT_SAMPLING = (Sampling(), Sampling(top_k=40), Sampling(temperature=0.7))


@dataclass(frozen=True, eq=False)
class Scores:
    """Per-target scalars of `n` examples with `t` targets in all; example `i` owns `offsets[i]:offsets[i + 1]`.

    All logarithms are natural. An example without a target (an empty answer) has an empty slice: every metric returns
    NaN for it (`False` where it returns booleans), and `valid` tells which examples can be scored at all.

    Attributes:
        offsets (`int64 (n + 1,)`): borders of the examples in the arrays over targets.
        target_ids (`int32 (t,)`): the target token, or the label of an image.
        log_prob (`float (t,)`): ln p(target | what precedes it).
        hit (`bool (t,)`): whether the target is the most likely token (the first one, on ties).
        rank (`int32 (t,)`): number of tokens with a strictly larger logit; 0 is the top.
        mean (`float (t,)`): sum over the vocabulary of p ln p, the mean log-probability (negative entropy).
        std (`float (t,)`): standard deviation of ln p under p, over the whole vocabulary, population form.
        margin (`float (t,)`): largest minus second largest logit; tells near ties, which 16 bit may flip.
        is_end (`bool (t,)`): the target is the end token of the answer. Exact match and extraction leave it out,
            likelihoods keep it.
        zlib_size (`int32 (n,)`): bytes of the zlib-compressed UTF-8 target text (0 where there is no text).
        sampled (`dict[str, float (t,)]`): ln probability of drawing the target under a sampling scheme, by
            `Sampling.key`; `-inf` where the scheme removes the target.
        meta (`dict[str, str]`): dtype of the computation, number of batches, and under `"targets"` whether these are
            `"tokens"` or the `"label"` of an image, one an example.
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

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Number of targets an example, end token included: `int64 (n,)`."""
        return np.diff(self.offsets)

    @property
    def valid(self) -> np.ndarray:
        """Which examples have at least one target: `bool (n,)`."""
        return self.lengths > 0

    def example(self, i: int) -> slice:
        """Slice of the arrays over targets that belongs to example `i`."""
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))

    def __getitem__(self, examples: slice) -> Scores:
        """The table of some consecutive examples."""
        if not isinstance(examples, slice) or examples.step not in (None, 1):
            raise TypeError("Scores take a slice of consecutive examples, as in scores[2:5]. For one, use example(i).")
        start, stop, _ = examples.indices(len(self))
        stop = max(start, stop)
        targets = slice(int(self.offsets[start]), int(self.offsets[stop]))
        per_target = [f.name for f in fields(self)[1:-3]]
        return Scores(
            offsets=self.offsets[start : stop + 1] - self.offsets[start],
            **{name: getattr(self, name)[targets] for name in per_target},
            zlib_size=self.zlib_size[start:stop],
            sampled={key: values[targets] for key, values in self.sampled.items()},
            meta=self.meta,
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file. It holds no text, but log-probabilities of single records: treat it as private."""
        tensors = {f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self)[:-2]}
        tensors |= {f"sampled/{key}": np.ascontiguousarray(value) for key, value in self.sampled.items()}
        save_file(tensors, str(path), metadata={"meta": json.dumps(self.meta, sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what `save` wrote."""
        tensors = load_file(str(path))
        with safe_open(str(path), framework="numpy") as file:
            meta = json.loads((file.metadata() or {}).get("meta", "{}"))
        sampled = {
            key.removeprefix("sampled/"): tensors.pop(key) for key in sorted(tensors) if key.startswith("sampled/")
        }
        return cls(**tensors, sampled=sampled, meta=meta)


def score(
    model,
    processing_class,
    examples: Iterable[str | Mapping[str, Any]],
    batch_size: int = 8,
    sampling: Sequence[Sampling] = DEFAULT_SAMPLING,
    max_length: int | None = None,
    truncate: bool = False,
    description: str | None = None,
) -> Scores:
    """Run the model once over the examples and keep a few numbers a target, see [`Scores`].

    The values do not depend on the batch size or the order, but for rounding (2e-6 in float32). An empty text or
    answer stays in its place, without targets.

    Args:
        model (`PreTrainedModel` or `PeftModel`): causal language model or image classifier; it is run where it is, in
            evaluation mode, and left in the mode it was in.
        processing_class (`PreTrainedTokenizerBase` or `BaseImageProcessor`, *optional*): needed for text, and for images.
        examples (iterable): strings, rows of `{"prompt", "completion"}`, `{"messages"}`, `{"text"}` or
            `{"image", "label"}`, or encoded rows. Of a `Dataset` of images no more than a batch is in memory at once.
        batch_size (`int`, *optional*, defaults to `8`): examples a forward pass; they are sorted by length.
        sampling (sequence of [`Sampling`], *optional*): schemes for probabilistic extraction.
        max_length (`int`, *optional*): longest example in tokens; defaults to the context of the model.
        truncate (`bool`, *optional*, defaults to `False`): cut longer examples instead of raising an error.
        description (`str`, *optional*): name on the progress bar, which is shown from 20 batches on.

    Raises:
        ValueError: an example that cannot be encoded; the message has its index, and no text.
    """
    import torch
    from tqdm.auto import tqdm

    from hf_unlearn.data.images import ImageRows, has_images
    from hf_unlearn.data.pairing import UnlearningCollator
    from hf_unlearn.data.text import EmptyTargetError, context_length, encode
    from hf_unlearn.likelihood import target_logits, target_statistics

    max_length = max_length or context_length(model)
    rows: Sequence[dict | None]
    if has_images(examples):
        # Encoded when their batch is due. All are of one size, so there is no order to prefer and nothing to sort by.
        rows = examples
        if not isinstance(rows, ImageRows):
            rows = ImageRows(rows, processing_class, model.config.num_labels, name="examples", cache_bytes=0)
        order = list(range(len(rows)))
        zlib_size, has_end = [0] * len(rows), [False] * len(rows)
    else:
        rows, zlib_size = [], []
        for index, example in enumerate(examples):
            try:
                zlib_size.append(_zlib_size(example))
                rows.append(encode(example, processing_class, max_length, truncate))
            except EmptyTargetError:
                rows.append(None)
            except ValueError as error:
                raise ValueError(f"Example {index}: {error}") from None
        order = sorted((i for i, row in enumerate(rows) if row), key=lambda i: -len(rows[i].get("input_ids", ())))
        has_end = [bool(row and row.get("n_end")) for row in rows]

    collate = UnlearningCollator(getattr(processing_class, "pad_token_id", None))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    columns: dict[str, list] = {}
    target_ids, pieces, start = [], {}, 0
    kind = "tokens"
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in tqdm(batches, desc=description or "Scoring", disable=len(batches) < 20):
                inputs = {key: value.to(model.device) for key, value in collate([rows[i] for i in batch]).items()}
                kind = "tokens" if inputs["labels"].dim() == 2 else "label"
                out = target_logits(model, inputs)
                table = target_statistics(out.logits, out.targets, sampling)
                for name in ("log_prob", "hit", "rank", "mean", "std", "margin"):
                    columns.setdefault(name, []).append(getattr(table, name).cpu().numpy())
                for key, values in table.sampled.items():
                    columns.setdefault(f"sampled/{key}", []).append(values.cpu().numpy())
                target_ids.append(out.targets.cpu().numpy())
                for i, length in zip(batch, out.lengths.tolist(), strict=True):
                    pieces[i] = (start, start + length)
                    start += length
    finally:
        model.train(training)

    lengths = [pieces[i][1] - pieces[i][0] if i in pieces else 0 for i in range(len(rows))]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    # From the order of the batches back to that of the examples.
    index = [np.arange(*pieces[i]) for i in range(len(rows)) if i in pieces]
    index = np.concatenate(index) if index else np.zeros(0, dtype=np.int64)
    is_end = np.zeros(len(index), dtype=bool)
    for i, end in enumerate(has_end):
        if end and lengths[i]:
            is_end[offsets[i + 1] - 1] = True

    def column(name, dtype=None):
        values = np.concatenate(columns[name])[index] if columns else np.zeros(0, dtype=dtype or np.float32)
        return values.astype(dtype) if dtype else values

    return Scores(
        offsets=offsets,
        target_ids=(np.concatenate(target_ids)[index] if target_ids else index).astype(np.int32),
        log_prob=column("log_prob"),
        hit=column("hit", bool),
        rank=column("rank", np.int32),
        mean=column("mean"),
        std=column("std"),
        margin=column("margin"),
        is_end=is_end,
        zlib_size=np.array(zlib_size, dtype=np.int32),
        sampled={s.key: column(f"sampled/{s.key}") for s in sampling},
        meta={
            "model_dtype": str(getattr(model, "dtype", "")).removeprefix("torch."),
            "n_batches": str(len(batches)),
            "targets": kind,
        },
    )


def _zlib_size(example: str | Mapping[str, Any]) -> int:
    """Compressed size of the text that is scored: the answer where there is a prompt."""
    if not isinstance(example, str):
        if "messages" in example and example["messages"]:
            example = example["messages"][-1]["content"]
        else:
            example = example.get("completion", example.get("text", ""))
    return len(zlib.compress(example.encode("utf-8"))) if example else 0
