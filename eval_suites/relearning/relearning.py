"""Relearning curves as an `evaluate` module."""

from dataclasses import dataclass
from operator import attrgetter

import datasets
import evaluate
import numpy as np

from hf_unlearn.audit import answer_probability, exact_memorization, extraction_strength, mean
from hf_unlearn.audit.attacks.relearning_curves import (
    RelearningCurve,
    anamnesis_index,
    area_between,
    steps_to,
    strongest,
)
from hf_unlearn.evaluate_modules.base import AuditModule, flat, loaded
from hf_unlearn.statistics.estimate import known, known_mean


METRICS = {
    "extraction_strength": extraction_strength,
    "exact_memorization": exact_memorization,
    "answer_probability": answer_probability,
}
STEPS, LEARNING_RATES = (0, 1, 2, 5, 10, 20), (1e-4, 1e-3)

_DESCRIPTION = """
Tells whether a little training brings back what was forgotten faster than it teaches a model that never saw it: then it was
hidden, not removed. Compares the course of a measure of memorization under two models that are trained alike.
"""

_CITATION = """
@article{hu2024jogging,
  title={Unlearning or Obfuscating? Jogging the Memory of Unlearned LLMs via Benign Relearning},
  author={Hu, Shengyuan and Fu, Yiwei and Wu, Zhiwei Steven and Smith, Virginia},
  journal={arXiv preprint arXiv:2406.13356},
  year={2024}
}
@article{tarun2021fast,
  title={Fast Yet Effective Machine Unlearning},
  author={Tarun, Ayush K and Chundawat, Vikram S and Mandal, Murari and Kankanhalli, Mohan},
  journal={arXiv preprint arXiv:2111.08947},
  year={2021}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[list[float]]`): for each record a measure, **higher = more memorized**, under the unlearned model
        after each number of steps of the training. NaN where it can't be measured.
    references (`list[list[float]]`): the same of the same records under a model retrained without them, which was trained on
        the same rows by the same steps.
    examples (`list`): instead of the two, the records to measure, as for the audit; e.g. the forget set.
    rows (`list`): with `examples`, what to train on: other facts of the same kind, unrelated text, or the other half of the
        forget set.
    model, retrained (`PreTrainedModel` or `str`): with `examples`, the unlearned and the retrained model, used where they
        are and left as they are, or where to load them from.
    processing_class (`PreTrainedTokenizerBase` or `BaseImageProcessor`): with `examples`; needed with model objects.
    original (`list[float]`, *optional*): the measure of the same records under the original model; with `examples` that
        model itself, or its name.
    steps (`list[int]`, *optional*): numbers of steps, rising; with `examples` `(0, 1, 2, 5, 10, 20)`, otherwise 0, 1, 2, ...
    share (`float`, *optional*, defaults to `0.9`): of the original's measure, that counts as relearned.
    metric (`str`, *optional*, defaults to `"extraction_strength"`): with `examples`; or `"exact_memorization"` (of images the
        accuracy), `"answer_probability"`.
    learning_rates (`list[float]`, *optional*, defaults to `(1e-4, 1e-3)`): with `examples`; one is no attack. Of each model
        the one that brings back most counts.
    batch_size (`int`, *optional*, defaults to `8`): with `examples`, rows a step of the training.
    seed (`int`, *optional*, defaults to `0`): of the order of the rows and of the bootstrap.

Returns:
    `dict`; areas are means along the curve, in the unit of the measure, with the ends of their 95 % interval, `_low` and
    `_high`:
    - **area_between** (`float`): the unlearned model's area minus the retrained model's, records paired; **above 0 = comes
      back faster than it is learned anew**, 0 = as retrained.
    - **area**, **area_retrained** (`float`): of each model; higher = more memorized along the way.
    - **curve**, **curve_retrained** (`list[float]`), **steps** (`list[int]`): means over the records.
    - **n**, **n_missing** (`int`): records used, and left out because they can't be measured.
    - **orientation** (`str`), **reason** (`str` or `None`): how to read them.

    With `original`:
    - **steps_to_share**, **steps_to_share_retrained** (`float`): first number of steps with so much of the original's
      measure; infinite if it is not reached. **low = comes back fast**.
    - **anamnesis_index** (`float`): the one over the other; **1 = as retrained, far below = was still there**. NaN if there is
      nothing to compare with.

    With `examples`:
    - **learning_rate**, **learning_rate_retrained** (`float`): those that brought back most.
    - **n_injected** (`int`): records that were trained on themselves: taught, not recovered.

Examples:

    >>> from hf_unlearn.evaluate_modules.base import load_metric
    >>> module = load_metric("relearning")
    >>> results = module.compute(
    ...     predictions=[[0.1, 0.8, 1.0], [0.0, 0.6, 1.0]],
    ...     references=[[0.1, 0.1, 0.3], [0.0, 0.1, 0.1]],
    ...     original=[1.0, 1.0],
    ...     steps=[0, 5, 10],
    ...     share=0.7,
    ... )
    >>> round(results["area"], 2), round(results["area_retrained"], 2), round(results["area_between"], 2)
    (0.61, 0.11, 0.5)
    >>> results["steps_to_share"], results["steps_to_share_retrained"]
    (5.0, inf)
"""


