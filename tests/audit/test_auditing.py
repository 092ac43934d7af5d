"""The audit as a whole, on models that were trained to know what they should: verdicts, errors, models by name."""

import json
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import text_rows
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from tiny import tiny_llama, tiny_tokenizer, tiny_vit
from transformers import AutoModelForCausalLM, ViTImageProcessorPil

from hf_unlearn.audit import AuditConfig, ScoreCache, auc, audit, dc_pdd, make_canaries, recall, score
from hf_unlearn.audit.measures.membership import token_frequencies, with_prefix
from hf_unlearn.audit.measures.summaries import PRIVACY_ATTACKS
from hf_unlearn.audit.roles import Models
from hf_unlearn.audit.table import score as score_module
from hf_unlearn.audit.verdicts.surfaces import THREATS, surfaces_of
from hf_unlearn.data import encode_dataset
from hf_unlearn.data.pairing import UnlearningCollator
from hf_unlearn.models.likelihood import target_logits


N_FORGET, N_HOLDOUT = 30, 30
TOKENIZER = tiny_tokenizer()
# As few steps and samples as show that every part runs.
SMALL = AuditConfig(
    max_rows=16,
    max_new_tokens=12,
    relearning_steps=(0, 1, 3),
    relearning_rates=(1e-3,),
    weight_attacks=("int4-rtn", "noise 1%"),
    guidance_weights=(0.5, 1.0),
)


