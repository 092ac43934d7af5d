"""What a model reads of a row, as a digest: rows with equal digests are copies of each other, whatever their keys."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import fsspec
import numpy as np

from hf_unlearn.data.rows import FORMATS, TEXTS, Row, canonical, format_of, label_of, naming_row
from hf_unlearn.storage.digest import digest_of_text


_BATCH = 1000


def content_digests(rows: Sequence[Row], name: str = "dataset") -> Iterator[bytes | None]:
    """A digest of what a model is trained on, for each row; `None` for a row of no known format or without content.

    Texts are equal in any form of their letters (Unicode NFC) and with every run of whitespace as one space. Images are
    equal if their pixels are, or their files where these need no decoding, and their labels.

    Args:
        name (`str`, *optional*, defaults to `"dataset"`): name of the rows in errors.

    Raises:
        ValueError: a row cannot be read, with its index.
    """
    for index, row in enumerate(_only_content(rows)):
        with naming_row(index, name):
            digest = _digest(row)
        yield digest


def _only_content(rows: Sequence[Row]) -> Iterator[Row]:
    from datasets import Dataset

    if not isinstance(rows, Dataset):
        yield from rows
        return
    # As they are stored: the bytes of an image's file are enough, and need no decoding.
    for table in rows.with_format("arrow").iter(_BATCH):
        yield from table.to_pylist()


def _digest(row: Row) -> bytes | None:
    kind = format_of(row)
    if kind is None:
        return None
    row = canonical(row) if kind in TEXTS else row
    contents = [row[column] for column in FORMATS[kind]]
    if kind in ("pixels", "image"):
        return digest_of_text("image", _pixels(*contents), label_of(row))
    if kind == "ids":
        contents = np.asarray(contents).tolist()
    if kind == "messages":
        if not any(message["content"].strip() for message in row["messages"]):
            return None
        # A table has the keys of a message in its own order.
        contents = [part for message in row["messages"] for item in sorted(message.items()) for part in item]
    digest = digest_of_text(*contents)
    return digest and digest_of_text(kind, digest.hex())


def _pixels(image) -> str:
    """A hash of the pixels, or of the file of an image that is not decoded."""
    if isinstance(image, Mapping):
        content = image.get("bytes")
        if content is None:
            try:
                with fsspec.open(image["path"], "rb") as file:  # it may lie in an archive
                    content = file.read()
            except OSError as error:  # its message has the name of the file
                reason = type(error).__name__
                raise ValueError(
                    f"The file of the image cannot be read ({reason}). Restore it, or remove the row."
                ) from None
        return hashlib.blake2b(content).hexdigest()
    if getattr(image, "mode", None) in ("P", "PA"):  # whose pixels are positions in a palette
        image = image.convert("RGBA")
    pixels = np.ascontiguousarray(image)
    return hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
