"""Membership inference as an `evaluate` module."""

from collections.abc import Mapping

import datasets
import evaluate
import numpy as np

from hf_unlearn.audit import ATTACKS, CLASS_ATTACKS, auc, paired_auc_difference, score, tpr_at_fpr
from hf_unlearn.data.rows import content_of
from hf_unlearn.evaluate_modules.base import AuditModule, flat, loaded
from hf_unlearn.statistics.exchangeability import blind_baseline


_DESCRIPTION = """
Tells how well an attack recognizes the records that a model was trained on, from one score a record: area under the
ROC curve and true positive rates at small false positive rates, each with a 95 % confidence interval.
"""

_CITATION = """
@inproceedings{carlini2022membership,
  title={Membership Inference Attacks From First Principles},
  author={Carlini, Nicholas and Chien, Steve and Nasr, Milad and Song, Shuang and Terzis, Andreas and
    Tram\\`er, Florian},
  booktitle={IEEE Symposium on Security and Privacy},
  year={2022}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[float]`): membership scores, **higher = more member-like**, e.g. minus the loss. NaN for a
        record that can't be scored: it is left out and counted.
    references (`list[int]`): 1 for a member (the forget set), 0 for a non-member (a holdout of the same kind that was
        never trained on).
    examples (`list`, *optional*): in place of `predictions`: strings, rows of `{"prompt", "completion"}`, `{"messages"}`
        or `{"text"}`, or of `{"image", "label"}` for an image classifier.
    model (`PreTrainedModel` or `str`): with `examples`, the model, used where it is, or where to load it from.
    processing_class (`PreTrainedTokenizerBase` or `BaseImageProcessor`): with `examples`; needed with a model object.
    attack (`str`, *optional*, defaults to `"min_k"`): with `examples`; or `"loss"`, `"zlib"`, `"min_k_plus_plus"`. Of images
        `"loss"`, `"confidence"`, `"correctness"`, `"entropy"` or `"modified_entropy"`.
    batch_size (`int`, *optional*, defaults to `8`): with `examples`, examples per forward pass.
    truncate (`bool`, *optional*, defaults to `False`): with `examples`, cut those that are longer than the context.
    retrained (`list[float]`, *optional*): `predictions` of the same records, in the same order, under a model retrained
        without the members; with `examples` that model itself, or its name.
    fprs (`list[float]`, *optional*, defaults to `(0.001, 0.01, 0.05)`): bounds on the false positive rate.
    seed (`int`, *optional*, defaults to `0`): seed of the bootstrap that is used below 30 records a side.

Returns:
    `dict`:
    - **auc**, **auc_low**, **auc_high** (`float`), **auc_method** (`str`): 0.5 = can't tell, 1 = always recognized.
      Below 0.5 is not privacy: records that look less known than unseen ones stand out as well.
    - **auc_retrained**, **auc_difference** (`float`): with `retrained`, its AUC, which need not be 0.5, and the difference
      to it, records paired, with **_low** and **_high**; **0 = as retrained**.
    - **blind_auc** (`float`), with **_low** and **_high**: with `examples` that are not encoded yet, of a classifier that sees no model. Where this is
      not 0.5, members and non-members differ in kind, and only the difference to the retrained model says something.
    - **tpr_at_fpr=X**, with **_low** and **_high**: share of members recognized at a false positive rate of at most
      X; low = private. NaN where there are fewer than 1/X non-members: unmeasurable.
    - **fpr_at_fpr=X**: the false positive rate realized.
    - **n_members**, **n_non_members**, **n_missing** (`int`).
    - **reason** (`str` or `None`): why a value or an interval is missing or degenerate.
    - **orientation** (`str`): which way to read the values.

Examples:

    >>> from hf_unlearn.evaluate_modules.base import load_metric
    >>> attack = load_metric("membership_inference")
    >>> results = attack.compute(predictions=[-0.1, -0.2, -0.9, -0.5, -1.1, -2.0], references=[1, 1, 1, 0, 0, 0])
    >>> round(results["auc"], 3), results["n_members"], results["n_non_members"]
    (0.889, 3, 3)
    >>> results = attack.compute(predictions=[3.0, 1.0, 2.0, 0.0], references=[1, 1, 0, 0], fprs=[0.5])
    >>> results["tpr_at_fpr=0.5"], results["fpr_at_fpr=0.5"]
    (1.0, 0.5)
"""


KNOWN_ATTACKS = ATTACKS | CLASS_ATTACKS


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class MembershipInference(AuditModule):
    with_examples = ("references",)

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://arxiv.org/abs/2112.03570"],
        )

    def _from_model(
        self,
        examples,
        model,
        processing_class,
        references=None,
        attack="min_k",
        retrained=None,
        batch_size=8,
        truncate=False,
        **kwargs,
    ):
        if attack not in KNOWN_ATTACKS:
            raise ValueError(f"attack must be one of {', '.join(KNOWN_ATTACKS)}, not {attack!r}.")
        if references is None or len(references) != len(examples):
            raise ValueError(
                "references must hold a label for each of the examples: 1 for a member, 0 for a non-member."
            )

        def attacked(model, processing_class):
            scores = score(model, processing_class, examples, batch_size=batch_size, sampling=(), truncate=truncate)
            return KNOWN_ATTACKS[attack](scores)

        values = attacked(model, processing_class)
        if retrained is not None:
            retrained = attacked(*loaded(retrained, processing_class))
        results = self._compute(values, references, retrained=retrained, **kwargs)
        if len(examples) and _is_encoded(examples[0]):
            return results
        sides = [_of_label(examples, references, label) for label in (1, 0)]
        blind = flat({"blind_auc": blind_baseline(*sides, content=content_of).auc})
        reasons = [reason for reason in (results["reason"], blind["reason"]) if reason]
        return results | blind | {"reason": "; ".join(reasons) or None}

    def _compute(self, predictions, references, retrained=None, fprs=(0.001, 0.01, 0.05), seed=0):
        scores, labels = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        if not np.isin(labels, (0, 1)).all():
            raise ValueError("references must be 1 for members and 0 for non-members, but they hold other labels.")
        members, non_members = scores[labels == 1], scores[labels == 0]
        area = auc(members, non_members, seed=seed)
        points = {f"{fpr:g}": tpr_at_fpr(members, non_members, fpr) for fpr in fprs}
        estimates = {"auc": area} | {f"tpr_at_fpr={fpr}": point.tpr for fpr, point in points.items()}
        others = {f"fpr_at_fpr={fpr}": point.fpr.value for fpr, point in points.items()}
        if retrained is not None:
            theirs = np.asarray(retrained, dtype=np.float64)
            theirs = theirs[labels == 1], theirs[labels == 0]
            estimates["auc_difference"] = paired_auc_difference(members, non_members, *theirs, seed=seed).estimate()
            others["auc_retrained"] = auc(*theirs, seed=seed).value
        return (
            flat(estimates)
            | others
            | {
                "auc_method": area.method,
                "n_members": area.n[0],
                "n_non_members": area.n[1],
                "n_missing": area.n_missing,
                "orientation": "higher = more recognized; an AUC below 0.5 stands out the other way",
            }
        )


def _is_encoded(row):
    return isinstance(row, Mapping) and not {"text", "prompt", "messages", "image"} & set(row)


def _of_label(examples, references, label):
    chosen = [i for i, reference in enumerate(references) if reference == label]
    # A table of images would be decoded as a whole by a list of its rows.
    return examples.select(chosen) if hasattr(examples, "select") else [examples[i] for i in chosen]
