import re

import numpy as np
import pytest

from hf_unlearn.audit.verdicts.of_surfaces import surface_verdict
from hf_unlearn.audit.verdicts.verdict import adjust, judge
from hf_unlearn.audit.verdicts.wording import CAVEAT, FLAGS, REASONS, wording


def judge_auc(name, *models, surface="membership", **options):
    return judge(name, "auc", *models, surface=surface, **options)


NEVER = re.compile(r"eras|remov|delet|guarant|anonym|complian|comply|certif|prove[dns]", re.IGNORECASE)


def scores(memory=0.0, seed=0, n=300):
    forget, holdout = np.random.default_rng(0).normal(size=(2, n))
    rng = np.random.default_rng(seed + 1)
    return forget + memory + rng.normal(0, 0.2, n), holdout + rng.normal(0, 0.2, n)


def every_verdict():
    o, u, r, blind = scores(3), scores(0, 1), scores(0, 2), scores(0, 3)
    few = [scores(m, s, 20) for m, s in ((3, 0), (0, 1), (0, 2))]
    shares = np.random.default_rng(5).random(2000) / 2
    found = [
        judge_auc("attack", o, u, r),
        judge_auc("attack", o, o, r),
        judge_auc("attack", o, scores(-3, 4), r),
        judge_auc("attack", blind, u, r),
        judge_auc("attack", blind, o, r, exchangeable=False),
        judge_auc("attack", *few),
        judge_auc("attack", None, u, r),
        judge_auc("attack", o, o, None, exchangeable=True),
        judge_auc("attack", o, o, None, exchangeable=False),
        judge_auc("attack", o, u, None),
        judge_auc("drop", None, scores(-3, 4), r, surface="two-checkpoint"),
        judge("loss", "unbounded", None, u[0], r[0]),
        judge("share", "share", np.ones(9), np.full(9, np.nan), np.zeros(9)),
        judge("share", "share", [0.9], [0.5], [0.4]),
        judge("nats", "unbounded", None, [1.5], [2.5], [[3.5]]),
        judge("share", "share", None, shares + 0.02, shares, [shares + 0.03, shares - 0.03]),
    ]
    return found + adjust(found[:3]) + [surface_verdict("membership", rows) for rows in (found[:2], found[:4], [])]


@pytest.mark.parametrize("verdict", every_verdict(), ids=lambda v: f"{v.verdict}-{v.reason}")
def test_no_sentence_claims_more_than_was_tested(verdict):
    said = wording(verdict)
    assert said.endswith(".") and "nan" not in said.lower() and "None" not in said
    assert not NEVER.search(said), NEVER.search(said)
    if getattr(verdict, "verdict", None) == "no_trace_found":
        assert "at this power" in said and "evidence, not proof" in said and "80%" in said
    if verdict.verdict in ("inconclusive", "no_baseline", "not_tested", None):
        assert "othing is attested here" in said


def test_every_reason_and_flag_has_words_and_none_claims_too_much():
    reasons = set(re.findall(r"`(\w+)`", _documented("reason")))
    flags = set(re.findall(r"`(\w+)`", _documented("flags")))
    assert (
        reasons <= set(REASONS) and flags <= set(FLAGS) and len(reasons) == len(REASONS) and len(flags) == len(FLAGS)
    )
    assert not any(NEVER.search(text) for text in (*REASONS.values(), *FLAGS.values(), CAVEAT))


def _documented(name):
    from hf_unlearn.audit.verdicts.decision import Verdict

    entry = re.search(rf"{name} \([^\n]*\): (.*?)\n        \w+[\w, ]* \(", Verdict.__doc__, re.DOTALL)
    return entry.group(1)


def test_a_sentence_has_the_numbers():
    said = wording(judge_auc("attack", scores(3), scores(3), scores(0, 2)))
    assert re.search(r"difference to retraining \+0\.\d+, 90% CI \+0\.\d+ to \+0\.\d+, n = 300 and 300", said)
    assert "100% of the original signal" in said


def test_a_trace_within_the_margin_is_called_a_trace():
    shares = np.random.default_rng(5).random(300) / 2
    found = judge("p", "share", shares + 0.5, shares + 0.01 + np.random.default_rng(6).normal(0, 0.01, 300), shares)
    assert found.verdict == "no_trace_found" and found.unlearned.low > 0
    assert "There is a trace, smaller than that margin" in wording(found)
    assert "There is a trace" not in wording(judge_auc("attack", scores(3), scores(0, 1), scores(0, 2)))


def test_a_surface_names_what_was_tested_and_what_decided():
    o, u, r = scores(3), scores(0, 1), scores(0, 2)
    found = surface_verdict(
        "membership", [judge_auc("loss", o, u, r), judge_auc("zlib", o, o, r), judge_auc("min_k", u, u, r)]
    )
    said = wording(found)
    assert said.startswith("membership, tested with loss, zlib; decided by zlib.") and "Listed only: min_k." in said
    assert wording(surface_verdict("latent", [])) == "latent: nothing is attested here: it was not tested."
