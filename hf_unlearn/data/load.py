"""Rows from the Hub or from disk."""

from __future__ import annotations

import os
from pathlib import Path

from datasets import Dataset, load_dataset, load_from_disk

from hf_unlearn.data.builders import load_folder, local_copy, prepared
from hf_unlearn.data.files import PARSERS, of_split, read_table, rows_of


_SUFFIXES = (*PARSERS, ".parquet")
# No Hub id ends like these files, which cannot be read.
_OTHER_FILES = (
    ".xlsx",
    ".xls",
    ".ods",
    ".gz",
    ".zip",
    ".zst",
    ".arrow",
    ".feather",
    ".ndjson",
    ".yaml",
    ".xml",
    ".pkl",
)


def load_rows(name: str, split: str = "train", config: str | None = None) -> Dataset:
    """Load one split of a data set. Local files are read into memory and leave nothing in a cache.

    CSV, TSV and JSON hold what they say. Every cell of a CSV or TSV file is text (`NA`, `007`, an empty cell), and no text in
    JSON becomes a date. So it is with data sets of several such files, on the Hub too, unless their README declares the
    types of the columns (`features`).

    Args:
        name (`str`): a Hub id, a folder that `load_dataset` reads or `save_to_disk` wrote, or a `.csv`, `.tsv`, `.json`,
            `.jsonl`, `.txt` or `.parquet` file.
        split (`str`, *optional*, defaults to `"train"`): a split or a slice of one, as in `"train[:200]"`. The only split
            of a single file or of a saved `Dataset` is `train`.
        config (`str`, *optional*): configuration of the data set.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file is of another kind or breaks the rules of its kind, or the split does not exist. The message
            names the file, the line and the column, and quotes no cell.
    """
    path = Path(name)
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix in PARSERS:
            return of_split(name, split, {"train": lambda: rows_of(read_table(path, PARSERS[suffix]))})
        if suffix == ".parquet":
            return prepared("parquet", split, data_files=str(path))
        raise ValueError(f"{name} is no file that can be read: give one of {', '.join(_SUFFIXES)}.")
    if path.is_dir():
        if not any((path / made).exists() for made in ("state.json", "dataset_dict.json")):
            return load_folder(name, split, config)
        saved = load_from_disk(name)
        saved = {"train": saved} if isinstance(saved, Dataset) else saved
        return of_split(name, split, {part: lambda rows=rows: rows for part, rows in saved.items()})
    is_hub_id = name.count("/") == 1 and not os.path.isabs(name) and not name.startswith(".")
    if suffix in (*_SUFFIXES, *_OTHER_FILES) or not is_hub_id:
        raise FileNotFoundError(f"There is no {name}. Give an existing file or folder, or a Hub id (owner/name).")
    folder = local_copy(name, config)
    return load_dataset(name, config, split=split) if folder is None else load_folder(folder, split, config)