def learned(rows, seed: int):
    """A tiny Llama that knows the rows by heart."""
    model = tiny_llama(seed=seed)
    inputs = UnlearningCollator(0)(list(encode_dataset(rows, TOKENIZER)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(100):
        out = target_logits(model, inputs)
        out.token_mean(-out.log_probs).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def case():
    everything = text_rows(N_FORGET + 40 + N_HOLDOUT)
    # Drawn, so that the sets differ in nothing but in what was trained on.
    order = np.random.default_rng(0).permutation(len(everything))
    forget, retain, holdout = (
        everything.select(sorted(part)) for part in np.split(order, [N_FORGET, len(everything) - N_HOLDOUT])
    )
    both = [*forget, *retain]
    return SimpleNamespace(
        split=SimpleNamespace(forget=forget, retain=retain, holdout=holdout),
        original=learned(both, 0),
        retrained=[learned(list(retain), seed) for seed in (1, 2)],
        another=learned(list(retain), 3),
    )


def run(case, model, **arguments):
    arguments = {"original": case.original, "retrained": case.retrained, "config": SMALL} | arguments
    return audit(model, split=case.split, processing_class=TOKENIZER, **arguments)


def test_what_was_not_forgotten_is_residual(case):
    report = run(case, case.original, retrained=case.retrained[0])
    assert report.value("verbatim_extraction") == 1
    for surface in ("verbatim", "knowledge", "membership"):
        assert report.verdict(surface) == "residual", surface
    assert report.exit_code == 1
    assert report.verdict("relearn") == report.verdict("artefacts") == "not_tested"
    (loss,) = [row for row in report.rows if row["measure"] == "membership_auc_loss"]
    assert loss["verdict"]["verdict"] == "residual" and loss["original"]["value"] == loss["unlearned"]["value"] == 1
    assert "Nothing was forgotten" in " ".join(report.notes)


def test_another_retrained_model_raises_no_alarm(case):
    report = run(case, case.another)
    found = {name: surface["verdict"] for name, surface in report.surfaces.items()}
    assert not {"residual", "over_forgotten"} & set(found.values()), found
    assert report.exit_code == 3
    # Few records cannot show equality, but nothing was extracted.
    assert report.value("verbatim_extraction") < 0.2


def test_every_threat_model(case):
    report = run(case, case.original, threat_model=THREATS, retrained=case.another)
    tested = {name for name, surface in report.surfaces.items() if surface["verdict"] != "not_tested"}
    assert tested == {surface for threat in THREATS for surface in surfaces_of(threat)} - {
        "inversion",
        "membership-ref",
    } | (tested & {"membership-ref"})
    assert {"relearn", "quantised", "latent", "two-checkpoint"} <= tested
    for curve in report.curves:
        # Beside itself the original changes in nothing.
        roles = ("unlearned", "retrained") + (() if curve["name"].startswith("guidance") else ("original",))
        assert all(len(curve[role]) == len(curve["x"]) for role in roles)
    json.dumps(report.as_dict(), allow_nan=False)


def test_models_by_name_and_a_cache(case, tmp_path):
    case.original.save_pretrained(tmp_path / "original")
    TOKENIZER.save_pretrained(tmp_path / "original")
    loaded = []

    def load(name):
        loaded.append(name)
        return AutoModelForCausalLM.from_pretrained(name)

    cache = ScoreCache(tmp_path / "scores")
    name = str(tmp_path / "original")
    arguments = {"original": None, "retrained": None, "threat_model": ["membership"]}
    by_name = audit(name, split=case.split, cache=cache, load=load, config=SMALL, threat_model=["membership"])
    again = audit(name, split=case.split, cache=cache, load=load, config=SMALL, threat_model=["membership"])
    assert loaded == [name, name] and len(list((tmp_path / "scores").iterdir())) == 1
    assert by_name.as_dict() == again.as_dict() == run(case, case.original, **arguments).as_dict()
    text = [row["completion"].strip().encode() for row in case.split.forget]
    for path in (tmp_path / "scores").iterdir():
        assert not any(t in path.read_bytes() for t in text)


def test_without_a_retrained_model_nothing_is_attested(case):
    report = run(case, case.another, retrained=None, threat_model=["extraction"])
    assert report.verdict("verbatim") == "no_baseline" and report.exit_code == 3
    assert any("no retrained model" in note for note in report.notes)


def test_a_reference_that_saw_the_forget_set_is_named(case):
    report = run(case, case.another, retrained=case.original)
    assert any(check["check"] == "reference_saw_forget_set" for check in report.checks)


def test_a_model_with_nan_logits_is_named_and_counted(case):
    broken = deepcopy(case.another)
    with torch.no_grad():
        broken.lm_head.weight[5] = float("nan")
    with pytest.warns(UserWarning):
        report = run(case, broken, threat_model=["membership"])
    (check,) = [check for check in report.checks if check["check"] == "not_scored"]
    assert check["counts"]["unlearned, forget"] == N_FORGET
    assert json.dumps(report.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threat_model": ["telepathy"]}, "There is no threat model 'telepathy'"),
        ({"threat_model": ["both_checkpoints"], "original": None}, "has the original too"),
    ],
)
def test_bad_requests_end_before_a_model_runs(arguments, message, case):
    with pytest.raises(ValueError, match=message):
        run(case, None.__class__, **arguments)


def test_an_empty_forget_set_is_an_error(case):
    with pytest.raises(ValueError, match="There is no forget set"):
        audit(case.original, split={"forget": [], "retain": case.split.retain}, processing_class=TOKENIZER)


def test_an_empty_holdout_is_said(case):
    report = audit(
        case.original, split={"forget": case.split.forget, "holdout": []}, processing_class=TOKENIZER, config=SMALL
    )
    assert report.verdict("membership") == "not_tested" and any("no holdout" in note for note in report.notes)


def test_one_model_at_a_time():
    alive, most = [], []

    class Model:
        def __init__(self, name):
            alive.append(name)
            most.append(len(alive))

        def to(self, device):
            return self

        def eval(self):
            return self

        def __del__(self):
            alive.pop()

    models = Models("u", "o", ["r", "r2"], load=Model, device="cpu")
    assert models.roles == ["original", "unlearned", "retrained", "retrained_2"]
    for role in models.roles:
        with models.use(role) as model:
            assert isinstance(model, Model)
        del model
    assert max(most) == 1 and not alive


def test_rows_of_one_person_count_as_one(case):
    groups = [i // 3 for i in range(N_FORGET)]
    plain = run(case, case.another, retrained=case.retrained[0], threat_model=["membership"])
    grouped = run(case, case.another, retrained=case.retrained[0], threat_model=["membership"], groups=groups)
    widths = []
    for report in (plain, grouped):
        (row,) = [row for row in report.rows if row["measure"] == "membership_auc_loss"]
        change = row["verdict"]["unlearned"]
        widths.append(change["high"] - change["low"])
    assert widths[1] > widths[0]


def test_a_loss_far_beyond_that_of_retrained_models_is_over_forgotten(case):
    ascended = deepcopy(case.original)
    inputs = UnlearningCollator(0)(list(encode_dataset(case.split.forget, TOKENIZER)))
    optimizer = torch.optim.AdamW(ascended.parameters(), lr=1e-2)
    for _ in range(30):
        out = target_logits(ascended, inputs)
        out.token_mean(out.log_probs).backward()
        optimizer.step()
        optimizer.zero_grad()
    retrained = [*case.retrained, case.another]
    report = run(case, ascended.eval(), retrained=retrained, threat_model=["extraction"])
    row = row_of(report, "log_likelihood", "forget")
    assert row["unlearned"]["value"] < row["retrained"]["value"] - 5
    assert row["verdict"]["verdict"] == report.verdict("knowledge") == "over_forgotten"
    assert report.exit_code == 1
    with_one = run(case, ascended, retrained=case.retrained[0], threat_model=["extraction"])
    assert not [row for row in with_one.rows if row["measure"] == "log_likelihood"]


def test_groups_follow_their_rows_into_a_part_of_the_forget_set(case):
    groups = [f"person {i // 3}" for i in range(N_FORGET)]
    config = replace(SMALL, max_rows=20, relearning_steps=(0, 1))
    threats = ["extraction", "latent", "relearning"]
    report = run(case, case.another, retrained=case.retrained[0], threat_model=threats, groups=groups, config=config)
    measures = ("rouge_l_recall", "extraction_strength_int4-rtn", "extraction_strength_relearned_from_half")
    for measure in measures:
        assert row_of(report, measure, "forget")["verdict"]["unlearned"]["method"].endswith("groups"), measure
    probe = row_of(report, "probe_forget_or_holdout")
    assert probe["verdict"]["unlearned"]["method"].endswith("groups") and probe["unlearned"]["n"] == [20, 20]
    # Positions are those in the whole set, also where only a part of it was looked at.
    chosen = {i * N_FORGET // 20 for i in range(20)}
    listed = [worst for worst in report.worst if worst["measure"] in measures]
    assert listed and all(set(worst["records"]) <= chosen for worst in listed)
    assert report.grouped and report.margins["auc"] == 0.05


def test_groups_of_the_holdout_are_not_split_by_the_blind_check(case):
    """Rows of one person are alike: with one in each part of a test, two sets of the same kind look different."""
    rng = np.random.default_rng(3)

    def rows(people):
        names = ["".join(chr(97 + c) for c in rng.integers(26, size=12)) for _ in range(people)]
        return [{"prompt": f"{name} {k}", "completion": f" {name}"} for name in names for k in range(6)]

    forget, holdout = rows(15), rows(15)
    groups = {"forget": [i // 6 for i in range(90)], "holdout": [i // 6 for i in range(90)]}
    shifts = []
    for given in (None, groups):
        report = audit(
            case.another,
            None,
            None,
            {"forget": forget, "holdout": holdout},
            "membership",
            TOKENIZER,
            SMALL,
            groups=given,
        )
        (check,) = [check for check in report.checks if check["check"] == "blind_baseline"]
        shifts.append(check["shift"])
    assert shifts == [True, False]


def test_a_row_without_an_answer_does_not_stop_relearning(case):
    rows = [dict(row) for row in case.split.forget]
    for i in range(0, 8):
        rows[i]["completion"] = ""
    split = {"forget": rows, "retain": case.split.retain}
    config = replace(SMALL, max_rows=30, relearning_steps=(0, 1))
    report = audit(case.original, split=split, threat_model="relearning", processing_class=TOKENIZER, config=config)
    related = row_of(report, "extraction_strength_relearned_from_related", "forget")
    assert related["unlearned"]["n"] == [N_FORGET - 8] and related["unlearned"]["n_missing"] == 8


def test_no_text_goes_through_a_model_twice(case, monkeypatch):
    read = []
    computed = score_module._computed

    def watched(model, rows, *arguments, **keywords):
        read.extend((id(model), tuple(row["input_ids"]), tuple(row["labels"])) for row in rows if row)
        return computed(model, rows, *arguments, **keywords)

    monkeypatch.setattr(score_module, "_computed", watched)
    run(case, case.another, retrained=case.retrained[0], threat_model=["extraction", "membership"])
    assert len(read) > 200 and len(read) == len(set(read))


def test_no_interval_leaves_what_a_number_can_be(case):
    report = run(case, case.another, retrained=case.retrained[0], threat_model=["membership"])
    for row in report.rows:
        name = row["measure"]
        low = {"privleak": -np.inf}.get(name, 0.0)
        high = np.inf if name in ("loss", "privleak") or name.startswith("kl_") else 1.0
        for role in report.models:
            value = row.get(role) or {}
            ends = [value[end] for end in ("low", "high") if value.get(end) is not None]
            assert all(low <= end <= high for end in ends), (name, row["set"], role, ends)


def test_what_was_lost_is_noted(case):
    report = run(case, tiny_llama(seed=9), retrained=case.retrained[0], threat_model=["membership"])
    assert any("Much was lost that should be kept" in note for note in report.notes)
    kept = run(case, case.another, retrained=case.retrained[0], threat_model=["membership"])
    assert not any("lost" in note or "Nothing was forgotten" in note for note in kept.notes)


def test_images_under_every_threat_model():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=list("abcde"))})
    rows = Dataset.from_dict(
        {"image": [PILImage.fromarray(p) for p in pixels], "label": [i % 5 for i in range(60)]}, features
    )
    split = {
        "forget": rows.select(range(20)),
        "retain": rows.select(range(20, 40)),
        "holdout": rows.select(range(40, 60)),
    }
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    config = replace(SMALL, relearning_steps=(0, 2), weight_attacks=("int8", "pruned 10%"))
    original = tiny_vit()
    report = audit(
        deepcopy(original), original, tiny_vit(seed=2), split, THREATS, processing_class=processor, config=config
    )
    tested = {name for name, surface in report.surfaces.items() if surface["verdict"] != "not_tested"}
    assert tested == {"knowledge", "membership", "latent", "quantised", "relearn", "inversion", "two-checkpoint"}
    # Nothing changed, so nothing can be read off the change; which proves nothing, and is not called a success.
    assert report.surfaces["inversion"]["reason"] == "not_applicable"
    assert report.verdict("inversion") == "inconclusive"
    json.dumps(report.as_dict(), allow_nan=False)


def row_of(report, measure, of="forget against holdout"):
    (row,) = [row for row in report.rows if row["measure"] == measure and row["set"] == of]
    return row


def test_every_likelihood_attack_is_in_one_report(case):
    report = run(case, case.original, retrained=[*case.retrained, case.another], threat_model=["membership"])
    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus", "lowercase", "recall", "dc_pdd", "reference", "rmia"):
        row = row_of(report, f"membership_auc_{attack}")
        assert row["surface"] == ("membership-ref" if attack in ("reference", "rmia") else "membership")
        assert row["original"]["value"] == row["unlearned"]["value"], attack
        assert row["verdict"]["verdict"] is not None
        assert row["unlearned"]["value"] > 0.8 or attack in ("lowercase", "dc_pdd"), attack
        assert row["retrained"]["value"] < 0.8, attack
    # Some records of the holdout serve as a prefix, or as a population, and are not attacked.
    assert row_of(report, "membership_auc_recall")["unlearned"]["n"] == [N_FORGET, N_HOLDOUT - 2]
    assert row_of(report, "membership_auc_recall")["unlearned"]["n_missing"] == 2
    assert row_of(report, "membership_auc_rmia")["unlearned"]["n"] == [N_FORGET, N_HOLDOUT // 2]
    assert report.verdict("membership-ref") == "residual"


def test_recall_and_dc_pdd_are_those_of_the_model_run_by_hand(case):
    report = run(case, case.original, original=None, retrained=None, threat_model=["membership"])
    forget, holdout, retain = (list(getattr(case.split, name)) for name in ("forget", "holdout", "retain"))
    prefix = "\n".join(row["prompt"] + row["completion"] for row in holdout[:2]) + "\n"  # a third does not fit

    def conditioned(rows):
        return recall(
            score(case.original, TOKENIZER, rows),
            score(case.original, TOKENIZER, with_prefix(rows, prefix, TOKENIZER)),
        )

    expected = auc(conditioned(forget), conditioned(holdout[2:])).value
    assert row_of(report, "membership_auc_recall")["unlearned"]["value"] == pytest.approx(expected, abs=1e-9)
    scores = {
        name: score(case.original, TOKENIZER, rows) for name, rows in (("f", forget), ("h", holdout), ("r", retain))
    }
    frequencies = token_frequencies(scores["r"].target_ids, max(of.target_ids.max() for of in scores.values()) + 1)
    expected = auc(*(dc_pdd(scores[name], frequencies) for name in "fh")).value
    assert row_of(report, "membership_auc_dc_pdd")["unlearned"]["value"] == pytest.approx(expected, abs=1e-9)


def test_published_aggregates_stand_beside_their_parts(case):
    report = run(case, case.another, retrained=case.retrained[0], threat_model=["membership"])
    loss = {role: row_of(report, "membership_auc_loss")[role]["value"] for role in ("original", "retrained")}
    frozen = row_of(report, "tpr_at_threshold_of_original", "forget")
    assert frozen["original"]["value"] == loss["original"] == 1
    assert frozen["unlearned"]["value"] < 0.5 and frozen["retrained"]["value"] < 0.5
    assert row_of(report, "fpr_at_threshold_of_original", "holdout")["original"]["value"] < 0.5
    privleak = row_of(report, "privleak")
    assert privleak["retrained"] is None and privleak["original"]["value"] < -50 < privleak["unlearned"]["value"]
    privacy = row_of(report, "privacy_score", "forget")
    assert privacy["retrained"]["value"] == 1 and set(privacy["unlearned"]["parts"]) == set(PRIVACY_ATTACKS)
    assert privacy["original"]["value"] < privacy["unlearned"]["value"]
    utility = row_of(report, "utility_score", "retain")
    assert utility["original"]["value"] == 1 and 0.5 < utility["unlearned"]["value"] <= 1
    json.dumps(report.as_dict(), allow_nan=False)


def test_canaries_have_the_exposure_they_must_have(case):
    canaries = make_canaries({"prompt": "The code is", "completion": " ####."}, 24, n_candidates=255, seed=3)
    planted = learned([*case.split.forget, *case.split.retain, *canaries.planted], 0)
    report = run(
        case, planted, original=planted, retrained=case.retrained, threat_model=["extraction"], canaries=canaries
    )
    bits = row_of(report, "exposure_in_bits", "planted canaries")
    assert bits["unlearned"]["value"] == 8 and bits["unlearned"]["n"] == [int(canaries.included.sum())]
    # Of a canary that was never seen the mean is 1.44 bits.
    assert bits["retrained"]["low"] < 1.44 < bits["retrained"]["high"]
    assert row_of(report, "exposure_share", "planted canaries")["verdict"]["verdict"] == "residual"
    epsilon = row_of(report, "epsilon_lower_bound", "canaries")
    assert epsilon["unlearned"]["value"] > 0.5 and epsilon["retrained"]["value"] == 0
    assert "canaries" in report.sets and report.verdict("verbatim") == "residual"


def test_lira_needs_shadow_models_and_enough_of_them(case):
    retrained = [*case.retrained, case.another]
    with pytest.raises(ValueError, match="at least two of each"):
        run(case, case.original, shadows=[case.original], retrained=retrained)
    everything = [*case.split.forget, *case.split.retain]
    shadows = [learned(everything, seed) for seed in (11, 12)]
    report = run(case, case.original, retrained=retrained, threat_model=["membership"], shadows=shadows)
    row = row_of(report, "lira_says_member", "forget")
    assert row["unlearned"]["value"] > 0.9 and row["retrained"]["value"] < 0.2
    assert row["verdict"]["verdict"] == "residual" and row["surface"] == "membership-ref"
    assert set(report.models) == {"original", "unlearned", "retrained", "retrained_2", "retrained_3"}


def test_what_both_checkpoints_show_is_held_against_retraining(case):
    report = run(case, case.another, retrained=case.retrained[0], threat_model=["both_checkpoints"])
    drop = row_of(report, "membership_auc_likelihood_drop")
    # A retrained model betrays the forget set beside the original, and that is no sign that it saw it.
    assert drop["retrained"]["value"] > 0.7 and drop["unlearned"]["value"] > 0.7 and drop["original"] is None
    assert not any(check["check"] == "reference_saw_forget_set" for check in report.checks)
    assert drop["verdict"]["verdict"] in ("no_trace_found", "inconclusive")
    gained = row_of(report, "extraction_strength_gained_by_guidance", "forget")
    assert gained["unlearned"]["value"] >= 0 and gained["original"] is None
    kept = run(case, case.original, retrained=case.retrained[0], threat_model=["both_checkpoints"])
    # What was not edited does not stand out beside itself. That is less than retraining shows, and no harm.
    drop = row_of(kept, "membership_auc_likelihood_drop")
    assert drop["unlearned"]["value"] == 0.5 and drop["verdict"]["verdict"] == "no_trace_found"


def test_texts_too_short_for_min_k_are_counted(case):
    short = Dataset.from_list([{"prompt": "A", "completion": " b"}, *case.split.forget])
    split = {"forget": short, "holdout": case.split.holdout}
    report = audit(case.original, split=split, processing_class=TOKENIZER, config=SMALL, threat_model=["membership"])
    (check,) = [check for check in report.checks if check["check"] == "too_short_for_min_k"]
    assert check["counts"] == {"forget": 1, "holdout": 0} and check["says"] in report.notes


def test_the_worst_records_and_how_many_are_above_what_retraining_reaches(case):
    report = run(case, case.original, retrained=case.retrained[0], threat_model=["extraction"])
    found = {worst["set"]: worst for worst in report.worst if worst["measure"] == "answer_probability"}
    worst = found["forget"]
    assert set(found) == {"forget", "retain"}  # an edit exposes some that are kept
    assert worst["share_above"]["value"] == 1 and len(worst["records"]) == 10
    assert worst["excess"] == sorted(worst["excess"], reverse=True)
    assert "Testing by attack is fragile" in report.caveat


def test_a_holdout_of_another_kind_is_no_control(case):
    """A model that lost the holdout looks, less the holdout, as if it had kept the forget set."""
    sets = {"forget": case.split.forget, "retain": case.split.retain}
    other = [{"prompt": f"{i} + {i} =", "completion": f" {2 * i}"} for i in range(60)]
    for holdout, controlled in ((case.split.holdout, True), (Dataset.from_list(other), False)):
        report = audit(
            case.another,
            case.original,
            case.retrained[0],
            sets | {"holdout": holdout},
            ["extraction"],
            TOKENIZER,
            SMALL,
        )
        verdict = row_of(report, "answer_probability", "forget")["verdict"]
        assert ("less_holdout" in verdict["flags"]) is controlled
        assert ("not_exchangeable" in verdict["flags"]) is not controlled
