"""Forget rows with their partners, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from hf_unlearn.likelihood import IGNORE_INDEX


class PairedDataset(Dataset):
    """The forget set; with each row comes a retain row and, where the method wants one, an alternate answer.

    Which partner a row gets is a function of (seed, epoch, index) alone: it is the same under any number of processes
    or workers and after a resume. Over the epochs every retain row is visited equally often, up to one visit.

    Args:
        forget (sequence of encoded rows): its length is the length of an epoch.
        retain (sequence of encoded rows, *optional*).
        alternates (sequence of lists of encoded rows, *optional*): for each forget row its candidate answers.
        seed (`int`, *optional*, defaults to `0`).
    """

    def __init__(self, forget: Sequence, retain: Sequence | None = None, alternates=None, seed: int = 0):
        self.forget, self.retain, self.alternates, self.seed = forget, retain, alternates, seed
        self.reference_log_probs: dict[str, np.ndarray] = {}
        # In shared memory, so that workers which outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.forget)

    def partner(self, epoch: int, index: int) -> int:
        """Index of the retain row that goes with a forget row."""
        cycle, position = divmod(epoch * len(self.forget) + index, len(self.retain))
        return int(_permutation(self.seed, cycle, len(self.retain))[position])

    def alternate(self, epoch: int, index: int) -> int:
        """Which of its candidate answers a forget row gets."""
        return int(np.random.default_rng([self.seed, epoch, index]).integers(len(self.alternates[index])))

    def __getitem__(self, index: int) -> dict:
        epoch = int(self._epoch)
        example = {"forget": dict(self.forget[index])}
        if self.alternates is not None:
            choice = self.alternate(epoch, index)
            example["alternate"] = dict(self.alternates[index][choice])
            if "alternate" in self.reference_log_probs:
                example["alternate"]["reference_log_prob"] = self.reference_log_probs["alternate"][index][choice]
        if "forget" in self.reference_log_probs:
            example["forget"]["reference_log_prob"] = self.reference_log_probs["forget"][index]
        if self.retain is not None:
            example["retain"] = self.retain[self.partner(epoch, index)]
        return example


_permutations: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(seed: int, cycle: int, n: int) -> np.ndarray:
    key = (seed, cycle, n)
    if key not in _permutations:
        if len(_permutations) >= 4:  # an epoch touches two neighbouring cycles when the retain set is the larger one
            _permutations.pop(next(iter(_permutations)))
        _permutations[key] = np.random.default_rng([seed, cycle]).permutation(n)
    return _permutations[key]


class UnlearningCollator:
    """Pads encoded rows on the right and stacks them; paired rows become **one** batch, part after part.

    A paired batch has, beside the model's inputs, `parts` (rows of each part, in order) and `reference_log_probs`
    (`float32 (rows,)` for each part that has them). The attention mask comes from the lengths, so it does not matter
    which token pads: a model without a pad token needs none.

    Args:
        pad_token_id (`int`, *optional*, defaults to `0`).
    """

    def __init__(self, pad_token_id: int | None = 0):
        self.pad_token_id = pad_token_id or 0

    def __call__(self, examples: Sequence[dict]) -> dict:
        if "forget" not in examples[0]:
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
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        shape = len(rows), int(lengths.max())
        batch = {
            "input_ids": torch.full(shape, self.pad_token_id),
            "attention_mask": (torch.arange(shape[1]) < lengths[:, None]).long(),
            "labels": torch.full(shape, IGNORE_INDEX),
        }
        for i, row in enumerate(rows):
            batch["input_ids"][i, : lengths[i]] = torch.as_tensor(row["input_ids"])
            batch["labels"][i, : lengths[i]] = torch.as_tensor(row["labels"])
        return batch
