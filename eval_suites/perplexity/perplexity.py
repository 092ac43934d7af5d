"""Perplexity as an `evaluate` module."""

import datasets
import evaluate
import numpy as np

from hf_unlearn.audit import Estimate, Scores, corpus_perplexity, mean, perplexity, score
from hf_unlearn.evaluate_modules.base import AuditModule, flat, loaded
from hf_unlearn.statistics.resampling import N_RESAMPLES, has_no_spread


_DESCRIPTION = """
Perplexity of texts under a causal language model: the exponential of the mean negative log-likelihood a token.
"""

_CITATION = """
@article{jelinek1977perplexity,
  title={Perplexity: a measure of the difficulty of speech recognition tasks},
  author={Jelinek, Frederick and Mercer, Robert L and Bahl, Lalit R and Baker, James K},
  journal={The Journal of the Acoustical Society of America},
  year={1977}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[str]` or `list[list[float]]`): texts, or the natural log-probabilities of the tokens of each, none
        above 0.
    model (`PreTrainedModel` or `str`): with texts, the causal language model, used where it is, or where to load it
        from.
    processing_class (`PreTrainedTokenizerBase`, *optional*): with texts, its tokenizer; needed with a model object.
    batch_size (`int`, *optional*, defaults to `8`): texts per forward pass; the result doesn't depend on it.
    truncate (`bool`, *optional*, defaults to `False`): cut texts that are longer than the context.
    seed (`int`, *optional*, defaults to `0`): of the bootstrap over texts.

Returns:
    `dict`, **low = the model fits the texts**. All tokens count but the first, which nothing predicts; it is the BOS
    token where the tokenizer adds one. The two means have the ends of their 95 % interval, `_low` and `_high`.
    - **perplexities** (`list[float]`): one per text, NaN where it has no token to score.
    - **corpus_perplexity** (`float`): one per token, over all texts together; the one that papers print.
    - **mean_perplexity** (`float`): mean of `perplexities`. Another number, which a single odd text can dominate.
    - **n**, **n_missing** (`int`): texts used, and left out because there is nothing to score.
    - **reason** (`str` or `None`): why a value or an interval is missing or degenerate.
    - **orientation** (`str`): which way to read the values.

Examples:

    >>> from hf_unlearn.evaluate_modules.base import load_metric
    >>> perplexity = load_metric("perplexity")
    >>> results = perplexity.compute(predictions=[[-1.0, -1.0, -1.0], [-3.0]])
    >>> [round(value, 3) for value in results["perplexities"]]
    [2.718, 20.086]
    >>> round(results["corpus_perplexity"], 3), round(results["mean_perplexity"], 3)
    (4.482, 11.402)
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Perplexity(AuditModule):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[
                datasets.Features({"predictions": datasets.Value("string")}),
                datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
            ],
        )

    def _compute(self, predictions, model=None, processing_class=None, batch_size=8, truncate=False, seed=0):
        scores = predictions
        if any(isinstance(text, str) for text in predictions):
            if model is None:
                raise ValueError("You gave texts but no model. Either pass model= too, or lists of log-probabilities.")
            model, processing_class = loaded(model, processing_class)
            scores = score(model, processing_class, predictions, batch_size, sampling=(), truncate=truncate)
        elif model is not None:
            raise ValueError("You gave log-probabilities as well as a model. Either give texts, or leave out model=.")
        else:
            _check_log_probabilities(predictions)
        values = perplexity(scores)
        lengths = scores.lengths if isinstance(scores, Scores) else np.array([len(row) for row in scores])
        average = mean(values, seed=seed, bounds=(1, np.inf))
        corpus = _corpus(corpus_perplexity(scores), values, lengths, seed)
        return flat({"corpus_perplexity": corpus, "mean_perplexity": average}) | {
            "perplexities": values.tolist(),
            "n": average.n[0],
            "n_missing": average.n_missing,
            "orientation": "lower = fits better",
        }


def _check_log_probabilities(predictions):
    for index, row in enumerate(predictions):
        if (np.asarray(row, dtype=np.float64) > 0).any():
            raise ValueError(
                f"Item {index} of predictions has values above 0, but log-probabilities are at most 0. Give "
                "log-probabilities, not losses: a loss is minus the log-probability, so change the sign."
            )


def _corpus(value, values, lengths, seed):
    """The perplexity a token of all texts, with an interval from resampled texts."""
    present = lengths > 0
    n, losses, lengths = int(present.sum()), np.log(values[present]), lengths[present]
    if n < 2:
        reason = "one text has no spread" if n else "no texts"
        return Estimate(value, np.nan, np.nan, (n,), "bootstrap", reason=reason)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES)
    draws = drawn @ (losses * lengths) / (drawn @ lengths)
    if has_no_spread(float(np.log(value)), draws):
        return Estimate(value, np.nan, np.nan, (n,), "bootstrap", reason="no spread")
    low, high = np.exp(np.quantile(draws, [0.025, 0.975]))
    return Estimate(value, float(low), float(high), (n,), "bootstrap")
