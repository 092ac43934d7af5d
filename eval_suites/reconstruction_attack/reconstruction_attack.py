"""Reconstruction of erased images as an `evaluate` module."""

import datasets
import evaluate
import numpy as np

from hf_unlearn.audit import mean, rate
from hf_unlearn.audit.attacks.reconstruction import compare_reconstructions, reconstruction_audit
from hf_unlearn.evaluate_modules.base import AuditModule, flat
from hf_unlearn.models.load import load_processing_class
from hf_unlearn.statistics.estimate import known


#: Grey, color, and color with transparency.
CHANNELS = (1, 3, 4)
DECIBELS = (-np.inf, np.inf)

_DESCRIPTION = """
Tells whether images that were to be forgotten can be reconstructed: compares reconstructions with the images and with what one
has without an attack, or reads an image off the weights of a vision transformer before and after.
"""

_CITATION = """
@inproceedings{lu2022april,
  title={APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers},
  author={Lu, Jiahao and Zhang, Xi Sheryl and Zhao, Tianli and He, Xiangyu and Cheng, Jian},
  booktitle={CVPR},
  year={2022}
}
@article{wang2004image,
  title={Image quality assessment: from error visibility to structural similarity},
  author={Wang, Zhou and Bovik, Alan C and Sheikh, Hamid R and Simoncelli, Eero P},
  journal={IEEE Transactions on Image Processing},
  year={2004}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list`): reconstructions, (channels, height, width) each, **with values in [0, 1]**. NaN where there is none.
    references (`list`): the images they are of, of the same shape.
    examples (`list` or array): instead of the two, images to be forgotten: rows of `{"image", "label"}`, or an array (n,
        channels, height, width) with values in [0, 1]. One image is reconstructed and compared with each.
    original, model (`PreTrainedModel` or `str`): with `examples`, the model before and after, or their checkpoints.
    processing_class (`BaseImageProcessor`, *optional*): with `examples`, that of the model; its normalization is undone. Of
        a model that is given by its name it is loaded. Without one the model reads images in [0, 1].
    retain (*optional*): images that the model keeps, in the form of the others. With labels on both sides, the reconstruction
        is looked for among these.
    non_members (*optional*): images that were never trained on.
    recovered_db (`float`, *optional*, defaults to `40.0`): from this PSNR on an image counts as recovered.
    seed (`int`, *optional*, defaults to `0`): of the bootstrap intervals.

Returns:
    `dict`, **higher = more of the image is recovered**; means and rates with the ends of their 95 % interval, `_low` and
    `_high`:
    - **psnr** (`float`): in dB, infinite = the image itself. Over 40 no difference is seen.
    - **ssim** (`float`): at most 1 = the image itself. NaN for images of fewer than 11 pixels a side.
    - **recovered_rate**, **above_baseline_rate** (`float`): share of the images recovered, and of those 3 dB nearer than the
      best baseline.
    - **psnr_mean_color** (`float`): baseline: the best single color in place of the image.
    - **psnr_nearest_retained**, **psnr_non_members** (`float`): baselines with `retain`: the retained image most like it; with
      `non_members`: how like the reconstruction is to images never trained on.
    - **found_rate**, **chance** (`float`): with labels, share of the reconstructions whose nearest retained image is of the
      same class, and what guessing would give.
    - **records** (`dict[str, list[float]]`): `psnr`, `ssim` and `baseline` of each image.
    - **outcome**, **finding** (`str`): in a word, and what may be said.
    - **n**, **n_missing** (`int`): images with a reconstruction, and without.
    - **orientation** (`str`), **reason** (`str` or `None`): how to read them, and what they rest on.

    With `examples`:
    - **status** (`str`), **n_patches**, **rank** (`int`), **condition**, **residual** (`float`): whether the weights determine
      an image, and how well.

Examples:

    >>> from hf_unlearn.evaluate_modules.base import load_metric
    >>> import numpy as np
    >>> module = load_metric("reconstruction_attack")
    >>> images = np.random.default_rng(0).random((2, 3, 16, 16))
    >>> results = module.compute(predictions=[images[0] + 1e-3, images[0]], references=images)
    >>> [round(value, 1) for value in results["records"]["psnr"]]
    [60.0, 7.8]
    >>> results["recovered_rate"], results["outcome"], round(results["psnr_mean_color"], 1)
    (0.5, 'recovered', 10.8)
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ReconstructionAttack(AuditModule):
    def _info(self):
        image = datasets.Sequence(datasets.Sequence(datasets.Sequence(datasets.Value("float64"))))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": image, "references": image}),
            reference_urls=["https://arxiv.org/abs/2112.14087"],
        )

    def _load(self, model, processing_class):
        # The weights are read and not run, in the type they were stored in: their rounding matters.
        if isinstance(model, str) and processing_class is None:
            processing_class = load_processing_class(model)
        return model, processing_class

    def _from_model(self, examples, model, processing_class, original=None, seed=0, **options):
        if model is None or original is None:
            raise ValueError(
                "You gave examples but no model or no original. Give the model before the edit as original, and the one after "
                "it as model."
            )
        for images in (examples, options.get("retain"), options.get("non_members")):
            if hasattr(images, "shape"):  # an array; rows have their channels put first by the processor
                _check_channels(np.shape(images)[1:])
        audit = reconstruction_audit(original, model, examples, processing_class, **options)
        details = audit.details.as_dict()
        return _summary(audit, seed) | {
            name: details[name] for name in ("status", "n_patches", "rank", "condition", "residual")
        }

    def _compute(self, predictions, references, seed=0, retain=None, non_members=None, recovered_db=40.0):
        predictions, references = (_stacked(side) for side in (predictions, references))
        audit = compare_reconstructions(
            predictions,
            references,
            retain=None if retain is None else _stacked(retain),
            non_members=None if non_members is None else _stacked(non_members),
            recovered_db=recovered_db,
        )
        return _summary(audit, seed)


def _stacked(images):
    images = [np.asarray(image, dtype=np.float64) for image in images]
    if len({image.shape for image in images}) > 1:
        raise ValueError("The images have different shapes. Give all in one, (channels, height, width).")
    _check_channels(images[0].shape if images else ())
    return np.stack(images)


def _check_channels(shape):
    if len(shape) == 3 and shape[0] not in CHANNELS and shape[2] in CHANNELS:
        raise ValueError(
            f"The images have the shape {tuple(shape)}, which looks like (height, width, channels). Give "
            "(channels, height, width): numpy's image.transpose(2, 0, 1), or torch's image.permute(2, 0, 1)."
        )


def _summary(audit, seed):
    scored = ~np.isnan(audit.psnr)
    estimates = {
        "psnr": mean(audit.psnr, seed=seed, bounds=DECIBELS),
        "ssim": mean(audit.ssim, seed=seed, bounds=(-1, 1)),
        "recovered_rate": rate(int(audit.recovered[scored].sum()), int(scored.sum())),
        "above_baseline_rate": rate(int(audit.above_baseline[scored].sum()), int(scored.sum())),
        "psnr_mean_color": mean(audit.mean_color, seed=seed, bounds=DECIBELS),
    }
    for name, values in (("nearest_retained", audit.nearest_retained), ("non_members", audit.non_members)):
        if not np.isnan(values).all():
            estimates[f"psnr_{name}"] = mean(values, seed=seed, bounds=DECIBELS)
    results = {}
    found = known(audit.found)
    if len(found):
        estimates["found_rate"] = rate(int(found.sum()), len(found))
        results["chance"] = float(audit.chance.mean())
    results |= flat(estimates)
    reasons = [reason for reason in (audit.reason, results["reason"]) if reason]
    records = {name: getattr(audit, name) for name in ("psnr", "ssim", "baseline")}
    return results | {
        "records": {name: values.tolist() for name, values in records.items()},
        "outcome": audit.outcome,
        "finding": audit.sentence,
        "n": int(scored.sum()),
        "n_missing": int((~scored).sum()),
        "orientation": "higher = more of the image is recovered",
        "reason": "; ".join(reasons) or None,
    }
