"""Fuzz from the file to the scored tokens: what is erased, kept and scored is what an independent reading says, or an error."""

import csv
import io
import json
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace

import independent
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from independent import GUESSED, Unreadable

from hf_unlearn.cli.arguments import DataArguments, load_data, load_request, split_data
from hf_unlearn.cli.sets import audit_sets
from hf_unlearn.data.rows import IGNORE_INDEX
from hf_unlearn.data.text import encode
from hf_unlearn.examples.registry_model import make_tokenizer
from hf_unlearn.request.request import ErasureRequest


FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
    phases=[Phase.generate],
)
# In every text of a row, so that it can be found in whatever is printed or raised.
MARK = "zqxj"
NASTY = [
    *GUESSED,
    "7",
    "7.0",
    "1e3",
    "2020-01-02",
    "2020-01-02T03:04:05",
    "true",
    "DE",
    "FR",
]
NASTY += [" NA", "12345678901234567890", "-0", "é", "é", "a,b", 'say "hi"', "two\nlines", "tab\there", "{x}", "\u2028"]
NAMES = ["Ann", "Anna", "ann lee", "Ann  Lee", "ÄNNE", "straße", "STRASSE"]
words = st.sampled_from([*NASTY, *NAMES, "lives in", "Paris.", "?"])
texts = st.lists(words, min_size=1, max_size=4).map(lambda parts: f"{MARK} " + " ".join(parts))
cells = st.sampled_from(NASTY)
TEMPLATES = [
    ("Q: {question}\nA:", " {answer}"),
    ("{person}, {question}:", " {answer}"),
    ("{{{question}}}:", " {answer}{n}"),
]
BROKEN = [("Q: {question", " {answer}"), ("Q: {question!r}\nA:", " {answer}"), ("Q: {nothing}:", " {answer}")]
BROKEN += [("Q: {question}:", " fixed"), ("Q: {question[0]}:", " {answer}"), ("Q: {question:>9}:", " {answer}")]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = make_tokenizer([])
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    )
    return tokenizer


@dataclass
class Case:
    """A file, a request and templates, as they were written; `form` is that of the rows."""

    suffix: str
    data: bytes
    form: str
    request: dict
    templates: tuple[str, str] | None


@st.composite
def cases(draw, suffix: str, forms: Sequence[str] = ("pair", "text", "columns", "columns")):
    """Rows in a file, each with its number in the column n, and a request that is often about some of them."""
    form = draw(st.sampled_from([*forms, *["chat", "turns"] * (suffix in (".json", ".jsonl") and len(forms) > 1)]))
    rows = []
    for n in range(draw(st.integers(2, 6))):
        row = {"n": f"row{n}", "id": draw(cells), "person": draw(st.sampled_from(NAMES)), "country": draw(cells)}
        question, answer = draw(texts), draw(texts)
        if form == "pair":
            row |= {"prompt": f"{question}:", "completion": f" {answer}"}
        elif form == "text":
            row |= {"text": answer}
        elif form == "columns":
            row |= {"question": question, "answer": answer}
        else:
            roles, names = (
                (("role", "content"), ("user", "assistant"))
                if form == "chat"
                else (("from", "value"), ("human", "gpt"))
            )
            row |= {
                "messages": [
                    dict(zip(roles, turn, strict=True)) for turn in zip(names, (question, answer), strict=True)
                ]
            }
        rows.append(row)
    templates = draw(st.sampled_from(TEMPLATES + BROKEN)) if form == "columns" else None
    return Case(suffix, written(rows, suffix, draw(st.booleans())), form, draw(requests(rows)).to_dict(), templates)


def written(rows: list[dict], suffix: str, other: bool) -> bytes:
    """The bytes of a file; `other` chooses the other of two ways to write the same."""
    if suffix == ".jsonl":
        return "\n".join(json.dumps(row, ensure_ascii=other) for row in rows).encode()
    if suffix == ".json":
        return json.dumps(rows, indent=1 if other else None).encode()
    out = io.StringIO()
    ends, quotes = ("\r\n", csv.QUOTE_ALL) if other else ("\n", csv.QUOTE_MINIMAL)
    writer = csv.writer(out, delimiter="," if suffix == ".csv" else "\t", lineterminator=ends, quoting=quotes)
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return (b"\xef\xbb\xbf" if other else b"") + out.getvalue().encode()


