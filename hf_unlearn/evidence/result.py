"""The result of a run, for machines (`result.json`) and for people (`RESULT.md`): numbers, never a text of a record."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any


_PACKAGES = ("hf-unlearn", "torch", "transformers", "peft", "accelerate", "datasets", "trl", "bitsandbytes")
# Of the options, those that say what was done; result.json has them all.
_CHOICES = (
    "model_name_or_path learning_rate lr_scheduler_type forget_weight retain_weight retain_loss update_rule beta delta "
    "trainable trainable_layers use_peft load_in_4bit per_device_train_batch_size stop_when_forgotten"
).split()
_COLUMNS = ("original", "unlearned", "retrained", "difference_to_retrained")


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
    try:
        describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(
            describe, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def to_table(audit: dict[str, Any]) -> list[list[str]]:
    """The rows of an audit as cells of text, the header first."""
    columns = [name for name in _COLUMNS if any(name in row for row in audit["rows"])]
    reading = any("reading" in row for row in audit["rows"])
    header = ["measure", "set", "n", *(name.replace("_", " ") for name in columns)] + ["reading"] * reading
    table = [header]
    for row in audit["rows"]:
        n = next((row[name]["n"] for name in reversed(columns) if row.get(name)), [])
        cells = [row["measure"].replace("_", " "), row["set"], "/".join(str(x) for x in n)]
        cells += [_cell(row.get(name), signed=name.startswith("difference")) for name in columns]
        table.append(cells + [row.get("reading", "")] * reading)
    return table


def _cell(estimate: dict | None, signed: bool = False) -> str:
    if estimate is None or estimate.get("value") is None:
        return "–"
    number = _signed if signed else _number
    text = number(estimate["value"])
    if estimate.get("low") is not None and estimate.get("high") is not None:
        text += f" [{number(estimate['low'])}, {number(estimate['high'])}]"
    return text


def _number(x: float) -> str:
    return f"{x:.3f}" if x == 0 or 1e-3 <= abs(x) < 1000 else f"{x:.1e}"


def _signed(x: float) -> str:
    return f"{x:+.3f}"


def print_table(table: list[list[str]]) -> str:
    """The table aligned for a terminal."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def to_markdown(result: dict[str, Any]) -> str:
    """The result as a page of Markdown."""
    table = to_table(result["audit"])
    lines = ["# Result of an unlearning audit", ""]
    run = result["run"]
    lines += [f"* {key.replace('_', ' ')}: {value}" for key, value in run.items() if not isinstance(value, dict)]
    config = run.get("config", {})
    chosen = [f"{key}={config[key]}" for key in _CHOICES if config.get(key) is not None]
    lines += [f"* options: {', '.join(chosen)}"] if chosen else []
    lines += [f"* examples: {', '.join(f'{n} {name}' for name, n in result['audit']['sets'].items())}"]
    lines += ["", "| " + " | ".join(table[0]) + " |", "|" + " --- |" * len(table[0])]
    lines += ["| " + " | ".join(row) + " |" for row in table[1:]]
    lines += _verdicts(result["audit"])
    for curve in result["audit"].get("curves", []):
        lines += ["", f"## {curve['name'][0].upper()}{curve['name'][1:]} ({curve['set']})", ""]
        lines += ["| " + " | ".join(row) + " |" for row in curve_table(curve)]
    lines += _worst(result["audit"]) + _cost(result["audit"])
    lines += ["", "## How to read it", ""]
    directions = {}
    for row in result["audit"]["rows"]:
        directions.setdefault(row["direction"], []).append(f"{row['measure'].replace('_', ' ')} ({row['set']})")
    lines += [f"* {direction}: {', '.join(names)}." for direction, names in directions.items()]
    lines += [
        "* Brackets are 95 % intervals. The goal is the retrained model, not 0: what it gets right without ever having "
        "seen the forget set can be guessed. Lower than retrained is a failure too, because it shows which records were "
        "meant.",
        "* *No difference found* means none at this number of records. It is evidence, not proof.",
        "* Intervals take the rows as independent. Where several rows are about one person or author they are not, and the "
        "true intervals are wider. Of twenty readings about one is off by chance.",
    ]
    lines += [f"* {note}" for note in result["audit"]["notes"]]
    environment = result["environment"]
    lines += ["", "## Made with", ""]
    lines += [f"* {name} {version}" for name, version in environment["versions"].items()]
    lines += [f"* Python {environment['python']}; commit {environment['commit'] or 'unknown'}", ""]
    return "\n".join(lines)


def _verdicts(audit: dict[str, Any]) -> list[str]:
    surfaces = audit.get("surfaces")
    if not surfaces:
        return []
    tested = {name: surface for name, surface in surfaces.items() if surface["verdict"] != "not_tested"}
    lines = ["", "## Verdicts", "", f"Tested against: {', '.join(audit['threats']).replace('_', ' ')}.", ""]
    lines += ["| surface | verdict | why |", "| --- | --- | --- |"]
    lines += [f"| {name} | {s['verdict'].replace('_', ' ')} | {s['wording']} |" for name, s in tested.items()]
    untested = [name for name in surfaces if name not in tested]
    if untested:
        lines += ["", f"**Not tested:** {', '.join(untested)}. Nothing is said about these."]
    return lines + ["", audit["caveat"]]


def curve_table(curve: dict[str, Any]) -> list[list[str]]:
    """A curve as cells of text, the header and its rule first: a row a model, a column a point of the axis."""
    roles = [name for name in curve if name not in ("name", "set", "axis", "x", "direction")]
    table = [[curve["axis"], *(f"{x:g}" for x in curve["x"])]]
    table.append(["---"] * len(table[0]))
    for role in roles:
        table.append(
            [role.replace("_", " "), *("–" if p["value"] is None else _number(p["value"]) for p in curve[role])]
        )
    return table


def _worst(audit: dict[str, Any]) -> list[str]:
    found = [worst for worst in audit.get("worst", []) if worst["records"]]
    if not found:
        return []
    lines = [
        "",
        "## Records that show most",
        "",
        "Positions in the forget set, and by how much more than under retraining.",
    ]
    lines += [""]
    for worst in found:
        records = ", ".join(f"{i} ({_signed(x)})" for i, x in zip(worst["records"], worst["excess"], strict=True))
        lines.append(f"* {worst['measure'].replace('_', ' ')}: {records}")
    return lines


def _cost(audit: dict[str, Any]) -> list[str]:
    cost = audit.get("cost")
    if not cost:
        return []
    lines = ["", "## Cost", "", "| | unlearning | retraining | ratio |", "| --- | --- | --- | --- |"]
    for name, ratio in cost["ratios"].items():
        if ratio is not None:
            cells = [f"{x:.4g}" for x in (cost["unlearning"][name], cost["retraining"][name], ratio)]
            lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return lines + [""] + [f"* {note}" for note in cost["notes"]]


def write_result(folder: str, audit: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Write `result.json` and `RESULT.md`; each appears whole or not at all.

    Args:
        audit (`dict`): `AuditReport.as_dict()`.
        run (`dict`): what was run: method, model, seed, config and the like.
    """
    result = {"audit": audit, "run": run, "environment": environment()}
    _write(Path(folder) / "result.json", json.dumps(_plain(result), indent=1, sort_keys=True, allow_nan=False) + "\n")
    _write(Path(folder) / "RESULT.md", to_markdown(result))
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _write(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
