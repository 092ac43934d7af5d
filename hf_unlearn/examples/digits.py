"""Handwritten digits: the image data set that needs no download.

The 1,797 digits of 8 x 8 pixels in scikit-learn (Alpaydin and Kaynak, the test set of *Optical Recognition of Handwritten
Digits*, UCI repository, CC BY 4.0), as images with a label. Their 13 writers are not named, so digits of one writer may be
in every split. A model that guesses is right once in ten times.
"""

import random
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from sklearn.datasets import load_digits

from hf_unlearn.examples.folder import files_of_splits, requests_of, write_from_command_line, write_texts
from hf_unlearn.examples.image_model import write_vit


SIZES = {"train": 897, "validation": 300, "holdout": 600}
LABELS = [str(digit) for digit in range(10)]
# Threes and nines look most like an eight, so the recipes take them as its siblings.
CLASS = "8"
N_RECORDS = 40
FEATURES = Features({"image": Image(), "label": ClassLabel(names=LABELS)})


def make_digits(seed: int = 0) -> DatasetDict:
    """The digits in three splits, drawn at random.

    Args:
        seed (`int`, *optional*, defaults to `0`): same seed, same splits, in every process.

    Returns:
        `datasets.DatasetDict` with `train` (897 rows, to learn from), `validation` (300, to decide when to stop) and
        `holdout` (600, for the audit only). Columns: `image`, a gray PNG of 8 x 8; `label`, the digit.
    """
    digits = load_digits()
    # Ink from 0 to 16 becomes brightness from 0 to 255.
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    order = list(range(len(pixels)))
    random.Random(f"digits {seed}").shuffle(order)
    splits = {}
    for name, size in SIZES.items():
        chosen, order = order[:size], order[size:]
        rows = {"image": [pixels[i] for i in chosen], "label": [int(digits.target[i]) for i in chosen]}
        splits[name] = Dataset.from_dict(rows, features=FEATURES)
    return DatasetDict(splits)


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
    """Write the three splits, a model to train and two erasure requests; the bytes depend on the seed alone.

    Writes `README.md` and one Parquet file per split, so that `datasets.load_dataset(folder)` gives the three splits
    offline; `base/`, an image processor and a randomly initialized ViT of 0.1 million parameters; and
    `requests/class.json` (one digit) and `requests/records.json` (40 rows of `train`).

    Args:
        folder (`str` or `Path`): created if absent; its files of these names are overwritten.
        seed (`int`, *optional*, defaults to `0`): seed of the splits, of the rows to forget and of the model's weights.

    Returns:
        `list[Path]`: the files written.
    """
    folder, rng = Path(folder), random.Random(f"digits requests {seed}")
    scopes = {
        "class": ("class", {"column": "label", "values": [CLASS]}),
        "records": ("record", {"rows": sorted(rng.sample(range(SIZES["train"]), N_RECORDS))}),
    }
    card = CARD.format(files=files_of_splits("parquet"), seed=seed, digit=CLASS, n_records=N_RECORDS, **SIZES)
    texts = write_texts(folder, {"README.md": card}, requests_of(scopes, rng))
    tables = {folder / f"{name}.parquet": rows for name, rows in make_digits(seed).items()}
    for path, rows in tables.items():
        rows.to_parquet(path)
    size = {"image_size": 8, "patch_size": 2, "hidden_size": 64, "n_layers": 2, "n_heads": 4}
    return [*tables, *texts, *write_vit(folder / "base", LABELS, seed=seed, **size)]


if __name__ == "__main__":
    says = "Write scikit-learn's handwritten digits, a tiny untrained ViT and two erasure requests."
    write_from_command_line("digits", says, write_digits)
