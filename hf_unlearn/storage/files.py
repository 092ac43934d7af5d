"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


# Names of unfinished files. They have no part of the final name, which may be somebody's.
_UNFINISHED = {"prefix": ".", "suffix": ".incomplete"}


def write_whole(path: str | os.PathLike, content: str | bytes | Iterable[bytes], mode: int = 0o644) -> None:
    """Write a file next to its final place and then rename it, so that a reader finds all of it, or what was there before.

    Args:
        path (`str` or `os.PathLike`): its folder must exist.
        content (`str`, `bytes` or an iterable of `bytes`): a text is written as UTF-8.
        mode (`int`, *optional*, defaults to `0o644`): permissions of the finished file. Before, only its owner can read it.

    Raises:
        OSError: it cannot be written. An older file stays as it was, and nothing else is left.
    """
    if isinstance(content, str):
        content = content.encode()
    descriptor, temporary = tempfile.mkstemp(dir=Path(path).parent, **_UNFINISHED)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def replaced_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A new folder to be filled, which takes the place of `path` when the block ends without an error.

    Until then, and after an error, an older folder stays as it was.

        with replaced_folder("outputs/model") as folder:
            model.save_pretrained(folder)

    Args:
        path (`str` or `os.PathLike`): the folder around it must exist.
    """
    place = Path(os.path.abspath(path))
    beside = Path(tempfile.mkdtemp(dir=place.parent, **_UNFINISHED))
    new, old = beside / "new", beside / "old"
    try:
        new.mkdir()
        yield new
        new.chmod(0o755)
        if place.is_dir():
            place.rename(old)
        try:
            new.rename(place)
        except BaseException:
            if old.exists():
                old.rename(place)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
