"""What a method is, as data: read from its trainer, so that it cannot say something else than the code."""

import inspect
import re
from dataclasses import MISSING, fields

from hf_unlearn.methods import METHODS
from hf_unlearn.methods.source import SourceClass, find_class


def describe(name: str, trainer: type | SourceClass | None = None) -> dict:
    """A method in the terms by which one chooses, as plain types for JSON.

    Args:
        trainer (`type`, *optional*): the class to describe. Defaults to what the source file of a method of this package
            says, which imports nothing, and to `METHODS[name]` for other methods.

    Returns:
        `dict`:
            name (`str`): in recipes and on the command line.
            trainer, config (`str`): names of the classes.
            summary (`str`): one sentence.
            models (`list[str]`): `"text"` (causal language models), `"image"` (image classifiers).
            architecture (`str`): `"agnostic"`, or `"specific"` to networks with the parts that the method edits.
            exactness (`str`): `"exact"` (as if never trained on) or `"approximate"`.
            guarantee (`str`): `"certified"` with a bound, `"by construction"`, or `"empirical"`: only an audit can tell.
            granularity (`str`): `"single"` record, `"batch"` of records, or `"both"`.
            mode (`str`): `"offline"`: the model is changed before it is used again.
            needs (`list[str]`): of forget, retain, reference, gradients.
            cost (`str`): of a training step, or of the whole edit if nothing is trained.
            sources (`list[str]`): arXiv numbers of the papers; the whole paragraph of the source if it has none.
            defaults (`dict`): the method's own options, and shared options with a default of its own.
    """
    if trainer is None and name in METHODS.files:
        file, class_name = METHODS.files[name].split(".")
        trainer = find_class(f"{__package__}.{file}", class_name)
    elif trainer is None:
        trainer = METHODS[name]
    doc, config = inspect.cleandoc(trainer.__doc__), trainer.config_class
    source = " ".join(doc.partition("Source:")[2].split("\n\n")[0].split())
    defaults = _defaults(config)
    return {
        "name": name,
        "trainer": trainer.__name__,
        "config": config.__name__,
        "summary": " ".join(doc.split("\n\n")[0].split()).replace("`", ""),
        "models": list(trainer.kinds),
        "architecture": trainer.architecture,
        "exactness": "exact" if trainer.guarantee == "by construction" else "approximate",
        "guarantee": trainer.guarantee,
        "granularity": trainer.granularity,
        "mode": "offline",
        **_needs_and_cost(trainer, defaults.get("retain_loss", "nll")),
        "sources": re.findall(r"\b\d{4}\.\d{4,5}\b", source) or [source.rstrip(".")],
        "defaults": defaults,
    }


def _defaults(config: type | SourceClass) -> dict:
    if isinstance(config, SourceClass):
        shared = find_class("hf_unlearn.training.config", "UnlearningConfig").defaults()
        own = config.defaults()
    else:
        from hf_unlearn.training.config import UnlearningConfig

        shared, own = (
            {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(cls)}
            for cls in (UnlearningConfig, config)
        )
    return {name: value for name, value in own.items() if name not in shared or shared[name] != value}


def _needs_and_cost(trainer, retain_loss: str) -> dict:
    parts = ["forget"] if trainer.reads_forget else []
    parts += ["alternate"] if trainer.n_alternates else []
    needs = ["forget"] if parts else []
    again = list(parts) if trainer.reference in ("logits", "teacher") else []
    if retain_loss != "none":
        parts.append("retain")
        needs.append("retain")
    if trainer.retain_reference or retain_loss == "kl":
        again.append("retain")
    if trainer.reference != "none" or again:
        needs.append("reference")
    if trainer.needs_gradients:
        needs.append("gradients")
    cost = f"a forward and backward pass of {' + '.join(parts)} rows a step"
    cost += "; the reference once, before the training" if trainer.reference == "log_probs" else ""
    cost += f"; a forward pass of {' + '.join(again)} rows for the reference" if again else ""
    return {"needs": needs, "cost": trainer.cost or cost}
