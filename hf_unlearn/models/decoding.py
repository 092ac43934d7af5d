"""One token after the other, in batches: the loop under greedy decoding and sampling.

`generate` of transformers is not used. There a batch runs on until its longest sequence ends, one seed serves a whole
batch, and a repetition penalty or forced tokens in the generation config of the model would change what is measured.
Here finished sequences leave the batch, what prompts share is read once, and every prompt has random numbers of its own.

A step computes one position of each sequence, which hardly keeps a machine busy. So as many sequences are continued together
as fit into memory with their keys and values, many more than prompts are read together; and where there is a draft of what
may be said, a step tries a few tokens at once. Models without such a cache read the texts again in each step (`rereading`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from os.path import commonprefix

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers.cache_utils import Cache, DynamicLayer

from hf_unlearn.models.likelihood import empty_cache, forward_parameters, max_logits
from hf_unlearn.models.modes import evaluating, unwrapped
from hf_unlearn.models.rereading import RereadBatch


# A shared beginning is read in a pass of its own if that saves at least this many tokens.
WORTH_SHARING = 64
# Tokens of a draft that the first step reads, and the most that any step reads.
DRAFTED_AT_FIRST, MOST_DRAFTED = 4, 16


def continued(
    model,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    choose: Callable[[Tensor, list[int], int], Tensor],
    batch_size: int,
    ends: set[int],
    drafts: Sequence[Sequence[int]] | None = None,
) -> list[list[int] | None]:
    """Continue every prompt until a token ends it or its limit is reached.

    `choose(logits, prompts in the batch, step)` gives the next token of each, `(batch,)`. `batch_size` prompts are read at a
    time.

    `drafts` are what the model may say. A step reads several tokens of them, and those that it would have chosen need no
    step of their own (speculative decoding, arXiv 2211.17192, with a text in place of a smaller model). The result is the
    same if `choose` does not depend on the step.
    """
    model = unwrapped(model)
    new: list[list[int] | None] = [[] if limit else None for limit in limits]
    if drafts is not None:  # the last token that may be chosen is not read
        drafts = [list(draft[: max(0, limit - 1)]) for draft, limit in zip(drafts, limits, strict=True)]

    def take(i: int, tokens: list[int], draft: Sequence[int]) -> int:
        """Add tokens as long as those before them were read. Returns their number, or 0 if the continuation ends."""
        for n, token in enumerate(tokens, 1):
            if token < 0:
                new[i] = None
                return 0
            new[i].append(token)
            if token in ends or len(new[i]) == limits[i]:
                return 0
            if n > len(draft) or token != draft[n - 1]:
                return n
        raise AssertionError("a token was chosen after each that was read")

    # Similar lengths together, and equal prompts, which are read once.
    order = sorted((i for i, limit in enumerate(limits) if limit), key=lambda i: (-len(prompts[i]), prompts[i]))
    progress = tqdm(total=len(order), desc="Generating", disable=len(order) < 200)
    kind = RereadBatch if empty_cache(model) is None else _Batch
    with evaluating(model), torch.inference_mode(), progress:
        while order:
            n_new = max(limits[i] for i in order)
            state = kind(model, [prompts[i] for i in order], n_new, batch_size, drafts is not None)
            batch, order = order[: len(state)], order[len(state) :]
            progress.update(len(batch))
            _run(state, batch, new, limits, choose, take, drafts)
    return new


def _run(state: _Batch | RereadBatch, batch: list[int], new, limits, choose, take, drafts) -> None:
    """Continue the prompts of a batch to their ends."""
    step, n_drafted, ahead = 0, DRAFTED_AT_FIRST, [[]] * len(batch)
    while True:
        tokens = torch.stack([choose(logits, batch, step) for logits in state.logits.unbind(1)], dim=1)
        tokens = tokens.masked_fill(state.logits.amax(-1).isnan(), -1).tolist()
        counts = [take(i, chosen, draft) for i, chosen, draft in zip(batch, tokens, ahead, strict=True)]
        stay = [place for place, n in enumerate(counts) if n]
        if not stay:
            return
        if len(stay) < len(batch):
            stay = _closed_up(stay)
            state.keep(stay)
        batch, counts = [batch[place] for place in stay], [counts[place] for place in stay]
        state.accept(counts)
        if n_tried := sum(map(bool, ahead)):
            # Twice as many as were right on average, so that drafts get longer as long as they are right.
            n_drafted = min(MOST_DRAFTED, 2 * (sum(counts) - len(counts)) // n_tried)
        n = min(n_drafted, state.most_drafted(max(limits[i] - len(new[i]) for i in batch))) if drafts else 0
        ahead = [drafts[i][len(new[i]) : len(new[i]) + n] if n else [] for i in batch]
        state.feed([[new[i][-1], *draft] for i, draft in zip(batch, ahead, strict=True)])
        step += 1


def _closed_up(places: list[int]) -> list[int]:
    """These places, given in ascending order, in an order in which few rows move: the last ones into the gaps."""
    kept = [place for place in places if place < len(places)]
    moved = iter(places[len(kept) :])
    taken = set(kept)
    return [place if place in taken else next(moved) for place in range(len(places))]


class _Reserved(DynamicLayer):
    """A layer of a cache with memory for `n_new` more columns, since concatenation would copy everything in every step.

    `keys` and `values` are lists of `(rows, heads, columns, size)`, padded on the left to the longest.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], n_new: int):
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys[0].dtype, keys[0].device, True
        self._width = max(part.shape[2] for part in keys)
        self._memory = [self._reserve(parts, n_new) for parts in (keys, values)]
        self._show()

    def _reserve(self, parts: list[Tensor], n_new: int) -> Tensor:
        n_heads, size = parts[0].shape[1], parts[0].shape[3]
        # Zeros, as padding has a weight of 0, and 0 times anything that happens to be in memory may be NaN.
        memory = parts[0].new_zeros(sum(map(len, parts)), n_heads, self._width + n_new, size)
        for rows, part in zip(memory.split([len(part) for part in parts]), parts, strict=True):
            rows[:, :, self._width - part.shape[2] : self._width] = part
        return memory

    def _show(self) -> None:
        self.keys, self.values = (memory[:, :, : self._width] for memory in self._memory)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        start, self._width = self._width, self._width + key_states.shape[2]
        for memory, states in zip(self._memory, (key_states, value_states), strict=True):
            memory[:, :, start : self._width] = states
        self._show()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:  # of no more rows than before
        indices = indices.to(self.device)
        moved = (indices != torch.arange(len(indices), device=self.device)).nonzero()[:, 0]
        for memory in self._memory:
            memory[moved, :, : self._width] = memory[indices[moved], :, : self._width]
        self._memory = [memory[: len(indices)] for memory in self._memory]
        self._show()


