"""Membership inference as an `evaluate` module."""

import datasets
import evaluate
import numpy as np

from hf_unlearn.audit import ATTACKS, auc, score, tpr_at_fpr


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
    examples (`list`, *optional*): in place of `predictions`: strings, or rows of `{"prompt", "completion"}`,
        `{"messages"}` or `{"text"}`, to be scored under `model` with `processing_class` (objects), by the `attack`
        (`"loss"`, `"zlib"`, `"min_k"` or `"min_k_plus_plus"`; `"min_k"` by default), `batch_size` (8) at a time. `truncate`
        (`False`) cuts those that are longer than the context.
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

    def compute(self, *, predictions=None, references=None, examples=None, **kwargs):
        """Compute the module from scores and labels, or from examples, labels and a model."""
        if examples is None:
            return super().compute(predictions=predictions, references=references, **kwargs)
        if predictions is not None:
            raise ValueError("You gave examples as well as predictions. Either give scores, or examples with a model.")
        # Texts to erase are not passed on to the base class: it would write them to its cache on disk.
        return self._from_model(list(examples), references, **kwargs)

    def _from_model(
        self,
        examples,
        references,
        model=None,
        processing_class=None,
        attack="min_k",
        batch_size=8,
        truncate=False,
        **kwargs,
    ):
        if model is None or processing_class is None:
            raise ValueError("You gave examples but no model or no processing_class. Pass both as objects.")
        if attack not in ATTACKS:
            raise ValueError(f"attack must be one of {', '.join(ATTACKS)}, not {attack!r}.")
        if references is None or len(references) != len(examples):
            raise ValueError(
                "references must hold a label for each of the examples: 1 for a member, 0 for a non-member."
            )
        scores = score(model, processing_class, examples, batch_size=batch_size, sampling=(), truncate=truncate)
        return self._compute(ATTACKS[attack](scores), references, **kwargs)

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
