"""The page for people says what was audited, what was found and what the words mean; the file for machines has all."""

import json
from dataclasses import replace

import pytest

from hf_unlearn import save_report
from hf_unlearn.audit import AuditReport, Margins
from hf_unlearn.audit.report import FOUND, NO_TRACE, NOT_SHOWN
from hf_unlearn.audit.verdicts.decision import VERDICTS
from hf_unlearn.audit.verdicts.surfaces import SURFACES
from hf_unlearn.evidence import glossary
from hf_unlearn.evidence.page import curve_table, to_markdown
from hf_unlearn.evidence.result import write_result
from hf_unlearn.evidence.tables import markdown_table, text_table


SHARED = "Forget set and holdout differ in kind: only the comparison with the retrained model counts."


def estimate(value, low, high, level=0.95):
    return {"value": value, "low": low, "high": high, "n": [30], "level": level, "n_missing": 0}


def row(measure, surface, verdict, direction="higher = more memorized"):
    judged = {
        "statistic": measure,
        "surface": surface,
        "verdict": verdict,
        "margin": 0.05,
        "family": 7,
        "n_retrained": 1,
        "unlearned": estimate(0.1, 0.08, 0.12, level=0.9),
    }
    found = {"measure": measure, "set": "forget", "direction": direction, "surface": surface, "verdict": judged}
    found |= {role: estimate(0.5, 0.4, 0.6) for role in ("original", "unlearned", "retrained")}
    return found | {"difference_to_retrained": estimate(0.1, 0.05, 0.15), "reading": "higher than retrained"}


def surface(name, verdict, measure=None, wording=""):
    tested = [measure] if measure else []
    decided = {"surface": name, "verdict": verdict, "reason": None, "worst": measure}
    return decided | {"tested": tested, "listed": [], "wording": wording}


@pytest.fixture
def report():
    surfaces = {name: surface(name, "not_tested") for name in SURFACES}
    surfaces["verbatim"] = surface(
        "verbatim", "residual", "verbatim_extraction", f"verbatim, tested. Found (n = 30). {SHARED}"
    )
    surfaces["knowledge"] = surface(
        "knowledge", "no_trace_found", "loss", f"knowledge, tested. Found (n = 30). {SHARED}"
    )
    points = [estimate(0.25, 0.2, 0.3), estimate(None, None, None)]
    curve = {"name": "relearning", "set": "forget", "axis": "steps", "x": [0, 10], "direction": "higher"}
    return AuditReport(
        [
            row("verbatim_extraction", "verbatim", "residual"),
            row("loss", "knowledge", "no_trace_found", "lower = better"),
        ],
        ["original", "unlearned", "retrained"],
        {"forget": 30, "retain": 70},
        notes=["A note."],
        surfaces=surfaces,
        curves=[curve | {"unlearned": points, "original": points}],
        threats=["extraction"],
        caveat="A caveat.",
        margins=vars(Margins()),
    )


RUN = {
    "model": "runs/unlearned",
    "models": {"original": "runs/original", "retrained": ["runs/r1", "runs/r2"]},
    "data": {
        "name": "people.jsonl",
        "config": None,
        "splits": {"train": "train", "holdout": "test[:50%]", "validation": None},
    },
    "request": {"id": "0b7c", "kind": "record", "selects": "12 values of the column person"},
    "seed": 3,
}


def test_every_word_of_the_audit_is_explained():
    assert all(surface.meaning.endswith(".") for surface in SURFACES.values())
    assert set(glossary.VERDICTS) == set(VERDICTS)
    assert set(glossary.MARGINS) | {"alpha", "power"} == set(vars(Margins()))
    assert set(glossary.EXIT_CODES) == {NO_TRACE, FOUND, NOT_SHOWN}


def test_the_page_puts_the_verdicts_first(report, tmp_path):
    write_result(tmp_path / "a" / "folder", report.as_dict(), RUN)
    page = (tmp_path / "a/folder/RESULT.md").read_text()
    order = [
        "## Verdicts",
        "A caveat.",
        "* A note.",
        "## What was audited",
        "## What the words mean",
        "## Why",
        "## Numbers",
    ]
    places = [page.index(text) for text in [*order, "## Relearning", "## How to read the numbers", "## Made with"]]
    assert places == sorted(places)
    assert "| verbatim | **residual** | verbatim extraction | +0.100 [+0.080, +0.120] | 0.05 |" in page
    assert "**Something was found**" in page and "difference to retrained, 90 % interval" in page
    assert "**Not tested:** sampled, paraphrase" in page
    assert "* **artefacts** (not tested; needs a test, which does not exist yet): Files that are published" in page


def page_of(report):
    environment = {"versions": {}, "python": "3", "commit": None}
    return to_markdown({"audit": report.as_dict(), "run": {}, "environment": environment})


def test_the_page_leads_with_counts_where_there_is_a_rate(report):
    shares = {"original": 1.0, "unlearned": 0.0, "retrained": 1 / 16}
    counts = report.rows[0] | {role: estimate(value, 0, 1) | {"n": [16]} for role, value in shares.items()}
    first = "# Result of an unlearning audit\n\n{}## Verdicts"
    sentence = (
        "16 of 16 answers came out word for word before; 0 of 16 after; 1 of 16 from a model that never saw them.\n\n"
    )
    assert page_of(replace(report, rows=[report.rows[1], counts])).startswith(first.format(sentence))
    alone = counts | {"original": None, "retrained": estimate(None, None, None)}
    sentence = "0 of 16 answers came out word for word after.\n\n"
    assert page_of(replace(report, rows=[alone])).startswith(first.format(sentence))
    # Neither another measure nor another set says it.
    for rows in ([report.rows[1]], [counts | {"set": "retain"}]):
        assert page_of(replace(report, rows=rows)).startswith(first.format(""))


