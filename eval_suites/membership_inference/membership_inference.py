"""Membership inference as an `evaluate` module."""

import datasets
import evaluate
import numpy as np

from hf_unlearn.audit import auc, tpr_at_fpr


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
    fprs (`list[float]`, *optional*, defaults to `(0.001, 0.01, 0.05)`): bounds on the false positive rate.
    seed (`int`, *optional*, defaults to `0`): seed of the bootstrap that is used below 30 records a side.

Returns:
    `dict`:
    - **auc**, **auc_low**, **auc_high** (`float`), **auc_method** (`str`): 0.5 = can't tell, 1 = always recognized.
      Below 0.5 is not privacy: records that look less known than unseen ones stand out as well. Compare with the AUC
      of a model retrained without the forget set, which need not be 0.5.
    - **tpr_at_fpr=X**, with **_low** and **_high**: share of members recognized at a false positive rate of at most
      X; low = private. NaN where there are fewer than 1/X non-members: unmeasurable.
    - **fpr_at_fpr=X**: the false positive rate realized.
    - **n_members**, **n_non_members**, **n_missing** (`int`).

Examples:

    >>> import evaluate
    >>> attack = evaluate.load("eval_suites/membership_inference")
    >>> results = attack.compute(predictions=[-0.1, -0.2, -0.9, -0.5, -1.1, -2.0], references=[1, 1, 1, 0, 0, 0])
    >>> round(results["auc"], 3), results["n_members"], results["n_non_members"]
    (0.889, 3, 3)
    >>> results = attack.compute(predictions=[3.0, 1.0, 2.0, 0.0], references=[1, 1, 0, 0], fprs=[0.5])
    >>> results["tpr_at_fpr=0.5"], results["fpr_at_fpr=0.5"]
    (1.0, 0.5)
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class MembershipInference(evaluate.Metric):
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

    def _compute(self, predictions, references, fprs=(0.001, 0.01, 0.05), seed=0):
        scores, labels = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        if not np.isin(labels, (0, 1)).all():
            raise ValueError("references must be 1 for members and 0 for non-members, but they hold other labels.")
        members, non_members = scores[labels == 1], scores[labels == 0]
        area = auc(members, non_members, seed=seed)
        results = {"auc": area.value, "auc_low": area.low, "auc_high": area.high, "auc_method": area.method}
        for fpr in fprs:
            point = tpr_at_fpr(members, non_members, fpr)
            name = f"tpr_at_fpr={fpr:g}"
            results |= {name: point.tpr.value, f"{name}_low": point.tpr.low, f"{name}_high": point.tpr.high}
            results[f"fpr_at_fpr={fpr:g}"] = point.fpr.value
        return results | {"n_members": area.n[0], "n_non_members": area.n[1], "n_missing": area.n_missing}
