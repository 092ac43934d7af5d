"""The folder of a data set that is made here: its card, its erasure requests, and the command that writes it."""

from __future__ import annotations

import argparse
import json
import random
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path


def requests_of(scopes: Mapping[str, tuple[str, dict]], rng: random.Random) -> dict[str, dict]:
    """A request for each scope, `name -> (kind, selector)`, as [`~hf_unlearn.request.ErasureRequest`] reads it.

    The ids are drawn from `rng` and the time is fixed: same seed, same bytes.
    """
    return {
        name: {
            "regulation": "gdpr",
            "subject_request_id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
            "subject_request_type": "erasure",
            "submitted_time": "2026-01-01T00:00:00Z",
            "subject_identities": [],
            "api_version": "1.0",
            "extensions": {"hf-unlearn": {"scope": {"kind": kind, "selector": selector}}},
        }
        for name, (kind, selector) in scopes.items()
    }


def files_of_splits(ending: str) -> str:
    """The part of a card from which `datasets.load_dataset(folder)` knows the files of the three splits."""
    splits = [f"  - split: {name}\n    path: {name}.{ending}\n" for name in ("train", "validation", "holdout")]
    return "configs:\n- config_name: default\n  data_files:\n" + "".join(splits)


def write_texts(folder: Path, texts: Mapping[str, str], requests: Mapping[str, dict]) -> list[Path]:
    """Write files by their names, and each request as `requests/<name>.json`; the folder is made where there is none."""
    (folder / "requests").mkdir(parents=True, exist_ok=True)
    requests = {f"requests/{name}.json": json.dumps(request, indent=2) + "\n" for name, request in requests.items()}
    for name, text in {**texts, **requests}.items():
        (folder / name).write_bytes(text.encode())
    return [folder / name for name in (*texts, *requests)]


def write_from_command_line(module: str, description: str, write: Callable[[Path, int], Iterable[Path]]) -> None:
    """Write a folder with a seed, both from the command line, and print the paths of the files."""
    from datasets import disable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    parser = argparse.ArgumentParser(prog=f"python -m hf_unlearn.examples.{module}", description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    disable_progress_bar()
    disable_progress_bars()
    for path in write(args.folder, args.seed):
        print(path)
