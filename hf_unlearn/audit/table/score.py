"""From examples to the table of [`Scores`]: each distinct text goes through the model once."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.data.rows import scored_text
from hf_unlearn.models.sampling import DEFAULT_SAMPLING, Sampling


if TYPE_CHECKING:
    from hf_unlearn.audit.table.cache import ScoreCache


def score(
    model,
    processing_class,
    examples: Iterable[str | Mapping[str, Any]],
    batch_size: int = 8,
    sampling: Sequence[Sampling] = DEFAULT_SAMPLING,
    max_length: int | None = None,
    truncate: bool = False,
    description: str | None = None,
    cache: ScoreCache | None = None,
) -> Scores:
    """Run the model once over the examples and keep a few numbers per target, see [`Scores`].

    Equal examples are computed once, and what precedes the answers to one question (or the texts after one prefix) is
    read once for all of them. Memory depends neither on the number of examples nor, beyond a bound, on the batch size
    and the vocabulary.

    The values do not depend on the batch size or the order, but for rounding (2e-6 in float32). An empty text or
    answer stays in its place, without targets. An example with NaN or infinite logits stays too: all its values are
    NaN, its hits are false, and a warning names it.

    Under `torchrun` or `accelerate launch`, once a process group was started, the processes share the work: each must
    call this with the same model and examples, and each returns the whole table, with the numbers that a single
    process gives.

    Args:
        model (`PreTrainedModel` or `PeftModel`): causal language model or image classifier; it is run where it is, in
            evaluation mode, and left in the mode it was in.
        processing_class (`PreTrainedTokenizerBase` or `BaseImageProcessor`, *optional*): needed for text, and for images.
        examples (iterable): strings, rows of `{"prompt", "completion"}`, `{"messages"}`, `{"text"}` or
            `{"image", "label"}`, or encoded rows. At most one batch of a `Dataset` of images is in memory at once.
        batch_size (`int`, *optional*, defaults to `8`): most examples per forward pass; they are sorted by length.
        sampling (sequence of [`Sampling`], *optional*): schemes for probabilistic extraction.
        max_length (`int`, *optional*): longest example in tokens; defaults to the context of the model.
        truncate (`bool`, *optional*, defaults to `False`): cut longer examples instead of raising an error.
        description (`str`, *optional*): name on the progress bar, which is shown from 20 batches on.
        cache ([`ScoreCache`], *optional*): where tables are kept, so that a model is not run over the same examples
            twice.

    Raises:
        ValueError: an example that cannot be encoded; the message has its index, and no text. Or the processes were
            given different examples, or the model is neither a causal language model nor an image classifier.
    """
    from hf_unlearn.audit.table.streaming import encode_examples, warn_of_broken
    from hf_unlearn.data.images import CACHE_BYTES, ImageRows
    from hf_unlearn.models.kinds import require_class, require_kind
    from hf_unlearn.models.modes import unwrapped
    from hf_unlearn.models.processes import of_the_first

    model, sampling = unwrapped(model), tuple(sampling)
    if require_class(model) is None:  # somebody's own class, which is asked by a pass
        require_kind(model)
    examples = examples if hasattr(examples, "__len__") else list(examples)
    # A score cache has to look at images before their batch is due, so some are kept.
    room = CACHE_BYTES if cache is not None else 0
    rows = encode_examples([model], processing_class, examples, max_length, truncate, room)
    # Of the text that is scored: the answer where there is a prompt.
    texts = [None] * len(rows) if isinstance(rows, ImageRows) else map(scored_text, examples)
    zlib_size = [len(zlib.compress(text.encode("utf-8"))) if text else 0 for text in texts]
    table = key = None
    if cache is not None:
        key = cache.key(model, rows, zlib_size, sampling)
        table = of_the_first(lambda: cache.load(key))
    if table is None:
        table = _computed(model, rows, batch_size, sampling, description)
        table = replace(table, zlib_size=np.array(zlib_size, dtype=np.int32))
        if cache is not None:
            of_the_first(lambda: cache.save(key, table))
    else:  # the ids of the targets are in no file
        table = replace(table, target_ids=_target_ids(rows))
    warn_of_broken(np.where(table.not_finite, np.nan, 0.0), rows)
    return table


def _computed(
    model, rows: Sequence[dict | None], batch_size: int, sampling: Sequence[Sampling], description
) -> Scores:
    """The table, computed by all processes together."""
    from hf_unlearn.audit.table.cache import digest_of_rows
    from hf_unlearn.audit.table.passes import Passes
    from hf_unlearn.audit.table.streaming import own_share
    from hf_unlearn.models.processes import gathered, is_divided, rank_and_world

    distinct, index = _distinct(rows)
    passes = Passes(model, distinct, batch_size, sampling)
    batches = passes.batches()

    def work() -> tuple:
        with own_share([model], batches, description or "Scoring") as share:
            for batch in share:
                passes.run(batch)
        columns = {name: np.concatenate(parts) for name, parts in passes.columns.items()}
        digest = digest_of_rows(rows, with_pixels=False) if rank_and_world()[1] > 1 else None
        return digest, passes.places, columns

    shares = gathered(work)
    if len({digest for digest, _, _ in shares}) > 1:
        raise ValueError(
            "The processes were given different examples. Give every process all of them: score shares out the work."
        )
    shares = shares[:1] if is_divided(model) else shares  # every process had a part in every pass
    return _table(model, rows, index, passes, shares, sampling, len(batches))


def _distinct(rows: Sequence[dict | None]) -> tuple[Sequence[dict], np.ndarray]:
    """The distinct rows, and for each example its place among them, or -1 for one without targets."""
    from hf_unlearn.data.images import ImageRows

    if isinstance(rows, ImageRows) or (len(rows) and rows[0] and "pixel_values" in rows[0]):
        return rows, np.arange(len(rows))
    places: dict[tuple, int] = {}
    index = [-1] * len(rows)
    for i, row in enumerate(rows):
        if row is not None:
            ids, labels = (tuple(np.asarray(row[name]).tolist()) for name in ("input_ids", "labels"))
            index[i] = places.setdefault((ids, labels), len(places))
    return [{"input_ids": ids, "labels": labels} for ids, labels in places], np.array(index, dtype=np.int64)


def _table(model, rows, index, passes, shares, sampling, n_batches) -> Scores:
    """From the order in which values were computed to that of the examples."""
    from hf_unlearn.audit.table.streaming import n_end_of

    places, start = {}, 0
    for _, share, columns in shares:
        places |= {i: [(start + at, n) for at, n in parts] for i, parts in share.items()}
        start += len(next(iter(columns.values()), ()))
    scored = index >= 0
    lengths = np.zeros(len(index), dtype=np.int64)
    lengths[scored] = passes.lengths[index[scored]]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    # The place where each target of the table was computed; texts that begin alike have some in common.
    parts = np.array([part for i in index[scored] for part in places[i]], dtype=np.int64).reshape(-1, 2)
    first = np.cumsum(parts[:, 1]) - parts[:, 1]
    place = np.repeat(parts[:, 0] - first, parts[:, 1]) + np.arange(offsets[-1])

    def column(name: str, dtype=None) -> np.ndarray:
        parts = [columns[name] for _, _, columns in shares if name in columns]
        values = np.concatenate(parts)[place] if parts else np.zeros(0, dtype=np.float32)
        return values.astype(dtype, copy=False) if dtype else values

    is_end = np.zeros(offsets[-1], dtype=bool)
    is_end[offsets[1:][n_end_of(rows) > 0] - 1] = True
    scores = Scores(
        offsets=offsets,
        target_ids=_target_ids(rows),
        log_prob=column("log_prob"),
        hit=column("hit", bool),
        rank=column("rank", np.int32),
        mean=column("mean"),
        std=column("std"),
        margin=column("margin"),
        is_end=is_end,
        zlib_size=np.zeros(len(index), dtype=np.int32),
        sampled={s.key: column(f"sampled/{s.key}") for s in sampling},
        class_log_probs=column("class_log_probs") if passes.has_images and len(rows) else None,
        meta={
            "model_dtype": str(getattr(model, "dtype", "")).removeprefix("torch."),
            "n_batches": str(n_batches),
            "targets": "label" if passes.has_images else "tokens",
        },
    )
    return _without_broken(scores)


def _target_ids(rows: Sequence[dict | None]) -> np.ndarray:
    from hf_unlearn.audit.table.streaming import targets_of

    return np.concatenate([np.zeros(0, dtype=np.int32), *targets_of(rows)]).astype(np.int32)


def _without_broken(scores: Scores) -> Scores:
    """No value of an example with a broken target is kept: a metric that reads only some of them must be NaN as well."""
    if not scores.not_finite.any():
        return scores
    broken = np.repeat(scores.not_finite, scores.lengths)
    return replace(
        scores,
        **{name: np.where(broken, np.nan, getattr(scores, name)) for name in ("log_prob", "mean", "std", "margin")},
        sampled={key: np.where(broken, np.nan, values) for key, values in scores.sampled.items()},
        hit=scores.hit & ~broken,
        rank=np.where(broken, scores.rank.max(), scores.rank),
    )
