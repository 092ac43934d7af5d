"""Put the results of several runs on one request side by side, as a table in Markdown.

python recipes/compare.py runs/tofu/*/result.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hf_unlearn.evidence.tables import markdown_table


def compare(results: dict[str, dict]) -> list[list[str]]:
    """Rows of cells, the header first: measure, set, original, retrained, and a column a run.

    Args:
        results (`dict[str, dict]`): what `result.json` holds, by the name of the run. They must be of one request.

    Raises:
        ValueError: the runs are of different requests, or compared with different models.
    """
    runs = list(results.values())
    if len({(run["run"].get("request") or {}).get("id") for run in runs}) > 1:
        raise ValueError("The results are of different requests. Give results of one request.")
    table = [["measure", "set", "original", "retrained", *results]]
    for row in runs[0]["audit"]["rows"]:
        same = [_row(run, row["measure"], row["set"]) for run in runs]
        for model in ("original", "retrained"):
            if len({json.dumps(_value(other, model)) for other in same if other}) > 1:
                raise ValueError(f"The results were compared with different {model} models. Audit them again.")
        cells = [_cell(row.get("original"), interval=False), _cell(row.get("retrained"))]
        cells += [_cell(other and other.get("unlearned")) for other in same]
        table.append([row["measure"].replace("_", " "), row["set"], *cells])
    return table


def _row(result: dict, measure: str, name: str) -> dict | None:
    rows = result["audit"]["rows"]
    return next((row for row in rows if row["measure"] == measure and row["set"] == name), None)


def _value(row: dict, model: str):
    return row[model]["value"] if row.get(model) else None


def _cell(estimate: dict | None, interval: bool = True) -> str:
    if not estimate or estimate.get("value") is None:
        return "–"
    text = f"{estimate['value']:.3f}"
    if interval and estimate.get("low") is not None:
        text += f" [{estimate['low']:.3f}, {estimate['high']:.3f}]"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", help="result.json of each run")
    paths = [Path(path) for path in parser.parse_args().results]
    print(markdown_table(compare({path.parent.name: json.loads(path.read_text("utf-8")) for path in paths})))


if __name__ == "__main__":
    main()
