"""Handwritten digits: the set of images that needs no download.

The 1,797 digits of 8 x 8 pixels that scikit-learn carries (Alpaydin and Kaynak, the test set of *Optical Recognition of
Handwritten Digits*, UCI repository, CC BY 4.0), as images with a label. They are written by 13 people who are not named,
so rows of one person may be in every split.

`train` is what a model learns, `validation` (never trained on) tells when to stop, `holdout` (never trained on) is for
the audit alone. A model that guesses is right once in ten times.
"""

import io
import random
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from sklearn.datasets import load_digits

from hf_unlearn.examples.folder import files_of_splits, requests_of, write_from_command_line, write_texts
from hf_unlearn.examples.image_model import write_vit


SIZES = {"train": 897, "validation": 300, "holdout": 600}
LABELS = [str(digit) for digit in range(10)]
# Threes and nines look most like an eight, so the recipes have them as its siblings.
CLASS = "8"
N_RECORDS = 40
FEATURES = Features({"image": Image(), "label": ClassLabel(names=LABELS)})


def make_digits(seed: int = 0) -> DatasetDict:
    """The digits in three splits, drawn at random.

    Args:
        seed (`int`, *optional*, defaults to `0`): same seed, same splits, in every process.

    Returns:
        `datasets.DatasetDict` with `train` (897 rows), `validation` (300) and `holdout` (600). Columns: `image`, gray,
        8 x 8, a PNG; `label`, the digit.
    """
    digits = load_digits()
    # Ink from 0 to 16 becomes brightness from 0 to 255.
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    order = list(range(len(pixels)))
    random.Random(f"digits {seed}").shuffle(order)
    splits, start = {}, 0
    for name, size in SIZES.items():
        chosen = order[start : start + size]
        start += size
        rows = {
            "image": [{"bytes": _png(pixels[i]), "path": None} for i in chosen],
            "label": [int(digits.target[i]) for i in chosen],
        }
        splits[name] = Dataset.from_dict(rows, features=FEATURES)
    return DatasetDict(splits)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PILImage.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _requests(seed: int) -> dict[str, dict]:
    """Two OpenDSR 1.0 erasure requests on the train split: one digit, and some rows."""
    rng = random.Random(f"digits requests {seed}")
    rows = sorted(rng.sample(range(SIZES["train"]), N_RECORDS))
    scopes = {
        "class": ("class", {"column": "label", "values": [CLASS]}),
        "records": ("record", {"rows": rows}),
    }
    return requests_of(scopes, rng)


CARD = """\
---
pretty_name: Handwritten digits
license: cc-by-4.0
tags:
- machine-unlearning
{files}---

# Handwritten digits

The 1,797 digits of 8 x 8 pixels that scikit-learn carries, from *Optical Recognition of Handwritten Digits* (E. Alpaydin
and C. Kaynak, UCI repository, CC BY 4.0), written by `python -m hf_unlearn.examples.digits` with seed {seed}.

| split | rows | use |
|---|---|---|
| train | {train} | what a model learns |
| validation | {validation} | never trained on; when to stop |
| holdout | {holdout} | never trained on; the audit only |

`base/` holds a randomly initialized ViT that has learned nothing, and its image processor. `requests/` holds two erasure
requests on the train split: the digit {digit}, and {n_records} rows.
"""


def write_digits(folder: str | Path, seed: int = 0) -> list[Path]:
    """Write the three splits, a model to train and two requests; the bytes depend on the seed alone.

    Writes `README.md` and a Parquet file a split, so that `datasets.load_dataset(folder)` gives the three splits offline;
    `base/`, an image processor and a randomly initialized ViT of 0.1 million parameters; and `requests/class.json` (one
    digit) and `requests/records.json` (40 rows of `train`). Files of these names are overwritten.

    Args:
        folder (`str` or `Path`): where to write; created if absent.
        seed (`int`, *optional*, defaults to `0`): seed of the splits, of the rows to forget and of the model's
            weights.

    Returns:
        `list[Path]`: the files written.
    """
    folder = Path(folder)
    card = CARD.format(files=files_of_splits("parquet"), seed=seed, digit=CLASS, n_records=N_RECORDS, **SIZES)
    texts = write_texts(folder, {"README.md": card}, _requests(seed))
    tables = {folder / f"{name}.parquet": rows for name, rows in make_digits(seed).items()}
    for path, rows in tables.items():
        rows.to_parquet(path)
    size = {"image_size": 8, "patch_size": 2, "hidden_size": 64, "n_layers": 2, "n_heads": 4}
    return [*tables, *texts, *write_vit(folder / "base", LABELS, seed=seed, **size)]


if __name__ == "__main__":
    says = "Write scikit-learn's handwritten digits, a tiny untrained ViT and two erasure requests."
    write_from_command_line("digits", says, write_digits)
