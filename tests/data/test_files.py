"""What a file of rows says is what is read: nothing is guessed, and no error quotes a cell."""

import csv
import json

import pytest
from independent import GUESSED

from hf_unlearn.data import load_rows


CELLS = [
    *GUESSED,
    "1e5",
    "2024-05-01",
    "true",
    " a ",
    'say "hi"',
    "two\nlines",
    "two\r\nlines",
    "a,b\tc;d",
    "é",
]


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(("name", "delimiter"), [("rows.csv", ","), ("rows.tsv", "\t"), ("ROWS.CSV", ",")])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_every_cell_is_text_as_the_file_has_it(tmp_path, name, delimiter, ending, bom):
    rows = [{"id": str(i), "cell": cell} for i, cell in enumerate(CELLS)]
    with open(tmp_path / name, "w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
        writer = csv.DictWriter(file, ["id", "cell"], delimiter=delimiter, lineterminator=ending)
        writer.writeheader()
        writer.writerows(rows)
    read = load_rows(str(tmp_path / name))
    assert read.to_list() == rows
    assert {feature.dtype for feature in read.features.values()} == {"string"}
    assert load_rows(str(tmp_path / name), "train[2:4]").to_list() == rows[2:4]


def test_a_cell_of_any_length_and_a_column_of_empty_cells(tmp_path):
    long = "x" * 300_000
    assert load_rows(written(tmp_path, "a.csv", f"t,u\n{long},1\n\n\n")).to_list() == [{"t": long, "u": "1"}]
    assert load_rows(written(tmp_path, "b.csv", 't\n""\na\n""\n\n'))["t"][:] == ["", "a", ""]
    assert load_rows(written(tmp_path, "c.csv", "t,u\ra,b\rc,d\r"))["u"][:] == ["b", "d"]
    assert csv.field_size_limit() < len(long)  # what other readers of the process are held to


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\n1,SECRET\n2\n", "row at line 3 has 1 cells, but there are 2 columns"),
        ('id,text\n1,"SECRET\nSECRET"\n2,SECRET,3\n', "row at line 4 has 3 cells"),
        ('id,text\n1,"SECRET\n2,b\n', "row at line 2 cannot be divided.*not closed"),
        ('id,text\n1,"SECRET" b\n', "row at line 2 cannot be divided"),
        ("id,text\n1,SECRET\rSECRET\n", "row at line 2 cannot be divided.*carriage return"),
        ("text\nSECRET\rSECRET\n", "row at line 2 cannot be divided.*carriage return"),
        ("id,te\0xt\n1,SECRET\n", "name of column 2 has a character NUL"),
        ("id,id,text,text\n1,2,3,4\n", "Several columns are named 'id', 'text'"),
        (",text\n0,SECRET\n", "Column 1 has no name.*index=False"),
        ("id;text\n1;SECRET\n", "one column, whose name holds ';'"),
        ("id\n1\n\n2\n", 'Line 3 is blank. Write ""'),
        ("id,text\n", "It has no row"),
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("\ufeff", "is empty"),
        ("id,text\n1,SECRÉT\n".encode("latin-1"), "not UTF-8 .byte 14."),
        ("id,text\n1,SECRET\n".encode("utf-16"), "not UTF-8 .byte 0."),
    ],
)
def test_csv_files_that_are_refused(tmp_path, content, message):
    path = written(tmp_path, "rows.csv", content)
    with pytest.raises(ValueError, match=message) as error:
        load_rows(path)
    assert str(error.value).startswith(path) and "SECR" not in str(error.value)
    assert error.value.__context__ is None


ROWS = [
    {"id": 1, "at": "2024-05-01", "x": 1, "of": {"a": "2024-05-01T00:00:00Z"}, "tags": [], "big": 2**64 - 1},
    {"id": -2, "at": "NA", "x": 0.5, "of": {"b": None, "a": "x"}, "tags": ["007", None], "big": 0},
    {"id": None, "at": "\u2028 \x85 é 😀", "x": None, "of": None, "tags": None, "late": True, "big": None},
]


