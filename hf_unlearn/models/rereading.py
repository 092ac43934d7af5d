"""Continuing texts with a model that has no plain cache of keys and values: each step reads the whole texts again.

Some models have a recurrent state (Mamba, RWKV, Jamba), which cannot go back behind a draft that was wrong and takes padding
before a text for a part of it. Some take no positions (BLOOM, MPT), so that padding before a text would move it. So padding is
on the right here, after all that is read, and logits are those of the last real tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_unlearn.models.likelihood import forward_parameters, logits_at, max_logits


class RereadBatch:
    """Sequences that are being continued, with `logits (batch, fed, vocabulary)` after each token that was fed last.

    Has the functions of the batch with a cache, see `decoding`.

    Args:
        prompts (sequence): longest first. The batch is at most `batch_size` of them, as many as have room for the logits of
            a pass.
        n_new (`int`): most tokens of each that will be fed.
    """

    def __init__(self, model, prompts: Sequence[Sequence[int]], n_new: int, batch_size: int, drafting: bool):
        self.model = model
        vocabulary = model.config.get_text_config().vocab_size
        # Of most models only the logits that are asked for are computed, of the others those of all tokens.
        keeps = "logits_to_keep" in forward_parameters(model)
        columns = 1 if keeps else len(prompts[0]) + n_new
        n = max(1, min(batch_size, max_logits(model.device) // (vocabulary * columns)))
        self._most_drafted = max_logits(model.device) // (vocabulary * n) - 1 if drafting else 0
        self._read = [list(prompt) for prompt in prompts[:n]]
        self._fed: list[list[int]] = [[] for _ in self._read]
        self.logits = self._forward([1] * len(self._read))

    def __len__(self) -> int:
        return len(self._read)

    def keep(self, places: list[int]) -> None:
        """Keep these sequences, in this order, and drop the others."""
        self._read, self._fed = ([rows[place] for place in places] for rows in (self._read, self._fed))
        self.logits = self.logits[torch.tensor(places, dtype=torch.long, device=self.logits.device)]

    def most_drafted(self, n_left: int) -> int:
        """Most draft tokens of a step whose logits fit into memory."""
        return max(0, self._most_drafted)

    def accept(self, counts: list[int]) -> None:
        """Go on from the first `counts` of the tokens that each sequence was fed last, and forget the others."""
        self._read = [[*read, *fed[:n]] for read, fed, n in zip(self._read, self._fed, counts, strict=True)]

    def feed(self, tokens: list[list[int]]) -> None:
        """Take the next tokens of each sequence; all but the first are drafts."""
        self._fed = tokens
        self.logits = self._forward(list(map(len, tokens)))

    def _forward(self, counts: list[int]) -> Tensor:
        """Logits `(rows, most of the counts, vocabulary)` of the last `counts` tokens of each row; where a row has fewer, the
        last ones again."""
        rows = [[*read, *fed] for read, fed in zip(self._read, self._fed, strict=True)]
        width, device = max(map(len, rows)), self.model.device
        lengths, last = torch.tensor([[len(row)] for row in rows]), torch.tensor([[n] for n in counts])
        place = torch.arange(width)
        # A token of its own row pads, so that weights of no other token have a part in it.
        ids = torch.tensor([row + row[-1:] * (width - len(row)) for row in rows])
        asked = (place < lengths) & (place >= lengths - last)
        inputs = {"input_ids": ids.to(device), "attention_mask": (place < lengths).long().to(device)}
        logits = logits_at(self.model, inputs, asked.to(device))
        index = last.cumsum(0) - last + torch.arange(max(counts)).clamp(max=last - 1)
        return logits[index.to(logits.device)]
