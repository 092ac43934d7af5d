"""The selector of an erasure request: which forms it has, and the rules that they keep to."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any


KINDS = ("record", "class", "attribute")
OPERATORS = ("==", "!=", "in", "not in", "<", "<=", ">", ">=", "contains")
#: Of several columns or items it would be unclear whether any or all must differ.
NEGATIVE = ("!=", "not in")


def require(is_met: bool, path: str, rule: str) -> None:
    """Raise the `ValueError` of a rule that is not met. It names the key and the rule, never the value."""
    if not is_met:
        raise ValueError(f"`{path}` must be {rule}.")


def check_keys(path: str, value: Any, required: Sequence[str], allowed: Sequence[str] | None = None) -> None:
    """Require an object with these keys and no other."""
    allowed = allowed or required
    require(isinstance(value, dict), path, f"an object with the keys {[*required]}")
    for key in value:
        if key not in allowed:
            raise ValueError(f"`{path}` has the unknown key {key!r}. Allowed keys: {[*allowed]}.")
    for key in required:
        if key not in value:
            raise ValueError(f"`{path}` lacks the key {key!r}. Required keys: {[*required]}.")


def check_text(path: str, value: Any) -> None:
    """Require a text that is not empty."""
    require(isinstance(value, str) and value != "", path, "a text that is not empty")


def check_scope(path: str, scope: Any) -> None:
    """Require a kind of request, and a selector in one of the forms of this kind.

    Raises:
        ValueError: a rule is broken. The message names the key and the rule, never the value.
    """
    check_keys(path, scope, ("kind", "selector"))
    kinds = f"one of {[*KINDS]}. For all rows of one person, use 'record' with the column that names the person"
    require(scope["kind"] in KINDS, f"{path}.kind", kinds)
    path, kind, selector = f"{path}.selector", scope["kind"], scope["selector"]
    given = selector if isinstance(selector, dict) else {}
    if kind == "record" and "rows" in given:
        check_keys(path, selector, ("rows",))
        are_positions = _is_list(selector["rows"]) and all(type(row) is int and row >= 0 for row in selector["rows"])
        require(are_positions, f"{path}.rows", "a list, not empty, of row positions: integers from 0")
        return
    column = "columns" if kind != "class" and "columns" in given else "column"
    if kind == "attribute":
        check_keys(path, selector, (column, "operator", "value"))
        _check_condition(path, selector["operator"], selector["value"])
        is_negative = column == "columns" and selector["operator"] in NEGATIVE
        require(not is_negative, f"{path}.operator", f"none of {[*NEGATIVE]} for several columns")
    elif kind == "record" and "mentions" in given:
        check_keys(path, selector, (column, "mentions"))
        are_names = _is_list(selector["mentions"]) and all(map(_has_word, selector["mentions"]))
        require(are_names, f"{path}.mentions", "a list, not empty, of names: texts with a letter or a digit")
    else:
        check_keys(path, selector, (column, "values"))
        _check_values(f"{path}.values", selector["values"])
    if column == "column":
        check_text(f"{path}.column", selector["column"])
    else:
        names = selector["columns"]
        are_columns = _is_list(names) and all(isinstance(name, str) and name for name in names)
        require(are_columns and len(set(names)) == len(names), f"{path}.columns", "a list, not empty, of column names")


def columns_of(selector: dict[str, Any]) -> list[str]:
    """The columns that a selector looks at; none where it names positions."""
    return selector.get("columns") or [selector["column"]] if "rows" not in selector else []


def values_of(selector: dict[str, Any]) -> list:
    """What a selector looks for, always as a list: values, names or positions."""
    wanted = next(selector[key] for key in ("rows", "mentions", "values", "value") if key in selector)
    return wanted if isinstance(wanted, list) else [wanted]


def _check_condition(path: str, operator: Any, value: Any) -> None:
    require(operator in OPERATORS, f"{path}.operator", f"one of {[*OPERATORS]}")
    path = f"{path}.value"
    if operator in ("in", "not in"):
        _check_values(path, value)
    elif operator == "contains":
        texts = value if _is_list(value) else [value]
        are_texts = all(isinstance(text, str) and text for text in texts)
        require(are_texts, path, "a text that is not empty, or a list of such")
    else:
        rule = "a single text, number or boolean, unless the operator is 'in', 'not in' or 'contains'"
        _check_values(path, [value], rule)


def _check_values(path: str, values: Any, rule: str = "a list, not empty, of texts, numbers or booleans") -> None:
    values = values if isinstance(values, list) else []
    types = {float if type(value) is int else type(value) for value in values}
    require(len(types) == 1 and types <= {str, float, bool}, path, rule)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _has_word(name: Any) -> bool:
    return isinstance(name, str) and any(unicodedata.category(character)[0] in "LN" for character in name)
