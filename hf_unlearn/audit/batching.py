"""Which rows of text go through a model together, and what is read once for many of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from os.path import commonprefix
from typing import TypeVar

from hf_unlearn.likelihood import IGNORE_INDEX


T = TypeVar("T")

# What rows share is read in a pass of its own, and masks and caches cost something too. Such a pass must save so many
# tokens, all of them together so large a part of what there is, and no part is worth the trouble below the last.
WORTH_A_PASS = 64
WORTH_SHARING = 0.1
WORTH_A_SPAN = 8
# Rows that may share, in batches of rows. It is one piece of work, which one process does.
BATCHES_A_PIECE = 8


@dataclass(frozen=True)
class Span:
    """The tokens `start` to `end` of a row, which are read at once and predict those that follow each of them.

    Attributes:
        row (`int`): the row, or one of those that have these tokens in common.
        start, end (`int`): as of a Python slice.
        parent (`int`, *optional*): the span that ends where this one starts, by its index in [`Batch.shared`].
        depth (`int`): number of spans before this one.
        n_rows (`int`): number of rows that have these tokens in common, and all before them, and the next one.
    """

    row: int
    start: int
    end: int
    parent: int | None = None
    depth: int = 0
    n_rows: int = 1

    @property
    def saved(self) -> int:
        """Number of tokens that need not be read."""
        return (self.n_rows - 1) * (self.end - self.start)


@dataclass(frozen=True)
class Batch:
    """A piece of work: spans that several rows have in common, parents first, and for each row the span that it ends in."""

    shared: list[Span]
    last: list[Span]

    def by_depth(self) -> list[list[Span]]:
        """The shared spans, those of each depth together."""
        depths = 1 + max((span.depth for span in self.shared), default=-1)
        return [[span for span in self.shared if span.depth == depth] for depth in range(depths)]


def symbols(ids: Sequence[int], labels: Sequence[int]) -> tuple[int, ...]:
    """Tokens as numbers that are equal where the ids are and both are targets or neither is: the id, twice, plus 1."""
    return tuple(2 * i + (label != IGNORE_INDEX) for i, label in zip(ids, labels, strict=True))


def n_targets(row: Sequence[int]) -> int:
    """Number of targets among symbols."""
    return sum(symbol & 1 for symbol in row)


def plan(
    rows: Sequence[Sequence[int]],
    targets: Sequence[int],
    batch_size: int,
    max_targets: int,
    max_depth: int,
) -> list[Batch]:
    """Cut rows into pieces of work.

    Rows that begin alike share the reading of that beginning: the answers to one question its prompt, questions the
    header of their chat template, wrong answers what they have in common before they go wrong.

    Args:
        rows (sequence of `n` sequences): the tokens of each row, from [`symbols`].
        targets (sequence of `n`): number of targets of each row.
        batch_size, max_targets (`int`): most rows and targets a pass. A row with more targets is in a pass of its own.
        max_depth (`int`): how often a row can go on from what was read; 0 where the model can't.
    """
    can_share = [max_depth > 0 and n <= max_targets for n in targets]
    alone = [i for i in range(len(rows)) if not can_share[i]]
    rest = sorted((i for i in range(len(rows)) if can_share[i]), key=lambda i: rows[i])
    batches: list[Batch] = []
    while rest:
        # As many rows as there can be while no pass over what they share has too many rows or targets.
        fewest, most = 1, min(len(rest), BATCHES_A_PIECE * batch_size)
        n = most
        while fewest < most:
            if _fits(_tree(rest[:n], rows, max_depth), rows, batch_size, max_targets):
                fewest = n
            else:
                most = n - 1
            n = (fewest + most + 1) // 2
        batch, rest = _tree(rest[:n], rows, max_depth), rest[n:]
        saved = sum(span.saved for span in batch.shared)
        if saved > 0 and saved >= WORTH_SHARING * sum(len(rows[span.row]) for span in batch.last):
            alone += [span.row for span in batch.last if span.parent is None]
            batches.append(replace(batch, last=[span for span in batch.last if span.parent is not None]))
        else:
            alone += [span.row for span in batch.last]
    alone.sort(key=lambda i: (-len(rows[i]), i))
    return batches + [
        Batch([], [Span(i, 0, len(rows[i]) - 1) for i in part])
        for part in passes(alone, [targets[i] for i in alone], batch_size, max_targets)
    ]


def passes(items: Sequence[T], targets: Sequence[int], batch_size: int, max_targets: int) -> list[list[T]]:
    """Cut rows or spans, in their order, into passes of at most so many of them and so many targets."""
    cut: list[list[T]] = []
    now = 0
    for item, n in zip(items, targets, strict=True):
        now += n
        if not cut or len(cut[-1]) == batch_size or now > max_targets:
            cut.append([])
            now = n
        cut[-1].append(item)
    return cut


def _fits(batch: Batch, rows: Sequence[Sequence[int]], batch_size: int, max_targets: int) -> bool:
    """Whether a pass for each depth is enough for what is shared."""
    for spans in batch.by_depth():
        targets = sum(n_targets(rows[span.row][span.start + 1 : span.end + 1]) for span in spans)
        if len(spans) > batch_size or targets > max_targets:
            return False
    return True


def _tree(members: list[int], rows: Sequence[Sequence[int]], max_depth: int) -> Batch:
    """What rows, sorted by their tokens, have in common."""
    shared: list[Span] = []
    last: list[Span] = []

    def grow(members: list[int], start: int, parent: int | None, depth: int) -> None:
        if len(members) == 1:
            last.append(Span(members[0], start, len(rows[members[0]]) - 1, parent, depth))
            return
        # They are sorted, so what the first and the last have in common all have. Each row keeps a token to go on with.
        common = len(commonprefix([rows[members[0]], rows[members[-1]]]))
        span = Span(
            members[0], start, min(common - 1, min(len(rows[i]) for i in members) - 2), parent, depth, len(members)
        )
        if span.saved >= WORTH_A_SPAN:
            shared.append(span)
            start, parent, depth = span.end, len(shared) - 1, depth + 1
        for _, group in groupby(members, key=lambda i: rows[i][common] if len(rows[i]) > common else None):
            grow(list(group), start, parent, depth)

    grow(members, 0, None, 0)
    batch = Batch(shared, last)
    while batch.shared:
        saved = [sum(span.saved for span in spans) for spans in batch.by_depth()]
        least = min(range(len(saved)), key=saved.__getitem__)
        if len(saved) <= max_depth and saved[least] >= WORTH_A_PASS:
            break
        batch = _without(batch, least)
    return batch


def _without(batch: Batch, depth: int) -> Batch:
    """The same with no shared spans of one depth: the spans after them begin where they began."""
    shared: list[Span] = []
    place: list[int | None] = []  # of each span of before among those now; of one that went, the place of its parent

    def moved(span: Span) -> Span:
        if span.depth <= depth:
            return span if span.parent is None else replace(span, parent=place[span.parent])
        before = batch.shared[span.parent]
        start = before.start if before.depth == depth else span.start
        return replace(span, start=start, parent=place[span.parent], depth=span.depth - 1)

    for span in batch.shared:
        now = moved(span)
        if span.depth == depth:
            place.append(now.parent)
        else:
            shared.append(now)
            place.append(len(shared) - 1)
    return Batch(shared, [moved(span) for span in batch.last])
