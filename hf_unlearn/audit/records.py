"""What attacks work on and what they find: the records with their limits, and values per record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_unlearn.audit.config import AuditConfig
from hf_unlearn.audit.measures.extraction import exact_memorization, extraction_strength
from hf_unlearn.audit.measures.quality import answer_probability
from hf_unlearn.audit.measures.statistic import MEMORY, Groups, Statistic
from hf_unlearn.audit.table.score import score
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.data.images import has_images
from hf_unlearn.data.rows import TEXTS, answer_of, column_names, format_of
from hf_unlearn.data.text import EmptyTargetError, context_length, encode


@dataclass(frozen=True)
class Curve:
    """Values of records along an axis, such as steps of relearning; `kind` is `"share"`, or `"rate"` for yes and no."""

    name: str
    set: str
    axis: str
    x: tuple[float, ...]
    direction: str = MEMORY
    kind: str = "share"


@dataclass
class Found:
    """What one attack found of one model.

    Attributes:
        values (`dict`): per statistic `float64 (n,)`, NaN for a record that cannot be scored; for an AUC a pair of arrays.
        curves (`dict`): per curve `float64 (len(x), n)`.
        reconstruction (`ReconstructionAudit`, *optional*): images read off the weights.
        coverage (`dict[str, float]`): the share of the weights that each attack on them changed, in [0, 1].
    """

    values: dict[Statistic, Any] = field(default_factory=dict)
    curves: dict[Curve, np.ndarray] = field(default_factory=dict)
    reconstruction: Any = None
    coverage: dict[str, float] = field(default_factory=dict)

    def add(self, more: Found) -> None:
        """Add what another attack found of the same model."""
        self.values |= more.values
        self.curves |= more.curves
        self.coverage |= more.coverage
        self.reconstruction = more.reconstruction or self.reconstruction


def by_statistic(found: Mapping[str, Found]) -> dict[Statistic, dict[str, Any]]:
    """The values of each statistic by model, from what was found of each model."""
    by_role: dict[Statistic, dict[str, Any]] = {}
    for role, part in found.items():
        for statistic, values in part.values.items():
            by_role.setdefault(statistic, {})[role] = values
    return by_role


class AuditRecords:
    """The sets of an audit as attacks need them: cut to `max_rows`, with a way to score them and to name what is found.

    Attributes:
        sets (`dict[str, Dataset]`): all rows of the sets that are not empty.
        kind (`str`): `"text"` or `"image"`.
        tables (`dict[str, Scores]`): the table of every set under the model that is attacked now.
    """

    def __init__(self, sets: Mapping[str, Any], processing_class, config: AuditConfig, groups=None):
        self.sets = {name: rows for name, rows in sets.items() if rows is not None and len(rows)}
        self.processing_class, self.config = processing_class, config
        self.kind = "image" if has_images(self.sets["forget"]) else "text"
        self.all_groups = Groups.of(groups, len(self.sets.get("holdout", ())))
        self.tables: Mapping[str, Scores] = {}

    def rows(self, name: str) -> Any:
        """At most `max_rows` rows of a set, evenly spread; none where there is no such set."""
        return picked(self.sets.get(name, []), self.chosen(name))

    def chosen(self, name: str) -> list[int]:
        """Positions of these rows in their set."""
        n, limit = len(self.sets.get(name, [])), self.config.max_rows
        return list(range(n)) if n <= limit else [i * n // limit for i in range(limit)]

    def positions(self, places: Sequence[int] | None = None, name: str = "forget") -> tuple[int, ...] | None:
        """Positions in the whole set of [`rows`], or of those of them at `places`; `None` where this is all of the set."""
        chosen = self.chosen(name)
        chosen = chosen if places is None else [chosen[i] for i in places]
        return None if len(chosen) == len(self.sets[name]) else tuple(chosen)

    def statistic(
        self, name: str, surface: str, kind: str = "share", places: Sequence[int] | None = None
    ) -> Statistic:
        """A statistic of the chosen forget rows, or of those of them at `places`; higher = more memorized."""
        return Statistic(name, "forget", MEMORY, surface, kind, self.positions(places))

    @property
    def groups(self) -> Groups | None:
        """The person each of the chosen rows is about."""
        if self.all_groups is None:
            return None
        return Groups(*([labels[i] for i in self.chosen(name)] for name, labels in vars(self.all_groups).items()))

    def has_column(self, name: str) -> bool:
        """Whether the forget rows are texts and have this column."""
        return self.kind == "text" and name in column_names(self.sets["forget"])

    def has_prompts(self, name: str = "forget") -> bool:
        """Whether the rows of a set are questions with their answers, as pairs or as chats."""
        rows = self.rows(name) if self.kind == "text" else ()
        return len(rows) > 0 and all(format_of(row, TEXTS) in ("prompt", "messages") for row in rows)

    @property
    def measures(self) -> dict[str, Callable[[Scores], np.ndarray]]:
        """The measures that are read from a table of the forget set after an attack."""
        first = (
            {"accuracy": exact_memorization} if self.kind == "image" else {"extraction_strength": extraction_strength}
        )
        return first | {"answer_probability": answer_probability}

    def longest_answer(self, rows: list) -> int:
        """How many tokens to generate: twice those of the longest true answer, which leaves room for other words."""
        answers = list(map(answer_of, rows))
        lengths = [len(ids) for ids in self.processing_class(answers, add_special_tokens=False)["input_ids"]]
        return min(self.config.max_new_tokens, 2 * max(lengths))

    @property
    def lengths(self) -> dict[str, Any]:
        """How texts are cut, for whatever encodes them."""
        limits = {"max_length": self.config.max_length, "truncate": self.config.truncate}
        return limits if self.kind == "text" else {}

    def fits(self, model, row: Mapping | None) -> bool:
        """Whether there is a row, and the model can read it whole."""
        limit = self.config.max_length or context_length(model)
        return row is not None and self._can_encode(row, ValueError, max_length=limit)

    def trainable(self, rows) -> Any:
        """The rows that have a target to train on: a row without an answer is missing everywhere, but stops nothing."""
        if self.kind == "image":
            return rows
        return picked(rows, [i for i, row in enumerate(rows) if self._can_encode(row, EmptyTargetError)])

    def _can_encode(self, row, error: type[ValueError], **limits) -> bool:
        try:
            encode(row, self.processing_class, **limits)
        except error:
            return False
        return True

    def score(self, model, rows) -> Scores:
        """The table of these rows under a model, see [`~hf_unlearn.audit.score`]."""
        return score(model, self.processing_class, rows, self.config.batch_size, sampling=(), **self.lengths)


def picked(rows, places: Sequence[int]) -> Any:
    """The rows at these places, as a `Dataset` if they are one, otherwise as a list."""
    return rows.select(places) if hasattr(rows, "select") else [rows[i] for i in places]
