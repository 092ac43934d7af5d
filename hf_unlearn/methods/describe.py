"""What a method is, as data: read from its trainer, so that it cannot say something else than the code."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, asdict, dataclass, fields

from hf_unlearn.methods import METHODS
from hf_unlearn.methods.source import SourceClass, find_class


@dataclass(frozen=True)
class Description:
    """A method in the terms by which one chooses.

    Attributes:
        name (`str`): in recipes and on the command line.
        trainer, config (`str`): names of the classes.
        summary (`str`): one sentence.
        models (`list[str]`): `"text"` (causal language models), `"image"` (image classifiers).
        architecture (`str`): `"agnostic"`, or `"specific"` to networks with the parts that it edits.
        exactness (`str`): `"exact"` (as if never trained on) or `"approximate"`.
        guarantee (`str`): `"certified"` with a bound, `"by construction"`, or `"empirical"`: only an audit can tell.
        granularity (`str`): `"single"` record, `"batch"` of records, or `"both"`.
        mode (`str`): `"offline"`: the model is changed before it is used again.
        needs (`list[str]`): of forget, retain, reference, gradients.
        cost (`str`): of a training step, or of the whole where nothing is trained.
        sources (`list[str]`): arXiv numbers of the papers; name and date, or whatever its docstring has, where there is none.
        defaults (`dict`): options of its own, and those for which it has another default than the other methods.
    """

    name: str
    trainer: str
    config: str
    summary: str
    models: list[str]
    architecture: str
    exactness: str
    guarantee: str
    granularity: str
    mode: str
    needs: list[str]
    cost: str
    sources: list[str]
    defaults: dict

    def as_dict(self) -> dict:
        """Plain types for JSON."""
        return asdict(self)


def describe(name: str, trainer: type | SourceClass | None = None) -> Description:
    """The description of one row of `METHODS`.

    Args:
        trainer (`type`, *optional*): its trainer. By default it is read from its file, if it is of this package, which
            imports nothing of it, and else from `METHODS[name]`.
    """
    if trainer is None:
        trainer = _from_source(METHODS.files[name]) if name in METHODS.files else METHODS[name]
    doc, config = inspect.cleandoc(trainer.__doc__), trainer.config_class
    defaults = _defaults(config)
    return Description(
        name=name,
        trainer=trainer.__name__,
        config=config.__name__,
        summary=" ".join(doc.split("\n\n")[0].split()).replace("`", ""),
        models=list(trainer.kinds),
        architecture=trainer.architecture,
        exactness="exact" if trainer.guarantee == "by construction" else "approximate",
        guarantee=trainer.guarantee,
        granularity=trainer.granularity,
        mode="offline",
        needs=_needs(trainer, defaults),
        cost=trainer.cost or _cost(trainer, defaults),
        sources=_sources(doc),
        defaults=defaults,
    )


def _from_source(entry: str) -> SourceClass:
    file, _, trainer = entry.partition(".")
    return find_class(f"{__package__}.{file}", trainer)


def _sources(doc: str) -> list[str]:
    paragraph = " ".join(doc.partition("Source:")[2].split("\n\n")[0].split())
    return re.findall(r"\b\d{4}\.\d{4,5}\b", paragraph) or [paragraph.rstrip(".")]


def _defaults(config: type | SourceClass) -> dict:
    if isinstance(config, SourceClass):
        inherited = find_class("hf_unlearn.training.config", "UnlearningConfig").defaults()
        own = config.defaults()
    else:
        from hf_unlearn.training.config import UnlearningConfig

        inherited, own = ({f.name: _default(f) for f in fields(cls)} for cls in (UnlearningConfig, config))
    return {name: value for name, value in own.items() if name not in inherited or inherited[name] != value}


def _default(field):
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else None


def _reads_retain(defaults: dict) -> bool:
    return defaults.get("retain_loss", "nll") != "none"


def _needs(trainer, defaults: dict) -> list[str]:
    needs = ["forget"] if trainer.reads_forget or trainer.n_alternates else []
    needs += ["retain"] if _reads_retain(defaults) else []
    if trainer.reference != "none" or trainer.retain_reference or defaults.get("retain_loss") == "kl":
        needs.append("reference")
    return needs + (["gradients"] if trainer.needs_gradients else [])


def _cost(trainer, defaults: dict) -> str:
    parts = ["forget"] if trainer.reads_forget else []
    parts += ["alternate"] if trainer.n_alternates else []
    parts += ["retain"] if _reads_retain(defaults) else []
    cost = f"a forward and backward pass of {' + '.join(parts)} rows a step"
    if trainer.reference == "log_probs":
        cost += "; the reference once, before the training"
    again = [part for part in parts if part != "retain"] if trainer.reference in ("logits", "teacher") else []
    again += ["retain"] if trainer.retain_reference or defaults.get("retain_loss") == "kl" else []
    return cost + (f"; a forward pass of {' + '.join(again)} rows for the reference" if again else "")
