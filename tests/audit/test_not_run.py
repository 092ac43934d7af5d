"""An attack that stops, or that a model has not the parts for: the others are judged, and the report names it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import text_rows
from tiny import tiny_llama, tiny_tokenizer
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    HieraConfig,
    HieraForImageClassification,
    MambaConfig,
    MambaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
)

from hf_unlearn.audit import AuditConfig, audit
from hf_unlearn.audit.attacks import attack as declarations
from hf_unlearn.audit.attacks.attack import attack
from hf_unlearn.audit.attacks.table import attacks_of, obstacles
from hf_unlearn.audit.measures.statistic import MEMORY, Statistic
from hf_unlearn.audit.records import Found
from hf_unlearn.audit.verdicts.judgement import judgement
from hf_unlearn.audit.verdicts.margins import Margins
from hf_unlearn.audit.verdicts.surfaces import THREATS, surfaces_of
from hf_unlearn.evidence.result import write_result
from hf_unlearn.statistics.estimate import known


TOKENIZER = tiny_tokenizer()
ROWS = text_rows(60)
SETS = {"forget": ROWS.select(range(20)), "retain": ROWS.select(range(20, 40)), "holdout": ROWS.select(range(40, 60))}
SMALL = AuditConfig(
    max_rows=10,
    max_new_tokens=4,
    relearning_steps=(0, 1),
    relearning_rates=(1e-3,),
    weight_attacks=("int8",),
    guidance_weights=(1.0,),
)
SECRET = "the text of a record"


@pytest.fixture
def undeclared():
    """Attacks that a test declares are gone after it."""
    before = dict(declarations.DECLARED)
    yield
    declarations.DECLARED.clear()
    declarations.DECLARED.update(before)


def run(models, **arguments):
    unlearned, original, retrained = models
    arguments = {"threat_model": THREATS, "processing_class": TOKENIZER, "config": SMALL} | arguments
    return audit(unlearned, original, retrained, SETS, **arguments)


def llamas():
    return tiny_llama(seed=0), tiny_llama(seed=1), tiny_llama(seed=2)


@pytest.mark.filterwarnings("ignore")
def test_what_was_found_before_an_error_stands_and_so_does_everything_else(undeclared, tmp_path):
    plain = run(llamas(), threat_model="latent")

    @attack("latent")
    def broken(model, records):
        yield Found({records.statistic("found_before_the_error", "latent"): torch.rand(10).numpy()})
        {}[SECRET]

    report = run(llamas(), threat_model="latent")
    assert [(a["attack"], a["surface"], a["model"]) for a in report.not_run] == [
        ("broken", "latent", role) for role in ("original", "unlearned", "retrained")
    ]
    # The message of a foreign error may quote a record: its kind and place are all that is said.
    assert all(a["reason"].startswith("it stopped with KeyError at ") for a in report.not_run)
    assert report.surfaces["latent"]["verdict"] == "not_tested" and report.surfaces["latent"]["reason"] == "not_run"
    assert "broken on the unlearned model" in report.surfaces["latent"]["wording"]
    assert report.exit_code == 3
    rows = {row["measure"]: row for row in report.rows}
    assert rows["found_before_the_error"]["unlearned"]["n"] == [10]
    assert {row["measure"] for row in plain.rows} < set(rows)
    assert plain.surfaces["quantised"]["worst"] == report.surfaces["quantised"]["worst"]
    assert "Could not be run: broken (unlearned model)" in str(report)
    write_result(tmp_path, report.as_dict(), {})
    page, machines = ((tmp_path / name).read_text() for name in ("RESULT.md", "result.json"))
    assert "* broken, on the unlearned model: it stopped with KeyError" in page
    assert SECRET not in page + machines + str(report)


def test_an_error_of_compiled_code_quotes_no_record(undeclared):
    @attack("latent")
    def broken(model, records):
        return Found({records.statistic("a", "latent"): known([SECRET])})  # numpy's message has the text

    report = run(llamas(), threat_model="latent", config=replace(SMALL, weight_attacks=()))
    reasons = {a["reason"] for a in report.not_run if a["attack"] == "broken"}
    assert len(reasons) == 1 and reasons.pop().startswith("it stopped with ValueError at estimate.py, line ")
    assert SECRET not in json.dumps(report.as_dict())


def test_an_architecture_that_a_requirement_did_not_expect_is_an_obstacle(undeclared):
    @attack("latent", requires=(lambda model: model.no_such_part,))
    def needs_a_part(model, records):
        return Found()

    assert obstacles(tiny_llama(), "text", ["latent"]) == {
        "needs_a_part": "the model does not have the parts that it needs (AttributeError)"
    }


@pytest.mark.parametrize(("extracted", "verdict"), [(1.0, "residual"), (0.0, "not_tested")])
def test_what_was_found_on_a_surface_outweighs_an_attack_that_could_not_be_run(extracted, verdict):
    statistic = Statistic("verbatim_extraction", "forget", MEMORY, "verbatim", "rate")
    n = 200
    values = {statistic: {"original": np.ones(n), "unlearned": np.full(n, extracted), "retrained": np.zeros(n)}}
    missing = {"surface": "verbatim", "attack": "broken", "model": "unlearned", "reason": "A reason of our own."}
    arguments = (values, {}, ["extraction"], True, Margins(), 0, None, True)
    assert judgement(*arguments)[1]["verbatim"]["verdict"] == ("residual" if extracted else "no_trace_found")
    found = judgement(*arguments, [missing])[1]["verbatim"]
    assert found["verdict"] == verdict
    assert ("A reason of our own." in found["wording"]) is (verdict == "not_tested")


def mamba(seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    return MambaForCausalLM(MambaConfig(vocab_size=len(TOKENIZER), eos_token_id=1, **sizes)).eval()


def bloom(seed):
    torch.manual_seed(seed)
    return BloomForCausalLM(
        BloomConfig(vocab_size=len(TOKENIZER), hidden_size=32, n_layer=2, n_head=4, eos_token_id=1)
    ).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [mamba, bloom])
def test_every_attack_runs_on_models_without_a_cache_of_keys_and_values(make):
    report = run([make(seed) for seed in (0, 1, 2)], config=replace(SMALL, weight_attacks=("int4-rtn",)))
    assert not report.not_run
    for surface in ("verbatim", "knowledge", "membership", "relearn", "latent", "two-checkpoint"):
        assert report.verdict(surface) != "not_tested", surface


def test_what_cannot_be_run_is_known_from_the_architecture_alone():
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"}
    with torch.device("meta"):
        stages, made, llama = ResNetForImageClassification(ResNetConfig(**sizes)), mamba(0), tiny_llama()
    assert "ResNetForImageClassification" in obstacles(stages, "image", ["latent"])["states_of_layers"]
    assert obstacles(stages, "image", ["membership", "relearning"]) == {}
    with torch.device("meta"):  # has both tables, but patches that overlap
        hiera = HieraForImageClassification(
            HieraConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], num_query_pool=1)
        )
    assert "HieraForImageClassification" in obstacles(hiera, "image", THREATS)["reconstruction_from_weights"]
    assert obstacles(made, "text", THREATS) == obstacles(llama, "text", THREATS) == {}


def test_every_attack_is_declared_for_a_surface_of_its_threat_model(undeclared):
    for threat in THREATS:
        for found in attacks_of([threat], stability=False):
            assert found.threat == threat and (found.surface is None or found.surface in surfaces_of(threat))
    with pytest.raises(ValueError, match="There is no surface 'nowhere'"):
        attack("nowhere")
    with pytest.raises(ValueError, match="kinds must be of text, image"):
        attack("latent", kinds=("sound",))

    def relearning(model, records):
        return Found()

    with pytest.raises(ValueError, match="There is an attack 'relearning' already"):
        attack("relearn")(relearning)
