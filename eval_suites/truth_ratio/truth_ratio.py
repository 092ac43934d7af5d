"""TOFU's truth ratio and forget quality as an `evaluate` module."""

from collections.abc import Mapping

import datasets
import evaluate
import numpy as np

from hf_unlearn.audit import (
    forget_quality,
    forget_truth_ratio_aggregate,
    loss,
    mean,
    paired_difference,
    score,
    true_better,
    truth_ratio,
)
from hf_unlearn.audit.measures.quality import folded_truth_ratio
from hf_unlearn.data.rows import answer_of, reworded
from hf_unlearn.evaluate_modules.base import AuditModule, flat


_DESCRIPTION = """
Tells whether a model still prefers the true answers to wrong ones in the same words, record by record, and, where the
same was measured on a model retrained without the records, whether the two models can be told apart.
"""

_CITATION = """
@inproceedings{maini2024tofu,
  title={TOFU: A Task of Fictitious Unlearning for LLMs},
  author={Maini, Pratyush and Feng, Zhili and Schwarzschild, Avi and Lipton, Zachary C and Kolter, J Zico},
  booktitle={Conference on Language Modeling},
  year={2024}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    paraphrased (`list[float]`): loss of a paraphrase of each true answer (or of the answer, where there is none): mean
        negative log-likelihood a token in nats, end token included. NaN for a record that can't be scored.
    perturbed (`list[list[float]]`): losses of the wrong answers of each record, of which there may be more or fewer.
    examples (`list[dict]`): instead of the two, rows of `{"prompt", "completion", "perturbed_completions"}`, and
        `"paraphrased_completion"` where there is one.
    model (`PreTrainedModel` or `str`): with `examples`, the causal language model, used where it is, or where to load it
        from.
    processing_class (`PreTrainedTokenizerBase`): with `examples`, its tokenizer; needed with a model object.
    batch_size (`int`, *optional*, defaults to `8`): with `examples`, answers per forward pass.
    variant (`str`, *optional*, defaults to `"tofu"`): `"tofu"` (geometric mean of the wrong answers, as the scripts of
        TOFU compute it), `"paper"` (arithmetic mean, as its paper says) or `"probability"` (`1 / (1 + R)`).
    retrained (`list[float]`, *optional*): `truth_ratios` of the same records, in the same order and variant, under a model
        retrained without them.
    seed (`int`, *optional*, defaults to `0`): of the bootstrap intervals.

Returns:
    `dict`, values with the ends of their 95 % interval, `_low` and `_high`:
    - **truth_ratios** (`list[float]`): `R` of each record, wrong over true: 0 = knows, 1 = no preference, above 1 = prefers
      wrong ones; under `"probability"` from 0 to 1, higher = knows. NaN where an answer is missing.
    - **truth_ratio** (`float`): on a forget set, mean of `min(R, 1 / R)`: **best near the value of the retrained model**,
      not at 1. Under `"probability"` the plain mean.
    - **true_better** (`float`): on sets to keep, mean of `max(0, 1 - R)`; **higher = knows better**. Not of
      `"probability"`.
    - **n**, **n_missing** (`int`): records used, and left out because an answer is missing.
    - **variant**, **orientation** (`str`), **reason** (`str` or `None`): how to read them.

    With `retrained`:
    - **forget_quality**, **log10_forget_quality** (`float`): p-value of a two-sample Kolmogorov-Smirnov test between the
      truth ratios; **high = not told apart from retraining**. It shrinks with n: compare `ks_d` between sizes.
    - **ks_d**, **ks_critical_d** (`float`): largest distance of the two distributions, and the one with p = 0.05.
    - **truth_ratio_retrained**, **truth_ratio_difference** (`float`): the aggregate of the retrained model, and the
      difference to it of what it averages, records paired; **0 = as retrained**.

Examples:

    >>> from hf_unlearn.evaluate_modules.base import load_metric
    >>> module = load_metric("truth_ratio")
    >>> results = module.compute(paraphrased=[0.5, 2.0], perturbed=[[1.5, 2.5], [2.0, 2.0]])
    >>> [round(ratio, 3) for ratio in results["truth_ratios"]]
    [0.223, 1.0]
    >>> round(results["truth_ratio"], 3), round(results["true_better"], 3), results["n"]
    (0.612, 0.388, 2)
    >>> results = module.compute(
    ...     paraphrased=[0.5, 2.0], perturbed=[[1.5, 2.5], [2.0, 2.0]], retrained=[0.9, 1.1]
    ... )
    >>> results["ks_d"], results["forget_quality"]
    (0.5, 1.0)
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class TruthRatio(AuditModule):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "paraphrased": datasets.Value("float64"),
                    "perturbed": datasets.Sequence(datasets.Value("float64")),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2401.06121"],
        )

    def _from_model(self, examples, model, processing_class, batch_size=8, **kwargs):
        _check_columns(examples)
        rows = [_answered(row, row.get("paraphrased_completion") or answer_of(row)) for row in examples]
        wrong = [len(row["perturbed_completions"]) for row in examples]
        rows += [_answered(row, text) for row in examples for text in row["perturbed_completions"]]
        losses = loss(score(model, processing_class, rows, batch_size, sampling=()))
        perturbed = np.split(losses[len(examples) :], np.cumsum(wrong)[:-1])
        return self._compute(losses[: len(examples)], perturbed, **kwargs)

    def _compute(self, paraphrased, perturbed, variant="tofu", retrained=None, seed=0):
        ratios = truth_ratio(np.asarray(paraphrased, dtype=np.float64), _rectangle(perturbed), variant)
        if variant == "probability":
            estimates = {"truth_ratio": mean(ratios, seed=seed)}
        else:
            estimates = {
                "truth_ratio": forget_truth_ratio_aggregate(ratios, seed=seed),
                "true_better": true_better(ratios, seed=seed),
            }
        results = {
            "truth_ratios": ratios.tolist(),
            "n": estimates["truth_ratio"].n[0],
            "n_missing": estimates["truth_ratio"].n_missing,
            "variant": variant,
            "orientation": "truth_ratio: as retrained is best; true_better: higher = knows better",
        }
        if retrained is not None:
            retrained = np.asarray(retrained, dtype=np.float64)
            test = forget_quality(ratios, retrained)
            folded, of_retrained = (
                x if variant == "probability" else folded_truth_ratio(x) for x in (ratios, retrained)
            )
            estimates["truth_ratio_difference"] = paired_difference(folded, of_retrained, seed=seed).estimate()
            results |= {
                "forget_quality": test.p,
                "log10_forget_quality": test.log10_p,
                "ks_d": test.d,
                "ks_critical_d": test.critical_d,
                "truth_ratio_retrained": mean(of_retrained, seed=seed).value,
            }
        return flat(estimates) | results


def _answered(row, text):
    """The row with another answer, also where it has none of its own."""
    return reworded({**row, "completion": row.get("completion") or text}, answer=lambda own: text)


def _check_columns(rows):
    for index, row in enumerate(rows):
        columns = {name for name, value in row.items() if value is not None} if isinstance(row, Mapping) else set()
        lacking = [name for name in ("prompt", "perturbed_completions") if name not in columns]
        if not columns & {"completion", "paraphrased_completion"}:
            lacking.append("completion")
        if lacking:
            raise ValueError(
                f"Row {index} of the examples has no {' and no '.join(lacking)}. Every row needs the columns prompt, "
                "completion (or paraphrased_completion) and perturbed_completions, a list of wrong answers."
            )
        if isinstance(row["perturbed_completions"], str):
            raise ValueError(
                f"Row {index} of the examples has one string as perturbed_completions. Give a list of wrong answers."
            )


def _rectangle(rows):
    """Losses `(n, K)` with NaN where a record has fewer wrong answers than others."""
    losses = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for i, row in enumerate(rows):
        losses[i, : len(row)] = row
    return losses
