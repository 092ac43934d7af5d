"""The table of the methods: the names at once, a trainer when it is asked for."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points

from hf_unlearn.plugins import load_plugin


#: Entry points by which an installed package adds methods: `name = "package.module:Trainer"`.
GROUP = "hf_unlearn.methods"


class Methods(Mapping):
    """Name of a method -> its trainer, whose options are `trainer.config_class`. The names cost no import.

    A method is one of this package, one given to `register`, or one of an installed package that has an entry point in
    the group `hf_unlearn.methods`.

    Args:
        files (`dict[str, str]`): name of each method of this package -> `"<file>.<Trainer>"` in this folder. The config is
            in the same file, under the name of the trainer with `Config` in the place of `Trainer`.
    """

    def __init__(self, files: dict[str, str]):
        self.files = files
        self.registered: dict[str, type] = {}

    @cached_property
    def installed(self) -> dict[str, EntryPoint]:
        """Methods of installed packages. One whose name is taken is left out with a warning."""
        found = {}
        for entry in entry_points(group=GROUP):
            if entry.name in self.files:
                warnings.warn(
                    f"{entry.value} is installed as a method named {entry.name!r}, which hf_unlearn has already. It is "
                    "left out: give its entry point another name.",
                    stacklevel=2,
                )
            else:
                found[entry.name] = entry
        return found

    @property
    def classes(self) -> dict[str, str]:
        """Trainers and configs of this package, by name, with their modules."""
        places = (entry.split(".") for entry in self.files.values())
        pairs = {trainer: f"{__package__}.{file}" for file, trainer in places}
        return pairs | {f"{name.removesuffix('Trainer')}Config": module for name, module in pairs.items()}

    def register(self, name: str, trainer: type) -> None:
        """Add a method to recipes, command line and tables, as long as this process lasts.

        An installed package does it for good with an entry point: in its `pyproject.toml`,
        `[project.entry-points."hf_unlearn.methods"]` and `name = "package.module:Trainer"`.

        Raises:
            ValueError: the name is taken, or the trainer says no source.
            TypeError: it is not a subclass of [`UnlearningTrainer`], or its `config_class` not one of
                [`UnlearningConfig`].
        """
        if name in self and self[name] is not trainer:
            raise ValueError(f"There is a method named {name!r} already. Register {trainer!r} under another name.")
        self.registered[name] = _checked(trainer)

    def __getitem__(self, name: str) -> type:
        if name in self.files:
            file, trainer = self.files[name].split(".")
            return getattr(importlib.import_module(f"{__package__}.{file}"), trainer)
        if name in self.registered:
            return self.registered[name]
        return load_plugin(self.installed[name], _checked)

    def __iter__(self) -> Iterator[str]:
        return iter({**self.files, **self.registered, **self.installed})

    def __contains__(self, name: object) -> bool:
        return any(key == name for key in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _checked(trainer: type) -> type:
    from hf_unlearn.training import UnlearningConfig, UnlearningTrainer

    if not (isinstance(trainer, type) and issubclass(trainer, UnlearningTrainer)):
        raise TypeError(f"{trainer!r} is not a method: make it a subclass of hf_unlearn.UnlearningTrainer.")
    config = trainer.config_class
    if not (isinstance(config, type) and issubclass(config, UnlearningConfig)):
        raise TypeError(
            f"{trainer.__name__} has config_class={config!r}. Set it to a dataclass that is a subclass of "
            "hf_unlearn.UnlearningConfig."
        )
    if "Source:" not in (trainer.__doc__ or ""):
        raise ValueError(
            f"{trainer.__name__} does not say where it is from. End its docstring with a paragraph such as 'Source: Doe "
            "et al., arXiv 2404.05868.', or 'Source: Jane Doe, 2026-10.' where there is no paper."
        )
    return trainer