@pytest.mark.parametrize(
    "write",
    [
        json.dumps,
        lambda rows: json.dumps(rows, indent=2),
        lambda rows: "\n\n".join(map(json.dumps, rows)),
        lambda rows: "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
    ],
)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_json_is_what_it_says(tmp_path, write, name):
    read = load_rows(written(tmp_path, name, write(ROWS)))
    assert read.column_names == ["id", "at", "x", "of", "tags", "big", "late"]
    expected = [{name: row.get(name) for name in read.column_names} for row in ROWS]
    expected[0]["of"]["b"] = None
    assert read.to_list() == expected
    kinds = {name: feature.dtype for name, feature in read.features.items() if hasattr(feature, "dtype")}
    assert {name: kinds[name] for name in ("id", "at", "x", "big", "late")} == {
        "id": "int64",
        "at": "string",
        "x": "float64",
        "big": "uint64",
        "late": "bool",
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"a": "SECRET", "a": "b"}', "has the key 'a' twice"),
        ('{"a": {"SECRET": 1, "SECRET": 2}}', "column 'a': an object in it has a key twice"),
        ('{"a": "SECRET \\ud83d"}', "column 'a': it has half of a character"),
        ('{"a": ["SECRET", "\\udc00"]}', "column 'a': it has half of a character"),
        ('{"a": {"SECRET \\ud83d": 1}}', "column 'a': it has half of a character"),
        ('{"a": {"SECRET \\u0000": 1}}', "column 'a': a key has a character NUL"),
        ('{"a": NaN}', "column 'a': it is no finite number"),
        ('{"a": [1.5, -Infinity]}', "column 'a': it is no finite number"),
        ('{"a": 1e999}', "column 'a': it is no finite number"),
        ('{"a": ' + "9" * 5000 + "}", "column 'a': it is no finite number"),
        ('{"a": 18446744073709551616}', "column 'a': the integer is too large"),
        ('{"a": [9223372036854775808, -1]}', "column 'a': the integer is too large"),
        ('{"a": [9007199254740993, 0.5]}', "column 'a': the integer is too large.*rounded"),
        ('{"a": ["SECRET", 1]}', "column 'a': the values are text and a number"),
        ('{"a": [true, 1]}', "column 'a': the values are a boolean and a number"),
        ('{"a": [{"b": 1}, [1]]}', "column 'a': the values are an object and a list"),
        ('{"a": [{"b": 1}, {"b": "SECRET"}]}', "column 'a': the values are a number and text"),
        ('["SECRET"]', "is no object"),
        ('"SECRET"', "is no object"),
        ("null", "is no object"),
        ('{"a": "SECRET"} {"a": "SECRET"}', "is no JSON .*column"),
        ('{"a": SECRET}', "is no JSON .*column"),
        ('{"a": "SECRET', "is no JSON .*column"),
        ('{"a": ' + "[" * 100_000, "is no JSON .nested too deep"),
    ],
)
@pytest.mark.parametrize("lines", [True, False])
def test_json_that_is_refused(tmp_path, rows, message, lines):
    good = '{"a": null}'
    content = f"{good}\n\n{rows}\n" if lines else f"[{good},\n{rows}]"
    path = written(tmp_path, "rows.jsonl", content)
    with pytest.raises(ValueError, match=f"{'Line 3' if lines else '(Row 1|The file)'}.* ?{message}") as error:
        load_rows(path)
    assert str(error.value).startswith(path) and "SECRET" not in str(error.value) and "\n" not in str(error.value)
    assert error.value.__context__ is None


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty"), ("[]", "It has no row"), ("{}\n{}", "no column"), ('{\n"a": 1\n}', "Line 1")],
)
def test_json_without_rows(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load_rows(written(tmp_path, "rows.json", content))


def test_a_file_of_text_has_a_row_per_line(tmp_path):
    lines = ["\ufeffa", "", " b \x0b c \u2028 d \x85 e \x1c", "NA", "", "f"]
    expected = [lines[0][1:], *lines[1:]]
    for ending in ("\n", "\r\n", "\r"):
        assert load_rows(written(tmp_path, "a.txt", ending.join(lines)))["text"][:] == expected
        assert load_rows(written(tmp_path, "a.txt", ending.join(lines) + ending))["text"][:] == expected
    with pytest.raises(ValueError, match="not UTF-8 .byte 3."):
        load_rows(written(tmp_path, "b.txt", "Caf\xe9".encode("latin-1")))
