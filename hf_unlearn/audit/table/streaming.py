"""Models over the same examples, batch by batch: each batch is reduced at once to what is kept of its records.

For audits that need all logits of two models, or the states of all layers, which would fill any memory for a data set.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_unlearn.audit.table.batching import passes
from hf_unlearn.data.images import ImageRows, check_channels, has_images
from hf_unlearn.data.pairing import UnlearningCollator, on_device
from hf_unlearn.data.rows import IGNORE_INDEX, require_rows
from hf_unlearn.data.text import EmptyTargetError, check_modality, context_length, encode
from hf_unlearn.models.kinds import require_class
from hf_unlearn.models.likelihood import (
    empty_cache,
    is_image_classifier,
    max_logits,
    scored_positions,
    target_logits,
    target_logits_in_parts,
)
from hf_unlearn.models.load import load_model
from hf_unlearn.models.modes import evaluating, unwrapped
from hf_unlearn.models.processes import gathered, is_divided, rank_and_world


T = TypeVar("T")
Rows = Sequence["dict | None"]


@contextmanager
def in_memory(*models) -> Iterator[list[nn.Module]]:
    """The models, each given as an object, by its name, or as a function. Those that are loaded here are freed at the end."""
    loaded = []
    for model in models:
        if isinstance(model, (str, Path)):
            model = load_model(str(model)).eval()
        loaded.append(unwrapped(model if isinstance(model, nn.Module) else model()))
        require_class(loaded[-1])
    try:
        yield loaded
    finally:
        loaded.clear()
        if not all(isinstance(model, nn.Module) for model in models):
            gc.collect()


def n_outputs(model: nn.Module) -> int:
    """Size of the vocabulary, or number of classes."""
    return model.config.num_labels if is_image_classifier(model) else model.config.get_text_config().vocab_size


def check_comparable(models: Sequence[nn.Module]) -> None:
    """Raise a `ValueError` unless the models answer with the same tokens or classes."""
    if len({is_image_classifier(model) for model in models}) > 1:
        raise ValueError("A language model and an image classifier have no outputs to compare. Give two of a kind.")
    sizes = [n_outputs(model) for model in models]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"The models have {' and '.join(map(str, sizes))} outputs, so their distributions cannot be compared. Give "
            "models with the same tokenizer or classes. If a vocabulary is only padded to another size, cut it: "
            f"model.resize_token_embeddings({min(sizes)})."
        )


def encode_examples(
    models: Sequence[nn.Module],
    processing_class,
    examples: Iterable,
    max_length: int | None = None,
    truncate: bool = False,
    cache_bytes: int = 0,
) -> Rows:
    """Encoded rows, `None` for an empty text or answer; images are encoded when their batch is due.

    Args:
        models (sequence): the models that will read the rows; the shortest context counts.
        cache_bytes (`int`, *optional*, defaults to `0`): room for images that are kept once they are encoded.

    Raises:
        ValueError: an example that cannot be encoded; the message has its index, and no text.
    """
    require_rows(examples, "data")
    is_classifier, n_channels = is_image_classifier(models[0]), getattr(models[0].config, "num_channels", None)
    if has_images(examples):
        if isinstance(examples, ImageRows):
            return examples
        check_modality(True, is_classifier)
        sizes = {"n_classes": n_outputs(models[0]), "cache_bytes": cache_bytes, "n_channels": n_channels}
        return ImageRows(examples, processing_class, name="examples", **sizes)
    lengths = [length for length in map(context_length, models) if length is not None]
    max_length = max_length or min(lengths, default=None)
    vocab_size = None if is_classifier else min(map(n_outputs, models))
    n_classes = n_outputs(models[0]) if is_classifier else None
    rows: list[dict | None] = []
    for index, example in enumerate(examples):
        try:
            row = encode(example, processing_class, max_length, truncate, n_classes, vocab_size)
            check_modality("pixel_values" in row, is_classifier)
            rows.append(row)
        except EmptyTargetError:
            rows.append(None)
        except ValueError as error:
            raise ValueError(f"Example {index}: {error}") from None
        if is_classifier and "pixel_values" in rows[-1]:
            check_channels(len(rows[-1]["pixel_values"]), n_channels, "examples")
    return rows


def targets_of(rows: Rows) -> list[np.ndarray]:
    """The target tokens of each row, or its label: one array per row, empty where there is nothing to score."""
    if isinstance(rows, ImageRows):
        return [np.array([label]) for label in rows.labels]
    labels = [np.atleast_1d(row["labels"] if row else IGNORE_INDEX) for row in rows]
    labels = [ids[1:] if row and "input_ids" in row else ids for ids, row in zip(labels, rows, strict=True)]
    return [ids[ids != IGNORE_INDEX].astype(np.int64) for ids in labels]


def n_end_of(rows: Rows) -> np.ndarray:
    """How many targets at the end of each row are an end token: `int64 (n,)`, 0 or 1."""
    if isinstance(rows, ImageRows):
        return np.zeros(len(rows), dtype=np.int64)
    return np.array([row.get("n_end", 0) if row else 0 for row in rows], dtype=np.int64)


def max_targets(models: Sequence[nn.Module]) -> int:
    """Targets per pass, so that the logits of all the models together stay within bounds."""
    return max(1, max_logits(models[0].device) // (n_outputs(models[0]) * len(models)))


def by_record(
    models: Sequence[nn.Module],
    rows: Rows,
    batch_size: int,
    reduce: Callable[[dict[str, Tensor]], Sequence[np.ndarray]],
    description: str,
) -> list[np.ndarray | None]:
    """The result of `reduce` for each row; `None` for a row without targets.

    The rows of a batch have about the same length. Several processes share the batches ([`own_share`]); each must call
    this with the same rows, and returns the results of all.

    Args:
        reduce (callable): from a padded batch, on the CPU, to one array per row of it.
    """
    if isinstance(rows, ImageRows):
        order, lengths = list(range(len(rows))), np.ones(len(rows), dtype=np.int64)
    else:
        lengths = np.array([len(targets) for targets in targets_of(rows)], dtype=np.int64)
        order = [i for i, row in enumerate(rows) if row is not None]
        order.sort(key=lambda i: -len(rows[i].get("input_ids", ())))
    batches = passes(order, lengths[order].tolist(), batch_size, max_targets(models))

    def work() -> list[tuple[int, np.ndarray]]:
        found = []
        with own_share(models, batches, description) as share:
            for batch in share:
                values = reduce(UnlearningCollator()([rows[i] for i in batch]))
                found += zip(batch, values, strict=True)
        return found

    together = dict(pair for share in gathered(work) for pair in share)
    return [together.get(i) for i in range(len(rows))]


@contextmanager
def own_share(models: Sequence[nn.Module], batches: Sequence[T], description: str) -> Iterator[Iterable[T]]:
    """The batches that this process runs, with the models in evaluation mode and a progress bar from 20 batches on.

    Where a process has only a part of the weights, every process runs every batch.
    """
    rank, world = rank_and_world()
    share = batches if any(map(is_divided, models)) else batches[rank::world]
    with evaluating(*models), torch.inference_mode():
        yield tqdm(share, desc=description, disable=rank > 0 or len(share) < 20)


def inputs_for(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch on the device of the model."""
    return on_device(inputs, model.device)


