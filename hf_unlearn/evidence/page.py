"""RESULT.md, from the plain dictionaries of result.json: counts and verdicts, what the words mean, and the numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hf_unlearn.audit.verdicts.surfaces import SURFACES
from hf_unlearn.evidence.coverage import coverage_lines
from hf_unlearn.evidence.glossary import EXIT_CODES, MARGINS, MODELS, VERDICTS
from hf_unlearn.evidence.tables import markdown_table


# The options that say what was done; result.json has all options.
_CHOICES = (
    "model_name_or_path learning_rate lr_scheduler_type forget_weight retain_weight retain_loss update_rule beta delta "
    "trainable trainable_layers use_peft load_in_4bit per_device_train_batch_size stop_when_forgotten"
).split()
_COLUMNS = ("original", "unlearned", "retrained", "difference_to_retrained")


def to_table(audit: dict[str, Any]) -> list[list[str]]:
    """The rows of an audit as cells of text, the header first."""
    columns = [name for name in _COLUMNS if any(name in row for row in audit["rows"])]
    reading = any("reading" in row for row in audit["rows"])
    header = ["measure", "set", "n", *map(_said, columns)] + ["reading"] * reading
    table = [header]
    for row in audit["rows"]:
        n = next((row[name]["n"] for name in reversed(columns) if row.get(name)), [])
        cells = [_said(row["measure"]), row["set"], "/".join(str(x) for x in n)]
        cells += [_cell(row.get(name), _signed if name.startswith("difference") else _number) for name in columns]
        table.append(cells + [row.get("reading", "")] * reading)
    return table


def _number(x: float) -> str:
    return f"{x:.3f}" if x == 0 or 1e-3 <= abs(x) < 1000 else f"{x:.1e}"


def _signed(x: float) -> str:
    return f"{x:+.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _cell(estimate: dict | None, number: Callable[[float], str] = _number) -> str:
    if estimate is None or estimate.get("value") is None:
        return "–"
    text = number(estimate["value"])
    if estimate.get("low") is not None and estimate.get("high") is not None:
        text += f" [{number(estimate['low'])}, {number(estimate['high'])}]"
    return text


def to_markdown(result: dict[str, Any]) -> str:
    """The result as a page of Markdown."""
    audit = result["audit"]
    lines = ["# Result of an unlearning audit", "", *_counts(audit)]
    lines += (
        _summary(audit)
        + _about(result)
        + coverage_lines(audit, result["run"])
        + _meanings(audit)
        + _why(audit)
        + _numbers(audit)
    )
    lines += _curves(audit) + _worst(audit) + _cost(audit) + _reading(audit) + _made_with(result["environment"])
    return "\n".join(lines)


def _said(name: str) -> str:
    return name.replace("_", " ")


def _counts(audit: dict[str, Any]) -> list[str]:
    """How many answers each model gives word for word, in a sentence; nothing where this was not measured."""
    rows = [row for row in audit["rows"] if (row["measure"], row["set"]) == ("verbatim_extraction", "forget")]
    models = {"original": "before", "unlearned": "after", "retrained": "from a model that never saw them"}
    counts = []
    for role, where in models.items():
        estimate = rows[0].get(role) if rows else None
        if estimate and estimate["value"] is not None:
            n = estimate["n"][0]
            said = "" if counts else " answers came out word for word"
            counts.append(f"{round(estimate['value'] * n)} of {n}{said} {where}")
    return [f"{'; '.join(counts)}.", ""] if counts else []


def _tested(audit: dict[str, Any]) -> dict[str, dict[str, Any]]:
    surfaces = audit.get("surfaces", {})
    return {name: surface for name, surface in surfaces.items() if surface["verdict"] != "not_tested"}


def _levels(audit: dict[str, Any]) -> tuple[str, str]:
    """The levels of the intervals in the tables and of those under the verdicts, in percent."""
    tables = {e["level"] for row in audit["rows"] for e in map(row.get, _COLUMNS) if e and e.get("level")}
    verdicts = {row["verdict"]["unlearned"]["level"] for row in audit["rows"] if _has_difference(row)}
    return tuple(" or ".join(map(_percent, sorted(levels))) or "–" for levels in (tables, verdicts))


def _has_difference(row: dict[str, Any]) -> bool:
    return row.get("verdict") is not None and row["verdict"].get("unlearned") is not None


def _summary(audit: dict[str, Any]) -> list[str]:
    """The verdicts, one line per surface, what they do not say, and what must be known with them."""
    tested = _tested(audit)
    untested = [name for name in audit.get("surfaces", {}) if name not in tested]
    lines = ["## Verdicts", ""]
    if audit.get("exit_code") in EXIT_CODES:
        lines += [EXIT_CODES[audit["exit_code"]], ""]
    if tested:
        difference = f"difference to retrained, {_levels(audit)[1]} interval"
        header = ["surface", "verdict", "decided by", difference, "margin"]
        lines += [markdown_table([header, *(_line(audit, surface) for surface in tested.values())]), ""]
    if untested:
        lines += [f"**Not tested:** {', '.join(untested)}. Nothing is said about these.", ""]
    if audit.get("not_run"):
        lines += ["**Could not be run**, so nothing is attested about what it would have tested:", ""]
        lines += [f"* {_said(a['attack'])}, on the {_said(a['model'])} model: {a['reason']}" for a in audit["not_run"]]
        lines += [""]
    lines += [audit["caveat"], ""] if audit.get("caveat") else []
    if audit["notes"]:
        lines += ["To be known with the verdicts:", "", *(f"* {note}" for note in audit["notes"]), ""]
    return lines


def _line(audit: dict[str, Any], surface: dict[str, Any]) -> list[str]:
    rows = [row for row in audit["rows"] if row["measure"] == surface["worst"] and _has_difference(row)]
    verdict = next((r["verdict"] for r in rows if r["verdict"].get("surface") == surface["surface"]), {})
    # Without a retrained model the number behind a verdict is another one, and is given under Why.
    compared = verdict.get("unlearned") if verdict.get("n_retrained") else None
    margin = verdict.get("margin")
    said = f"**{_said(surface['verdict'])}**" + (f" ({_said(surface['reason'])})" if surface.get("reason") else "")
    shown = "–" if margin is None else f"{margin:.3g}"
    return [surface["surface"], said, _said(surface["worst"]), _cell(compared, _signed), shown]


def _about(result: dict[str, Any]) -> list[str]:
    """What was audited against what, on which rows, when, and with what margins, as far as this is known."""
    audit, run = result["audit"], result["run"]
    facts = [*_models(audit, run), *_data(audit, run), *_request(run.get("request"))]
    facts += [("date (UTC)", result["date"])] if result.get("date") else []
    facts += [("tested against", _said(", ".join(audit["threats"])))] if audit.get("threats") else []
    facts += _margins(audit)
    known = ("model", "models", "data", "request", "config")
    facts += [(_said(key), value) for key, value in run.items() if key not in known and not isinstance(value, dict)]
    config = run.get("config", {})
    chosen = [f"{key}={config[key]}" for key in _CHOICES if config.get(key) is not None]
    facts += [("options", ", ".join(chosen))] if chosen else []
    return ["## What was audited", "", markdown_table([["", ""], *([key, str(value)] for key, value in facts)]), ""]


def _models(audit: dict[str, Any], run: dict[str, Any]) -> list[tuple[str, str]]:
    names = {"unlearned": run.get("model")} | run.get("models", {})
    if isinstance(retrained := names.get("retrained"), (list, tuple)):
        names |= {f"retrained_{i}" if i > 1 else "retrained": name for i, name in enumerate(retrained, 1)}
    facts = []
    for role in dict.fromkeys(("unlearned", "original", "retrained", *audit["models"])):
        what = "audited model" if role == "unlearned" else f"{_said(role)} model"
        unnamed = "given in memory, without a name" if role in audit["models"] else "none"
        facts.append((what, f"`{names[role]}`" if names.get(role) else unnamed))
    return facts


def _data(audit: dict[str, Any], run: dict[str, Any]) -> list[tuple[str, str]]:
    facts = []
    if data := run.get("data"):
        config = f" ({data['config']})" if data.get("config") else ""
        facts.append(("data set", f"`{data['name']}`{config}"))
        splits = [f"{name} `{split}`" for name, split in data["splits"].items() if split is not None]
        facts.append(("splits", ", ".join(splits)))
    return [*facts, ("rows", ", ".join(f"{n} {_said(name)}" for name, n in audit["sets"].items()))]


def _request(request: dict[str, Any] | str | None) -> list[tuple[str, str]]:
    """The request by its number and scope. Only the request file says whom it is about."""
    if request is None:
        return []
    facts = {"id": request} if isinstance(request, str) else request
    facts = {key: value for key, value in facts.items() if value and key != "rows"}  # which have their own lines
    return [("request" if key == "id" else f"request, {_said(key)}", value) for key, value in facts.items()]


def _margins(audit: dict[str, Any]) -> list[tuple[str, str]]:
    margins = audit.get("margins") or {}
    facts = []
    said = [text.format(margins[key]) for key, text in MARGINS.items() if key in margins]
    if said:
        facts.append(("margins, chosen before", ", ".join(said)))
        level = f"{_percent(margins['alpha'])}, one-sided, power {_percent(margins['power'])}"
        facts.append(("level", level))
    family = max((row["verdict"].get("family") or 0 for row in audit["rows"] if row.get("verdict")), default=0)
    return facts + ([("tests corrected for (Holm)", str(family))] if family else [])


def _meanings(audit: dict[str, Any]) -> list[str]:
    tested = _tested(audit)
    lines = ["## What the words mean", "", "Models:", ""]
    lines += [f"* **{name}**: {text}." for name, text in MODELS.items()]
    if audit.get("surfaces"):
        lines += ["", "Surfaces, where erased records may show:", ""]
        for surface in (SURFACES[name] for name in audit["surfaces"] if name in SURFACES):
            untested = "" if surface.name in tested else f" (not tested; needs {surface.needs})"
            lines.append(f"* **{surface.name}**{untested}: {surface.meaning}")
        lines += ["", "Verdicts:", "", *(f"* **{_said(name)}**: {text}" for name, text in VERDICTS.items())]
        lines += ["", "A surface has the worst verdict of the statistics that were tested on it."]
    return [*lines, ""]


def _why(audit: dict[str, Any]) -> list[str]:
    """The sentences behind each verdict; what several surfaces have in common is said once."""
    tested = _tested(audit)
    if not tested:
        return []
    sentences = {name: re.split(r"(?<=\.) (?=[A-Z])", s.get("wording", "")) for name, s in tested.items()}
    where: dict[str, list[str]] = {}
    for name, said in sentences.items():
        for sentence in dict.fromkeys(said):
            where.setdefault(sentence, []).append(name)
    # A sentence with numbers is about one surface, even where another has the same numbers.
    shared = {s: names for s, names in where.items() if len(names) > 1 and not re.search(r"\d", s)}
    lines = ["## Why", "", f"Intervals here are {_levels(audit)[1]} intervals, on which the verdicts rest.", ""]
    for name, said in sentences.items():
        own = " ".join(sentence for sentence in said if sentence not in shared)
        lines.append(f"* **{name}**, {_said(tested[name]['verdict'])}: {own.removeprefix(f'{name}, ')}")
    if shared:
        lines += ["", "Of more than one:", ""]
        lines += [f"* {', '.join(names)}: {sentence}" for sentence, names in shared.items()]
    return [*lines, ""]


def _numbers(audit: dict[str, Any]) -> list[str]:
    """One table for each direction in which numbers are read."""
    directions: dict[str, list[dict[str, Any]]] = {}
    for row in audit["rows"]:
        directions.setdefault(row["direction"], []).append(row)
    lines = ["## Numbers", "", f"In brackets {_levels(audit)[0]} intervals. The goal is *retrained*, not 0.", ""]
    for direction, rows in directions.items():
        lines += [f"**{_capital(direction)}**", "", markdown_table(to_table(audit | {"rows": rows})), ""]
    return lines


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _curves(audit: dict[str, Any]) -> list[str]:
    lines = []
    for curve in audit.get("curves", []):
        lines += [f"## {_capital(curve['name'])} ({curve['set']})", "", markdown_table(curve_table(curve)), ""]
    return lines


def curve_table(curve: dict[str, Any]) -> list[list[str]]:
    """A curve as cells of text, the header first: one row per point of the axis, one column per model, with intervals."""
    roles = [name for name in curve if name not in ("name", "set", "axis", "x", "direction")]
    roles.sort(key=lambda role: _COLUMNS.index(role) if role in _COLUMNS else len(_COLUMNS))
    points = zip(curve["x"], *(curve[role] for role in roles), strict=True)
    return [[curve["axis"], *map(_said, roles)], *([f"{x:g}", *map(_cell, estimates)] for x, *estimates in points)]


def _worst(audit: dict[str, Any]) -> list[str]:
    found = [worst for worst in audit.get("worst", []) if worst["records"]]
    if not found:
        return []
    lines = ["## Records that show most", ""]
    lines += ["Positions in the forget set, and by how much the value exceeds that under retraining.", ""]
    for worst in found:
        records = ", ".join(f"{i} ({_signed(x)})" for i, x in zip(worst["records"], worst["excess"], strict=True))
        lines.append(f"* {_said(worst['measure'])}: {records}")
    return [*lines, ""]


def _cost(audit: dict[str, Any]) -> list[str]:
    cost = audit.get("cost")
    if not cost:
        return []
    table = [["", "unlearning", "retraining", "ratio"]]
    for name, ratio in cost["ratios"].items():
        if ratio is not None:
            numbers = (cost["unlearning"][name], cost["retraining"][name], ratio)
            table.append([_said(name), *(f"{x:.4g}" for x in numbers)])
    return ["## Cost", "", markdown_table(table), "", *(f"* {note}" for note in cost["notes"]), ""]


def _reading(audit: dict[str, Any]) -> list[str]:
    tables, verdicts = _levels(audit)
    lines = [
        "The goal is the retrained model, not 0: what it gets right without ever having seen the forget set can be guessed. "
        "Lower than retrained is a failure too, because it shows which records were meant.",
        "*No difference found* means that none was found with this number of records. It is evidence, not proof.",
        f"Brackets in tables and curves are {tables} intervals for one number at a time: about one of twenty readings is off "
        "by chance. Verdicts are corrected for their number.",
    ]
    if verdicts != "–":
        lines.append(
            f"Verdicts rest on {verdicts} intervals: two one-sided tests show that a number is equal, each at half of what the "
            "interval leaves out."
        )
    lines.append(
        "Intervals of the forget set draw persons (groups), not single rows. Those of other sets take the rows as independent."
        if audit.get("grouped")
        else "Intervals take the rows as independent. Where several rows are about one person or author they are not, and the "
        "true intervals are wider: audit with groups (`--group_column`)."
    )
    return ["## How to read the numbers", "", *(f"* {line}" for line in lines), ""]


def _made_with(environment: dict[str, Any]) -> list[str]:
    lines = ["## Made with", ""]
    lines += [f"* {name} {version}" for name, version in environment["versions"].items()]
    return [*lines, f"* Python {environment['python']}; commit {environment['commit'] or 'unknown'}", ""]
