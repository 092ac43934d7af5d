"""Published aggregates: several measures of a model in one number, with the exact formula of each.

None of them decides anything: two models with the same aggregate can differ in every part, so the parts are always
returned with it. If a part is missing there is no value, never the value of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from hf_unlearn.audit.measures.quality import (
    Aggregate,
    aggregate,
    check_retrained,
    harmonic_mean,
    warn_if_reference_is_member,
)


def memorization_score(
    extraction_strength: float | None,
    exact_memorization: float | None,
    paraphrase_probability: float | None,
    truth_ratio: float | None,
) -> Aggregate:
    """Mem (Dorna et al., arXiv 2506.12618): harmonic mean of one minus each argument, higher = less memorized.

    **Best near the value of the retrained model**, which itself gets only about 0.58 on TOFU.

    Args:
        extraction_strength, exact_memorization (`float`): means over the forget set.
        paraphrase_probability (`float`): mean probability of the paraphrased answers, [`answer_probability`].
        truth_ratio (`float`): mean [`truth_ratio`] of the forget set in its `"probability"` form.
    """
    parts = {
        "extraction_strength": extraction_strength,
        "exact_memorization": exact_memorization,
        "paraphrase_probability": paraphrase_probability,
        "truth_ratio": truth_ratio,
    }
    return harmonic_mean({f"1 - {name}": None if value is None else 1 - value for name, value in parts.items()})


def privacy_score(unlearned: Mapping[str, float | None], retrained: Mapping[str, float | None]) -> Aggregate:
    """Priv: harmonic mean over attacks of how near the AUC is to that of the retrained model, higher = nearer.

    For each attack `1 - |A_u - A_r| / A_r`, at least 0, as in a study of 150 published checkpoints. It depends on the
    orientation of the AUC.

    Args:
        unlearned, retrained (`dict[str, float]`): AUC of each attack, forget set against holdout, higher = forget set
            looks like members. The published attacks are loss, zlib, min_k and min_k_plus_plus.

    Returns:
        [`Aggregate`] in [0, 1] with a part for each attack, which is `None` where the retrained AUC is 0.

    Raises:
        ValueError: there is no retrained model, or the models were attacked differently.
    """
    check_retrained(retrained, "The privacy score")
    if set(unlearned) != set(retrained):
        raise ValueError("The models were attacked differently. Give the AUC of the same attacks for each.")
    parts: dict[str, float | None] = {}
    for name, value in unlearned.items():
        reference = retrained[name]
        if _missing(value) or _missing(reference):
            parts[name] = None
            continue
        warn_if_reference_is_member(reference, f"The privacy score of {name}")
        parts[name] = None if reference == 0 else max(0.0, 1 - abs(value - reference) / reference)
    return harmonic_mean(parts)


def utility_score(
    model_utility: float | None,
    original_model_utility: float | None,
    fluency: float | None = None,
    original_fluency: float | None = None,
) -> Aggregate:
    """Util: what is left of the original model's utility, `HM(utility, fluency)` over that of the original, at most 1.

    Args:
        model_utility, original_model_utility (`float`): [`model_utility`] of the unlearned and of the original model.
        fluency, original_fluency (`float`, *optional*): share of fluent generations under both. Without them the model
            utility is compared alone, and `reason` says so.

    Raises:
        ValueError: the fluency of only one of the two models is given.
    """
    if (fluency is None) != (original_fluency is None):
        raise ValueError("The fluency of one model is missing. Give that of both models, or of neither.")
    parts, reason = {"unlearned": model_utility, "original": original_model_utility}, "without fluency"
    if fluency is not None:
        both = {"unlearned": (model_utility, fluency), "original": (original_model_utility, original_fluency)}
        parts = {name: harmonic_mean({"utility": u, "fluency": f}).value for name, (u, f) in both.items()}
        reason = None
    if parts["original"] == 0 and not _missing(parts["unlearned"]):
        return Aggregate(None, parts, "the original model has no utility to keep")
    return aggregate(parts, lambda unlearned, original: min(1.0, unlearned / original), reason)


def overall_score(memorization: float | None, privacy: float | None, utility: float | None) -> Aggregate:
    """Harmonic mean of [`memorization_score`], [`privacy_score`] and [`utility_score`], higher = better on the whole.

    As privacy the study of 150 checkpoints takes the harmonic mean of [`privacy_score`] and a measure of how deep inside
    the model the unlearning goes.
    """
    return harmonic_mean({"memorization": memorization, "privacy": privacy, "utility": utility})


def average_gap(unlearned: Mapping[str, float | None], retrained: Mapping[str, float | None]) -> Aggregate:
    """Mean absolute difference to the retrained model, 0 = as retrained (SalUn, Fan et al., arXiv 2310.12508).

    Args:
        unlearned, retrained (`dict[str, float]`): the same measures, all on one scale: UA, RA, TA and MIA of
            [`~hf_unlearn.audit.measures.classifiers.salun_row`].

    Returns:
        [`Aggregate`] in the unit of the measures; its parts are the signed differences, unlearned minus retrained.

    Raises:
        ValueError: the models have different measures.
    """
    return aggregate(_gaps(unlearned, retrained), lambda *gaps: sum(map(abs, gaps)) / len(gaps))


def tug_of_war(unlearned: Mapping[str, float | None], retrained: Mapping[str, float | None]) -> Aggregate:
    """ToW: product of one minus each absolute difference to the retrained model, 1 = as retrained (arXiv 2406.01257).

    Args:
        unlearned, retrained (`dict[str, float]`): accuracy on the forget, retain and test set, in [0, 1]. For ToW-MIA
            give the success of a membership attack on the forget set in place of its accuracy.

    Returns:
        [`Aggregate`] in [0, 1]; its parts are the signed differences, unlearned minus retrained.

    Raises:
        ValueError: a measure is not in [0, 1], or the models have different measures.
    """
    if any(not _missing(value) and not 0 <= value <= 1 for value in (*unlearned.values(), *retrained.values())):
        raise ValueError("ToW multiplies shares, but a measure is not in [0, 1]. Divide percentages by 100.")
    return aggregate(_gaps(unlearned, retrained), lambda *gaps: math.prod(1 - abs(gap) for gap in gaps))


def _gaps(unlearned: Mapping[str, float | None], retrained: Mapping[str, float | None]) -> dict[str, float | None]:
    if not unlearned or set(unlearned) != set(retrained):
        raise ValueError(
            f"The unlearned model has {sorted(unlearned)} and the retrained one {sorted(retrained)}. Give the same "
            "measures for both."
        )
    pairs = {name: (value, retrained[name]) for name, value in unlearned.items()}
    return {name: None if None in pair else pair[0] - pair[1] for name, pair in pairs.items()}


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)
