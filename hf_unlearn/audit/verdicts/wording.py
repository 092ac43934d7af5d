"""A sentence for each verdict, which claims no more than was tested.

Testing finds traces and does not prove their absence, so no sentence says that records are gone from the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hf_unlearn.audit.verdicts.decision import Verdict
from hf_unlearn.audit.verdicts.of_surfaces import SurfaceVerdict


#: Stands beside the verdicts of every report, with the list of what was not tested.
CAVEAT = (
    "Testing by attack is fragile: a model can be made to pass known attacks (arXiv 2408.00929), and membership inference "
    "alone is weak evidence (arXiv 2601.12937). Another attack, or more of the same data, may find what these did not find."
)
REASONS = {
    "no_reference": "there is no model retrained without the records to compare with",
    "not_exchangeable": "forget set and holdout differ in kind, and there is no retrained model to compare with",
    "no_signal_before": "the attack saw nothing in the original model either, so it shows nothing now",
    "signal_unclear": "there are too few records to tell whether the attack saw anything in the original model",
    "same_as_original": "original and retrained model give the same values: one of them is not what it is called",
    "no_original": "there is no original model to show that the attack sees the records where they are",
    "underpowered": "there are too few records to tell",
    "seed_noise": "the difference is no larger than other seeds of retraining can explain",
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
    "beside_original": "The comparison is with the retrained model beside the original, which reveals the records as well.",
    "less_holdout": "Each difference is that of the forget set minus that of the holdout.",
    "no_reference": "There is no retrained model; forget set and holdout look exchangeable.",
    "one_retrained": "There is only one retrained model, so how much its seed matters is unknown.",
}


def wording(verdict: Verdict | SurfaceVerdict) -> str:
    """The sentences for a verdict: what was tested, on how many records, and what may be concluded at what power."""
    if isinstance(verdict, SurfaceVerdict):
        return _of_surface(verdict)
    # The sentence for over-forgetting says what its flag would repeat.
    flags = [flag for flag in verdict.flags if (verdict.verdict, flag) != ("over_forgotten", "over")]
    return " ".join([_sentence(verdict), *(FLAGS[flag] for flag in flags)])


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
        shown = "shows no more than" if "beside_original" in v.flags else "is statistically equivalent to"
        # An interval that excludes 0 is a trace, also within the margin.
        trace = (
            "There is a trace, smaller than that margin; no evidence of more"
            if v.unlearned.low > 0
            else "No evidence of"
        )
        return (
            f"On this test the model {shown} one retrained without the records within the margin ({_difference(v)}, margin "
            f"{v.margin:.3g}). {trace} residual memory at this power: {_power(v)}. This is evidence, not proof."
        )
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


def _difference(v: Verdict) -> str:
    e = v.unlearned
    what = "difference to retraining" if v.n_retrained else "AUC above one half"
    size = " and ".join(str(n) for n in e.n)
    return f"{what} {e.value:+.3g}, {e.level:.0%} CI {e.low:+.3g} to {e.high:+.3g}, n = {size}"


def _power(v: Verdict) -> str:
    return f"a difference of {v.detectable:.2g} would be found with {v.evidence.margins.power:.0%} probability"


def not_run_wording(surface: str, missing: Sequence[Mapping]) -> str:
    """The sentence for a surface if a part of its test could not be run."""
    why = "; ".join(f"{attack['attack']} on the {attack['model']} model: {attack['reason']}" for attack in missing)
    return f"{surface}: nothing is attested here: an attack on it could not be run ({why})."
