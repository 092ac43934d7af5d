"""What of the records and of the weights was reached and left out, for RESULT.md: numbers and names of columns."""

from __future__ import annotations

import math
from typing import Any

from hf_unlearn.evidence.tables import markdown_table


def coverage_lines(audit: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """The rows of the request, for each set what was scored and what no loss and no score reaches, and the weights."""
    request = run.get("request")
    rows = request.get("rows") if isinstance(request, dict) else None
    lines = [rows_of_the_request(rows), ""] if rows else []
    coverage = audit.get("coverage") or {}
    lines += _sets(coverage.get("sets") or {}) + _weights(coverage.get("weights") or {})
    return ["## What was read", "", *lines] if lines else []


def rows_of_the_request(rows: dict[str, int]) -> str:
    """The rows that were read, erased and kept, in a sentence."""
    copies = f"; {rows['copies']} have the content of a row that the request names" if rows.get("copies") else ""
    return f"Rows read {rows['read']}, erased {rows['erased']}, kept {rows['kept']}{copies}."


def _sets(sets: dict[str, dict[str, Any]]) -> list[str]:
    if not sets:
        return []
    counts = ("rows", "scored", "no_target", "not_finite")
    table = [[name, *(str(reach.get(key, "–")) for key in counts)] for name, reach in sets.items()]
    lines = [markdown_table([["set", "rows", "scored", "nothing to score", "not finite"], *table]), ""]
    parts = [
        [name, _named(part, reach), str(n["rows"]), str(n["characters"])]
        for name, reach in sets.items()
        for part, n in reach.get("unreached", {}).items()
    ]
    if parts:
        header = ["set", "part", "rows", "characters"]
        lines += [
            "No loss and no score reaches these parts. Those of the forget set were neither erased nor tested.",
            "",
            markdown_table([header, *parts]),
            "",
        ]
    return lines


def _weights(shares: dict[str, float]) -> list[str]:
    """The share of the weights that each attack on them changed, never rounded up."""
    if not shares:
        return []
    said = ", ".join(f"{name} {math.floor(1000 * share) / 10:g} %" for name, share in shares.items())
    return [f"Of the weights of the blocks, each attack on them changed: {said}.", ""]


def _named(part: str, reach: dict[str, Any]) -> str:
    columns = reach.get("unread_columns")
    return f"{part} ({', '.join(columns)})" if part == "other columns" and columns else part
