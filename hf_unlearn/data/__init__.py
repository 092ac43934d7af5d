"""Rows to batches."""

from __future__ import annotations

import importlib


# For users, and lazily: what a row looks like needs neither torch nor datasets. The package imports the modules themselves.
_MODULES = {
    "hf_unlearn.data.images": ["AugmentedRows", "ImageRows", "encode_image", "has_images"],
    "hf_unlearn.data.load": ["load_rows"],
    "hf_unlearn.data.pairing": ["PairedDataset", "UnlearningCollator"],
    "hf_unlearn.data.templates": ["with_templates"],
    "hf_unlearn.data.text": ["EmptyTargetError", "encode", "encode_dataset"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
