"""`hf-unlearn methods`: the list of the methods, or one of them in full."""

from __future__ import annotations

import json
import sys

from hf_unlearn.evidence.tables import text_table
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.describe import describe


def print_methods(name: str | None, form: str) -> int:
    if name is not None and name not in METHODS:
        print(f"There is no method {name!r}. There are {', '.join(sorted(METHODS))}.", file=sys.stderr)
        return 2
    found = []
    for key in [name] if name else sorted(METHODS):
        try:
            found.append(describe(key))
        except ImportError as error:
            if name:
                raise
            print(f"{key} is left out: {error}", file=sys.stderr)  # a package that is broken does not hide the others
    if form == "json":
        print(json.dumps(found, indent=1))
    elif form == "markdown":
        print("\n\n".join(_page(method) for method in found))
    elif name:
        print("\n".join(f"{key:12}  {_text(value)}" for key, value in found[0].items()))
    else:
        rows = [["method", "models", "needs", "what it does"]]
        rows += [[m["name"], _text(m["models"]), _text(m["needs"]), m["summary"]] for m in found]
        print(f"{text_table(rows, rule=False)}\n\n`hf-unlearn methods <name>` describes one in full.")
    return 0


def _page(method: dict) -> str:
    facts = {key: value for key, value in method.items() if key not in ("name", "summary", "trainer", "config")}
    lines = [f"* {key}: {_text(value)}" for key, value in facts.items()]
    return "\n".join(
        [f"## {method['name']}", "", f"`{method['trainer']}`, `{method['config']}`. {method['summary']}", "", *lines]
    )


def _text(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item!r}" for key, item in value.items()) or "those of all methods"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
