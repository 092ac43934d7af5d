"""Which rows of text go through a model together, and which beginnings are read only once for several rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from os.path import commonprefix
from typing import TypeVar

from hf_unlearn.data.rows import IGNORE_INDEX


T = TypeVar("T")
# The overhead of a pass (launches, masks, caches), in tokens that could be read instead.
COST_OF_A_PASS = 128
# Rows share beginnings if that costs at most this part of reading them whole.
WORTH_SHARING = 0.9
# Batches of rows that may share beginnings. They are one piece of work, which one process does.
BATCHES_A_PIECE = 16
# Every depth costs a trial plan of the piece, and rows share something at two or three depths.
DEPTHS_TO_TRY = 8


@dataclass(frozen=True, eq=False)
class Span:
    """The tokens `start` to `end` of a row, which are read at once; each predicts the token after it.

    Attributes:
        row (`int`): the row, or one of the rows that share all tokens up to and including the one at `end`.
        parent ([`Span`], *optional*): the span that ends where this one starts; `depth` is the number of spans before.
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
        last (`list[list[Span]]`): passes of the last spans of rows, one per row. The spans of a pass have the same depth.
        shared (`list[list[list[Span]]]`): for each depth, passes of the spans that several rows share.
    """

    last: list[list[Span]]
    shared: list[list[list[Span]]] = field(default_factory=list)

    @property
    def cost(self) -> int:
        """Cost of running it, in tokens."""
        every = [spans for passes in (*self.shared, self.last) for spans in passes]
        return sum(COST_OF_A_PASS + len(spans) * max(map(len, spans)) for spans in every)


def symbols(ids: Sequence[int], labels: Sequence[int]) -> tuple[int, ...]:
    """Tokens as numbers that tell both the id and whether the token is a target: twice the id, plus 1 for a target."""
    return tuple(2 * i + (label != IGNORE_INDEX) for i, label in zip(ids, labels, strict=True))


def n_targets(row: Sequence[int]) -> int:
    """Number of targets among the symbols of a row."""
    return sum(symbol & 1 for symbol in row)


def plan(rows: Sequence[Sequence[int]], batch_size: int, max_targets: int, max_depth: int) -> list[Batch]:
    """Cut rows into pieces of work.

    Rows with the same beginning read it only once: the answers to one question share its prompt, questions the header of
    their chat template, wrong answers the words before they go wrong.

    Args:
        rows (sequence of `n` sequences): the tokens of each row, from [`symbols`].
        batch_size, max_targets (`int`): most rows and targets per pass. A row with more targets has a pass of its own.
        max_depth (`int`): how often a row can go on from tokens that were read before; 0 if the model cannot.
    """

    # Number of targets up to and including each token.
    counts = [list(accumulate(symbol & 1 for symbol in row)) for row in rows]

    def cut(spans: list[Span]) -> list[list[Span]]:
        spans = sorted(spans, key=lambda span: (-len(span), span.row))
        return passes(spans, [counts[s.row][s.end] - counts[s.row][s.start] for s in spans], batch_size, max_targets)

    whole = [Span(i, 0, len(row) - 1) for i, row in enumerate(rows)]
    fit = {i for i in range(len(rows)) if max_depth > 0 and counts[i][-1] <= max_targets}
    alone = [span for span in whole if span.row not in fit]
    rest = sorted(fit, key=lambda i: rows[i])
    batches: list[Batch] = []
    for k in range(0, len(rest), BATCHES_A_PIECE * batch_size):
        members = rest[k : k + BATCHES_A_PIECE * batch_size]
        batch = _cheapest(*_shared(members, rows, COST_OF_A_PASS / batch_size), cut, max_depth)
        with_others = [span for spans in batch.last for span in spans if span.parent is not None]
        batch = replace(batch, last=[spans for spans in batch.last if spans[0].parent is not None])
        if batch.last and batch.cost <= WORTH_SHARING * Batch(cut([whole[span.row] for span in with_others])).cost:
            batches.append(batch)
            members = set(members) - {span.row for span in with_others}
        alone += [whole[i] for i in members]
    return batches + [Batch([spans]) for spans in cut(alone)]


def passes(items: Sequence[T], targets: Sequence[int], batch_size: int, max_targets: int) -> list[list[T]]:
    """Cut a sequence, in its order, into passes of at most `batch_size` items and `max_targets` targets."""
    found: list[list[T]] = []
    now = 0
    for item, n in zip(items, targets, strict=True):
        now += n
        if not found or len(found[-1]) == batch_size or now > max_targets:
            found.append([])
            now = n
        found[-1].append(item)
    return found


@dataclass(eq=False)
class _Beginning:
    """Tokens that some rows have in common: those before `end`, and the one at `end`, which they predict.

    Attributes:
        row, end (`int`): a row with these tokens, and their number. A leaf of the tree is a row without its last token.
        n_after (`int`): number of spans that begin where this one ends; each reads these tokens if they are not shared.
        parent ([`_Beginning`], *optional*): the longest beginning of this one.
        is_shared (`bool`): whether it is read once, as a span.
    """

    row: int
    end: int
    n_after: int = 0
    parent: _Beginning | None = None
    is_shared: bool = False


def _beginnings(members: Sequence[int], rows: Sequence[Sequence[int]]) -> list[_Beginning]:
    """The tree of all common beginnings of rows that are sorted by their tokens, children first, without the root.

    Sorted rows have most in common with their neighbors, so each token is compared once.
    """
    found: list[_Beginning] = []
    path = [_Beginning(members[0], 0)]  # from the root to the last row

    def close(end: int, row: int) -> None:
        """Leave all beginnings that are longer than the one that the last row and the next one have in common."""
        while path[-1].end > end:
            child = path.pop()
            if path[-1].end < end:
                path.append(_Beginning(row, end))
            child.parent = path[-1]
            found.append(child)

    previous = members[0]
    for row in members:
        if row != previous:
            # Rows share the token after a beginning, too, and each keeps one token to go on with.
            one, other = rows[previous], rows[row]
            close(max(0, min(len(commonprefix([one, other])), len(one) - 1, len(other) - 1) - 1), previous)
        path.append(_Beginning(row, len(rows[row]) - 1))
        previous = row
    close(0, previous)
    return found


def _shared(members: Sequence[int], rows: Sequence[Sequence[int]], cost: float) -> tuple[list[Span], list[Span]]:
    """Spans of the beginnings that save more than `cost` tokens when read once, parents first, and the rest of each row."""
    tree = _beginnings(members, rows)
    for node in tree:
        n_after, start = max(1, node.n_after), node.parent.end
        node.is_shared = (n_after - 1) * (node.end - start) > cost
        node.parent.n_after += 1 if node.is_shared else n_after
    shared, last = [], []
    read: dict[_Beginning, Span | None] = {}
    for node in reversed(tree):
        before = read.get(node.parent)
        read[node] = before
        if node.is_shared or node.n_after == 0:
            span = Span(node.row, before.end if before else 0, node.end, before)
            (shared if node.is_shared else last).append(span)
            read[node] = span
    return shared, last


def _cheapest(shared: list[Span], last: list[Span], cut: Callable, max_depth: int) -> Batch:
    """Share only at the depths at which it pays: a pass holds spans of one depth, and may be nearly empty."""
    shared, last = _only(_most_saving(shared, last), shared, last)
    best = _batch(shared, last, cut)
    while shared:
        depths = range(1 + max(span.depth for span in shared))
        trials = [_only({*depths} - {depth}, shared, last) for depth in depths]
        batches = [_batch(*trial, cut) for trial in trials]
        least = min(depths, key=lambda depth: batches[depth].cost)
        if len(depths) <= max_depth and best.cost <= batches[least].cost:
            break
        (shared, last), best = trials[least], batches[least]
    return best


def _most_saving(shared: list[Span], last: list[Span]) -> set[int]:
    """The depths that save most tokens, few enough to try each."""
    after = Counter(span.parent for span in (*shared, *last))
    saved: Counter[int] = Counter()
    for span in shared:
        saved[span.depth] += (after[span] - 1) * len(span)
    return {depth for depth, _ in saved.most_common(DEPTHS_TO_TRY)}


def _only(depths: Set[int], shared: list[Span], last: list[Span]) -> tuple[list[Span], list[Span]]:
    """The same spans, shared at these depths only: a span whose parent is not shared begins where that parent began."""
    now: dict[Span | None, Span | None] = {None: None}

    def moved(span: Span) -> Span:
        before = now[span.parent]
        return Span(span.row, before.end if before else 0, span.end, before)

    for span in shared:
        now[span] = moved(span) if span.depth in depths else now[span.parent]
    return [now[span] for span in shared if span.depth in depths], [moved(span) for span in last]


def _batch(shared: list[Span], last: list[Span], cut: Callable) -> Batch:
    def by_depth(spans: list[Span]) -> list[list[list[Span]]]:
        spans = sorted(spans, key=lambda span: span.depth)
        return [cut(list(group)) for _, group in groupby(spans, key=lambda span: span.depth)]

    return Batch([spans for passes in by_depth(last) for spans in passes], by_depth(shared))
