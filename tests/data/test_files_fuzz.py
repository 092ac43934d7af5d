"""Files of random cells are read back exactly, and damaged files are read as another parser does, or refused in one line."""

import csv
import io
import json

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from independent import GUESSED

from hf_unlearn.data.delimited import parse_delimited
from hf_unlearn.data.files import PARSERS, read_table
from hf_unlearn.data.json_rows import parse_json


QUICK = settings(max_examples=100, deadline=None)
TELLING = [
    *GUESSED,
    "1.0",
    "1e5",
    "2024-05-01",
    "true",
    " ",
    '"',
    '""',
    "\n",
    "\r",
    "\r\n",
    ",",
    "\t",
    ";",
    "\ufeff",
    "\u2028",
    "\x85",
    "\x0b",
    "\x1c",
    "\\",
    "'",
    "#",
    "é",
    "e\u0301",
    "😀",
]
texts = st.lists(
    st.sampled_from(TELLING) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3),
    max_size=4,
).map("".join)
names = st.lists(texts.filter(bool), min_size=2, max_size=4, unique=True)
SECRET = "geheim"


@st.composite
def tables(draw):
    columns = draw(names)
    cells = st.lists(texts, min_size=len(columns), max_size=len(columns))
    return columns, draw(st.lists(cells, min_size=1, max_size=4))


def written(columns, rows, delimiter, ending, quoting):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, lineterminator=ending, quoting=quoting).writerows([columns, *rows])
    return file.getvalue()


@QUICK
@given(
    table=tables(),
    suffix=st.sampled_from([".csv", ".tsv"]),
    ending=st.sampled_from(["\n", "\r\n"]),
    is_quoted=st.booleans(),
    bom=st.booleans(),
)
def test_cells_of_csv_are_read_back_exactly(table, suffix, ending, is_quoted, bom, tmp_path_factory):
    columns, rows = table
    path = tmp_path_factory.getbasetemp() / f"cells{suffix}"
    # The writer puts a carriage return into quotes only where lines end in one.
    quoting = csv.QUOTE_ALL if is_quoted or ending == "\n" else csv.QUOTE_MINIMAL
    text = written(columns, rows, "\t" if suffix == ".tsv" else ",", ending, quoting)
    path.write_bytes(("\ufeff" if bom or text.startswith("\ufeff") else "").encode() + text.encode())
    read = read_table(path, PARSERS[suffix])
    assert read.column_names == columns and read.to_pylist() == [dict(zip(columns, row, strict=True)) for row in rows]


values = {
    "text": texts,
    "integer": st.integers(-(2**63), 2**63 - 1),
    "large": st.integers(0, 2**64 - 1),
    "fraction": st.floats(allow_nan=False, allow_infinity=False),
    "truth": st.booleans(),
    "list": st.lists(texts, max_size=3),
    "object": st.fixed_dictionaries({"role": texts, "content": texts}),
}


@st.composite
def objects(draw):
    columns = {name: draw(st.sampled_from(list(values))) for name in draw(names)}
    row = st.fixed_dictionaries({}, optional={name: st.none() | values[kind] for name, kind in columns.items()})
    return draw(st.lists(row, min_size=1, max_size=4).filter(any))


@QUICK
@given(
    rows=objects(),
    ascii_=st.booleans(),
    form=st.sampled_from(["list", "indented", "lines", "blank lines"]),
    bom=st.booleans(),
)
def test_values_of_json_are_read_back_exactly(rows, ascii_, form, bom, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "values.json"
    if form in ("list", "indented"):
        text = json.dumps(rows, ensure_ascii=ascii_, indent=2 if form == "indented" else None)
    else:
        text = ("\n" if form == "lines" else "\r\n\n").join(json.dumps(row, ensure_ascii=ascii_) for row in rows)
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.encode())
    read = read_table(path, parse_json)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    assert read.to_pylist() == [{name: row.get(name) for name in columns} for row in rows]
    for field in read.schema:  # no text has become anything else
        kinds = {type(row.get(field.name)) for row in rows} - {type(None)}
        assert (kinds == {str}) == pa.types.is_string(field.type)


@st.composite
def damaged(draw, content):
    """The content with some bytes taken out, doubled or put in."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(start + 6, len(content))))
        new = draw(
            st.sampled_from([b"", b'"', b",", b"\n", b"\r", b"\\", b"\xff", b"{", b"]", b"1", b"NaN", b"\xef\xbb\xbf"])
        )
        content = content[:start] + new + content[end:] + draw(st.sampled_from([b"", content[start:end]]))
    return content


def read_or_refused(path, content, parse):
    """The rows, or `None` for a file that is refused in one line without a cell of it."""
    path.write_bytes(content)
    try:
        return read_table(path, parse).to_pylist()
    except ValueError as error:
        message = str(error).removeprefix(str(path))
        assert message != str(error) and "\n" not in message and SECRET not in message
        assert error.__context__ is None
        return None


CSV = f'id,text,at\n007,"{SECRET}, ""a""\n{SECRET}",NA\n,{SECRET},2024-05-01\n17,é,"{SECRET}"\n'.encode()


@settings(max_examples=200, deadline=None)
@given(content=damaged(CSV))
def test_damaged_csv_is_read_as_another_reader_does_or_refused(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged.csv"
    rows = read_or_refused(path, content, parse_delimited)
    if rows is None:
        return
    header, *others = divided(content.decode().removeprefix("\ufeff"))
    assert rows == [dict(zip(header, cells, strict=True)) for cells in others if len(header) == 1 or cells != [""]]


def divided(text):
    """The cells of CSV by RFC 4180, one character after the other."""
    rows, cells, cell, is_quoted, i = [], [], "", False, 0
    while i < len(text):
        character, after = text[i], text[i + 1 : i + 2]
        if is_quoted:
            if character == '"' and after == '"':
                cell, i = cell + '"', i + 1
            elif character == '"':
                is_quoted = False
            else:
                cell += character
        elif character == '"':
            if cell:
                cell += character
            else:
                is_quoted = True
        elif character == ",":
            cells, cell = [*cells, cell], ""
        elif character in "\r\n":
            i += character == "\r" and after == "\n"
            rows, cells, cell = [*rows, [*cells, cell]], [], ""
        else:
            cell += character
        i += 1
    rows = [*rows, [*cells, cell]] if cells or cell else rows
    return [row for row in rows if row != [""]]


JSON = [
    {"id": 7, "text": f"{SECRET} \u2028 NA", "of": {"at": "2024-05-01"}},
    {"id": -1, "text": "é", "tags": [SECRET, None]},
]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), form=st.sampled_from(["list", "lines"]))
def test_damaged_json_is_read_as_another_reader_does_or_refused(data, form, tmp_path_factory):
    whole = json.dumps(JSON, indent=1) if form == "list" else "\n".join(map(json.dumps, JSON))
    content = data.draw(damaged(whole.encode()))
    path = tmp_path_factory.getbasetemp() / "damaged.jsonl"
    rows = read_or_refused(path, content, parse_json)
    if rows is None:
        return
    text = content.decode().removeprefix("\ufeff")
    found, decoder, at = [], json.JSONDecoder(), 0
    if text.lstrip().startswith("["):
        found = json.loads(text)
    while not text.lstrip().startswith("[") and (rest := text[at:].lstrip()):
        one, length = decoder.raw_decode(rest)
        found.append(one)
        at = len(text) - len(rest) + length
    assert [without_none(row) for row in rows] == [without_none(row) for row in found]


def without_none(value):
    """Without the keys that a table fills with `None`."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return value
