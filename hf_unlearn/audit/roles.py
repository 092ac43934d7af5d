"""The models of an audit by their roles: original, unlearned, retrained."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hf_unlearn.models.kinds import require_kind
from hf_unlearn.models.load import load_model, require_model


#: Roles in the order of the columns of a result. Further retrained models (other seeds) are `retrained_2`, `retrained_3`, ...
ROLES = ("original", "unlearned", "retrained")


def further_retrained(roles: Iterable[str]) -> list[str]:
    """The roles of retrained models beside the first."""
    return [role for role in roles if role.startswith("retrained_")]


class Models:
    """Models by role, each an object or a name. A name is loaded when its turn comes and released afterwards.

    So a second model is in memory only where a measure compares two of them.

    Args:
        unlearned (`PreTrainedModel`, `str` or `os.PathLike`): the audited model.
        original (*optional*): the model before the edit.
        retrained (*optional*): trained without the forget set; several, of different seeds, as a list: the first is the
            reference, and the others show how much retrained models differ from each other.
        shadows (sequence, *optional*): models trained on the forget set with other seeds, for LiRA; they are not audited.
        load (`Callable[[str], PreTrainedModel]`, *optional*): how a name becomes a model; by default from the Hub or a
            folder, in float32.
        device (*optional*): where a model that was loaded by its name runs; one that was given stays where it is.
    """

    def __init__(
        self,
        unlearned,
        original=None,
        retrained=None,
        load: Callable[[str], Any] | None = None,
        device=None,
        shadows: Sequence = (),
    ):
        retrained = retrained if isinstance(retrained, (list, tuple)) else [retrained]
        retrained = [model for model in retrained if model is not None]
        given = {"original": original, "unlearned": unlearned}
        given |= {f"retrained_{i}" if i > 1 else "retrained": model for i, model in enumerate(retrained, 1)}
        self.roles = [role for role, model in given.items() if model is not None]
        self.shadows = [f"shadow_{i}" for i, _ in enumerate(shadows, 1)]
        given |= dict(zip(self.shadows, shadows, strict=True))
        given = {role: given[role] for role in (*self.roles, *self.shadows)}
        self.given = {role: os.fspath(m) if isinstance(m, os.PathLike) else m for role, m in given.items()}
        self.device = device
        self._load = load or load_model

    def name(self, role: str) -> str | None:
        """The name by which a model was given, `None` where it is an object."""
        return self.given[role] if isinstance(self.given[role], str) else None

    def require(self, only_objects: bool = False) -> None:
        """Find out before hours of work that a model does not exist, or is of a kind that cannot be audited.

        Args:
            only_objects (`bool`, *optional*, defaults to `False`): leave out names, which `load` knows how to read.

        Raises:
            ValueError: see [`~hf_unlearn.models.load.require_model`] and [`~hf_unlearn.models.kinds.require_kind`].
        """
        for role, model in sorted(self.given.items(), key=lambda item: not isinstance(item[1], str)):  # names first
            try:
                if not isinstance(model, str):
                    require_kind(model)
                elif not only_objects:
                    require_model(model)
            except ValueError as error:
                raise ValueError(f"The {role.replace('_', ' ')} model: {error}") from error

    @contextmanager
    def use(self, role: str) -> Iterator[Any]:
        """The model, in memory only while it is used."""
        model = self.given[role]
        if not isinstance(model, str):
            yield model
            return
        model = self._load(model)
        if self.device is not None and not getattr(model, "is_quantized", False):
            model.to(self.device)
        yield model.eval()
        del model
        gc.collect()
