"""From rows of images to pixels and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from datasets import Image as ImageFeature
from PIL import Image, ImageOps
from torch import Tensor

from hf_unlearn.data.rows import LABEL_COLUMNS, column_names, format_of, label_of, naming_row


# 256 MB: about 20,000 images of 32 x 32. Small images are decoded once, and large ones do not fill the memory.
CACHE_BYTES = 2**28


def has_images(rows) -> bool:
    """Whether the rows are images that are not encoded yet, or are encoded when they are read."""
    return isinstance(rows, ImageRows) or format_of(dict.fromkeys(column_names(rows), "")) == "image"


def encode_image(row: Mapping[str, Any], processor=None, n_classes: int | None = None) -> dict:
    """Turn one row into `{"pixel_values": float32 (channels, height, width), "labels": int}`.

    Args:
        row (`Mapping`): `image`, a PIL image or an undecoded `datasets.Image`, and `label` or `labels`, the index of its
            class. They become RGB, or gray if the processor has one mean, as a PIL image opens them: turned as EXIF says,
            16-bit gray scaled to 8 bit, transparency left out.
        processor (`BaseImageProcessor`): makes the pixels.
        n_classes (`int`, *optional*): size of the model's head; a label must be below it.

    Raises:
        ValueError: no image processor, no image, one whose values have no certain range, or no label below `n_classes`.
    """
    label = check_label(label_of(row), n_classes)
    return {"pixel_values": _pixels(row["image"], _image_processor(processor)), "labels": label}


class ImageRows(Sequence):
    """Rows of images, each encoded when it is read: the pixels of a data set need not fit into memory.

    All labels are checked on construction; an image that cannot be decoded raises when it is read. Errors name the data
    set and the index of the row. Nothing is written to disk.

    Args:
        rows, processor, n_classes: see [`encode_image`]. The processor must give the same pixels for the same image.
        name (`str`, *optional*, defaults to `"dataset"`): name of the data set in errors.
        cache_bytes (`int`, *optional*, defaults to 256 MB): room for pixels in memory; the rows read first are kept.
        n_channels (`int`, *optional*): channels that the model takes; the processor must make as many.

    Raises:
        ValueError: see [`encode_image`].
    """

    def __init__(
        self,
        rows,
        processor,
        n_classes: int | None = None,
        name: str = "dataset",
        cache_bytes: int = CACHE_BYTES,
        n_channels: int | None = None,
    ):
        with naming_row(0, name):
            self.processor = _image_processor(processor)
        check_channels(_channels_of(self.processor), n_channels, name)
        self.rows, self.name = rows, name
        self.labels: list[int] = []
        for index, label in enumerate(labels_of(rows)):
            with naming_row(index, name):
                self.labels.append(check_label(label, n_classes))
        self._room = cache_bytes
        self._cache: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        pixels = self._cache.get(index)
        if pixels is None:
            with naming_row(index, self.name):
                try:
                    pixels = _pixels(self.rows[index]["image"], self.processor)
                except OSError as error:  # its message may have the name of the file
                    reason = type(error).__name__
                    raise ValueError(f"The image cannot be decoded ({reason}). Remove the row or repair it.") from None
            if pixels.nbytes <= self._room:
                self._room -= pixels.nbytes
                self._cache[index] = pixels
        return {"pixel_values": pixels, "labels": self.labels[index]}


class AugmentedRows(torch.utils.data.Dataset):
    """Encoded images, each flipped with probability one half and shifted at random by up to `pad` pixels.

    The draws depend on (seed, epoch, index) alone: they are the same under any number of processes or workers and after a
    resume. A shift crops the image inside a border of zeros, which are gray for the usual processors.

    Args:
        rows (`Sequence` of encoded rows).
        seed (`int`, *optional*, defaults to `0`).
        pad (`int`, *optional*, defaults to `4`): as for CIFAR (He et al., arXiv 1512.03385).
    """

    def __init__(self, rows: Sequence, seed: int = 0, pad: int = 4):
        self.rows, self.seed, self.pad = rows, seed, pad
        # In shared memory, so that workers which outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = dict(self.rows[index])
        random = np.random.default_rng([self.seed, int(self._epoch), index])
        flip, (top, left) = random.integers(2), random.integers(2 * self.pad + 1, size=2)
        pixels = torch.as_tensor(row["pixel_values"])
        height, width = pixels.shape[-2:]
        pixels = torch.nn.functional.pad(pixels.flip(-1) if flip else pixels, (self.pad,) * 4)
        row["pixel_values"] = pixels[:, top : top + height, left : left + width]
        return row


def _image_processor(processor):
    processor = getattr(processor, "image_processor", processor)  # of a processor for images and text
    if processor is None or not hasattr(processor, "preprocess"):
        given = "no image processor was given" if processor is None else f"a {type(processor).__name__} was given"
        raise ValueError(
            f"It is an image, but {given}. Give an image processor (AutoImageProcessor.from_pretrained(...)) as "
            "processing_class, or encoded rows (pixel_values and labels)."
        )
    return processor


def _channels_of(processor) -> int:
    """How many channels the pixels have: as many as the processor has means, which is one for gray images."""
    mean = getattr(processor, "image_mean", None)
    return 1 if mean is not None and np.size(mean) == 1 else 3


def check_channels(found: int, n_channels: int | None, name: str) -> None:
    """Raise a `ValueError` unless the pixels have as many channels as the model takes."""
    if n_channels is not None and found != n_channels:
        raise ValueError(
            f"The pixels of the {name} have {_counted(found)}, but the model takes {_counted(n_channels)}. Give a processor whose image_mean and "
            "image_std have as many values as the model has channels (one for gray images, three for RGB), or a model for "
            "such images."
        )


def _counted(n_channels: int) -> str:
    return f"{n_channels} channel{'s' * (n_channels > 1)}"


def _pixels(image, processor) -> Tensor:
    if isinstance(image, Mapping):
        image = ImageFeature().decode_example(dict(image))
    if not isinstance(image, Image.Image):
        held = type(image).__name__
        raise ValueError(f"The column image holds {held}, not an image. Give PIL images or a datasets.Image column.")
    image = ImageOps.exif_transpose(image)  # a table turns its images when it decodes them
    if image.mode.startswith("I;16"):  # `convert` would cut all values above 255
        deep = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floats"
        raise ValueError(
            f"The image holds {kind} (mode {image.mode}), whose range is not certain. Scale it to 8 bit: "
            'Image.fromarray(values.astype("uint8")), with values from 0 to 255.'
        )
    n_channels = _channels_of(processor)
    return processor(image.convert("L" if n_channels == 1 else "RGB"), return_tensors="pt")["pixel_values"][0]


def labels_of(rows) -> Sequence:
    """The label of every row, or `None`; a table is read without decoding an image."""
    if not isinstance(rows, Dataset):
        return [label_of(row) for row in rows]
    column = next((column for column in LABEL_COLUMNS if column in rows.column_names), None)
    return [None] * len(rows) if column is None else rows[column]


def check_label(label, n_classes: int | None) -> int:
    """The index of a class, which must be one of `n_classes`; else a `ValueError`."""
    if label is None:
        raise ValueError("An image row needs its class in the column label or labels. Add it, or rename its column.")
    if isinstance(label, bool) or not isinstance(label, (int, np.integer)):
        held = type(label).__name__
        raise ValueError(f"The label is of type {held}, not the index of a class. Convert the column to ClassLabel.")
    if label < 0 or (n_classes is not None and label >= n_classes):
        size = "" if n_classes is None else f" of {n_classes}"
        raise ValueError(
            f"The label is not the index of one{size} classes. Correct it, or take a model with a larger head."
        )
    return int(label)


def label_names(rows: Dataset) -> list[str]:
    """Names of the classes, in the order of their indices.

    Raises:
        ValueError: there is no column `label` or `labels` of the type `ClassLabel`.
    """
    for column in LABEL_COLUMNS:
        if isinstance(rows.features.get(column), ClassLabel):
            return rows.features[column].names
    raise ValueError("No column label or labels has the type ClassLabel. Convert it: rows.cast_column(...).")
