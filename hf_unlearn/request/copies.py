"""Rows with the content of rows to erase, which would teach it again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np

from hf_unlearn.data.content import content_digests
from hf_unlearn.data.rows import FORMATS, format_of
from hf_unlearn.request.matching import is_text
from hf_unlearn.request.request import ErasureRequest
from hf_unlearn.request.selector import columns_of
from hf_unlearn.storage.digest import digest_of_text


if TYPE_CHECKING:
    from datasets import Dataset


_BATCH = 10_000


def copies_of(
    dataset: Dataset, mask: np.ndarray, request: ErasureRequest, text_columns: Sequence[str] | None
) -> tuple[np.ndarray, list[str]]:
    """Boolean mask of the rows outside `mask` that have the content of one inside, and the columns that were compared.

    Args:
        text_columns (sequence of `str`, *optional*): the columns to compare. By default they are those that a model reads, and
            where the rows have no known format all columns of text but the one that the request selects on, with a warning.

    Raises:
        ValueError: `text_columns` are no text columns of the dataset.
    """
    kinds = {field.name: "" if is_text(field.type) else 0 for field in dataset.data.schema}
    kind = format_of(kinds) if text_columns is None else None
    columns = _text_columns(dataset, request, text_columns) if kind is None else list(FORMATS[kind])
    digests = list(_digests(dataset, kind, columns))
    inside = {digests[index] for index in np.flatnonzero(mask)} - {None}
    return np.array([digest in inside for digest in digests], dtype=bool) & ~mask, columns


def _text_columns(dataset: Dataset, request: ErasureRequest, chosen: Sequence[str] | None) -> list[str]:
    from datasets import Audio, Image, Video

    text = [field.name for field in dataset.data.schema if is_text(field.type)]
    if chosen is not None:
        if isinstance(chosen, str) or not set(chosen) <= set(text):
            raise ValueError(f"`text_columns` must be a list of text columns. Those of the dataset are {text}.")
        return list(chosen)
    if any(isinstance(feature, (Image, Audio, Video)) for feature in dataset.features.values()):
        return []
    # An identifier that differs does not make the content differ; what contains a name is content.
    selector = request.selector
    is_content = "mentions" in selector or selector.get("operator") == "contains"
    keys = [] if is_content else columns_of(selector)
    columns = [name for name in text if name not in keys] or text
    if len(columns) > 1:
        warnings.warn(
            f"The rows have no columns that a model reads, so copies of rows are looked for in {columns}: a key among these "
            "columns hides copies. Fill the templates before the split, or pass text_columns=[...] with what is trained on.",
            stacklevel=4,
        )
    return columns


def _digests(dataset: Dataset, kind: str | None, columns: Sequence[str]) -> Iterator[bytes | None]:
    """Digest of the content of every row, `None` for a row without any."""
    if kind is not None:
        yield from content_digests(dataset)
    elif not columns:
        yield from repeat(None, len(dataset))
    else:
        for table in dataset.select_columns(columns).with_format("arrow").iter(_BATCH):
            for texts in zip(*(table[name].to_pylist() for name in columns), strict=True):
                yield digest_of_text(*texts)
