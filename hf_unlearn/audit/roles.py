"""The models of an audit, by what they are to it: original, unlearned, retrained."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hf_unlearn.models.load import load_model


#: Roles in the order of the columns of a result. Further retrained models (other seeds) are `retrained_2`, `retrained_3`, ...
ROLES = ("original", "unlearned", "retrained")


def further_retrained(roles: Iterable[str]) -> list[str]:
    """The roles of retrained models beside the first."""
    return [role for role in roles if role.startswith("retrained_")]


class Models:
    """Models by role, each an object or a name. A name is loaded when its turn comes and let go after it.

    So there is never a second model in memory but where a measure compares two of them, and then there are two.

    Args:
        unlearned (`PreTrainedModel`, `str` or `os.PathLike`): what is audited.
        original (*optional*): the model before the edit.
        retrained (*optional*): trained without the forget set; several, of different seeds, as a list: the first is the
            reference, and the others show how far retrained models differ from each other.
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
        first, *others = retrained_of(retrained) or [None]
        named = {"original": original, "unlearned": unlearned, "retrained": first}
        named |= {f"retrained_{i}": other for i, other in enumerate(others, 2)}
        self.given = {role: _named(model) for role, model in named.items() if model is not None}
        self.roles = list(self.given)
        self.shadows = [f"shadow_{i}" for i, _ in enumerate(shadows, 1)]
        self.given |= dict(zip(self.shadows, map(_named, shadows), strict=True))
        self.device = device
        self._load = load or load_model

    def name(self, role: str) -> str | None:
        """The name a model was given by, `None` where it is an object."""
        return self.given[role] if isinstance(self.given[role], str) else None

    @contextmanager
    def use(self, role: str) -> Iterator[Any]:
        """The model, in memory for as long as it is used."""
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


def retrained_of(retrained) -> list:
    """The retrained models as a list, from none, one or several of them."""
    given = retrained if isinstance(retrained, (list, tuple)) else [retrained]
    return [_named(model) for model in given if model is not None]


def _named(model):
    """A path is a name."""
    return os.fspath(model) if isinstance(model, os.PathLike) else model