@dataclass
class _Measured:
    """Values `(n,)` that stand where a curve has a table of scores."""

    values: np.ndarray

    @property
    def valid(self):
        return ~np.isnan(self.values)

    def same_targets(self, other):
        return len(self.values) == len(other.values)


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Relearning(AuditModule):
    def _info(self):
        curves = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": curves, "references": curves}),
            reference_urls=["https://arxiv.org/abs/2406.13356"],
        )

    def _from_model(
        self,
        examples,
        model,
        processing_class,
        rows=None,
        retrained=None,
        original=None,
        metric="extraction_strength",
        steps=STEPS,
        learning_rates=LEARNING_RATES,
        batch_size=8,
        seed=0,
        share=0.9,
    ):
        from hf_unlearn.audit.attacks.relearning import relearn_grid

        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}.")
        if rows is None or retrained is None:
            raise ValueError(
                "You gave examples but no rows or no retrained. Give what to train on, and a model retrained without the "
                "examples: a retrained model learns them too, and only the difference says something."
            )
        of = METRICS[metric]

        def course(model, processing_class, learning_rates, steps):
            curves = relearn_grid(
                model, processing_class, rows, {"forget": examples}, learning_rates, steps, batch_size, seed=seed
            )
            return strongest(curves, of)

        ours = course(model, processing_class, learning_rates, steps)
        theirs = course(*loaded(retrained, processing_class), learning_rates, steps)
        if original is not None:
            original = course(*loaded(original, processing_class), learning_rates[:1], (0,)).values(of)[0]
        return self._results(ours, theirs, of, original, share, seed) | {
            "learning_rate": ours.settings["learning_rate"],
            "learning_rate_retrained": theirs.settings["learning_rate"],
            "n_injected": ours.injected["forget"],
        }

    def _compute(self, predictions, references, steps=None, original=None, share=0.9, seed=0):
        sides = [np.asarray(side, dtype=np.float64) for side in (predictions, references)]
        steps = tuple(range(sides[0].shape[-1]) if steps is None else steps)
        if any(side.ndim != 2 or side.shape[1] != len(steps) for side in sides):
            raise ValueError(f"Every record needs one value for each of the {len(steps)} numbers of steps.")
        curves = [RelearningCurve(steps, steps, {"forget": tuple(map(_Measured, side.T))}, {}, {}) for side in sides]
        return self._results(*curves, attrgetter("values"), original, share, seed)

    def _results(self, ours, theirs, of, original, share, seed):
        floor, top = _bounds(ours.values(of), theirs.values(of))
        estimates = {
            "area_between": mean(area_between(ours, theirs, of), seed=seed, bounds=(floor - top, top - floor)),
            "area": mean(ours.area(of), seed=seed, bounds=(floor, top)),
            "area_retrained": mean(theirs.area(of), seed=seed, bounds=(floor, top)),
        }
        results = {
            "curve": [known_mean(values) for values in ours.values(of)],
            "curve_retrained": [known_mean(values) for values in theirs.values(of)],
            "steps": list(ours.steps),
            "n": estimates["area_between"].n[0],
            "n_missing": estimates["area_between"].n_missing,
            "orientation": "area_between: 0 = as retrained, above = comes back faster",
        }
        if original is not None:
            original = np.asarray(original, dtype=np.float64)
            results["steps_to_share"] = steps_to(ours, of, original, share)
            results["steps_to_share_retrained"] = steps_to(theirs, of, original, share)
            results["anamnesis_index"] = anamnesis_index(ours, theirs, of, original, margin=1 - share)
        return flat(estimates) | results


def _bounds(*curves):
    """Of a measure whose values all lie in [0, 1], as shares and probabilities do; of others nothing is known."""
    values = known(np.concatenate([np.ravel(curve) for curve in curves]))
    return (0.0, 1.0) if ((values >= 0) & (values <= 1)).all() else (-np.inf, np.inf)
