"""What a method or an update rule must find again when a run is resumed, beside weights and optimizer."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


_FILE = "unlearning_state.safetensors"


def save_state(folder: str | Path, state: dict[str, Tensor]) -> None:
    """Write tensors by name into a checkpoint folder."""
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, Path(folder) / _FILE)


def load_state(folder: str | Path) -> dict[str, Tensor]:
    """What `save_state` wrote; empty where it wrote nothing."""
    path = Path(folder) / _FILE
    return load_file(path) if path.exists() else {}
