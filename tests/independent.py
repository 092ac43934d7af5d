"""A second reading of files, templates and requests, which shares no code with the package: what a test compares it with."""

import json
import re
import unicodedata
from decimal import Decimal, InvalidOperation


#: Cells that readers of tables like to take for something else.
GUESSED = ["NA", "null", "None", "nan", "", "007"]


class Unreadable(Exception):
    """The file, the template or the request has no reading."""


def read_separated(data: bytes, separator: str) -> list[dict[str, str]]:
    """Rows of a CSV or TSV file by RFC 4180: quotes double inside quotes, everything else is text as it stands."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable("encoding") from None
    records, record, cell, quoted, started = [], [], [], False, False
    at = 0
    while at < len(text):
        char = text[at]
        if quoted:
            if char == '"' and text[at + 1 : at + 2] == '"':
                cell.append('"')
                at += 1
            elif char == '"':
                quoted = False
                if text[at + 1 : at + 2] not in ("", separator, "\n", "\r"):
                    raise Unreadable("text after a closing quote")
            else:
                cell.append(char)
        elif char == '"':
            if cell:
                raise Unreadable("a quote inside a cell")
            quoted = started = True
        elif char == separator:
            record.append("".join(cell))
            cell, started = [], True
        elif char in "\r\n":
            if char == "\r" and text[at + 1 : at + 2] == "\n":
                at += 1
            if started or cell or record:
                records.append([*record, "".join(cell)])
            record, cell, started = [], [], False
        else:
            cell.append(char)
        at += 1
    if quoted:
        raise Unreadable("an open quote")
    if started or cell or record:
        records.append([*record, "".join(cell)])
    if not records:
        raise Unreadable("empty")
    header, *rows = records
    if len(set(header)) < len(header) or "" in header:
        raise Unreadable("names of columns")
    if not rows or any(len(row) != len(header) for row in rows):
        raise Unreadable("fields")
    return [dict(zip(header, row, strict=True)) for row in rows]


def read_json(data: bytes, lines: bool) -> list[dict]:
    """Rows of a file of JSON: one object per line, or a list of them."""

    def whole(pairs):
        if len(dict(pairs)) < len(pairs):
            raise Unreadable("a key twice")
        return dict(pairs)

    def refuse(_):
        raise Unreadable("not a number")

    try:
        text = data.decode("utf-8-sig")
        parts = [line for line in text.split("\n") if line.strip(" \t\r")] if lines else [text]
        found = [json.loads(part, object_pairs_hook=whole, parse_constant=refuse) for part in parts]
    except ValueError:
        raise Unreadable("JSON") from None
    rows = found if lines else found[0]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise Unreadable("rows")
    if any(0xD800 <= ord(char) < 0xE000 for char in _strings(rows)):
        raise Unreadable("half a character")
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        if len({_kind(row[name]) for row in rows if row.get(name) is not None}) > 1:
            raise Unreadable("types")
    return [{name: row.get(name) for name in names} for row in rows]


def _strings(value) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "".join(map(_strings, [*value, *value.values()]))
    return "".join(map(_strings, value)) if isinstance(value, list) else ""


def _kind(value) -> type:
    return type(value)


def filled(template: str, row: dict) -> str:
    """A template with columns in braces, filled with texts and whole numbers as the file says them."""
    if re.search(r"[{}]", re.sub(r"\{\{|\}\}|\{[^{}]*\}", "", template)):
        raise Unreadable("braces")
    said, at = [], 0
    for match in re.finditer(r"\{\{|\}\}|\{([^{}]*)\}", template):
        said.append(template[at : match.start()])
        at = match.end()
        if match.group(1) is None:
            said.append(match.group(0)[0])
            continue
        value = row.get(match.group(1))
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise Unreadable("no text")
        said.append(str(value))
    return "".join([*said, template[at:]])


def number(cell) -> Decimal | None:
    try:
        value = Decimal(cell)
    except (InvalidOperation, TypeError, ValueError):
        return None
    return value if value.is_finite() and re.fullmatch(r"[+-]?[0-9]*\.?[0-9]*([eE][+-]?[0-9]+)?", cell) else None


def composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def plain(text: str) -> str:
    """A text as copies are compared: composed characters, and one space for every run of whitespace."""
    return " ".join(composed(text).split())


def mentions(text: str, name: str) -> bool:
    """Whether a text has a name as whole words, whatever its case."""
    folded, wanted = (plain(composed(part).casefold()) for part in (text, name))
    return re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", folded) is not None


def about(row: dict[str, str], scope: dict) -> bool:
    """Whether a request is about a row whose cells are all text.

    Raises:
        Unreadable: the scope breaks a rule, or it is unclear whether the cell is meant.
    """
    if set(scope) != {"kind", "selector"}:
        raise Unreadable("scope")
    kind, selector = scope["kind"], scope["selector"]
    named = {"record": ({"column", "values"}, {"column", "mentions"}), "class": ({"column", "values"},)}
    forms = named.get(kind, ({"column", "operator", "value"},))
    forms += tuple({"columns", *form} - {"column"} for form in forms if kind != "class")
    if kind not in ("record", "class", "attribute") or set(selector) not in forms:
        raise Unreadable("scope")
    columns = selector.get("columns", [selector.get("column")])
    if not isinstance(columns, list) or not columns or not all(isinstance(c, str) and c in row for c in columns):
        raise Unreadable("columns")
    operator = "mentions" if "mentions" in selector else selector.get("operator", "in")
    value = next(selector[key] for key in ("mentions", "values", "value") if key in selector)
    if operator in ("!=", "not in") and "columns" in selector:
        raise Unreadable("any or all")
    return any([_holds(row[column], operator, value) for column in columns])


def _holds(cell: str, operator: str, value) -> bool:
    values = value if isinstance(value, list) else [value]
    if not values or (operator in ("in", "not in", "mentions")) > isinstance(value, list):
        raise Unreadable("a list")
    if operator not in ("in", "not in", "mentions", "contains") and isinstance(value, list):
        raise Unreadable("one value")
    kinds = {float if type(one) is int else type(one) for one in values}
    if len(kinds) > 1 or not kinds <= {str, float}:
        raise Unreadable("types")
    if kinds == {float}:
        return _holds_number(cell, operator, values)
    if operator in ("mentions", "contains") and not all(values):
        raise Unreadable("an empty text")
    if operator in ("==", "in", "!=", "not in"):
        if cell not in values and plain(cell) in map(plain, values):
            raise Unreadable("other white space or letters")
        return (cell in values) == (operator in ("==", "in"))
    if operator == "contains":
        found = any(one in cell for one in values)
        if not found and any(composed(one) in composed(cell) for one in values):
            raise Unreadable("letters in another form")
        return found
    if operator == "mentions":
        return any(mentions(cell, one) for one in values)
    one, other, found = number(cell), number(value), _ordered(cell, operator, value)
    if None not in (one, other) and _ordered(one, operator, other) != found:
        raise Unreadable("another order as numbers")
    return found


def _holds_number(cell: str, operator: str, values: list) -> bool:
    found = number(cell)
    if operator in ("contains", "mentions"):
        raise Unreadable("texts")
    if operator in ("==", "in", "!=", "not in"):
        if found in values and cell not in map(json.dumps, values):
            raise Unreadable("another spelling")
        return (cell in map(json.dumps, values)) == (operator in ("==", "in"))
    if cell and found is None:
        raise Unreadable("no number")
    return bool(cell) and _ordered(found, operator, Decimal(json.dumps(values[0])))


def _ordered(one, operator: str, other) -> bool:
    orders = {"<": one < other, "<=": one <= other, ">": one > other, ">=": one >= other}
    if operator not in orders:
        raise Unreadable("operator")
    return orders[operator]
