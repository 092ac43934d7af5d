"""Models over the same examples, batch by batch: a batch is reduced at once to what is kept of its records.

For what needs all logits of two models, or the states of all layers. Of a data set they would fill any memory.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_unlearn.data.images import ImageRows, has_images
from hf_unlearn.data.pairing import UnlearningCollator, on_device
from hf_unlearn.data.rows import IGNORE_INDEX
from hf_unlearn.data.text import EmptyTargetError, context_length, encode
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


Rows = Sequence["dict | None"]


@contextmanager
def in_memory(*models) -> Iterator[list[nn.Module]]:
    """The models, each given as an object, by its name, or as a function that loads it.

    What was loaded here is let go at the end, what was given as an object stays.
    """
    loaded = [_loaded(model) for model in models]
    try:
        yield loaded
    finally:
        loaded.clear()
        if not all(isinstance(model, nn.Module) for model in models):
            gc.collect()


def _loaded(model) -> nn.Module:
    if isinstance(model, (str, Path)):
        model = load_model(str(model)).eval()
    elif not isinstance(model, nn.Module):
        model = model()
    return unwrapped(model)


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
        models (sequence): that will read them; the shortest context counts.
        cache_bytes (`int`, *optional*, defaults to `0`): room for images that are kept once they are encoded.

    Raises:
        ValueError: an example that cannot be encoded; the message has its index, and no text.
    """
    if has_images(examples):
        if isinstance(examples, ImageRows):
            return examples
        n_classes = n_outputs(models[0])
        return ImageRows(examples, processing_class, n_classes, name="examples", cache_bytes=cache_bytes)
    lengths = [length for length in map(context_length, models) if length is not None]
    max_length = max_length or min(lengths, default=None)
    rows: list[dict | None] = []
    for index, example in enumerate(examples):
        try:
            rows.append(encode(example, processing_class, max_length, truncate))
        except EmptyTargetError:
            rows.append(None)
        except ValueError as error:
            raise ValueError(f"Example {index}: {error}") from None
    return rows


def targets_of(rows: Rows) -> list[np.ndarray]:
    """The target tokens of each row, or its label: one array a row, empty where there is nothing to score."""
    if isinstance(rows, ImageRows):
        return [np.array([label]) for label in rows.labels]
    labels = [np.atleast_1d(row["labels"] if row else IGNORE_INDEX) for row in rows]
    of_text = [row is None or "input_ids" in row for row in rows]
    shifted = [of[1:] if is_text else of for of, is_text in zip(labels, of_text, strict=True)]
    return [of[of != IGNORE_INDEX].astype(np.int64) for of in shifted]


def n_end_of(rows: Rows) -> np.ndarray:
    """How many of the targets of each row, the last ones, are an end token: `int64 (n,)`, 0 or 1."""
    if isinstance(rows, ImageRows):
        return np.zeros(len(rows), dtype=np.int64)
    return np.array([row.get("n_end", 0) if row else 0 for row in rows], dtype=np.int64)


def max_targets(models: Sequence[nn.Module]) -> int:
    """Targets of a pass, so that the logits of all the models together stay within bounds."""
    return max(1, max_logits(models[0].device) // (n_outputs(models[0]) * len(models)))


def by_record(
    models: Sequence[nn.Module],
    rows: Rows,
    batch_size: int,
    of_batch: Callable[[dict[str, Tensor]], Sequence[np.ndarray]],
    description: str,
) -> list[np.ndarray | None]:
    """What `of_batch` makes of each row; `None` for a row without targets.

    Batches have rows of about the same length. The models are in evaluation mode meanwhile, and left as they were.
    Several processes share the batches; each must call this with the same rows, and gets the whole.

    Args:
        of_batch (callable): from a padded batch, on the CPU, to one array a row of it.
    """
    if isinstance(rows, ImageRows):
        order, lengths = list(range(len(rows))), np.ones(len(rows), dtype=np.int64)
    else:
        lengths = np.array([len(targets) for targets in targets_of(rows)], dtype=np.int64)
        order = [i for i, row in enumerate(rows) if row is not None]
        order.sort(key=lambda i: -len(rows[i].get("input_ids", ())))
    batches = _cut(order, lengths, batch_size, max_targets(models))
    divided = any(map(is_divided, models))  # then every process has a part in every pass

    def work() -> dict[int, np.ndarray]:
        rank, world = rank_and_world()
        mine, found = batches if divided else batches[rank::world], {}
        with evaluating(*models), torch.inference_mode():
            for batch in tqdm(mine, desc=description, disable=rank > 0 or len(mine) < 20):
                inputs = UnlearningCollator()([rows[i] for i in batch])
                found |= dict(zip(batch, of_batch(inputs), strict=True))
        return found

    together: dict[int, np.ndarray] = {}
    for share in gathered(work):
        together |= share
    return [together.get(i) for i in range(len(rows))]


def _cut(order: Sequence[int], lengths: np.ndarray, batch_size: int, limit: int) -> list[list[int]]:
    """Batches of at most so many rows and targets; a row with more targets is alone."""
    batches: list[list[int]] = []
    now = 0
    for i in order:
        now += int(lengths[i])
        if not batches or len(batches[-1]) == batch_size or now > limit:
            batches.append([])
            now = int(lengths[i])
        batches[-1].append(i)
    return batches


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
    """What was found of each row, of this shape, as `float64 (*shape, n)`; NaN for a row without targets."""
    values = np.full((*shape, len(found)), np.nan)
    for i, of in enumerate(found):
        if of is not None:
            values[..., i] = of
    return values


def split_by_row(values: np.ndarray, rows: np.ndarray, n_rows: int) -> list[np.ndarray]:
    """Cut the last axis of `values (..., t)` into the targets of each row: `rows (t,)` are ascending."""
    return np.split(values, np.cumsum(np.bincount(rows, minlength=n_rows))[:-1], axis=-1)


def warn_of_broken(values: np.ndarray, rows: Rows) -> None:
    """Name the examples that had targets but no numbers for them: `values (..., n)` with NaN."""
    with_targets = np.array([len(targets) > 0 for targets in targets_of(rows)], dtype=bool)
    broken = np.flatnonzero(np.isnan(values).any(axis=tuple(range(values.ndim - 1))) & with_targets)
    if len(broken):
        named = ", ".join(map(str, broken[:10])) + (", ..." if len(broken) > 10 else "")
        warnings.warn(
            f"The outputs of a model for {len(broken)} of {len(rows)} examples are NaN or infinite (example {named}). "
            "They count as missing. Look for weights that are not finite, or for an overflow in 16 bit.",
            stacklevel=3,
        )