def side_by_side(
    models: Sequence[nn.Module], inputs: dict[str, Tensor]
) -> Iterator[tuple[list[Tensor], Tensor, np.ndarray]]:
    """Logits of each model at the same targets, a bounded number of targets at a time.

    Yields:
        `tuple`: a list of logits `(t, outputs)`, all on the device of the first model; targets `(t,)`; and, ascending,
        the row of the batch that each belongs to, `int64 (t,)`.
    """
    device, limit = models[0].device, max_targets(models)
    count = int(scored_positions(inputs["labels"]).sum())
    if len(inputs["labels"]) == 1 and count > limit and all(empty_cache(model) is not None for model in models):
        for parts in zip(*(target_logits_in_parts(m, inputs_for(m, inputs), limit) for m in models), strict=True):
            targets = parts[0][1]
            yield [logits.to(device) for logits, _ in parts], targets, np.zeros(len(targets), dtype=np.int64)
        return
    outs = [target_logits(model, inputs_for(model, inputs)) for model in models]
    yield [out.logits.to(device) for out in outs], outs[0].targets, outs[0].rows.cpu().numpy()


def stacked(found: Sequence[np.ndarray | None], shape: tuple[int, ...]) -> np.ndarray:
    """The arrays of all rows, each of this shape, as `float64 (*shape, n)`; NaN for a row without targets."""
    values = np.full((*shape, len(found)), np.nan)
    for i, array in enumerate(found):
        if array is not None:
            values[..., i] = array
    return values


def split_by_row(values: np.ndarray, rows: np.ndarray, n_rows: int) -> list[np.ndarray]:
    """Cut the last axis of `values (..., t)` into the targets of each row; `rows (t,)` is the row of each, ascending."""
    return np.split(values, np.cumsum(np.bincount(rows, minlength=n_rows))[:-1], axis=-1)


def warn_of_broken(values: np.ndarray, rows: Rows) -> None:
    """Warn of the examples that have targets, but NaN somewhere in `values (..., n)`, and name them."""
    broken = np.flatnonzero(np.isnan(values).any(axis=tuple(range(values.ndim - 1))))
    if len(broken):
        targets = targets_of(rows)
        broken = [i for i in broken if len(targets[i])]
    if len(broken):
        named = ", ".join(map(str, broken[:10])) + (", ..." if len(broken) > 10 else "")
        warnings.warn(
            f"The logits of {len(broken)} of {len(rows)} examples are NaN or infinite (example {named}). They count as "
            "missing in every metric. Look for weights that are not finite, or for an overflow in 16 bit.",
            stacklevel=3,
        )
