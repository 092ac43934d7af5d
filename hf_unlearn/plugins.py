"""What other installed packages add to this one, by entry points."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any


@cache
def load_plugins(group: str) -> None:
    """Import all that the entry points of a group name, once: measures and attacks declare themselves.

    Raises:
        ImportError: see [`load_plugin`].
    """
    for point in entry_points(group=group):
        load_plugin(point)


def load_plugin(point: EntryPoint, checked: Callable[[Any], Any] = lambda found: found) -> Any:
    """What one entry point names, after it was `checked`.

    Raises:
        ImportError: it cannot be used; the message names the package.
    """
    try:
        return checked(point.load())
    except Exception as error:
        package = point.dist.name if point.dist else "a package"
        raise ImportError(
            f"{package} adds {point.name} = {point.value} to {point.group}, which cannot be used ({type(error).__name__}: "
            f"{error}). Either repair that package, or uninstall it."
        ) from error
