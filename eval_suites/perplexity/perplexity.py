"""Perplexity as an `evaluate` module."""

import datasets
import evaluate
import numpy as np

from hf_unlearn.audit import corpus_perplexity, perplexity, score


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
    predictions (`list[str]` or `list[list[float]]`): texts, or the natural log-probabilities of the tokens of each.
    model (`PreTrainedModel` or `str`): with texts, the causal language model, used where it is, or where to load it
        from.
    processing_class (`PreTrainedTokenizerBase`, *optional*): with texts, its tokenizer; needed with a model object.
    batch_size (`int`, *optional*, defaults to `8`): texts a forward pass; the result doesn't depend on it.

Returns:
    `dict`, **low = the model fits the texts**. All tokens count but the first, which nothing predicts; it is the BOS
    token where the tokenizer adds one.
    - **perplexities** (`list[float]`): one a text, NaN where it has no token to score.
    - **corpus_perplexity** (`float`): one a token, over all texts together; the one that papers print.
    - **mean_perplexity** (`float`): mean of `perplexities`. Another number, which a single odd text can dominate.
    - **n**, **n_missing** (`int`): texts used, and left out because there is nothing to score.

Examples:

    >>> import evaluate
    >>> perplexity = evaluate.load("eval_suites/perplexity")
    >>> results = perplexity.compute(predictions=[[-1.0, -1.0, -1.0], [-3.0]])
    >>> [round(value, 3) for value in results["perplexities"]]
    [2.718, 20.086]
    >>> round(results["corpus_perplexity"], 3), round(results["mean_perplexity"], 3)
    (4.482, 11.402)
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Perplexity(evaluate.Metric):
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

    def _compute(self, predictions, model=None, processing_class=None, batch_size=8, truncate=False):
        scores = predictions
        if any(isinstance(text, str) for text in predictions):
            if model is None:
                raise ValueError("You gave texts but no model. Either pass model= too, or lists of log-probabilities.")
            scores = score(*_load(model, processing_class), predictions, batch_size=batch_size, truncate=truncate)
        elif model is not None:
            raise ValueError("You gave log-probabilities as well as a model. Either give texts, or leave out model=.")
        values = perplexity(scores)
        present = values[~np.isnan(values)]
        return {
            "perplexities": values.tolist(),
            "corpus_perplexity": corpus_perplexity(scores),
            "mean_perplexity": float(present.mean()) if len(present) else float("nan"),
            "n": len(present),
            "n_missing": len(values) - len(present),
        }


def _load(model, processing_class):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = model
    if isinstance(model, str):
        model = AutoModelForCausalLM.from_pretrained(name)
        processing_class = processing_class or AutoTokenizer.from_pretrained(name)
    if processing_class is None:
        raise ValueError("You gave a model object but no processing_class. Pass its tokenizer as processing_class=.")
    return model, processing_class
