"""The package's `evaluate` modules and suites by name, and the base of the modules."""

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
    """One of the package's `evaluate` modules, from a file of the package, so no network is needed.

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


# Abstract, because `evaluate` takes the first class in the file of a module that is not.
class AuditModule(evaluate.Metric, ABC):
    """Base of the modules in `eval_suites`: results from the outputs of models, or from the models themselves.

    A module says how results come from its inputs (`_compute`) and, if it runs models, how they come from `examples` and a
    model (`_from_model`). `evaluate` would write the inputs to a file; here they stay in memory, and no error message quotes
    them: they may be texts that are to be erased.
    """

    #: Inputs that are given together with `examples`, not instead of them.
    with_examples: tuple[str, ...] = ()

    def __init__(self, *args, keep_in_memory: bool = False, num_process: int = 1, **kwargs):
        # Several processes exchange their inputs in files.
        super().__init__(*args, keep_in_memory=keep_in_memory or num_process == 1, num_process=num_process, **kwargs)

    @abstractmethod
    def _compute(self, **inputs) -> dict[str, Any]:
        """Results from the inputs that `_info` names."""

    def _load(self, model, processing_class):
        return loaded(model, processing_class)

    def _from_model(self, examples: Sequence, model, processing_class, **kwargs) -> dict[str, Any]:
        """Results from examples and a model, by passing the outputs of the model on to `_compute`."""
        raise NotImplementedError

    def compute(self, *, examples=None, **kwargs):
        """Compute the module from its inputs, or from examples and a model.

        Raises:
            ValueError: inputs are missing or given twice, or the module does not have an argument.
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
        # Not through the base class, which would put the examples into a table.
        examples = examples if hasattr(examples, "__len__") else list(examples)
        return self._from_model(examples, model, processing_class, **kwargs)

    def _takes_examples(self) -> bool:
        return type(self)._from_model is not AuditModule._from_model

    def _check_arguments(self, given: Mapping, with_examples: bool) -> None:
        inputs = self._feature_names()
        with_inputs = [name for name in _arguments(self._compute)[0] if name not in inputs]
        with_model = []
        if self._takes_examples():
            names, passed_on = _arguments(self._from_model)
            with_model = [name for name in names if name != "examples"]
            with_model += [name for name in with_inputs if passed_on and name not in names]
        # Inputs that are given twice have a message of their own.
        known = {*inputs, *(with_model if with_examples else with_inputs)}
        # Callers that pass arguments on give the two of the base class in any case.
        known |= {name for name in ("predictions", "references") if given.get(name) is None}
        if unknown := [name for name in given if name not in known]:
            message = (
                f"{self.name} takes no {' and no '.join(unknown)} here. It takes {', '.join([*inputs, *with_inputs])}"
            )
            raise ValueError(message + (f"; or else examples, {', '.join(with_model)}." if with_model else "."))

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
            if is_first:  # leave no half of a table to the next call
                self.writer = self.buf_writer = None
            # The message of the base class would quote the inputs.
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
        return f"The inputs do not fit. Give {wanted}, the same number of each. You gave {found or 'nothing'}."


def loaded(model, processing_class=None):
    """A model with its tokenizer or image processor; a name (a folder or Hub id) is loaded in float32.

    Raises:
        ValueError: there is no model, or a model object without its tokenizer or image processor.
    """
    if model is None:
        raise ValueError("You gave examples but no model. Pass it as an object, or by the name to load it from.")
    if isinstance(model, (str, Path)):
        name = str(model)
        return load_model(name).eval(), processing_class or load_processing_class(name)
    if processing_class is None:
        raise ValueError("You gave a model object but no processing_class. Pass its tokenizer or image processor too.")
    return model, processing_class


def flat(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """Estimates as the flat dictionary that `evaluate` expects.

    Returns:
        `dict`: for each name `name`, `name_low` and `name_high`, the value and the ends of its interval; and `reason`, why
        values or intervals are missing or degenerate, or `None`.
    """
    results: dict[str, Any] = {}
    for name, estimate in estimates.items():
        results |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    reasons = [f"{name}: {estimate.reason}" for name, estimate in estimates.items() if estimate.reason]
    return results | {"reason": "; ".join(reasons) or None}


def _arguments(function) -> tuple[list[str], bool]:
    """Names of the arguments of a function, and whether it takes others to pass them on."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    return names, len(names) < len(parameters)


def _kind(feature) -> str:
    inner = getattr(feature, "feature", None)
    return f"a list of {_kind(inner)}" if inner is not None else str(getattr(feature, "dtype", feature))


def _shape(value) -> str:
    if isinstance(value, str) or not hasattr(value, "__len__"):
        return f"one {type(value).__name__}"
    is_array = isinstance(value, np.ndarray)
    kinds = [value.dtype.name] if is_array else sorted({type(item).__name__ for item in value})
    return f"{len(value)} of {' or '.join(kinds) or 'nothing'}"
