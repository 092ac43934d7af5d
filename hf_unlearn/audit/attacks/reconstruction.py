"""Can an image that was asked to be forgotten be reconstructed? Reconstructions beside the images, and beside baselines.

A number of decibels alone says little. A reconstruction shows an image only if it is more like it than what needs no
attack: a single color, or an image that the model still keeps. A reconstruction that does not show the image may still
betray it, by being more like the forget set than like images that were never trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from hf_unlearn.audit.attacks.attack import attack
from hf_unlearn.audit.attacks.inversion import Reconstruction, reconstruct_from_weights, require_tables
from hf_unlearn.audit.measures.image_similarity import image_chunks, nearest_psnr, psnr, reidentified, ssim
from hf_unlearn.audit.records import AuditRecords, Found
from hf_unlearn.data.images import labels_of
from hf_unlearn.statistics import intervals
from hf_unlearn.statistics.estimate import known, plain


#: From this PSNR on a reconstruction is as good as the image; 3 dB more are half the error.
RECOVERED_DB, MARGIN_DB = 40.0, 3.0
#: Level of the test whether a reconstruction betrays the forget set.
LEVEL = 0.05


@dataclass(frozen=True)
class ReconstructionAudit:
    """What an attack gives of each record, and what one has without it. NaN: not measured.

    Attributes:
        route (`str`): the attack, in words.
        reason (`str`): what its reconstruction rests on, or why there is none.
        psnr, ssim (`float64 (n,)`): of the reconstruction to the image; **higher = more is recovered**. PSNR in dB.
        found (`float64 (n,)`): 1 where the retained image nearest to the reconstruction is of the same class (in portraits:
            the same person), else 0.
        chance (`float64 (n,)`): the share of the retained images that are of that class.
        mean_color, nearest_retained (`float64 (n,)`): PSNR of the best single color, and of the retained image that is
            most like the record.
        non_members, non_members_ssim (`float64 (m,)`): of the reconstruction to images that were never trained on; with
            several reconstructions, of the one most like each.
        recovered_db (`float`): from this PSNR on a record counts as recovered.
        details (`Reconstruction` or `None`): rank, condition and residual of the closed form, and its image.
    """

    route: str
    reason: str
    psnr: np.ndarray
    ssim: np.ndarray
    found: np.ndarray
    chance: np.ndarray
    mean_color: np.ndarray
    nearest_retained: np.ndarray
    non_members: np.ndarray
    non_members_ssim: np.ndarray
    recovered_db: float = RECOVERED_DB
    details: Reconstruction | None = field(default=None, repr=False)

    @property
    def baseline(self) -> np.ndarray:
        """PSNR in dB that a reconstruction must exceed to show anything: the best of the baselines, `float64 (n,)`."""
        best = np.fmax(self.mean_color, self.nearest_retained)
        return np.fmax(best, np.fmax.reduce(self.non_members, initial=-np.inf))

    @property
    def recovered(self) -> np.ndarray:
        """`bool (n,)`: the image itself comes out."""
        return self.psnr >= self.recovered_db

    @property
    def above_baseline(self) -> np.ndarray:
        """`bool (n,)`: more of the image comes out than one has without the attack (3 dB, half the error)."""
        return self.recovered | (self.psnr >= self.baseline + MARGIN_DB)

    @cached_property
    def p_value(self) -> float:
        """One-sided Mann-Whitney U test, by SSIM, of "no more like the forget set than like images never trained on"; for
        one record at least `1 / (m + 1)`. NaN without such images."""
        members, others = known(self.ssim), known(self.non_members_ssim)
        if not len(members) or not len(others):
            return float("nan")
        return float(mannwhitneyu(members, others, alternative="greater").pvalue)

    @property
    def outcome(self) -> str:
        """The worst that holds: `"recovered"`, `"partly_recovered"`, `"betrayed"` (not shown, but told from others),
        `"nothing_found"`, or `"not_applicable"` without a reconstruction."""
        if self.recovered.any():
            return "recovered"
        if self.above_baseline.any():
            return "partly_recovered"
        if self.p_value <= LEVEL:
            return "betrayed"
        return "not_applicable" if np.isnan(self.psnr).all() else "nothing_found"

    def shows_records(self, family: int = 1) -> bool:
        """Whether records are shown or betrayed; `family` is the number of tests, for the correction of the latter."""
        if self.outcome == "betrayed":
            return self.p_value * family <= LEVEL
        return self.outcome in ("recovered", "partly_recovered")

    @property
    def sentence(self) -> str:
        """What may be said."""
        caveat = "This is no proof that no other route does."
        if self.outcome == "not_applicable":
            return f"Nothing is recovered by {self.route}: {self.reason} {caveat}"
        if self.outcome in ("recovered", "partly_recovered"):
            hit = self.recovered if self.outcome == "recovered" else self.above_baseline
            subject = "The image" if self.outcome == "recovered" else "A part of the image"
            more = "" if hit.sum() == 1 else f" So can {int(hit.sum()) - 1} more."
            worst = int(np.nanargmax(np.where(hit, self.psnr, np.nan)))
            return (
                f"{subject} asked to be forgotten can be read off the two public checkpoints, by {self.route} "
                f"({self._numbers(worst)}).{more}"
            )
        worst = int(np.nanargmax(self.psnr - self.baseline))
        said = f"No image is recovered above the baseline by {self.route} ({self._numbers(worst)})."
        if self.outcome == "nothing_found":
            return f"{said} {caveat}"
        auc = intervals.auc(self.ssim, self.non_members_ssim).value
        return (
            f"{said} But the reconstruction betrays what was forgotten: it is more like the forget set than like images never "
            f"trained on (AUC {auc:.2f} of SSIM, n = {len(self.ssim)} and {len(self.non_members_ssim)}, p = {self.p_value:.2g})."
        )

    def _numbers(self, record: int) -> str:
        return (
            f"record {record}: PSNR {self.psnr[record]:.1f} dB, where the best baseline gives {self.baseline[record]:.1f} dB and "
            f"a single colour {self.mean_color[record]:.1f} dB; SSIM {self.ssim[record]:.2f}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain types for JSON: numbers and words, no image."""
        shown = {"route": self.route, "outcome": self.outcome, "sentence": self.sentence, "reason": self.reason}
        shown |= {"n": len(self.psnr), "recovered": np.flatnonzero(self.recovered).tolist(), "p_value": self.p_value}
        shown["auc_ssim"] = intervals.auc(self.ssim, self.non_members_ssim).as_dict()
        found = known(self.found)
        shown["found"] = intervals.rate(int(found.sum()), len(found)).as_dict()
        names = ("psnr", "ssim", "chance", "mean_color", "nearest_retained", "non_members", "non_members_ssim")
        shown |= {name: intervals.mean(getattr(self, name)).as_dict() for name in names}
        if self.details is not None:
            shown["details"] = self.details.as_dict()
        return plain(shown)


