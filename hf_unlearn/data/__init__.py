"""Rows to batches."""

from hf_unlearn.data.load import load_rows, with_templates
from hf_unlearn.data.pairing import PairedDataset, UnlearningCollator
from hf_unlearn.data.text import EmptyTargetError, encode, encode_dataset


__all__ = [
    "EmptyTargetError",
    "PairedDataset",
    "UnlearningCollator",
    "encode",
    "encode_dataset",
    "load_rows",
    "with_templates",
]
