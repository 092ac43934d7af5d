"""Encryption with keys that are made from the content itself, so that they need not be kept anywhere."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt


NONCE_BYTES, TAG_BYTES = 12, 16


@dataclass(frozen=True)
class ContentKey:
    """The name of a file and the secret that opens it. Neither can be computed from the other.

    Attributes:
        name (`str`): name of the file, 64 hex digits.
        secret (`bytes`): 32 bytes for AES-256. Keep it in memory only: it opens the file even without the content that it
            was made from.
    """

    name: str
    secret: bytes = field(repr=False)


def key_of_content(digest: bytes, domain: str) -> ContentKey:
    """The key that belongs to a digest, the same in every process. It takes 16 MiB and some hundredths of a second (scrypt).

    Args:
        digest (`bytes`): digest of the whole content: whoever can guess the content can make the key.
        domain (`str`): what the key is for. The same content has another key in another domain.
    """
    # Slow on purpose: it is what a guess of the content costs.
    made = Scrypt(salt=domain.encode(), length=64, n=2**14, r=8, p=1).derive(digest)
    return ContentKey(name=made[:32].hex(), secret=made[32:])


def encrypted(plain: bytes, key: ContentKey, domain: str) -> tuple[bytes, ...]:
    """Nonce, ciphertext and tag (AES-256-GCM). The tag also covers name and domain, so no file passes for another."""
    nonce = os.urandom(NONCE_BYTES)
    # `Cipher`, because `AESGCM` is limited to 2 GiB.
    encryptor = Cipher(algorithms.AES256(key.secret), modes.GCM(nonce)).encryptor()
    encryptor.authenticate_additional_data(_vouched_for(key, domain))
    return nonce, encryptor.update(plain), encryptor.finalize(), encryptor.tag


def decrypted(content: bytes, key: ContentKey, domain: str) -> bytes:
    """What was encrypted.

    Raises:
        Exception: the content, its name, its key or its domain was changed; the type depends on which.
    """
    nonce, tag = content[:NONCE_BYTES], content[-TAG_BYTES:]
    decryptor = Cipher(algorithms.AES256(key.secret), modes.GCM(nonce, tag)).decryptor()
    decryptor.authenticate_additional_data(_vouched_for(key, domain))
    return decryptor.update(memoryview(content)[NONCE_BYTES:-TAG_BYTES]) + decryptor.finalize()


def _vouched_for(key: ContentKey, domain: str) -> bytes:
    return f"{domain}\n{key.name}".encode()