@st.composite
def requests(draw, rows: list[dict]):
    """A request about one of the columns beside the texts: usually about a value that a row has."""
    row = draw(st.sampled_from(rows))
    column = draw(st.sampled_from(["id", "country"]))
    other = draw(st.lists(cells, max_size=1))
    kind = draw(st.sampled_from(["values", "numbers", "in", "not in", "contains", "mentions"]))
    if kind == "values":
        return ErasureRequest.records({row[column], *other} - {""} or ["x"], column=column)
    if kind == "numbers":
        return ErasureRequest.records([draw(st.sampled_from([7, 1000, 0]))], column=column)
    if kind in ("in", "not in"):
        return ErasureRequest.attribute(column, kind, [row[column], *other])
    if kind == "contains":
        return ErasureRequest.attribute("person", "contains", draw(st.sampled_from([row["person"], "A", "ß"])))
    names = draw(st.sampled_from([[row["person"].upper()], ["ann"], ["Strasse", "änne"]]))
    return ErasureRequest.records(mentions=names, columns=draw(st.sampled_from([["person"], ["person", "country"]])))


def expected(rows: list[dict], request: dict) -> set[str]:
    """Numbers of the rows that must go.

    Raises:
        Unreadable: the request has no reading on these rows, so that an error must come.
    """
    scope = request["extensions"]["hf-unlearn"]["scope"]
    gone = {row["n"] for row in rows if independent.about(row, scope)}
    if scope["kind"] != "attribute":
        for value in scope["selector"].get("values", ()):
            alone = {"kind": "record", "selector": {**scope["selector"], "values": [value]}}
            if not any(independent.about(row, alone) for row in rows):
                raise Unreadable("a value that occurs nowhere")
    if not gone or len(gone) == len(rows):
        raise Unreadable("nothing to forget, or nothing to retain")
    contents = {row["n"]: tuple(map(independent.plain, content_of(row))) for row in rows}
    if {contents[n] for n in gone} & {content for n, content in contents.items() if n not in gone}:
        raise Unreadable("a copy would stay")
    return gone


def content_of(row: dict) -> list[str]:
    if "messages" in row:
        if any(set(message) not in ({"role", "content"}, {"from", "value"}) for message in row["messages"]):
            raise Unreadable("a message")
        return [part for message in row["messages"] for part in message.values()]
    return [row["text"]] if "text" in row else [row["prompt"], row["completion"]]


def read(suffix: str, data: bytes) -> list[dict]:
    if suffix in (".csv", ".tsv"):
        return independent.read_separated(data, "," if suffix == ".csv" else "\t")
    return independent.read_json(data, suffix == ".jsonl")


def filled(rows: list[dict], templates: tuple[str, str]) -> list[dict]:
    prompt, completion = templates
    if independent.filled(completion, rows[0]) == independent.filled(completion, dict.fromkeys(rows[0], MARK * 2)):
        raise Unreadable("a template without a column")
    pairs = [(independent.filled(prompt, row), independent.filled(completion, row)) for row in rows]
    return [row | {"prompt": p, "completion": c} for row, (p, c) in zip(rows, pairs, strict=True)]


def scored(row: dict, tokenizer) -> str:
    """The text of the scored tokens, without their end token."""
    found = encode(row, tokenizer)
    ids = [i for i, label in zip(found["input_ids"], found["labels"], strict=True) if label != IGNORE_INDEX]
    return tokenizer.decode(ids[: len(ids) - found["n_end"]])


def erased_and_kept(folder, case: Case) -> dict:
    """What the package makes of the files: the sets of an audit."""
    path, wish = folder / f"data{case.suffix}", folder / "request.json"
    path.write_bytes(case.data)
    wish.write_text(json.dumps(case.request))
    prompt, completion = case.templates or (None, None)
    arguments = DataArguments(str(path), prompt_template=prompt, completion_template=completion, request=str(wish))
    data, request = load_data(arguments), load_request(arguments.request)
    return audit_sets(data, request, split_data(data, request, arguments.duplicates))


