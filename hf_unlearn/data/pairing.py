"""Forget rows with their partners, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from hf_unlearn.data.rows import IGNORE_INDEX


PARTS = ("forget", "alternate", "retain")
PHASES = ("both", "forget", "retain")


class PairedDataset(Dataset):
    """The forget set; each row comes with a retain row and, if the method wants one, an alternate answer.

    The partners of a row depend on (seed, epoch, index) alone: they are the same under any number of processes or
    workers and after a resume. Over the epochs every retain row is visited equally often, up to one visit.

    Args:
        forget (sequence of encoded rows): its length is the length of an epoch.
        retain (sequence of encoded rows, *optional*).
        alternates (sequence of sequences of encoded rows, *optional*): the candidate answers of each forget row.
        seed (`int`, *optional*, defaults to `0`).
        reads_forget (`bool`, *optional*, defaults to `True`): `False` for a method that does not use the forget answers
            themselves. Without alternate answers, an epoch then has the length of the retain set.
    """

    def __init__(
        self,
        forget: Sequence,
        retain: Sequence | None = None,
        alternates=None,
        seed: int = 0,
        reads_forget: bool = True,
    ):
        self.forget, self.retain, self.alternates = forget, retain, alternates
        self.seed, self.reads_forget = seed, reads_forget
        self.reference_log_probs: dict[str, np.ndarray] = {}
        # Epoch and phase; in shared memory, so that workers which outlive an epoch see the next one.
        self._now = torch.zeros(2, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the partners of an epoch."""
        self._now[0] = epoch

    def set_phase(self, phase: str) -> None:
        """`"forget"`: rows come without a retain row. `"retain"`: retain rows come alone. `"both"`: all parts come."""
        self._now[1] = PHASES.index(phase)

    def __len__(self) -> int:
        only_retain = not self.reads_forget and self.alternates is None and self.retain is not None
        return len(self.retain) if only_retain else len(self.forget)

    def partner(self, epoch: int, index: int) -> int:
        """Index of the retain row that goes with a forget row."""
        cycle, position = divmod(epoch * len(self) + index, len(self.retain))
        return int(_permutation(self.seed, cycle, len(self.retain))[position])

    def alternate(self, epoch: int, index: int) -> int:
        """Index of the candidate answer that goes with a forget row."""
        return int(np.random.default_rng([self.seed, epoch, index]).integers(len(self.alternates[index])))

    def __getitem__(self, index: int) -> dict:
        epoch, phase = int(self._now[0]), PHASES[self._now[1]]
        example = {}
        if self.reads_forget and phase != "retain":
            example["forget"] = self._with_reference(self.forget[index], "forget", index)
        if self.alternates is not None and phase != "retain":
            choice = self.alternate(epoch, index)
            example["alternate"] = self._with_reference(self.alternates[index][choice], "alternate", (index, choice))
        if self.retain is not None and phase != "forget":
            example["retain"] = self.retain[self.partner(epoch, index)]
        return example

    def _with_reference(self, row: dict, part: str, position) -> dict:
        cached = self.reference_log_probs.get(part)
        return dict(row) if cached is None else {**row, "reference_log_prob": cached[position]}


@lru_cache(maxsize=4)  # an epoch touches two neighboring cycles when the retain set is the larger one
def _permutation(seed: int, cycle: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, cycle]).permutation(n)


class UnlearningCollator:
    """Pads encoded rows on the right and stacks them; paired rows become **one** batch, part after part.

    Besides the model's inputs, a paired batch has `parts` (number of rows of each part, in order) and
    `reference_log_probs` (`float32 (rows,)` for each part that has them). The attention mask comes from the lengths, so
    any token can pad, and a model needs no pad token.

    Args:
        pad_token_id (`int`, *optional*, defaults to `0`).
    """

    def __init__(self, pad_token_id: int | None = 0):
        self.pad_token_id = pad_token_id or 0

    def __call__(self, examples: Sequence[dict]) -> dict:
        if not examples[0].keys() <= set(PARTS):
            return self._stack(examples)
        names = list(examples[0])
        batch = self._stack([example[name] for name in names for example in examples])
        batch["parts"] = dict.fromkeys(names, len(examples))
        batch["reference_log_probs"] = {
            name: torch.tensor([example[name]["reference_log_prob"] for example in examples], dtype=torch.float32)
            for name in names
            if "reference_log_prob" in examples[0][name]
        }
        return batch

    def _stack(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        if "pixel_values" in rows[0]:
            return {
                "pixel_values": torch.stack([torch.as_tensor(row["pixel_values"]) for row in rows]),
                "labels": torch.tensor([row["labels"] for row in rows]),
            }
        ids, labels = (
            [torch.as_tensor(row[name], dtype=torch.long) for row in rows] for name in ("input_ids", "labels")
        )
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        }


def batches(rows: Sequence[dict], collate: Callable, size: int, device, limit: int | None = None) -> Iterator[dict]:
    """Batches of encoded rows, in their order, on a device.

    Args:
        collate (callable): makes a batch of a list of rows, as [`UnlearningCollator`] does.
        size (`int`): rows per batch.
        limit (`int`, *optional*): take only that many rows, evenly spread.
    """
    n = len(rows)
    chosen = range(n) if limit is None or limit >= n else [i * n // limit for i in range(limit)]
    for start in range(0, len(chosen), size):
        yield on_device(collate([rows[i] for i in chosen[start : start + size]]), device)


def on_device(batch: Mapping[str, torch.Tensor], device) -> dict[str, torch.Tensor]:
    """The tensors of a batch on a device."""
    return {name: value.to(device) for name, value in batch.items()}
