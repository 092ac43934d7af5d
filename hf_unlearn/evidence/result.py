"""The result of a run, for machines (`result.json`) and for people (`RESULT.md`): numbers, never a text of a record."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from hf_unlearn.evidence.page import to_markdown
from hf_unlearn.storage.files import write_whole


_PACKAGES = ("hf-unlearn", "torch", "transformers", "peft", "accelerate", "datasets", "trl", "bitsandbytes")


def environment() -> dict[str, Any]:
    """Versions, and the commit of this package where it runs from a checkout (with `-dirty` if it has changes)."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "versions": versions, "commit": _commit()}


def _commit() -> str | None:
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.check_output(
            describe, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True, timeout=10
        ).strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_result(folder: str | os.PathLike, audit: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Write `result.json` and `RESULT.md`; each appears whole or not at all. The folder is made where there is none.

    Args:
        audit (`dict`): `AuditReport.as_dict()`.
        run (`dict`): what was run. `RESULT.md` shows `models` (names by role, those of `retrained` in a list), `data`
            (`name`, `config`, `splits`), `request` (`id`, what it is about, never whom, and `rows`: how many were `read`,
            `erased`, `kept` and `copies`), the options in `config` that say what was done, and any other numbers and texts
            by their key.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    result = {"audit": audit, "run": run, "date": date, "environment": environment()}
    text = json.dumps(_plain(result), indent=1, sort_keys=True, allow_nan=False)
    write_whole(Path(folder) / "result.json", text + "\n")
    write_whole(Path(folder) / "RESULT.md", to_markdown(result))
    return result


def save_report(report, folder: str | os.PathLike, **run) -> dict[str, Any]:
    """Write the report of an audit made in Python as `result.json` and `RESULT.md`.

        save_report(report, "evidence", models={"unlearned": "my-model", "original": "gpt2"}, seed=0)

    Args:
        report (`AuditReport`): from `audit`.
        folder (`str` or `os.PathLike`): made where there is none.
        run: what the result says about the run, as for [`write_result`], since a report has no names.
    """
    return write_result(folder, report.as_dict(), run)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
