"""The benchmark of the verdicts runs, and its models are what it says; its numbers are in benchmarks/RESULTS.md."""

import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    import false_alarms

    yield false_alarms
    for name in ("false_alarms", "measure"):
        sys.modules.pop(name, None)


def test_the_sets_share_no_person_and_seeds_differ(benchmark):
    rows = benchmark.rows_of(0, 12)
    assert {name: len(of) for name, of in rows.items()} == {"forget": 12, "retain": 12, "holdout": 12}
    texts = [row["prompt"] + row["completion"] for of in rows.values() for row in of]
    assert len(set(texts)) == 36 and rows == benchmark.rows_of(0, 12)
    assert texts != [row["prompt"] + row["completion"] for of in benchmark.rows_of(1, 12).values() for row in of]


def test_one_seed_from_models_to_report(benchmark):
    tokenizer = benchmark.make_tokenizer(benchmark.tokenizer_texts(40), vocab_size=400)
    scored = benchmark.tables(0, 12, 12, tokenizer, ("original", *benchmark.RETRAINED))
    models = benchmark.pairs(scored)
    loss = benchmark.ATTACKS["loss"]
    known = {name: np.mean(loss(forget)) - np.mean(loss(holdout)) for name, (forget, holdout) in models.items()}
    assert all(known["original"] > known[name] + 0.2 for name in benchmark.RETRAINED)
    assert len({round(known[name], 6) for name in benchmark.RETRAINED}) == 4
    result: dict = {"values": benchmark.values_of(models), "warning": None, "contaminated": None}
    for procedure, options in benchmark.PROCEDURES.items():
        for margin, margins in benchmark.MARGINS.items():
            for kind, unlearned in (("null", "another"), ("original", "original")):
                result[kind, procedure, margin] = benchmark.verdicts(models, unlearned, *options, margins)
    for further in benchmark.AUDITED:
        for kind, unlearned in (("null", "another"), ("original", "original")):
            result["audit", kind, further] = benchmark.audited(scored, 0, 12, unlearned, further)
    assert {"verbatim", "knowledge", "membership"} <= set(result["audit", "null", 0])
    assert "membership-ref" in result["audit", "null", 2]
    family = result["null", "three retrained", "default"]
    assert [v.statistic for v in family] == [*benchmark.ATTACKS, *benchmark.SHARES]
    assert all(v.n_retrained == 3 and v.family == 8 for v in family)
    assert "| near 0 | three retrained |" in benchmark.report([result])
    assert "| knowledge | original | 3 |" in benchmark.report([result])
