"""One verdict for what was measured, relative to a model that never saw the records.

A statistic is judged by two paired differences, both oriented **higher = more memorized**: the original minus the
retrained model (was there anything to forget?) and the unlearned minus the retrained model (is it gone?). Tests that
belong to one claim are corrected for their number, a surface takes its worst row, and what cannot be told is said so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from hf_unlearn.audit.verdicts.decision import VERDICTS, Evidence, PairedTest, Verdict, decide, p_values
from hf_unlearn.audit.verdicts.distributions import distance_band, distribution_difference
from hf_unlearn.audit.verdicts.margins import DEFAULT_MARGINS, Margins, seed_band
from hf_unlearn.audit.verdicts.surfaces import SURFACES, SurfaceVerdict, surface_verdict, surface_verdicts
from hf_unlearn.audit.verdicts.wording import wording
from hf_unlearn.statistics.differences import (
    Difference,
    difference_in_differences,
    paired_auc_difference,
    paired_difference,
)
from hf_unlearn.statistics.intervals import auc
from hf_unlearn.statistics.multiplicity import holm
from hf_unlearn.statistics.paired_rates import paired_rates


__all__ = [
    "Margins",
    "SURFACES",
    "SurfaceVerdict",
    "VERDICTS",
    "Verdict",
    "adjust",
    "judge",
    "judge_auc",
    "reference_warning",
    "surface_verdict",
    "surface_verdicts",
    "wording",
]

REFERENCE_SAW_FORGET_SET = "reference_saw_forget_set"
SUSPICIOUS_AUC = 0.9


def judge(
    statistic: str,
    kind: str,
    original,
    unlearned,
    retrained,
    further_retrained: Sequence = (),
    surface: str | None = None,
    exchangeable: bool | None = None,
    groups=None,
    margins: Margins = DEFAULT_MARGINS,
    seed: int = 0,
    beside_original: bool = False,
) -> Verdict:
    """Judge a number a record of the forget set, under the original, the unlearned and the retrained model.

    Args:
        statistic (`str`): its name.
        kind (`str`): `"rate"` (0 or 1 a record), `"share"` (in [0, 1]), `"relearn"`, `"distribution"` or `"unbounded"`, see
            [`KINDS`][hf_unlearn.audit.verdicts.margins.KINDS].
        original, unlearned, retrained (`float (n,)`): values of the same records in the same order, **higher = more
            memorized** (give minus the loss); NaN where a record can't be scored; `None` where there is no such model.
            A tuple of two arrays, of the forget set `(n,)` and of the holdout `(m,)`, for every model compares the
            difference between the two sets: so what one model does better on all unseen records does not count. With one
            retrained model this is what holds the level, as long as the two sets are exchangeable. It widens the interval,
            so leave the holdout away for a rate that is 0 on unseen records, such as that of verbatim extraction.
        further_retrained (sequence, *optional*): the same for models retrained with other seeds.
        surface (`str`, *optional*): one of [`SURFACES`].
        exchangeable (`bool`, *optional*): what the blind baseline says of forget set and holdout; `None` if not known.
        groups (*optional*): a label a record, or a tuple of labels for each of the two sets; groups are resampled.
        margins ([`Margins`], *optional*): what matters, and at what level.
        seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.
        beside_original (`bool`, *optional*, defaults to `False`): the adversary has the original too. Then nothing else has
            to show that the attack sees the records, since the retrained model beside the original betrays them as well;
            and less than that is no harm, so that only more is tested for.

    Returns:
        [`Verdict`] of this test alone. Correct it for the others with [`adjust`].

    Raises:
        ValueError: a kind or surface is unknown, the models have different numbers of values, or a rate is not 0 or 1.
    """
    if kind == "auc":
        raise ValueError(
            'kind "auc" compares two sets of scores. Call judge_auc with (forget, holdout) for each model.'
        )
    retrained_models = [model for model in (retrained, *further_retrained) if model is not None]
    with_holdout = isinstance(unlearned, tuple)
    if kind == "distribution" and with_holdout:
        raise ValueError('kind "distribution" compares the forget set alone. Give one array for each model.')

    def compare(first, second) -> PairedTest:
        if kind == "distribution":
            return distribution_difference(first, second)
        if kind == "rate" and groups is None:
            return paired_rates(first, second)
        if with_holdout:
            return difference_in_differences(first, second, seed, groups)
        return paired_difference(first, second, seed, groups)

    if kind == "distribution":
        band = distance_band(retrained_models)
    else:
        band = seed_band([_mean(model) for model in retrained_models], margins.alpha)
    return _judge(
        (statistic, kind, surface),
        (original, unlearned, retrained_models),
        compare,
        without_reference=None,
        band=band,
        cancels_seeds=with_holdout,
        exchangeable=exchangeable,
        margins=margins,
        beside_original=beside_original,
    )


def judge_auc(
    statistic: str,
    original,
    unlearned,
    retrained,
    further_retrained: Sequence = (),
    surface: str | None = "membership",
    exchangeable: bool | None = None,
    groups=None,
    margins: Margins = DEFAULT_MARGINS,
    seed: int = 0,
    beside_original: bool = False,
) -> Verdict:
    """Judge an attack that tells the forget set from the holdout, by its AUC.

    Without a retrained model an AUC above one half is `residual` only if `exchangeable` is `True`: else the two sets may
    differ in kind.

    Args:
        statistic (`str`): name of the attack.
        original, unlearned, retrained (`tuple` of `float (n,)` and `float (m,)`): scores of the forget set and of the
            holdout under each model, **higher = more member-like**; `None` where there is no such model.
        groups (`tuple` of two, *optional*): labels of the forget set and of the holdout.
        further_retrained, surface, exchangeable, margins, seed, beside_original: as for [`judge`].
    """
    retrained_models = [model for model in (retrained, *further_retrained) if model is not None]

    def compare(first, second) -> Difference:
        return paired_auc_difference(*first, *second, seed=seed, groups=groups)

    # The AUC of a model without any opinion is one half, and its difference to it has an interval and a p-value.
    no_opinion = tuple(np.zeros(len(side)) for side in unlearned)
    aucs = [auc(*model, seed=seed, groups=groups) for model in retrained_models]
    return _judge(
        (statistic, "auc", surface),
        (original, unlearned, retrained_models),
        compare,
        without_reference=None if retrained_models else compare(unlearned, no_opinion),
        band=seed_band([estimate.value for estimate in aucs], margins.alpha),
        cancels_seeds=True,
        exchangeable=exchangeable,
        margins=margins,
        beside_original=beside_original,
        # Beside the original, or in what its layers hold, the retrained model may tell the sets apart by right.
        reference_auc=aucs[0] if aucs and (surface or "").startswith("membership") else None,
    )


def adjust(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Judge again with p-values corrected for all tests of the family (Holm); the order is kept.

    Declare the family before the results are seen: all statistics of the audit, or all of a surface.
    """
    tests = [verdict.evidence for verdict in verdicts]
    raw = np.array([p_values(test) for test in tests], dtype=np.float64).reshape(len(tests), 4)
    adjusted = np.stack([holm(column) for column in raw.T], axis=1) if tests else raw
    family = int((~np.isnan(raw[:, 0])).sum())
    return [
        decide((v.statistic, v.kind, v.surface), test, p, family)
        for v, test, p in zip(verdicts, tests, adjusted.tolist(), strict=True)
    ]


