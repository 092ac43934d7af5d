"""Draw the curves of several audits of one request side by side, and print them as tables in Markdown.

    python recipes/curves.py runs/tofu/white_box/*/result.json --output curves.svg

Needs matplotlib for the drawing; without `--output` there are tables alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hf_unlearn.evidence.tables import markdown_table


def series(results: dict[str, dict]) -> dict[str, dict]:
    """Each curve with a line a run and one each of the original and the retrained model, which all runs share.

    Args:
        results (`dict[str, dict]`): what `result.json` holds, by the name of the run. They must be of one request.

    Raises:
        ValueError: the runs were compared with different models, or there are no curves.
    """
    found: dict[str, dict] = {}
    for name, result in results.items():
        for curve in result["audit"].get("curves", []):
            drawn = found.setdefault(curve["name"], {"axis": curve["axis"], "x": curve["x"], "lines": {}})
            for role in ("original", "retrained"):
                if role in curve and drawn["lines"].setdefault(role, curve[role]) != curve[role]:
                    raise ValueError(f"The results were compared with different {role} models. Audit them again.")
            drawn["lines"][name] = curve["unlearned"]
    if not found:
        raise ValueError("There are no curves in these results. Audit with the threat model relearning or latent.")
    return found


def chosen(curves: dict[str, dict], words: list[str]) -> dict[str, dict]:
    """The curves whose names contain one of the words; all of them where there are no words.

    Raises:
        ValueError: there is no such curve.
    """
    found = {name: curve for name, curve in curves.items() if not words or any(word in name for word in words)}
    if not found:
        raise ValueError(f"No curve has {' or '.join(map(repr, words))} in its name. There are: {'; '.join(curves)}.")
    return found


def table(drawn: dict) -> list[list[str]]:
    """Rows of cells, the header first: a row a line, a column a point."""
    rows = [[drawn["axis"], *(f"{x:g}" for x in drawn["x"])]]
    for name, points in drawn["lines"].items():
        rows.append([name, *("–" if p["value"] is None else f"{p['value']:.3f}" for p in points)])
    return rows


def draw(curves: dict[str, dict], path: str) -> None:
    """One panel a curve, with 95 % intervals."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "hf_unlearn"  # the same bytes for the same curves
    figure, panels = plt.subplots(1, len(curves), figsize=(4.2 * len(curves), 3.4), squeeze=False)
    for panel, (name, drawn) in zip(panels[0], curves.items(), strict=True):
        for label, points in drawn["lines"].items():
            style = {"original": ":", "retrained": "--"}.get(label, "-")
            values, low, high = (
                [float("nan") if p[key] is None else p[key] for p in points] for key in ("value", "low", "high")
            )
            (line,) = panel.plot(drawn["x"], values, style, marker=".", label=label)
            panel.fill_between(drawn["x"], low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        panel.set(title=name, xlabel=drawn["axis"])
        panel.title.set_size(9)
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", help="result.json of each audit")
    parser.add_argument("--output", help="file for the drawing, such as curves.svg")
    parser.add_argument("--only", nargs="*", default=[], help="draw curves whose names contain one of these words")
    arguments = parser.parse_args()
    paths = [Path(path) for path in arguments.results]
    results = {path.parent.name: json.loads(path.read_text("utf-8")) for path in paths}
    try:
        curves = chosen(series(results), arguments.only)
    except ValueError as error:
        parser.error(str(error))
    for name, drawn in curves.items():
        print(f"{name}\n\n{markdown_table(table(drawn))}\n")
    if arguments.output:
        draw(curves, arguments.output)


if __name__ == "__main__":
    main()
