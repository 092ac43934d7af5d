"""The two forms that a benchmark compares compute the same. What they cost is not asserted: see benchmarks/RESULTS.md."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch


BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    for name in ("audit", "measure", "rmu", "training_step"):
        sys.modules.pop(name, None)


TINY_STEPS = dict(vocab_size=53, steps=4, batch_size=3, prompt=(1, 9), answer=(1, 12), hidden_size=32, layers=2)


@pytest.mark.parametrize("method", ["npo", "graddiff"])
def test_the_steps_of_the_trainer_are_those_of_the_textbook(method):
    import training_step

    results = training_step.run(method, **TINY_STEPS)
    assert set(results) == {"ours", "textbook"} | ({"tightened"} if method == "npo" else set())
    assert len(set(results["ours"]["loss"])) == TINY_STEPS["steps"]
    training_step.check_identical(results, TINY_STEPS["vocab_size"])


def test_a_step_on_other_rows_is_noticed(monkeypatch):
    import training_step

    separate = training_step.separate
    monkeypatch.setattr(training_step, "separate", lambda batch: separate(batch)[::-1])
    results = training_step.run("graddiff", **TINY_STEPS)
    with pytest.raises(AssertionError):
        training_step.check_identical(results, TINY_STEPS["vocab_size"])


def test_separate_batches_hold_the_rows_of_the_fused_one_with_less_padding():
    import training_step

    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]])
    batch = {name: mask * 7 for name in ("input_ids", "labels")} | {"attention_mask": mask}
    forget, retain = training_step.separate(batch | {"parts": {"forget": 2, "retain": 2}})
    assert forget["input_ids"].tolist() == [[7, 7], [7, 0]]
    assert retain["labels"].tolist() == [[7, 7, 7, 7], [7, 7, 7, 0]]


def test_the_suite_gives_the_values_of_the_textbook():
    import audit
    import audit_textbook

    given = audit.suite(8, 402, header=6, question=(2, 5), answer=(3, 12), layers=1)
    rows = audit.encoded(given)
    found, expected = audit.likelihoods(given), audit_textbook.likelihoods(given, rows, 4)
    audit.check_identical(found, expected)
    said = audit.generations(given), audit_textbook.generations(given, rows, 4, audit.MAX_NEW_TOKENS)
    audit.check_identical(*said)
    assert audit.utility(found | said[0]) == pytest.approx(audit.utility(expected | said[1]), rel=1e-5)
    # The examples must tell right from wrong: some answers are known, others are not.
    assert {0, 1} < set(found["extraction_strength"])


def test_another_value_of_one_example_is_noticed():
    import audit

    values = {"min_k": np.ones(3), "min_k_plus_plus": np.zeros(3)}
    for name in values:
        changed = {**values, name: values[name] + np.array([0, 0, 3e-5])}
        with pytest.raises(AssertionError, match=name):
            audit.check_identical(changed, values)


@pytest.mark.parametrize("layers", [4, 6])
def test_the_steps_of_rmu_are_those_of_the_textbook(layers):
    import rmu

    size = dict(TINY_STEPS, layers=layers)
    steps, vocab_size = size.pop("steps"), size.pop("vocab_size")
    results = rmu.run(vocab_size, steps, **size)
    assert set(results) == {"ours", "textbook", "selected"} and len(set(results["ours"]["loss"])) == steps
    rmu.check_identical(results)
    results["selected"]["loss"][1] *= 1.001
    with pytest.raises(AssertionError):
        rmu.check_identical(results)
