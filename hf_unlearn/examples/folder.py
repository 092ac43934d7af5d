"""What the folders of all example data sets have in common: a card, erasure requests and the command that writes them."""

from __future__ import annotations

import argparse
import json
import random
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path


def requests_of(scopes: Mapping[str, tuple[str, dict]], rng: random.Random) -> dict[str, dict]:
    """One OpenDSR 1.0 request per scope, `name -> (kind, selector)`: its id is drawn from `rng`, and its time is fixed."""
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
    """The part of a card that tells `datasets.load_dataset(folder)` the files of the three splits."""
    splits = [f"  - split: {name}\n    path: {name}.{ending}\n" for name in ("train", "validation", "holdout")]
    return "configs:\n- config_name: default\n  data_files:\n" + "".join(splits)


def write_texts(folder: Path, texts: Mapping[str, str], requests: Mapping[str, dict]) -> list[Path]:
    """Write files by their names, and each request as `requests/<name>.json`, into a folder that is created if absent."""
    (folder / "requests").mkdir(parents=True, exist_ok=True)
    requests = {f"requests/{name}.json": json.dumps(request, indent=2) + "\n" for name, request in requests.items()}
    for name, text in {**texts, **requests}.items():
        (folder / name).write_bytes(text.encode())
    return [folder / name for name in (*texts, *requests)]


def write_from_command_line(module: str, description: str, write: Callable[[Path, int], Iterable[Path]]) -> None:
    """Call `write` with a folder and a seed from the command line, and print the paths of the files."""
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
