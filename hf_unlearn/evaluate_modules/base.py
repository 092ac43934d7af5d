"""The package's `evaluate` modules and suites by name, and what the modules have in common."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np

from hf_unlearn.models.load import load_model, load_processing_class
from hf_unlearn.statistics.estimate import Estimate


_INSIDE = Path(__file__).parents[1] / "eval_suites"
#: The folder of the modules and suites: inside the package where it is installed, beside it in a checkout.
EVAL_SUITES = _INSIDE if _INSIDE.is_dir() else Path(__file__).parents[2] / "eval_suites"


def metric_names(folder: Path = EVAL_SUITES) -> list[str]:
    """Names that [`load_metric`] knows."""
    return sorted(path.name for path in folder.iterdir() if (path / f"{path.name}.py").is_file())


def suite_names(folder: Path = EVAL_SUITES) -> list[str]:
    """Names that [`load_suite`] knows."""
    return sorted(path.stem for path in folder.glob("*.py"))


def load_metric(name: str, **kwargs) -> evaluate.EvaluationModule:
    """One of the package's `evaluate` modules. It comes from a file of the package, so no network is needed.

        load_metric("membership_inference").compute(predictions=scores, references=labels)

    Args:
        name (`str`): such as `"membership_inference"`; [`metric_names`] lists them.
        kwargs: passed to `evaluate.load`.

    Raises:
        ValueError: there is no such module.
    """
    if name not in metric_names():
        raise ValueError(f"There is no metric {name!r}. There are {', '.join(metric_names())}.")
    return evaluate.load(str(EVAL_SUITES / name), **kwargs)


def load_suite(name: str) -> evaluate.EvaluationSuite:
    """One of the package's evaluation suites, see [`load_metric`].

        load_suite("tofu").run(model, processing_class=tokenizer)

    Args:
        name (`str`): such as `"tofu"`; [`suite_names`] lists them.

    Raises:
        ValueError: there is no such suite.
    """
    if name not in suite_names():
        raise ValueError(f"There is no suite {name!r}. There are {', '.join(suite_names())}.")
    return evaluate.EvaluationSuite.load(str(EVAL_SUITES / f"{name}.py"))


# Abstract, so that `evaluate`, which takes the first class it finds in the file of a module, does not take this one.
class AuditModule(evaluate.Metric, ABC):
    """Base of the modules in `eval_suites`: results from what models gave before, or from the models themselves.

    A module says how results come from its inputs (`_compute`) and, if it runs models, how from `examples` and a model
    (`_from_model`). Inputs stay in memory, where `evaluate` would write them to a file, and no error message holds any of
    them: they may be texts that are to be erased.
    """

    #: Inputs that are given beside `examples`, not instead of them.
    with_examples: tuple[str, ...] = ()

    def __init__(self, *args, keep_in_memory: bool = False, num_process: int = 1, **kwargs):
        # Several processes exchange their inputs in files.
        keep_in_memory = keep_in_memory or num_process == 1
        super().__init__(*args, keep_in_memory=keep_in_memory, num_process=num_process, **kwargs)

    @abstractmethod
    def _compute(self, **inputs) -> dict[str, Any]:
        """Results from the inputs that `_info` names."""

    def _load(self, model, processing_class):
        return loaded(model, processing_class)

    def _from_model(self, examples: Sequence, model, processing_class, **kwargs) -> dict[str, Any]:
        """Results from examples and a model, by passing on to `_compute` what the model gives."""
        raise NotImplementedError

    def compute(self, *, examples=None, **kwargs):
        """Compute the module from its inputs, or from examples and a model.

        Raises:
            ValueError: inputs are missing or given twice, or an argument is none of this module.
        """
        self._check_arguments(kwargs, examples is not None)
        given = [name for name in self._feature_names() if kwargs.get(name) is not None]
        if examples is None:
            if not given and self.writer is None:
                raise ValueError(f"You gave nothing to compute from. {self._what_to_give()}")
            return super().compute(**kwargs)
        if not self._takes_examples():
            raise ValueError(f"{self.name} takes no examples. Give {', '.join(self._feature_names())}.")
        twice = [name for name in given if name not in self.with_examples]
        if twice:
            raise ValueError(f"You gave examples as well as {' and '.join(twice)}. {self._what_to_give()}")
        model, processing_class = self._load(kwargs.pop("model", None), kwargs.pop("processing_class", None))
        # Not by way of the base class, which would put the examples into a table.
        examples = examples if hasattr(examples, "__getitem__") else list(examples)
        return self._from_model(examples, model, processing_class, **kwargs)

    def _takes_examples(self) -> bool:
        return type(self)._from_model is not AuditModule._from_model

    def _check_arguments(self, given: Mapping, with_examples: bool) -> None:
        inputs, options = self._feature_names(), self._options()
        # Inputs that are given twice have a message of their own.
        known = {*inputs, *(options["with examples"] if with_examples else options["without"])}
        # What passes arguments on gives the two of the base class in any case.
        unknown = [
            n for n in given if n not in known and (n not in ("predictions", "references") or given[n] is not None)
        ]
        if unknown:
            message = f"{self.name} takes no {' and no '.join(unknown)} here. It takes "
            message += ", ".join([*inputs, *options["without"]])
            if options["with examples"]:
                message += f"; or else examples, {', '.join(options['with examples'])}"
            raise ValueError(f"{message}.")

    def _options(self) -> dict[str, list[str]]:
        """Names of the arguments beside the inputs, and of those beside the examples."""
        without = [name for name in _arguments(self._compute)[0] if name not in self._feature_names()]
        if not self._takes_examples():
            return {"without": without, "with examples": []}
        of_model, passed_on = _arguments(self._from_model)
        of_model = [name for name in of_model if name != "examples"]
        if passed_on:
            of_model += [name for name in without if name not in of_model]
        return {"without": without, "with examples": of_model}

    def add_batch(self, **inputs):
        """Add a batch of inputs."""
        self._add(super().add_batch, inputs, fits=not any(isinstance(column, str) for column in inputs.values()))

    def add(self, **inputs):
        """Add the inputs of one record."""
        self._add(super().add, inputs)

    def _add(self, add, inputs: Mapping, fits: bool = True) -> None:
        is_first = self.writer is None
        try:
            if not fits:
                raise TypeError
            add(**inputs)
        except (ValueError, TypeError, KeyError):
            if is_first:  # and not half a table for the next call
                self.writer = self.buf_writer = None
            # The message of the base class quotes the inputs.
            raise ValueError(self._misfit(inputs)) from None

    def _what_to_give(self) -> str:
        names = " and ".join(self._feature_names())
        if not self._takes_examples():
            return f"Give {names}."
        return f"Either give {names}, or examples with model and processing_class."

    def _misfit(self, inputs: Mapping) -> str:
        options = self.features if isinstance(self.features, list) else [self.features]
        wanted = ", or ".join(" and ".join(f"{k}: {_kind(v)}" for k, v in option.items()) for option in options)
        found = ", ".join(f"{name}: {_shape(value)}" for name, value in inputs.items() if value is not None)
        return f"The inputs do not fit. Wanted is {wanted}, the same number of each. You gave {found or 'nothing'}."


def loaded(model, processing_class=None):
    """A model with its tokenizer or image processor: objects as they are, a name (a folder or Hub id) in float32.

    Raises:
        ValueError: there is no model, or a model object without its tokenizer or image processor.
    """
    if model is None:
        raise ValueError("You gave examples but no model. Pass it as an object, or by the name to load it from.")
    if isinstance(model, (str, Path)):
        name = str(model)
        return load_model(name).eval(), processing_class or load_processing_class(name)
    if processing_class is None:
        raise ValueError(
            "You gave a model object but no processing_class. Pass its tokenizer or image processor as well."
        )
    return model, processing_class


def flat(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """Estimates as the flat dictionary that `evaluate` expects, ends of the interval beside the value.

    Returns:
        `dict`: for each name `name`, `name_low` and `name_high`; and `reason`, why values or intervals are missing or
        degenerate, `None` where there is nothing to say.
    """
    results: dict[str, Any] = {}
    for name, estimate in estimates.items():
        results |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    reasons = [f"{name}: {estimate.reason}" for name, estimate in estimates.items() if estimate.reason]
    return results | {"reason": "; ".join(reasons) or None}


def _arguments(function) -> tuple[list[str], bool]:
    """Names of the arguments of a function, and whether it takes others, to pass them on."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    return names, len(names) < len(parameters)


def _kind(feature) -> str:
    inner = getattr(feature, "feature", None)
    return f"a list of {_kind(inner)}" if inner is not None else str(getattr(feature, "dtype", feature))


def _shape(value) -> str:
    if isinstance(value, str) or not hasattr(value, "__len__"):
        return f"one {type(value).__name__}"
    kinds = (
        sorted({type(item).__name__ for item in value}) if not isinstance(value, np.ndarray) else [value.dtype.name]
    )
    return f"{len(value)} of {' or '.join(kinds) or 'nothing'}"