def reference_warning(verdicts: Iterable[Verdict]) -> str | None:
    """`"reference_saw_forget_set"` where the retrained model looks as if it had been trained on the forget set.

    That is: an attack finds its members with an AUC above 0.9, or beyond doubt and the margin although the blind baseline
    calls the two sets exchangeable; or every statistic of every record equals that of the original model.
    """
    tests = [verdict.evidence for verdict in verdicts]
    for test in tests:
        found = test.reference_auc
        if found is not None and (
            found.value > SUSPICIOUS_AUC or (test.exchangeable and found.low > 0.5 + test.margins.auc)
        ):
            return REFERENCE_SAW_FORGET_SET
    same = [test.same_as_original for test in tests if test.same_as_original is not None]
    return REFERENCE_SAW_FORGET_SET if same and all(same) else None


def _judge(
    names,
    models,
    compare,
    without_reference,
    band,
    cancels_seeds,
    exchangeable,
    margins,
    beside_original,
    reference_auc=None,
) -> Verdict:
    statistic, kind, surface = names
    if surface is not None and surface not in SURFACES:
        raise ValueError(f"surface must be one of {', '.join(SURFACES)}, not {surface!r}.")
    original, unlearned, retrained = models
    after = compare(unlearned, retrained[0]) if retrained else without_reference
    before = compare(original, retrained[0]) if retrained and original is not None else None
    level = None if original is None else _mean(original[0] if isinstance(original, tuple) else original)
    margin = margins.of(kind, 0 if after is None else after.n_units, level)
    if kind == "unbounded" and band is not None and band.largest > 0:
        # Without a scale of its own, what retrained models do among themselves is all that can be called harmless.
        margin = band.largest
    evidence = Evidence(
        original=before,
        unlearned=after,
        margin=margin,
        band=band,
        n_retrained=len(retrained),
        cancels_seeds=cancels_seeds,
        exchangeable=exchangeable,
        reference_auc=reference_auc,
        same_as_original=_same(original, retrained[0]) if retrained and original is not None else None,
        margins=margins,
        beside_original=beside_original,
    )
    return decide(names, evidence, p_values(evidence), family=1)


def _mean(values) -> float:
    """Mean of the forget set, less that of the holdout where there is one; NaN without values."""
    if isinstance(values, tuple):
        return _mean(values[0]) - _mean(values[1])
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else math.nan


def _same(original, retrained) -> bool | None:
    """Whether two models give the same values up to rounding; `None` if the values do not vary and hence tell nothing."""
    first, second = (np.ravel(np.concatenate([*v]) if isinstance(v, tuple) else v) for v in (original, retrained))
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(np.unique(first[~np.isnan(first)])) < 2:
        return None
    return bool(np.allclose(first, second, rtol=1e-4, atol=1e-5, equal_nan=True))
