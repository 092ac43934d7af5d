"""Rows to batches."""

from hf_unlearn.data.images import AugmentedRows, ImageRows, encode_image, has_images
from hf_unlearn.data.load import load_rows, with_templates
from hf_unlearn.data.pairing import PairedDataset, UnlearningCollator
from hf_unlearn.data.text import EmptyTargetError, encode, encode_dataset


__all__ = [
    "AugmentedRows",
    "EmptyTargetError",
    "ImageRows",
    "PairedDataset",
    "UnlearningCollator",
    "encode",
    "encode_dataset",
    "encode_image",
    "has_images",
    "load_rows",
    "with_templates",
]