def compare(folder, case: Case, tokenizer, marks: list[str]) -> bool:
    """Compare both readings, and look for a value of a row in all that is said; whether there were rows to compare."""
    rows, gone = [], None
    try:
        rows = read(case.suffix, case.data)
        rows = rows if case.templates is None else filled(rows, case.templates)
        gone = expected(rows, case.request)
    except (Unreadable, KeyError, TypeError, AttributeError):
        pass
    sets, said = None, io.StringIO()
    with warnings.catch_warnings(record=True) as warned, redirect_stdout(said), redirect_stderr(said):
        warnings.simplefilter("always")
        try:
            sets = erased_and_kept(folder, case)
            texts = {row["n"]: scored(row, tokenizer) for row in [*sets["forget"], *sets["retain"]]}
        except (ValueError, OSError) as error:
            assert gone is None, f"refused what can be read: {error}"
            assert len(str(error)) > 20 and "\n" not in str(error).strip()
            said.write(str(error))
        else:
            assert gone is not None, "took what has no reading"
    output = said.getvalue() + " ".join(str(warning.message) for warning in warned)
    assert not [mark for mark in marks if mark in output], "a value of a row was said"
    if gone is None:
        return False
    assert {row["n"] for row in sets["forget"]} == gone
    assert sorted(row["n"] for row in sets["retain"]) == sorted(row["n"] for row in rows if row["n"] not in gone)
    assert texts == {row["n"]: content_of(row)[-1] for row in rows}
    return True


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl"])
def test_rows_requests_and_templates(tmp_path, tokenizer, suffix):
    taken = []

    @FUZZ
    @given(cases(suffix))
    def run(case):
        taken.append(compare(tmp_path, case, tokenizer, [MARK]))

    run()
    assert sum(taken) > len(taken) / 4, "hardly any case has a reading, so the comparison shows little"


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl"])
def test_damaged_files(tmp_path, tokenizer, suffix):
    """A byte is lost, doubled or another one: the file says something else then, or nothing."""
    taken = []

    @FUZZ
    @given(cases(suffix), st.data())
    def run(case, draw):
        at = draw.draw(st.integers(0, len(case.data) - 1))
        other = draw.draw(
            st.sampled_from(
                [b"", case.data[at : at + 1] * 2, b'"', b",", b"\t", b"\n", b"\r", b"\xff", b"\\", b"{", b"0", b"\0"]
            )
        )
        damaged = replace(case, data=case.data[:at] + other + case.data[at + 1 :])
        taken.append(compare(tmp_path, damaged, tokenizer, [MARK]))

    run()
    assert sum(taken) > len(taken) / 20 and not all(taken)


@st.composite
def mutated(draw, request: dict):
    """The request with one thing changed: a key away, another or twice as many, a value of another kind."""
    request = json.loads(json.dumps(request))
    scope = request["extensions"]["hf-unlearn"]["scope"]
    place = draw(st.sampled_from([scope, scope["selector"], scope["selector"], scope["selector"]]))
    key = draw(st.sampled_from([*place, "operator", "columns", "column"]))
    change = draw(st.sampled_from(["away", "other", "other", "other"]))
    if change == "away":
        place.pop(key, None)
        return request
    operators = st.sampled_from(["==", "!=", "in", "not in", "<", "<=", ">", ">=", "contains", "like"])
    names = st.sampled_from(["id", "country", "person", "nothing", ""])
    values = st.sampled_from([*NASTY, *NAMES, 7, 7.0, 1000, 2.5, -1, True, None])
    other = {
        "kind": st.sampled_from(["record", "class", "attribute", "person"]),
        "operator": operators,
        "column": st.one_of(names, st.just(["id"])),
        "columns": st.one_of(st.lists(names, max_size=2), names),
    }
    lists = st.lists(values, max_size=2, unique_by=repr)
    place[key] = draw(other.get(key, st.one_of(values, lists)))
    return request


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_mutated_requests(tmp_path, tokenizer, suffix):
    taken = []

    @settings(FUZZ, max_examples=300)
    @given(cases(suffix), st.data())
    def run(case, draw):
        changed = replace(
            case, request=draw.draw(mutated(case.request)), templates=TEMPLATES[0] if case.templates else None
        )
        taken.append(compare(tmp_path, changed, tokenizer, [MARK]))

    run()
    assert len(taken) / 20 < sum(taken) < len(taken)


pieces = st.sampled_from(["Q: ", "\n", "{question}", "{answer}", "{id}", "{person}", "{{", "}}", "{{{n}}}"])
broken = st.sampled_from(["", "", "", "{", "}", "{n!r}", "{n:>9}", "{n.real}", "{n[0]}", "{nothing}", "{}", "{0}"])


@st.composite
def templates(draw, begin: str, end: str):
    parts = draw(st.lists(pieces, min_size=1, max_size=3))
    parts.insert(draw(st.integers(0, len(parts))), draw(broken))
    return "".join([begin, *parts, end])


@pytest.mark.parametrize("suffix", [".tsv", ".json"])
def test_templates(tmp_path, tokenizer, suffix):
    taken = []

    @settings(FUZZ, max_examples=300)
    @given(cases(suffix, ["columns"]), templates("", ":"), templates(" ", "."))
    def run(case, prompt, completion):
        taken.append(compare(tmp_path, replace(case, templates=(prompt, completion)), tokenizer, [MARK]))

    run()
    assert len(taken) / 20 < sum(taken) < len(taken)
