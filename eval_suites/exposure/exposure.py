"""Exposure of planted canaries as an `evaluate` module."""

import datasets
import evaluate
import numpy as np

from hf_unlearn.audit import mean, score
from hf_unlearn.audit.measures.exposure import exposure, fitted_exposure
from hf_unlearn.evaluate_modules.base import AuditModule, flat


METHODS = {"rank": exposure, "fit": fitted_exposure}

_DESCRIPTION = """
Tells how many bits of random secrets that were planted in the training data a model gives away: a planted secret is
compared with others that could have stood in its place.
"""

_CITATION = """
@inproceedings{carlini2019secret,
  title={The Secret Sharer: Evaluating and Testing Unintended Memorization in Neural Networks},
  author={Carlini, Nicholas and Liu, Chang and Erlingsson, {\\'U}lfar and Kos, Jernej and Song, Dawn},
  booktitle={USENIX Security Symposium},
  year={2019}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[float]`): negative log-likelihood of each canary, summed over its tokens, in nats. NaN for one that
        can't be scored.
    candidates (`list[float]` or `list[list[float]]`): the same of fillings of the template that were never trained on:
        one list for all canaries, or one for each. With `examples`, the fillings themselves, for all canaries.
    examples (`list`): instead of `predictions`, the canaries: strings, or rows of `{"text"}` or `{"prompt", "completion"}`.
    model (`PreTrainedModel` or `str`): with `examples`, the causal language model, used where it is, or where to load it
        from.
    processing_class (`PreTrainedTokenizerBase`): with `examples`, its tokenizer; needed with a model object.
    batch_size (`int`, *optional*, defaults to `8`): with `examples`, texts per forward pass.
    planted (`list[bool]`, *optional*): which canaries were trained on; all, if it is not given.
    method (`str`, *optional*, defaults to `"rank"`): `"rank"` counts candidates, up to `log2(candidates + 1)`; `"fit"`
        extrapolates beyond them with a fitted skew-normal distribution and takes at least 20.
    seed (`int`, *optional*, defaults to `0`): of the bootstrap intervals.

Returns:
    `dict`, **higher = more memorized**, in bits; means with the ends of their 95 % interval, `_low` and `_high`:
    - **exposures** (`list[float]`): of each canary, in their order; NaN if it can't be scored.
    - **exposure** (`float`): mean over the planted canaries.
    - **exposure_not_planted** (`float`): mean over the others, with `planted`: what the same measure gives without
      training. By rank it is 1.44 on average with many candidates.
    - **max_exposure** (`float`): what `"rank"` can reach with so many candidates, infinite for `"fit"`.
    - **n**, **n_missing** (`int`): planted canaries used, and left out because they can't be scored.
    - **method**, **orientation** (`str`), **reason** (`str` or `None`): how to read them.

Examples:

    >>> from hf_unlearn.evaluate_modules.base import load_metric
    >>> module = load_metric("exposure")
    >>> results = module.compute(predictions=[1.0, 6.5], candidates=[5.0, 6.0, 7.0], planted=[True, False])
    >>> results["exposures"]
    [2.0, 0.415...]
    >>> results["exposure"], results["max_exposure"], results["n"]
    (2.0, 2.0, 1)
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Exposure(AuditModule):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
            reference_urls=["https://arxiv.org/abs/1802.08232"],
        )

    def _from_model(
        self, examples, model, processing_class, candidates=(), batch_size=8, planted=None, method="rank", seed=0
    ):
        texts = [*examples, *candidates]
        table = score(model, processing_class, texts, batch_size, sampling=())
        return self._exposures(table[: len(examples)], table[len(examples) :], planted, method, seed)

    def _compute(self, predictions, candidates=(), planted=None, method="rank", seed=0):
        canaries, candidates = (np.asarray(side, dtype=np.float64) for side in (predictions, candidates))
        return self._exposures(canaries, candidates, planted, method, seed)

    def _exposures(self, canaries, candidates, planted, method, seed):
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}.")
        if not len(candidates):
            raise ValueError("You gave no candidates. Give fillings of the template that were never trained on.")
        values = METHODS[method](canaries, candidates)
        planted = np.ones(len(values), bool) if planted is None else np.asarray(planted, bool)
        if len(planted) != len(values):
            raise ValueError(f"planted must say of each of the {len(values)} canaries whether it was trained on.")
        n_candidates = candidates.shape[-1] if isinstance(candidates, np.ndarray) else len(candidates)
        highest = float(np.log2(n_candidates + 1)) if method == "rank" else float("inf")
        estimates = {"exposure": mean(values[planted], seed=seed, bounds=(0, highest))}
        if not planted.all():
            estimates["exposure_not_planted"] = mean(values[~planted], seed=seed, bounds=(0, highest))
        return flat(estimates) | {
            "exposures": values.tolist(),
            "max_exposure": highest,
            "n": estimates["exposure"].n[0],
            "n_missing": estimates["exposure"].n_missing,
            "method": method,
            "orientation": "higher = more memorized",
        }
