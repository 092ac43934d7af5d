"""Which rows of text go through a model together, and what is read once for many of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from os.path import commonprefix
from typing import TypeVar

from hf_unlearn.likelihood import IGNORE_INDEX


T = TypeVar("T")
# A pass costs about as much as reading so many tokens, on top of its own: launches, masks, caches.
COST_OF_A_PASS = 128
# Rows are read as a whole unless sharing costs at most this part of that.
WORTH_SHARING = 0.9
# Rows that may share, in batches of rows. It is one piece of work, which one process does.
BATCHES_A_PIECE = 8


@dataclass(frozen=True, eq=False)
class Span:
    """The tokens `start` to `end` of a row, which are read at once and predict those that follow each of them.

    Attributes:
        row (`int`): the row, or one of those that have these tokens, those before them and the next one in common.
        start, end (`int`): as of a Python slice.
        parent ([`Span`], *optional*): the one that ends where this one starts.
        depth (`int`): number of spans before this one.
    """

    row: int
    start: int
    end: int
    parent: Span | None = None
    depth: int = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "depth", 0 if self.parent is None else self.parent.depth + 1)

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Batch:
    """A piece of work.

    Attributes:
        last (`list[list[Span]]`): the spans that rows end in, one a row, in passes. Those of a pass are equally deep.
        shared (`list[list[list[Span]]]`): spans that several rows have in common, in passes, for each depth: those that
            begin rows, those that go on from these, and so on.
    """

    last: list[list[Span]]
    shared: list[list[list[Span]]] = field(default_factory=list)

    @property
    def cost(self) -> int:
        """What it costs to run, in tokens."""
        every = [spans for passes in (*self.shared, self.last) for spans in passes]
        return sum(COST_OF_A_PASS + len(spans) * max(map(len, spans)) for spans in every)


def symbols(ids: Sequence[int], labels: Sequence[int]) -> tuple[int, ...]:
    """Tokens as numbers that are equal where the ids are and both are targets or neither is: the id, twice, plus 1."""
    return tuple(2 * i + (label != IGNORE_INDEX) for i, label in zip(ids, labels, strict=True))


def n_targets(row: Sequence[int]) -> int:
    """Number of targets among symbols."""
    return sum(symbol & 1 for symbol in row)


def prompt_of(row: Sequence[int]) -> Sequence[int]:
    """What precedes the answer, without its last token: that one predicts the first target."""
    return row[: next(t for t, symbol in enumerate(row) if t and symbol & 1) - 1]


def plan(rows: Sequence[Sequence[int]], batch_size: int, max_targets: int, max_depth: int) -> list[Batch]:
    """Cut rows into pieces of work.

    Rows that begin alike share the reading of that beginning: the answers to one question its prompt, questions the
    header of their chat template, wrong answers what they have in common before they go wrong.

    Args:
        rows (sequence of `n` sequences): the tokens of each row, from [`symbols`].
        batch_size, max_targets (`int`): most rows and targets a pass. A row with more targets is in a pass of its own.
        max_depth (`int`): how often a row can go on from what was read; 0 where the model can't.
    """

    # Targets up to and including each token.
    counts = [list(accumulate(symbol & 1 for symbol in row)) for row in rows]

    def cut(spans: list[Span]) -> list[list[Span]]:
        spans = sorted(spans, key=lambda span: (-len(span), span.row))
        return passes(spans, [n_targets(rows[s.row][s.start + 1 : s.end + 1]) for s in spans], batch_size, max_targets)

    whole = [Span(i, 0, len(row) - 1) for i, row in enumerate(rows)]
    fit = {i for i, row in enumerate(rows) if max_depth > 0 and prompt_of(row) and counts[i][-1] <= max_targets}
    alone = [span for span in whole if span.row not in fit]
    rest = sorted(fit, key=lambda i: rows[i])
    batches: list[Batch] = []
    for k in range(0, len(rest), BATCHES_A_PIECE * batch_size):
        members = rest[k : k + BATCHES_A_PIECE * batch_size]
        batch = _cheapest(members, rows, cut, max_depth)
        with_others = [span for spans in batch.last for span in spans if span.parent is not None]
        batch = replace(batch, last=[spans for spans in batch.last if spans[0].parent is not None])
        if batch.cost <= WORTH_SHARING * Batch(cut([whole[span.row] for span in with_others])).cost:
            batches.append(batch)
            members = set(members) - {span.row for span in with_others}
        alone += [whole[i] for i in members]
    return batches + [Batch([spans]) for spans in cut(alone)]


def passes(items: Sequence[T], targets: Sequence[int], batch_size: int, max_targets: int) -> list[list[T]]:
    """Cut a sequence, in its order, into passes of at most so many items and so many of their targets."""
    found: list[list[T]] = []
    now = 0
    for item, n in zip(items, targets, strict=True):
        now += n
        if not found or len(found[-1]) == batch_size or now > max_targets:
            found.append([])
            now = n
        found[-1].append(item)
    return found


def _cheapest(members: list[int], rows: Sequence[Sequence[int]], cut: Callable, max_depth: int) -> Batch:
    """Share what is common to rows, at the depths at which that pays."""
    shared, last = _tree(members, rows)
    best = _batch(shared, last, cut)
    while shared:
        depths = range(1 + max(span.depth for span in shared))
        trials = [_without(depth, shared, last) for depth in depths]
        batches = [_batch(*trial, cut) for trial in trials]
        least = min(depths, key=lambda depth: batches[depth].cost)
        if len(depths) <= max_depth and best.cost <= batches[least].cost:
            break
        (shared, last), best = trials[least], batches[least]
    return best


def _batch(shared: list[Span], last: list[Span], cut: Callable) -> Batch:
    def by_depth(spans: list[Span]) -> list[list[list[Span]]]:
        spans = sorted(spans, key=lambda span: span.depth)
        return [cut(list(group)) for _, group in groupby(spans, key=lambda span: span.depth)]

    return Batch([spans for passes in by_depth(last) for spans in passes], by_depth(shared))


def _tree(members: list[int], rows: Sequence[Sequence[int]]) -> tuple[list[Span], list[Span]]:
    """All that rows, sorted by their tokens, have in common, parents first, and what is left of each.

    First comes what all prompts begin with, then each prompt, and then what some of its answers begin with.
    """
    shared, last = [], []

    def share(row: int, end: int, parent: Span | None) -> Span | None:
        start = 0 if parent is None else parent.end
        if end > start:
            shared.append(Span(row, start, end, parent))
            return shared[-1]
        return parent

    def grow(members: list[int], parent: Span | None) -> None:
        if len(members) == 1:
            last.append(Span(members[0], 0 if parent is None else parent.end, len(rows[members[0]]) - 1, parent))
            return
        # They are sorted, so what the first and the last have in common all have. Each row keeps a token to go on with.
        common = len(commonprefix([rows[members[0]], rows[members[-1]]]))
        parent = share(members[0], min(common - 1, min(len(rows[i]) for i in members) - 2), parent)
        for _, group in groupby(members, key=lambda i: rows[i][common] if len(rows[i]) > common else None):
            grow(list(group), parent)

    prompts = {i: prompt_of(rows[i]) for i in members}
    common = len(commonprefix([prompts[members[0]], prompts[members[-1]]]))
    header = share(members[0], min(common, min(map(len, prompts.values())) - 1), None)
    for prompt, group in groupby(members, key=prompts.__getitem__):
        group = list(group)
        grow(group, header if len(group) == 1 else share(group[0], len(prompt), header))
    return shared, last


def _without(depth: int, shared: list[Span], last: list[Span]) -> tuple[list[Span], list[Span]]:
    """The same with no shared spans of one depth: those that go on from them begin where they began."""
    now: dict[Span | None, Span | None] = {None: None}

    def moved(span: Span) -> Span:
        gone = span.parent is not None and span.parent.depth == depth
        return replace(span, start=span.parent.start if gone else span.start, parent=now[span.parent])

    for span in shared:
        now[span] = now[span.parent] if span.depth == depth else moved(span)
    return [now[span] for span in shared if span.depth != depth], [moved(span) for span in last]
