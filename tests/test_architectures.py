"""Every architecture works with every method and attack, or one line says why not; `docs/models.md` says the same."""

import re

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    audited,
    in_the_page,
    kind_of,
    model_of,
    noted,
    outcomes_of_attacks,
    outcomes_of_methods,
    processing_class_of,
    rows_of,
    trainer_of,
)

from hf_unlearn.audit import score
from hf_unlearn.audit.attacks.table import obstacles
from hf_unlearn.audit.verdicts.surfaces import THREATS
from hf_unlearn.methods import METHODS
from hf_unlearn.models.load import load_model
from hf_unlearn.training.checks import require_architecture


REMEDY = re.compile(r"\b(Either|Choose|Set|Leave|Load|Give) |remain\.$")
# Whose measures are all of their kind.
COMPLETE = {"text": "Llama", "image": "ViT"}


def assert_page_says(part: str, name: str, outcomes: dict[str, str | None]) -> None:
    said = {row: noted(name, reason) for row, reason in outcomes.items()}
    assert in_the_page(part)[name] == said, "Write the page anew: python tests/architectures.py --write"


def assert_says_why(reason: str, name: str) -> None:
    model = type(model_of(name)).__name__
    kinds = {"text": "causal language models", "image": "image classifiers"}
    assert "\n" not in reason and reason.endswith(".") and REMEDY.search(reason), reason
    assert model in reason or f"one of the {kinds[kind_of(name)]}" in reason, reason


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_method_runs_or_says_before_the_training_why_not(name):
    outcomes = outcomes_of_methods(name)
    assert outcomes.keys() == set(METHODS)
    assert_page_says("methods", name, outcomes)
    with torch.device("meta"):
        model = model_of(name)
    for method, reason in outcomes.items():
        args = METHODS[method].config_class("unused", use_cpu=True, report_to="none")
        if reason is None:
            require_architecture(METHODS[method], args, model)
        else:
            assert_says_why(reason, name)
            # A job knows it before it loads the model.
            with pytest.raises(ValueError, match=re.escape(reason)):
                require_architecture(METHODS[method], args, model)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_attack_runs_or_says_before_the_audit_why_not(name):
    outcomes = outcomes_of_attacks(name)
    assert_page_says("attacks", name, outcomes)
    refused = {attack: reason for attack, reason in outcomes.items() if reason is not None}
    for reason in refused.values():
        assert_says_why(reason, name)
    with torch.device("meta"):
        model = model_of(name)
    assert obstacles(model, kind_of(name), THREATS) == refused
    report, complete = audited(name), audited(COMPLETE[kind_of(name)])
    missing = {row["measure"] for row in complete.rows} - {row["measure"] for row in report.rows}
    assert missing <= {"logit_lens_best_earlier_layer"} and bool(missing) == ("states_of_layers" in refused)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_edit_comes_back_from_its_checkpoint(name, tmp_path):
    trainer = trainer_of(name, "npo", str(tmp_path))
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    rows, processing_class = rows_of(kind_of(name), 4), processing_class_of(kind_of(name))
    before, edited, loaded = (
        score(model, processing_class, rows, sampling=()).log_prob
        for model in (model_of(name), trainer.model, load_model(str(tmp_path / "model")))
    )
    assert (edited == loaded).all() and (edited != before).all()


@pytest.mark.parametrize("part", ["methods", "attacks"])
def test_the_page_has_these_architectures(part):
    assert list(in_the_page(part)) == list(ARCHITECTURES)
