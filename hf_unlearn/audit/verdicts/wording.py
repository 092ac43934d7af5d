"""What may be said: a sentence for each verdict, which claims no more than was tested.

Testing finds traces; it does not prove their absence. So no sentence says that records are gone from the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hf_unlearn.audit.verdicts.decision import Verdict
from hf_unlearn.audit.verdicts.of_surfaces import SurfaceVerdict


#: Belongs beside the verdicts of every report, with the list of what was not tested.
CAVEAT = (
    "Testing by attack is fragile: a model can be made to pass known attacks (arXiv 2408.00929), and membership inference "
    "alone is weak evidence (arXiv 2601.12937). Another attack, or more of the same data, may find what these did not."
)
REASONS = {
    "no_reference": "there is no model retrained without the records to compare with",
    "not_exchangeable": "forget set and holdout differ in kind, and there is no retrained model to compare with",
    "no_signal_before": "the attack saw nothing in the original model either, so that it shows nothing now",
    "signal_unclear": "there are too few records to tell whether the attack saw anything in the original model",
    "same_as_original": "original and retrained model give the same values: one of them is not what it is called",
    "no_original": "there is no original model to show that the attack sees the records where they are",
    "underpowered": "there are too few records to tell",
    "seed_noise": "the difference is not beyond what other seeds of retraining explain",
    "not_after_correction": "the difference is beyond the margin, but not after the correction for all tests of the audit",
    "near_margin": "the difference is too close to the margin to tell",
    "not_measurable": "the difference has no interval",
    "no_records": "no record could be scored under both models",
    "no_margin": "the statistic has no margin without several retrained models; it only informs",
}
FLAGS = {
    "created_by_edit": "The edit itself made the records stand out.",
    "over": "The records score lower than under retraining, which can itself reveal them.",
    "leans_residual": "The difference leans towards residual memory.",
    "leans_over": "The difference leans towards over-forgetting.",
    "not_exchangeable": "Forget set and holdout differ in kind: only the comparison with the retrained model counts.",
    "beside_original": "Held against the retrained model beside the original, which betrays the records as well.",
    "less_holdout": "Differences are those of the forget set less those of the holdout.",
    "no_reference": "There is no retrained model; forget set and holdout look exchangeable.",
    "one_retrained": "There is one retrained model, so that the noise of its seed is unknown.",
}


def wording(verdict: Verdict | SurfaceVerdict) -> str:
    """The sentences for a verdict: what was tested, on how many records, and what may be concluded at what power."""
    if isinstance(verdict, SurfaceVerdict):
        return _of_surface(verdict)
    said = [_sentence(verdict)]
    # A verdict of over-forgetting says already what the flag would repeat.
    said += [FLAGS[flag] for flag in verdict.flags if (verdict.verdict, flag) != ("over_forgotten", "over")]
    return " ".join(said)


def _of_surface(surface: SurfaceVerdict) -> str:
    if surface.worst is None:
        tested = ", ".join(v.statistic for v in surface.verdicts)
        why = f"{tested}: {REASONS.get(surface.reason, 'no verdict')}" if tested else "it was not tested"
        return f"{surface.surface}: nothing is attested here: {why}."
    tested = ", ".join(v.statistic for v in surface.verdicts if v.statistic not in surface.listed)
    said = f"{surface.surface}, tested with {tested}; decided by {surface.worst.statistic}. {wording(surface.worst)}"
    return f"{said} Listed only: {', '.join(surface.listed)}." if surface.listed else said


def _sentence(v: Verdict) -> str:
    if v.verdict == "no_trace_found":
        return f"{_equivalence(v)} at this power: {_power(v)}. This is evidence, not proof."
    if v.verdict == "residual":
        left = "" if math.isnan(v.share_left) else f"; {v.share_left:.0%} of the original signal is left"
        return f"The attack distinguishes the model from one that never saw the records ({_difference(v)}){left}."
    if v.verdict == "over_forgotten":
        return (
            f"The records score lower than under retraining ({_difference(v)}). That itself can reveal which records were "
            "to be forgotten."
        )
    margin = "" if math.isnan(v.margin) else f", margin {v.margin:.3g}"
    shown = "" if math.isnan(v.detectable) else f" ({_difference(v)}{margin}; {_power(v)})"
    return f"Nothing is attested here: {REASONS.get(v.reason, 'there is no verdict')}{shown}."


def _equivalence(v: Verdict) -> str:
    """What equality within the margin means; where the interval excludes 0 a trace was found, and is called one."""
    shown = "shows no more than" if "beside_original" in v.flags else "is statistically equivalent to"
    said = f"On this test the model {shown} one retrained without the records within the margin ({_difference(v)}, margin "
    said += f"{v.margin:.3g}). "
    if v.unlearned.low > 0:
        return said + "There is a trace, smaller than that margin; no evidence of more residual memory"
    return said + "No evidence of residual memory"


def _difference(v: Verdict) -> str:
    e = v.unlearned
    what = "difference to retraining" if v.n_retrained else "AUC above one half"
    size = " and ".join(str(n) for n in e.n)
    return f"{what} {e.value:+.3g}, {e.level:.0%} CI {e.low:+.3g} to {e.high:+.3g}, n = {size}"


def _power(v: Verdict) -> str:
    return f"a difference of {v.detectable:.2g} would be found with {v.evidence.margins.power:.0%} probability"


def not_run_wording(surface: str, missing: Sequence[Mapping]) -> str:
    """The sentence for a surface of which a part of the test could not be run."""
    why = "; ".join(f"{attack['attack']} on the {attack['model']} model: {attack['reason']}" for attack in missing)
    return f"{surface}: nothing is attested here: an attack on it could not be run ({why})."
