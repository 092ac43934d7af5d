"""One token after the other, in batches: the loop under greedy decoding, sampling and matching.

`generate` of transformers is not used. There a batch runs on until its longest sequence ends, one seed serves a whole
batch, and a repetition penalty or forced tokens in the generation config of the model would change what is measured.
Here finished sequences leave the batch, what prompts share is read once, and every prompt has random numbers of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os.path import commonprefix

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_unlearn.likelihood import _forward_parameters, empty_cache


# A shared beginning is read by itself, in a pass of its own, if that saves at least so many tokens.
WORTH_SHARING = 64


def continued(
    model,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    choose: Callable[[Tensor, list[int], int], Tensor],
    batch_size: int,
    ends: set[int],
    goes_on: Callable[[int, list[int]], bool] = lambda i, new: True,
) -> list[list[int] | None]:
    """Continue every prompt until a token ends it, its limit is reached, or `goes_on(prompt, new ids)` says no.

    `choose(logits, prompts in the batch, step)` gives the next token of each, `(batch,)`.
    """
    new: list[list[int] | None] = [[] if limit else None for limit in limits]
    # Similar lengths together, and equal prompts, which are read once.
    order = sorted((i for i, limit in enumerate(limits) if limit), key=lambda i: (-len(prompts[i]), prompts[i]))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            for batch in tqdm(batches, desc="Generating", disable=len(batches) < 20):
                state, step = _Batch(model, [prompts[i] for i in batch], max(limits[i] for i in batch)), 0
                while batch:
                    tokens = choose(state.logits, batch, step).masked_fill(state.logits.amax(-1).isnan(), -1)
                    stay, step = [], step + 1
                    for place, (i, token) in enumerate(zip(batch, tokens.tolist(), strict=True)):
                        if token < 0:
                            new[i] = None
                            continue
                        new[i].append(token)
                        if goes_on(i, new[i]) and token not in ends and step < limits[i]:
                            stay.append(place)
                    if stay:
                        if len(stay) < len(batch):
                            state.keep(stay)
                        state.feed(tokens[stay])
                    batch = [batch[place] for place in stay]
    finally:
        for module in in_training:
            module.training = True
    return new


class _Batch:
    """Sequences that are being continued: what the model has computed of them, and the logits of the next token.

    Padding is on the left, so that all continue in the same column; positions count real tokens, which matters to models
    with absolute ones.
    """

    def __init__(self, model, prompts: Sequence[Sequence[int]], n_new: int):
        self.model, self.parameters = model, _forward_parameters(model)
        self.past = empty_cache(model)
        if self.past is None:
            raise ValueError(
                "The model can't go on from a cache of its keys and values (it has a recurrent state, takes no positions, or "
                "is wrapped in prefix tuning or DataParallel). Unwrap or merge it, or generate with the model itself."
            )
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        shared = commonprefix([prompt[:-1] for prompt in distinct])
        # The gap of padding behind the shared beginning would count in the distances of a sliding window.
        if (len(distinct) - 1) * len(shared) < WORTH_SHARING or any(self.past.is_sliding):
            shared = ()
        rest = [prompt[len(shared) :] for prompt in distinct]
        lengths, longest = torch.tensor([[len(r)] for r in rest]), max(map(len, rest))
        self.mask = torch.ones(len(rest), len(shared) + longest + n_new, dtype=torch.long)
        self.mask[:, len(shared) : len(shared) + longest] = torch.arange(longest) >= longest - lengths
        self.mask = self.mask.to(model.device)
        self.next_position = (len(shared) + lengths).to(model.device)
        self.length = 0
        if shared:
            positions = torch.arange(len(shared), device=model.device)[None]
            self._forward(torch.tensor([shared]), positions, rows=slice(1))
            self.past.batch_select_indices(torch.zeros(len(rest), dtype=torch.long, device=model.device))
        # Any token pads, as the mask comes from the lengths.
        ids = torch.tensor([(0,) * (longest - len(r)) + r for r in rest])
        positions = (self.mask[:, : len(shared) + longest].cumsum(-1) - 1).clamp(min=0)[:, len(shared) :]
        self._forward(ids, positions)
        if len(distinct) < len(prompts):
            place = {prompt: i for i, prompt in enumerate(distinct)}
            self.keep([place[tuple(prompt)] for prompt in prompts])

    def keep(self, places: list[int]) -> None:
        """Keep these sequences and drop the others; one that is named twice is doubled."""
        index = torch.tensor(places, device=self.mask.device)
        self.past.batch_select_indices(index)
        self.mask, self.next_position = self.mask[index], self.next_position[index]
        self.logits = self.logits[index]

    def feed(self, tokens: Tensor) -> None:
        """Take the next token of each sequence, `(batch,)`."""
        self._forward(tokens[:, None], self.next_position)
        self.next_position = self.next_position + 1

    def _forward(self, ids: Tensor, positions: Tensor, rows: slice = slice(None)) -> None:
        self.length += ids.shape[1]
        keep = {"logits_to_keep": 1} if "logits_to_keep" in self.parameters else {}
        out = self.model(
            input_ids=ids.to(self.mask.device),
            attention_mask=self.mask[rows, : self.length],
            position_ids=positions,
            past_key_values=self.past,
            use_cache=True,
            **keep,
        )
        self.logits = out.logits[:, -1]