def test_the_page_says_what_was_audited(report, tmp_path):
    result = write_result(tmp_path, report.as_dict(), RUN)
    page = (tmp_path / "RESULT.md").read_text()
    for line in (
        "| audited model | `runs/unlearned` |",
        "| original model | `runs/original` |",
        "| retrained model | `runs/r1` |",
        "| data set | `people.jsonl` |",
        "| splits | train `train`, holdout `test[:50%]` |",
        "| rows | 30 forget, 70 retain |",
        "| request | 0b7c |",
        "| request, kind | record |",
        "| request, selects | 12 values of the column person |",
        f"| date (UTC) | {result['date']} |",
        "| tested against | extraction |",
        "| level | 5 %, one-sided, power 80 % |",
        "| tests corrected for (Holm) | 7 |",
        "| seed | 3 |",
    ):
        assert line in page, line
    assert (
        "0.05 of an AUC, 0.02 of rates and shares, or 4 records where that is more, but at most 0.1 of a rate" in page
    )
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["audit"]["margins"] == vars(Margins()) and saved["audit"]["exit_code"] == 1
    assert saved["date"].endswith("Z") and saved["run"] == RUN


def test_what_several_rows_have_in_common_is_said_once(report):
    page = to_markdown(
        {"audit": report.as_dict(), "run": {}, "environment": {"versions": {}, "python": "3", "commit": None}}
    )
    assert page.count(SHARED) == 1 and f"* verbatim, knowledge: {SHARED}" in page
    assert "* **verbatim**, residual: tested. Found (n = 30).\n" in page
    assert "* **knowledge**, no trace found: tested. Found (n = 30).\n" in page  # numbers are its own
    # A heading for each way to read a number, and not a line with all their names.
    assert "**Higher = more memorized**" in page and "**Lower = better**" in page
    assert max(len(line) for line in page.splitlines()) < 400


def test_intervals_say_their_level_and_what_they_draw(report):
    environment = {"versions": {}, "python": "3", "commit": None}
    page = to_markdown({"audit": report.as_dict(), "run": {}, "environment": environment})
    assert "In brackets 95 % intervals" in page and "Verdicts rest on 90 % intervals" in page
    assert "take the rows as independent. Where several" in page
    report = replace(report, grouped=True)
    page = to_markdown({"audit": report.as_dict(), "run": {}, "environment": environment})
    assert "draw persons (groups)" in page and "Where several rows" not in page


def test_curves_have_intervals(report):
    assert curve_table(report.curves[0]) == [
        ["steps", "original", "unlearned"],
        ["0", "0.250 [0.200, 0.300]", "0.250 [0.200, 0.300]"],
        ["10", "–", "–"],
    ]


def test_a_report_made_in_python_is_saved(report, tmp_path):
    save_report(report, tmp_path / "new", models={"unlearned": "mine"}, seed=1)
    page = (tmp_path / "new" / "RESULT.md").read_text()
    assert "| audited model | `mine` |" in page and "| original model | given in memory, without a name |" in page
    # A bar in a name would be another column.
    save_report(report, tmp_path / "new", note="a|b")
    assert "| note | a\\|b |" in (tmp_path / "new" / "RESULT.md").read_text()


def test_a_report_without_verdicts_is_a_page_too(tmp_path):
    report = AuditReport(
        [{"measure": "loss", "set": "forget", "direction": "lower", "unlearned": None}], ["unlearned"], {}
    )
    save_report(report, tmp_path)
    assert "| original model | none |" in (tmp_path / "RESULT.md").read_text()


def test_tables_for_a_page_and_for_a_terminal():
    rows = [["measure", "n"], ["a|b", "30"], ["loss", ""]]
    assert markdown_table(rows) == "| measure | n |\n| --- | --- |\n| a\\|b | 30 |\n| loss |  |"
    assert text_table(rows) == "measure  n\n-------  --\na|b      30\nloss"
    assert text_table(rows, rule=False) == "measure  n\na|b      30\nloss"


def test_the_page_says_what_was_read_and_what_nothing_reached(report, tmp_path):
    reach = {"rows": 30, "scored": 28, "no_target": 1, "not_finite": 1, "unread_columns": ["person", "note"]}
    reach["unreached"] = {"prompt": {"rows": 30, "characters": 900}, "other columns": {"rows": 7, "characters": 50}}
    alone = {"rows": 70, "scored": 70, "no_target": 0, "not_finite": 0}
    report = replace(report, coverage={"sets": {"forget": reach, "retain": alone}})
    rows = {"read": 100, "erased": 30, "kept": 70, "copies": 2}
    write_result(tmp_path, report.as_dict(), {**RUN, "request": {**RUN["request"], "rows": rows}})
    page = (tmp_path / "RESULT.md").read_text()
    said = page[page.index("## What was read") : page.index("## What the words mean")]
    for line in (
        "Rows read 100, erased 30, kept 70; 2 have the content of a row that the request names.",
        "| set | rows | scored | nothing to score | not finite |",
        "| forget | 30 | 28 | 1 | 1 |",
        "| retain | 70 | 70 | 0 | 0 |",
        "| forget | prompt | 30 | 900 |",
        "| forget | other columns (person, note) | 7 | 50 |",
    ):
        assert line in said, line
    assert "request, rows" not in page
    assert "## What was read" not in page_of(replace(report, coverage={}))
    assert json.loads((tmp_path / "result.json").read_text())["audit"]["coverage"]["sets"]["forget"] == reach