def reconstruction_audit(before, after, images, processor=None, **options) -> ReconstructionAudit:
    """Whether images to be forgotten can be read off the weights before and after an edit, see `inversion`.

    The closed form gives one image, which is compared with every record: of a larger forget set, it is a mixture.

    Args:
        before, after (`PreTrainedModel`, `PeftModel` or `str`): see [`reconstruct_from_weights`].
        images, processor, options: see [`compare_reconstructions`]; `retain`, `non_members`, `embed` and `recovered_db`.
    """
    details = reconstruct_from_weights(before, after, processor)
    image = np.nan if details.image is None else np.clip(details.image, 0, 1)[None]
    route = "the difference of the weights, in closed form"
    told = {"route": route, "reason": details.reason, "details": details}
    return compare_reconstructions(image, images, processor, **told, **options)


def compare_reconstructions(
    reconstructed: np.ndarray | float,
    images,
    processor=None,
    retain=None,
    non_members=None,
    embed: Callable[[np.ndarray], np.ndarray] | None = None,
    route: str = "inversion",
    reason: str = "",
    recovered_db: float = RECOVERED_DB,
    details: Reconstruction | None = None,
) -> ReconstructionAudit:
    """Compare what an attack gave with the images that it was after, and with the baselines.

    Args:
        reconstructed (`float (n, channels, height, width)` in [0, 1]): one for each record, or one for all; NaN where
            there is none.
        images (`float (n, channels, height, width)` in [0, 1], or rows with image and label): the forget set.
        processor (`BaseImageProcessor`, *optional*): that of the model, needed for rows. Without one, the model reads
            images in [0, 1].
        retain (*optional*): images that the model keeps, like `images`. Where both have labels, the class of each record
            is looked for among them.
        non_members (*optional*): images that were never trained on, like `images`.
        embed (`Callable`, *optional*): features for the search, see [`reidentified`].
        route, reason, details (*optional*): for the report, see [`ReconstructionAudit`].
        recovered_db (`float`, *optional*, defaults to `40.0`): from this PSNR on a record counts as recovered.

    All sets are in memory at once, in the size that the model reads.
    """
    forget, kept, others = (_stacked(rows, processor) for rows in (images, retain, non_members))
    reconstructed = np.asarray(reconstructed, dtype=np.float64)
    # A reconstruction that serves for all records is compared with the non-members once.
    distinct = reconstructed if reconstructed.ndim == 4 else np.full((1, *forget.shape[1:]), reconstructed)
    reconstructed = np.broadcast_to(distinct, forget.shape)
    found = chance = missing = np.full(len(forget), np.nan)
    labels, kept_labels = _labels(images), _labels(retain)
    if labels is not None and kept_labels is not None:
        found = reidentified(reconstructed, labels, kept, kept_labels, embed)
        chance = (labels[:, None] == kept_labels).mean(axis=1)
    return ReconstructionAudit(
        route=route,
        reason=reason,
        psnr=psnr(reconstructed, forget),
        ssim=ssim(reconstructed, forget),
        found=found,
        chance=chance,
        mean_color=psnr(np.broadcast_to(forget.mean(axis=(2, 3), keepdims=True), forget.shape), forget),
        nearest_retained=missing if kept is None else nearest_psnr(forget, kept),
        non_members=_best(psnr, distinct, others),
        non_members_ssim=_best(ssim, distinct, others),
        recovered_db=recovered_db,
        details=details,
    )


def _stacked(images, processor) -> np.ndarray | None:
    return None if images is None or not len(images) else np.concatenate(list(image_chunks(images, processor)))


def _best(similarity: Callable, reconstructed: np.ndarray, others: np.ndarray | None) -> np.ndarray:
    if others is None:
        return np.full(0, np.nan)
    return np.fmax.reduce([similarity(one, others) for one in reconstructed])


def _labels(rows) -> np.ndarray | None:
    if rows is None or not len(rows) or (hasattr(rows, "shape") and not hasattr(rows, "column_names")):
        return None
    labels = rows.labels if hasattr(rows, "labels") else labels_of(rows)  # encoded already, or not
    return None if None in labels else np.asarray(labels)


@attack("inversion", ("image",), beside=("original",), requires=(require_tables,))
def reconstruction_from_weights(model, records: AuditRecords, original) -> Found:
    """Images of the forget set from the difference of the weights, which publishing both checkpoints gives away."""
    sets = {"retain": records.rows("retain"), "non_members": records.rows("holdout")}
    forget, processor = records.rows("forget"), records.processing_class
    return Found(reconstruction=reconstruction_audit(original, model, forget, processor, **sets))
