"""What of the records was read, scored and left out, for RESULT.md: numbers and names of columns."""

from __future__ import annotations

from typing import Any

from hf_unlearn.evidence.tables import markdown_table


def coverage_lines(audit: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """The rows of the request, and for each set what was scored and what no loss and no score reaches."""
    request = run.get("request")
    rows = request.get("rows") if isinstance(request, dict) else None
    lines = [rows_of_the_request(rows), ""] if rows else []
    lines += _sets((audit.get("coverage") or {}).get("sets") or {})
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
        header = ["set", "reached by no loss and no score", "rows", "characters"]
        lines += [
            "These parts of the records were neither erased nor tested:",
            "",
            markdown_table([header, *parts]),
            "",
        ]
    return lines


def _named(part: str, reach: dict[str, Any]) -> str:
    columns = reach.get("unread_columns")
    return f"{part} ({', '.join(columns)})" if part == "other columns" and columns else part
