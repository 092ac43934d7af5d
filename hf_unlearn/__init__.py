"""Erase named records, classes or attributes from a Hugging Face model, measure what is left, and show it."""

from __future__ import annotations

import importlib
import logging

from hf_unlearn.methods import METHODS


# peft imports bitsandbytes whether or not anyone quantizes, and the Trainer of transformers imports peft. On some CPUs it
# then warns that a kernel for 4-bit layers is missing, which concerns nobody who did not ask for 4 bit, and is slow at most.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0.dev0"

_MODULES = {
    "hf_unlearn.request": ["ErasureRequest", "Split", "split"],
    "hf_unlearn.evidence.result": ["save_report"],
    "hf_unlearn.evaluate_modules.base": ["load_metric", "load_suite"],
    "hf_unlearn.models.likelihood": ["TargetLogits"],
    "hf_unlearn.training": ["NonFiniteLossError", "UnlearningConfig", "UnlearningTrainer"],
    "hf_unlearn.methods": ["METHODS", "register_method"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names} | METHODS.classes

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str):
    # Lazily: importing the package takes no seconds, and a reader of the evidence needs no torch.
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