class _Batch:
    """Sequences that are being continued, with `logits (batch, fed, vocabulary)` after each token that was fed last.

    Padding is on the left, so that all continue in the same column; positions count real tokens, which matters to models
    with absolute positions.

    Args:
        prompts (sequence): longest first. The batch is as many of them as fit into memory, but at least `batch_size`.
        n_new (`int`): most tokens of each that will be fed.
        batch_size (`int`): prompts to read at a time.
        drafting (`bool`): whether to have room for as many tokens again, which are fed and not accepted.
    """

    def __init__(self, model, prompts: Sequence[Sequence[int]], n_new: int, batch_size: int, drafting: bool):
        self.model, self.parameters = model, forward_parameters(model)
        empty = empty_cache(model)
        self._slides = any(empty.is_sliding)
        # What is in a sliding window can't be moved to another column, so there all are padded alike.
        self._least_width = len(prompts[0]) if self._slides else 0
        n_columns = n_new * 2 if drafting and not self._slides else n_new
        self._beginning: tuple[tuple[int, ...], Cache] = ((), empty)
        reads = [self._read(prompts[:batch_size])]
        room = max(batch_size, min(len(prompts), _room(*reads[0], n_columns)))
        for k in range(batch_size, room, batch_size):
            reads.append(self._read(prompts[k : min(k + batch_size, room)]))
        caches, masks, logits = map(list, zip(*reads, strict=True))
        del reads  # the caches are used up as they are joined
        self.logits, width = torch.cat(logits), max(mask.shape[1] for mask in masks)
        mask = torch.cat([F.pad(mask, (width - mask.shape[1], 0)) for mask in masks])
        self.mask = F.pad(mask, (0, n_columns), value=1)
        self.fed, self.length, self.next_position = 0, width, mask.sum(-1, keepdim=True)
        self.past = _joined(caches, n_columns)

    def __len__(self) -> int:
        return len(self.mask)

    def keep(self, places: list[int]) -> None:
        """Keep these sequences, in this order, and drop the others."""
        index = torch.tensor(places, dtype=torch.long, device=self.mask.device)
        self.past.batch_select_indices(index)
        self.mask, self.next_position = self.mask[index], self.next_position[index]
        self.logits = self.logits[index]

    def most_drafted(self, n_left: int) -> int:
        """Most draft tokens of a step whose logits fit into memory, with columns left for `n_left` tokens."""
        if self._slides:
            return 0  # what is not accepted would count in the distances of the window
        n_logits = self.logits[:, -1].numel()
        return max(0, min(self.mask.shape[1] - self.length - n_left, max_logits(self.mask.device) // n_logits - 1))

    def accept(self, counts: list[int]) -> None:
        """Go on from the first `counts` of the tokens that each sequence was fed last, and forget the others."""
        if self.fed:
            accepted = torch.tensor(counts, device=self.mask.device)[:, None]
            columns = slice(self.length - self.fed, self.length)
            self.mask[:, columns] = (torch.arange(self.fed, device=self.mask.device) < accepted).long()
            self.next_position = self.next_position + accepted

    def feed(self, tokens: list[list[int]]) -> None:
        """Take the next tokens of each sequence; all but the first are drafts."""
        width = max(map(len, tokens))
        ids = torch.tensor([[*row, *row[-1:] * (width - len(row))] for row in tokens])
        # Padding has a position that the model knows, too.
        ahead = torch.tensor([[min(k, len(row) - 1) for k in range(width)] for row in tokens], device=self.mask.device)
        self.fed, self.length = width, self.length + width
        self.logits = self._forward(ids, self.next_position + ahead, self.mask[:, : self.length], self.past, width)

    def _read(self, prompts: Sequence[Sequence[int]]) -> tuple[Cache, Tensor, Tensor]:
        """Cache, mask `long (rows, columns)` (0 for padding, left of what follows a shared beginning) and logits
        `(rows, 1, vocabulary)` of prompts; each distinct prompt is read once, and so is what all begin with."""
        prompts = [tuple(prompt) for prompt in prompts]
        distinct = list(dict.fromkeys(prompts))
        shared = commonprefix([prompt[:-1] for prompt in distinct])
        # The gap of padding behind the shared beginning would count in the distances of a sliding window.
        if (len(distinct) - 1) * len(shared) < WORTH_SHARING or self._slides:
            shared = ()
        rest = [prompt[len(shared) :] for prompt in distinct]
        lengths, longest = torch.tensor([[len(r)] for r in rest]), max(self._least_width, *map(len, rest))
        mask = torch.ones(len(rest), len(shared) + longest, dtype=torch.long)
        mask[:, len(shared) :] = torch.arange(longest) >= longest - lengths
        mask = mask.to(self.model.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, len(shared) :]
        # A token of its own row pads, so that weights of no other token have a part in it.
        ids = torch.tensor([r[:1] * (longest - len(r)) + r for r in rest])
        cache = self._after(shared, len(rest))
        logits = self._forward(ids, positions, mask, cache)
        if len(distinct) < len(prompts):
            place = {prompt: i for i, prompt in enumerate(distinct)}
            index = torch.tensor([place[prompt] for prompt in prompts], device=mask.device)
            cache.batch_select_indices(index)
            mask, logits = mask[index], logits[index]
        return cache, mask, logits

    def _after(self, shared: tuple[int, ...], n_rows: int) -> Cache:
        """Keys and values of a beginning, for `n_rows` rows that go on from it. The last one is kept for the next call."""
        if not shared:
            return empty_cache(self.model)
        if shared != self._beginning[0]:
            cache, ids = empty_cache(self.model), torch.tensor([shared])
            positions = torch.arange(len(shared), device=self.model.device)[None]
            self._forward(ids, positions, torch.ones_like(positions), cache)
            self._beginning = shared, cache
        cache = copy(self._beginning[1])
        cache.layers = [copy(layer) for layer in cache.layers]
        cache.batch_select_indices(torch.zeros(n_rows, dtype=torch.long, device=self.model.device))
        return cache

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: Cache, n_logits: int = 1) -> Tensor:
        """Logits `(rows, n_logits, vocabulary)` of the tokens after the last of the ids `(rows, n)`."""
        keep = {"logits_to_keep": n_logits} if "logits_to_keep" in self.parameters else {}
        out = self.model(
            input_ids=ids.to(mask.device),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **keep,
        )
        return out.logits[:, -n_logits:]


def _room(cache: Cache, mask: Tensor, logits: Tensor, n_new: int) -> int:
    """Number of sequences like these whose keys and values fit into the memory for the logits of a scoring pass, and whose
    logits of a step fit into a quarter of it: drawing needs several temporaries in float64."""
    n_rows, width = mask.shape
    states = [s for layer in cache.layers if layer.is_initialized for s in (layer.keys, layer.values)]
    bytes_per_row = sum(s.nbytes for s in states) / n_rows / width * (width + n_new)
    most = max_logits(mask.device)
    return min(int(4 * most / bytes_per_row), most // (4 * logits.shape[-1]))


def _joined(caches: list[Cache], n_new: int) -> Cache:
    """The rows of all caches in one, with room for `n_new` more columns. The caches are used up, to save memory."""
    joined = copy(caches[0])
    joined.layers = []
    for i in range(len(caches[0].layers)):
        layers = [cache.layers[i] for cache in caches]
        keys, values = ([getattr(layer, name) for layer in layers] for name in ("keys", "values"))
        if not layers[0].is_initialized:
            joined.layers.append(layers[0])
        elif layers[0].is_sliding:
            layers[0].keys, layers[0].values = torch.cat(keys), torch.cat(values)
            joined.layers.append(layers[0])
        else:
            joined.layers.append(_Reserved(keys, values, n_new))
        for cache in caches:
            cache.layers[i] = None
    return joined
