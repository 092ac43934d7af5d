"""The verdict on a statistic, relative to a model that never saw the records.

It rests on two paired differences, both oriented **higher = more memorized**: the original minus the retrained model (was
there anything to forget?) and the unlearned minus the retrained model (is it gone?). The tests of one claim are corrected
for their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from hf_unlearn.audit.verdicts.decision import Evidence, PairedTest, Verdict, decide, p_values
from hf_unlearn.audit.verdicts.distributions import distance_band, distribution_difference
from hf_unlearn.audit.verdicts.margins import DEFAULT_MARGINS, Margins, seed_band
from hf_unlearn.audit.verdicts.surfaces import SURFACES
from hf_unlearn.statistics.differences import difference_in_differences, paired_auc_difference, paired_difference
from hf_unlearn.statistics.estimate import known, known_mean
from hf_unlearn.statistics.intervals import auc
from hf_unlearn.statistics.multiplicity import holm
from hf_unlearn.statistics.paired_rates import paired_rates


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
) -> Verdict:
    """Judge one statistic of the forget set under the original, the unlearned and the retrained model.

    Without a retrained model only an AUC gets a verdict: above one half it is `residual` if `exchangeable` is `True`;
    otherwise the two sets may differ in kind.

    Args:
        statistic (`str`): its name.
        kind (`str`): one of [`KINDS`][hf_unlearn.audit.verdicts.margins.KINDS].
        original, unlearned, retrained (`float (n,)`): values of the same records in the same order, **higher = more
            memorized** (give minus the loss); NaN for a record that can't be scored; `None` if there is no such model.
            For an AUC a tuple of the scores of the forget set `(n,)` and of the holdout `(m,)`. For other kinds such a
            tuple, given for every model, compares the difference between the two sets, so that it does not count if a model
            is better on all unseen records. With a single retrained model this holds the level, if the two sets are
            exchangeable. It widens the interval, so give no holdout for a rate that is 0 on unseen records, such as that of
            verbatim extraction.
        further_retrained (sequence, *optional*): the same for models retrained with other seeds.
        surface (`str`, *optional*): one of `SURFACES`. If the adversary has the original as well (`beside_original`), the
            verdict needs no signal in the original model, and less than under retraining does no harm.
        exchangeable (`bool`, *optional*): what the blind baseline says about forget set and holdout; `None` if unknown.
        groups (*optional*): a label per record, or a tuple of labels for each of the two sets, to resample groups.
        margins ([`Margins`], *optional*): margins and levels.
        seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.

    Returns:
        [`Verdict`] of this test alone; [`adjust`] corrects it for the others.

    Raises:
        ValueError: a kind or surface is unknown, the models have different numbers of values, or a rate is not 0 or 1.
    """
    if surface is not None and surface not in SURFACES:
        raise ValueError(f"surface must be one of {', '.join(SURFACES)}, not {surface!r}.")
    place = None if surface is None else SURFACES[surface]
    with_holdout = isinstance(unlearned, tuple)
    if kind == "distribution" and with_holdout:
        raise ValueError('kind "distribution" compares the forget set alone. Give one array for each model.')
    if kind == "auc" and not with_holdout:
        raise ValueError('kind "auc" compares two sets of scores. Give (forget, holdout) for each model.')

    def compare(first, second) -> PairedTest:
        if kind == "auc":
            return paired_auc_difference(*first, *second, seed=seed, groups=groups)
        if kind == "distribution":
            return distribution_difference(first, second)
        if kind == "rate" and groups is None:
            return paired_rates(first, second)
        if with_holdout:
            return difference_in_differences(first, second, seed, groups)
        return paired_difference(first, second, seed, groups)

    references = [model for model in (retrained, *further_retrained) if model is not None]
    aucs = [auc(*model, seed=seed, groups=groups) for model in references] if kind == "auc" else []
    after = compare(unlearned, references[0]) if references else None
    if kind == "auc" and not references:
        # A model that scores all records equally has an AUC of one half.
        after = compare(unlearned, tuple(np.zeros(len(side)) for side in unlearned))
    before = compare(original, references[0]) if references and original is not None else None
    if kind == "distribution":
        band = distance_band(references)
    else:
        band = seed_band([e.value for e in aucs] if aucs else [_mean(model) for model in references], margins.alpha)
    level = None if original is None else _mean(original[0] if isinstance(original, tuple) else original)
    margin = margins.of(kind, 0 if after is None else after.n_units, level)
    if kind == "unbounded" and band is not None and band.largest > 0:
        # Without a scale, only differences between retrained models can be called harmless.
        margin = band.largest
    evidence = Evidence(
        original=before,
        unlearned=after,
        margin=margin,
        band=band,
        n_retrained=len(references),
        cancels_seeds=with_holdout,
        exchangeable=exchangeable,
        # Elsewhere (beside the original, or in its layers) a sound retrained model may tell the two sets apart.
        reference_auc=aucs[0] if aucs and place is not None and place.tells_apart else None,
        same_as_original=_same(original, references[0]) if references and original is not None else None,
        margins=margins,
        beside_original=place is not None and place.beside_original,
    )
    return decide((statistic, kind, surface), evidence, p_values(evidence), family=1)


def adjust(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Judge again, in the same order, with p-values corrected for all tests of the family (Holm).

    Declare the family before you see the results: all statistics of the audit, or all of a surface.
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
    """`"reference_saw_forget_set"` if the retrained model looks as if it had been trained on the forget set.

    That is: its membership attack has an AUC above 0.9, or one beyond doubt and the margin although the blind baseline calls
    the two sets exchangeable; or every statistic of every record equals that of the original model.
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


def _mean(values) -> float:
    """Mean of the forget set, minus that of the holdout if there is one; NaN without values."""
    return known_mean(values[0]) - known_mean(values[1]) if isinstance(values, tuple) else known_mean(values)


def _same(original, retrained) -> bool | None:
    """Whether two models give the same values up to rounding; `None` if all values are equal, which tells nothing."""
    first, second = (
        np.asarray(np.concatenate([*v]) if isinstance(v, tuple) else v, dtype=np.float64).ravel()
        for v in (original, retrained)
    )
    if len(np.unique(known(first))) < 2:
        return None
    return bool(np.allclose(first, second, rtol=1e-4, atol=1e-5, equal_nan=True))
