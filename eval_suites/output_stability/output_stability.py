"""Distances between the predictions of two models as an `evaluate` module."""

import datasets
import evaluate
import numpy as np

from hf_unlearn.audit import mean
from hf_unlearn.evaluate_modules.base import AuditModule, flat


_DESCRIPTION = """
Tells how far the predictions of a model are from those of another, as a rule one that was retrained without the records:
divergences, total variation and agreement of the most likely token or class.
"""

_CITATION = """
@inproceedings{golatkar2020eternal,
  title={Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks},
  author={Golatkar, Aditya and Achille, Alessandro and Soatto, Stefano},
  booktitle={CVPR},
  year={2020}
}
@article{chundawat2022bad,
  title={Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks using an Incompetent Teacher},
  author={Chundawat, Vikram S and Tarun, Ayush K and Mandal, Murari and Kankanhalli, Mohan},
  journal={arXiv preprint arXiv:2205.08096},
  year={2022}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[list[float]]` or `list[list[list[float]]]`): logits or log-probabilities of the audited model: of each
        image over the classes, or of each text over the vocabulary at every position that predicts a target.
    references (same): those of the model to compare with, at the same places.
    examples (`list`): instead of the two: strings, rows of `{"prompt", "completion"}`, `{"messages"}` or `{"text"}`, or of
        `{"image", "label"}`.
    model (`PreTrainedModel` or `str`): with `examples`, the audited model, used where it is, or where to load it from.
    retrained (`PreTrainedModel`, `str` or a list of these): with `examples`, the model to compare with. Of several, which
        were retrained with different seeds, the first; the distances among them are the yardstick.
    processing_class (`PreTrainedTokenizerBase` or `BaseImageProcessor`): with `examples`; needed with model objects.
    zrf (`bool`, *optional*, defaults to `False`): with `examples`, compare with an untrained network as well.
    batch_size (`int`, *optional*, defaults to `8`): with `examples`, examples per forward pass.
    truncate (`bool`, *optional*, defaults to `False`): with `examples`, cut those that are longer than the context.
    seed (`int`, *optional*, defaults to `0`): of the bootstrap intervals, and of the untrained network.

Returns:
    `dict`, means over the records of their means over targets, with the ends of the 95 % interval, `_low` and `_high`;
    distances **0 = as the reference**, agreements **1 = as the reference**:
    - **kl_ref_model**, **kl_model_ref** (`float`): KL(reference || model) and KL(model || reference) in nats.
    - **js** (`float`): Jensen-Shannon divergence in nats, at most ln 2. **tv** (`float`): total variation, at most 1.
    - **top1_agreement** (`float`): share of targets with the same most likely token or class.
    - **activation_distance**, **top5_agreement** (`float`): of images: L2 norm of the difference of the probabilities;
      share of the five most likely classes that are the same, where there are more than five.
    - **records** (`dict[str, list[float]]`): the same of each record, NaN for one without targets or with NaN logits.
    - **n**, **n_missing** (`int`): records used, and left out because they are NaN.
    - **orientation** (`str`), **reason** (`str` or `None`): how to read them.

    With several retrained models:
    - **X_null** (`float`) for each X: beyond it is farther from a retrained model than these are from each other.
    - **n_null_pairs** (`int`): pairs of retrained models behind that; three seeds are few.

    With `zrf`:
    - **zrf**, **zrf_retrained** (`float`): 1 - JS to the untrained network, under the model and under the retrained one.
      **Best near that of the retrained model**, not at 1.

Examples:

    >>> from hf_unlearn.evaluate_modules.base import load_metric
    >>> import numpy as np
    >>> module = load_metric("output_stability")
    >>> results = module.compute(
    ...     predictions=np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]),
    ...     references=np.log([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]),
    ... )
    >>> round(results["tv"], 3), round(results["kl_ref_model"], 3), results["top1_agreement"]
    (0.125, 0.087, 0.5)
    >>> [round(value, 3) for value in results["records"]["js"]]
    [0.042, 0.0]
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class OutputStability(AuditModule):
    def _info(self):
        classes = datasets.Sequence(datasets.Value("float64"))
        tokens = datasets.Sequence(classes)
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[
                datasets.Features({"predictions": tokens, "references": tokens}),
                datasets.Features({"predictions": classes, "references": classes}),
            ],
            reference_urls=["https://arxiv.org/abs/1911.04933", "https://arxiv.org/abs/2205.08096"],
        )

    def _from_model(
        self, examples, model, processing_class, retrained=None, zrf=False, batch_size=8, truncate=False, seed=0
    ):
        from hf_unlearn.audit.attacks import stability

        if retrained is None:
            raise ValueError(
                "You gave examples and a model, but no retrained. Give the model to compare with, or several that were "
                "retrained with different seeds."
            )
        several = list(retrained) if isinstance(retrained, (list, tuple)) else [retrained]
        options = {"batch_size": batch_size, "truncate": truncate}
        results = _summary(
            stability.distances(model, several[0], processing_class, examples, **options),
            seed,
            {
                f"zrf{suffix}": stability.zrf(of, processing_class, examples, seed=seed, **options)
                for suffix, of in (("", model), ("_retrained", several[0]))
                if zrf
            },
        )
        if len(several) > 1:
            band = stability.null_band(stability.pairwise_distances(several, processing_class, examples, **options))
            results |= {f"{name}_null": bound for name, bound in band.bound.items()} | {"n_null_pairs": band.n_pairs}
        return results

    def _compute(self, predictions, references, seed=0):
        import torch

        from hf_unlearn.audit.attacks.stability import distance_names, divergences

        ours, theirs = ([np.asarray(row, dtype=np.float64) for row in side] for side in (predictions, references))
        of_images = all(row.ndim == 1 for row in ours)
        sizes = {row.shape[-1] for row in (*ours, *theirs) if row.size}
        if any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)) or len(sizes) > 1:
            raise ValueError(
                "predictions and references must have the same shape for every record, and the same number of classes or "
                "tokens everywhere."
            )
        names = distance_names(of_images, max(sizes, default=0))
        lengths = [1 if of_images else len(row) for row in ours]
        ours, theirs = (
            np.concatenate([np.atleast_2d(row) for row in side if row.size] or [np.zeros((0, 1))])
            for side in (ours, theirs)
        )
        for name, side in (("predictions", ours), ("references", theirs)):
            if side.size and np.nanmin(side) >= 0 and np.allclose(side.sum(axis=1), 1):
                raise ValueError(f"The {name} look like probabilities. Give their logarithms, or logits.")
        values = divergences(torch.from_numpy(ours), torch.from_numpy(theirs), names)
        owners = np.repeat(np.arange(len(lengths)), lengths)
        with np.errstate(invalid="ignore"):
            means = [
                np.bincount(owners, of, minlength=len(lengths)) / np.bincount(owners, minlength=len(lengths))
                for of in values.T
            ]
        return _summary(dict(zip(names, means, strict=True)), seed)


#: What each of these can be by its definition; the intervals keep to it.
BOUNDS = {
    "kl_ref_model": (0, np.inf),
    "kl_model_ref": (0, np.inf),
    "js": (0, np.log(2)),
    "tv": (0, 1),
    "top1_agreement": (0, 1),
    "top5_agreement": (0, 1),
    "activation_distance": (0, np.sqrt(2)),
    "zrf": (1 - np.log(2), 1),
    "zrf_retrained": (1 - np.log(2), 1),
}


def _summary(records, seed, more=()):
    measured = {**records, **dict(more)}
    estimates = {name: mean(values, seed=seed, bounds=BOUNDS[name]) for name, values in measured.items()}
    return flat(estimates) | {
        "records": {name: values.tolist() for name, values in records.items()},
        "n": estimates["js"].n[0],
        "n_missing": estimates["js"].n_missing,
        "orientation": "distances: 0 = as the reference; agreements: 1 = as the reference",
    }
