"""The blind baseline: can forget set and holdout be told apart without any model?

If they can, an attack that compares the two may find that difference and not what was trained on: classifiers that see no
model beat published attacks on eight benchmarks (arXiv 2406.16201). Then an AUC by itself shows nothing, and only its
difference to the retrained model does.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from hf_unlearn.statistics.estimate import Estimate, plain
from hf_unlearn.statistics.intervals import auc
from hf_unlearn.statistics.resampling import group_codes, n_units


N_HASHES = 2**12
THUMBNAIL = 4
MIN_RECORDS, FOLDS = 10, 5
# Every two folds meet twice, once with either of them left out, and both times they agree or disagree by the same chance.
# Where there is nothing to find, the variance of the AUC is therefore twice that of as many independent tests, and where
# one feature decides it is skewed as well: by simulation 1.6 times the width errs in at most 5 %. An interval that ignores
# this calls one in six pairs of equal sets different.
WIDER = 1.6


@dataclass(frozen=True)
class BlindBaseline:
    """How well a classifier that sees no model tells the forget set from the holdout.

    Attributes:
        auc (`Estimate`): of records that it was not fitted to; 0.5 = not at all, higher = the sets differ in kind.
        shift (`bool` or `None`): whether the interval excludes 0.5; `None` where there are too few records to tell.
        features (`str`): `"text"` or `"image"`.
        folds (`int`): number of parts that were left out in turn.
        reason (`str` or `None`): why there is no value.
    """

    auc: Estimate
    shift: bool | None
    features: str
    folds: int
    reason: str | None = None

    @property
    def exchangeable(self) -> bool | None:
        """Whether the two sets look alike: the opposite of `shift`, and `None` where that is."""
        return None if self.shift is None else not self.shift

    def as_dict(self) -> dict:
        """Plain types for JSON; NaN becomes `None`."""
        return plain({**asdict(self), "exchangeable": self.exchangeable})


def blind_baseline(
    forget: Sequence,
    holdout: Sequence,
    groups=None,
    seed: int = 0,
    content: Callable[[Any], Any] = lambda record: record,
) -> BlindBaseline:
    """Fit a logistic regression to features of the records alone, and test it on records that were left out.

    Args:
        forget, holdout (sequences): texts, images (PIL, or arrays `(h, w)` or `(h, w, channels)`), or what `content`
            makes them of.
        groups (`tuple` of two, *optional*): a label for each record of each set; a group is never split between fitting
            and testing.
        seed (`int`, *optional*, defaults to `0`): of the folds and of the bootstrap.
        content (`Callable`, *optional*): from a record to its text or image. For rows of a data set, such as a `Dataset`,
            it is [`~hf_unlearn.data.rows.content_of`].

    Returns:
        [`BlindBaseline`]. Below 10 records (groups) a side it has no value.

    Raises:
        ValueError: a record holds neither text nor an image, or there is not one label per record.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    n = (len(forget), len(holdout))
    labels = map(np.arange, n) if groups is None else groups
    # Equal labels in both sets are different groups: no record is in both.
    codes = [group_codes(side, np.ones(size, bool)) for side, size in zip(labels, n, strict=True)]
    sizes = list(map(n_units, n, codes))
    kind = "image" if n[0] and _is_image(content(forget[0])) else "text"
    if min(sizes) < MIN_RECORDS:
        what = "records" if groups is None else "groups"
        reason = f"a side has fewer than {MIN_RECORDS} {what}"
        return BlindBaseline(Estimate(np.nan, np.nan, np.nan, n, "none", reason=reason), None, kind, 0, reason)
    contents = [content(record) for side in (forget, holdout) for record in side]
    features = image_features(contents) if kind == "image" else text_features(contents)
    target = np.repeat([1, 0], n)
    units = np.concatenate([codes[0], codes[1] + sizes[0]])
    scores = np.empty(len(target))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fitted, left_out in folds.split(features, target, units):
        classifier = LogisticRegression(class_weight="balanced", solver="liblinear", random_state=seed)
        model = make_pipeline(MaxAbsScaler(), classifier).fit(features[fitted], target[fitted])
        scores[left_out] = model.decision_function(features[left_out])
    found = auc(scores[: n[0]], scores[n[0] :], seed=seed, groups=None if groups is None else tuple(codes))
    low = max(0.0, found.value - WIDER * (found.value - found.low))
    high = min(1.0, found.value + WIDER * (found.high - found.value))
    found = replace(found, low=low, high=high, method=f"{found.method}, {FOLDS} folds")
    return BlindBaseline(found, bool(low > 0.5 or high < 0.5), kind, FOLDS)


def text_features(texts: Sequence[str]) -> sparse.csr_matrix:
    """Hashed counts of words and pairs of words, length in bytes and words, zlib ratio, share of digits: `(n, d)`."""
    from sklearn.feature_extraction.text import HashingVectorizer

    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"Record {index} holds no text that could be compared. Give strings, or rows with text, prompt and "
                "completion, or messages."
            )
    hashed = HashingVectorizer(n_features=N_HASHES, ngram_range=(1, 2), alternate_sign=False).transform(texts)
    counts = np.array([_counts(text) for text in texts], dtype=np.float64)
    return sparse.hstack([hashed, sparse.csr_matrix(counts)], format="csr")


def image_features(images: Sequence) -> np.ndarray:
    """Mean and standard deviation of each channel, and a thumbnail of 4 x 4: `float64 (n, d)`.

    Gray images count as having three equal channels.
    """
    return np.stack([_image_numbers(image) for image in images])


def _counts(text: str) -> list[float]:
    raw = text.encode("utf-8")
    size = max(len(raw), 1)
    return [len(raw), len(text.split()), len(zlib.compress(raw)) / size, sum(c.isdigit() for c in text) / size]


def _is_image(record) -> bool:
    return not isinstance(record, str) and (hasattr(record, "convert") or np.ndim(record) >= 2)


def _image_numbers(image) -> np.ndarray:
    pixels = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image, dtype=np.float64)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    rows = np.array_split(pixels, THUMBNAIL, axis=0)
    thumbnail = [part.mean(axis=(0, 1)) for row in rows for part in np.array_split(row, THUMBNAIL, axis=1)]
    return np.concatenate([pixels.mean(axis=(0, 1)), pixels.std(axis=(0, 1)), np.ravel(thumbnail)])
