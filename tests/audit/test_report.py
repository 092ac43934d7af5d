"""What a report says in short, and what its exit code lets a script conclude."""

from dataclasses import replace

import pytest

from hf_unlearn.audit import AuditReport
from hf_unlearn.audit.verdicts.surfaces import SURFACES


def estimate(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "n": [30], "level": 0.95}


def report(verdicts, threats=("extraction",), **more):
    """A report with a verdict for some surfaces, each of one statistic, and the others not tested."""
    surfaces = {}
    for name in SURFACES:
        tested = [f"of {name}"] if name in verdicts else []
        surfaces[name] = {
            "surface": name,
            "verdict": verdicts.get(name, "not_tested"),
            "reason": None,
            "worst": tested[0] if verdicts.get(name, "not_tested") != "not_tested" else None,
            "tested": tested,
            "listed": [],
        }
    return AuditReport([], ["unlearned"], {"forget": 30}, surfaces=surfaces, threats=list(threats), **more)


EXTRACTION = dict.fromkeys(("verbatim", "knowledge", "paraphrase"), "no_trace_found")


@pytest.mark.parametrize(
    ("verdicts", "threats", "expected"),
    [
        (EXTRACTION, ["extraction"], 0),  # `sampled` has no statistic here
        (EXTRACTION | {"verbatim": "residual"}, ["extraction"], 1),
        (EXTRACTION | {"verbatim": "over_forgotten"}, ["extraction"], 1),
        (EXTRACTION | {"verbatim": "residual", "knowledge": "inconclusive"}, ["extraction"], 1),
        (EXTRACTION | {"paraphrase": "inconclusive"}, ["extraction"], 3),
        (EXTRACTION | {"paraphrase": "no_baseline"}, ["extraction"], 3),
        (EXTRACTION | {"paraphrase": "not_tested"}, ["extraction"], 3),  # no record could be scored: NaN logits
        (EXTRACTION, ["extraction", "membership"], 3),  # no holdout
        (EXTRACTION | {"membership": "no_trace_found"}, ["extraction", "membership"], 0),  # one retrained model
        (
            EXTRACTION | {"membership": "no_trace_found", "membership-ref": "inconclusive"},
            ["extraction", "membership"],
            3,
        ),
        ({"two-checkpoint": "no_trace_found", "inversion": "inconclusive"}, ["both_checkpoints"], 3),
        (EXTRACTION, [], 3),
    ],
)
def test_the_exit_code_is_zero_only_where_all_that_was_asked_for_is_shown(verdicts, threats, expected):
    assert report(verdicts, threats).exit_code == expected


def test_a_retrained_model_that_saw_the_forget_set_shows_nothing():
    checks = [{"check": "reference_saw_forget_set", "warns": True}]
    assert report(EXTRACTION, checks=checks).exit_code == 3


def row(measure, of, value=0.5, **more):
    return {"measure": measure, "set": of, "original": None, "unlearned": estimate(value)} | more


def test_a_value_is_that_of_the_forget_set_or_of_the_only_set():
    rows = [row("loss", "retain", 1.0), row("loss", "forget", 2.0), row("auc", "forget against holdout", 0.6)]
    rows += [row("utility", "retain", 0.1), row("utility", "holdout", 0.2)]
    found = AuditReport(rows, ["original", "unlearned"], {})
    assert found.value("loss") == 2 and found.value("loss", "retain") == 1 and found.value("auc") == 0.6
    with pytest.raises(KeyError, match=r"\('utility', 'retain'\), \('utility', 'holdout'\)"):
        found.value("utility")
    with pytest.raises(KeyError, match=r"'nope'.*\('loss', 'retain'\)"):
        found.value("nope")
    with pytest.raises(KeyError, match=r"no value of the model 'original'. It has those of unlearned"):
        found.value("loss", model="original")


def test_a_report_prints_its_verdicts_and_notes():
    change = estimate(0.123, 0.1, 0.2)
    verdict = {"statistic": "of verbatim", "surface": "verbatim", "unlearned": change, "margin": 0.02}
    verdicts = {"verbatim": "residual", "knowledge": "inconclusive"}
    found = report(verdicts, notes=["A note."], caveat="A caveat.")
    found = replace(found, rows=[row("of verbatim", "forget", verdict=verdict)])
    found.surfaces["knowledge"]["reason"] = "near_margin"
    said = str(found)
    assert said == repr(found)
    assert said.splitlines()[0] == "Audit of 30 records, tested against: extraction."
    assert "verbatim         residual: of verbatim +0.123 [+0.1, +0.2], margin 0.02" in said
    assert "knowledge        inconclusive (near margin): of knowledge" in said
    assert "Not tested: sampled, paraphrase" in said and "* A note." in said and said.endswith("A caveat.")
    assert len(said) < 1000
