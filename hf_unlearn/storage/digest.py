"""Digests of contents: equal contents have the same digest, in every process."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Any


def in_one_form(text: str) -> str:
    """The text in Unicode NFC, with every run of whitespace as one space and none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def digest_of_text(*parts: Any) -> bytes | None:
    """16 bytes, the same for texts that differ only in whitespace or in the form of their letters (Unicode NFC).

    `None` counts as an empty text, and anything else as the text it is written as. Where all parts are empty there is no
    digest but `None`.
    """
    plain = ["" if part is None else in_one_form(str(part)) for part in parts]
    if not any(plain):
        return None
    # `str.split` takes U+001F for whitespace, so no part contains the separator.
    return hashlib.blake2b("\x1f".join(plain).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def add_texts(digest, *texts: str) -> None:
    """Add texts to a digest of `hashlib`, each after its length, so that different sequences give different digests."""
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)


def add_tensor(digest, tensor) -> None:
    """Add a tensor to a digest of `hashlib`: its type, its shape and its values, on whatever device."""
    import torch

    add_texts(digest, str(tensor.dtype), str(tuple(tensor.shape)))
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
