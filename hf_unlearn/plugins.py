"""What other installed packages add to this one, by entry points."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any


@cache
def load_plugins(group: str) -> dict[str, Any]:
    """What the entry points of a group name, loaded once.

    Raises:
        ImportError: one cannot be loaded; the message names the package.
    """
    found = {}
    for point in entry_points(group=group):
        try:
            found[point.name] = point.load()
        except Exception as error:
            package = point.dist.name if point.dist else "a package"
            raise ImportError(
                f"{package} adds {point.value} to {group}, which cannot be loaded ({type(error).__name__}: {error}). Either "
                "mend it, or uninstall it."
            ) from error
    return found
