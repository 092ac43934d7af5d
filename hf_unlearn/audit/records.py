"""What an audit works on and what it finds: the rows with their limits, and values a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_unlearn.audit.config import AuditConfig
from hf_unlearn.audit.measures.statistic import MEMORY, Groups, Statistic
from hf_unlearn.audit.table.score import score
from hf_unlearn.audit.table.scores import Scores


if TYPE_CHECKING:
    from hf_unlearn.audit.attacks.reconstruction import ReconstructionAudit


@dataclass(frozen=True)
class Curve:
    """Values of records along an axis, such as steps of relearning; of `kind` `"mean"`, or `"rate"` of yes and no."""

    name: str
    set: str
    axis: str
    x: tuple[float, ...]
    direction: str = MEMORY
    kind: str = "mean"


@dataclass
class Found:
    """What one audit found of one model: values `(n,)` a statistic, and `(len(x), n)` a curve."""

    values: dict[Statistic, Any] = field(default_factory=dict)
    curves: dict[Curve, np.ndarray] = field(default_factory=dict)
    reconstruction: ReconstructionAudit | None = None


def by_statistic(found: Mapping[str, Found]) -> dict[Statistic, dict[str, Any]]:
    """The same the other way round: a statistic, and its values by model."""
    values: dict[Statistic, dict[str, Any]] = {}
    for role, of_role in found.items():
        for statistic, of_records in of_role.values.items():
            values.setdefault(statistic, {})[role] = of_records
    return values


class Subjects:
    """The sets of an audit as the audits beyond the table need them: cut to `max_rows`, and with a way to score."""

    def __init__(self, sets: Mapping[str, Any], processing_class, config: AuditConfig, groups=None):
        from hf_unlearn.data.images import has_images

        self.sets = {name: rows for name, rows in sets.items() if rows is not None and len(rows)}
        self.processing_class, self.config = processing_class, config
        self.of_images = has_images(self.sets["forget"])
        self._groups = Groups.of(groups, len(self.sets.get("holdout", ())))
        #: The table of each set under the model that is audited now.
        self.tables: Mapping[str, Scores] = {}

    def rows(self, name: str) -> Any:
        """Rows of a set, at most `max_rows`, evenly spread; none where there is no such set."""
        rows = self.sets.get(name, [])
        chosen = self.chosen(name)
        return picked(rows, chosen)

    def memory(self, name: str, surface: str, kind: str = "mean", records: Sequence[int] | None = None) -> Statistic:
        """A statistic of the chosen forget rows, or of those at these places among them."""
        return Statistic(name, "forget", MEMORY, surface, kind, self.records(records))

    def records(self, places: Sequence[int] | None = None, name: str = "forget") -> tuple[int, ...] | None:
        """Places in the whole set of the chosen rows, or of those at these places among them; `None` for all."""
        chosen = self.chosen(name)
        chosen = chosen if places is None else [chosen[i] for i in places]
        return None if len(chosen) == len(self.sets[name]) else tuple(chosen)

    def chosen(self, name: str) -> list[int]:
        """Places of the rows in their set."""
        n, limit = len(self.sets.get(name, [])), self.config.max_rows
        return list(range(n)) if n <= limit else [i * n // limit for i in range(limit)]

    @property
    def groups(self) -> Groups | None:
        """Whose each of the chosen rows is."""
        if self._groups is None:
            return None
        return Groups(*([of[i] for i in self.chosen(name)] for name, of in vars(self._groups).items()))

    def has_column(self, name: str) -> bool:
        return not self.of_images and name in dict(self.sets["forget"][0])

    def longest_answer(self, rows: list) -> int:
        """How many tokens to generate: twice those of the longest true answer, which leaves room to say it in other words."""
        answers = [row["completion"] for row in rows]
        lengths = [len(ids) for ids in self.processing_class(answers, add_special_tokens=False)["input_ids"]]
        return min(self.config.max_new_tokens, 2 * max(lengths))

    @property
    def lengths(self) -> dict[str, Any]:
        """How texts are cut, for whatever encodes them."""
        return {} if self.of_images else {"max_length": self.config.max_length, "truncate": self.config.truncate}

    def fits(self, model, row: Mapping | None) -> bool:
        """Whether there is a row, and the model can read it as a whole."""
        from hf_unlearn.data.text import context_length, encode

        if row is None:
            return False
        try:
            encode(row, self.processing_class, self.config.max_length or context_length(model))
        except ValueError:
            return False
        return True

    def trainable(self, rows) -> Any:
        """The rows that have anything to train on: one without an answer is missing everywhere, and no reason to stop."""
        return rows if self.of_images else picked(rows, [i for i, row in enumerate(rows) if self._has_target(row)])

    def _has_target(self, row) -> bool:
        from hf_unlearn.data.text import EmptyTargetError, encode

        try:
            encode(row, self.processing_class)
        except EmptyTargetError:
            return False
        return True

    def score(self, model, rows) -> Scores:
        return score(model, self.processing_class, rows, self.config.batch_size, sampling=(), **self.lengths)


def picked(rows, places: Sequence[int]) -> Any:
    """The rows at these places, of the kind that was given."""
    return rows.select(places) if hasattr(rows, "select") else [rows[i] for i in places]
