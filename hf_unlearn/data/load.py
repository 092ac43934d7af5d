"""Rows from the Hub or from disk."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from string import Formatter

from datasets import Dataset, ReadInstruction, concatenate_datasets, load_dataset, load_from_disk


_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}


def load_rows(name: str, split: str = "train", config: str | None = None) -> Dataset:
    """Load one split of a data set. Local files are read into memory and leave nothing in a cache.

    Args:
        name (`str`): a Hub id, a folder that `load_dataset` reads or `save_to_disk` wrote, or a `.json`, `.jsonl`,
            `.parquet`, `.csv` or `.txt` file.
        split (`str`, *optional*, defaults to `"train"`): a split or a slice of one, as in `"train[:200]"`. The only split
            of a single file or of a saved `Dataset` is `train`.
        config (`str`, *optional*): configuration of the data set.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file is of another kind, or the split does not exist.
    """
    path = Path(name)
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise ValueError(f"{name} is no file that can be read: give one of {', '.join(_BUILDERS)}.")
        return _load_without_trace(_BUILDERS[path.suffix], data_files=str(path), split=split)
    if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        saved = load_from_disk(name)
        saved = {"train": saved} if isinstance(saved, Dataset) else saved
        try:
            parts = ReadInstruction.from_spec(split).to_absolute({key: len(rows) for key, rows in saved.items()})
        except ValueError as error:
            raise ValueError(f"{name} has no split {split!r}. It has {', '.join(saved)}. ({error})") from None
        return concatenate_datasets([saved[part.splitname].select(range(part.from_, part.to)) for part in parts])
    is_hub_id = name.count("/") == 1 and not os.path.isabs(name) and not name.startswith(".")
    if not path.exists() and (path.suffix in _BUILDERS or not is_hub_id):
        raise FileNotFoundError(f"There is no {name}. Give an existing file or folder, or a Hub id (owner/name).")
    if path.is_dir():
        return _load_without_trace(name, config, split=split)
    return load_dataset(name, config, split=split)


def _load_without_trace(*args, **kwargs) -> Dataset:
    # `load_dataset` writes all rows to its cache, where rows that are erased from the source would stay.
    with tempfile.TemporaryDirectory() as cache:
        return load_dataset(*args, **kwargs, cache_dir=cache, keep_in_memory=True)


def with_templates(dataset: Dataset, prompt: str | None, completion: str | None) -> Dataset:
    """Add the columns `prompt` and `completion`, made from the other columns of a row.

    Args:
        prompt, completion (`str` or `None`): templates such as `"Question: {question}\\nAnswer:"` and `" {answer}"`. The
            data set is returned as it is if both are `None`.

    Raises:
        ValueError: only one is given, or a template names a column that does not exist.
    """
    if prompt is None and completion is None:
        return dataset
    if prompt is None or completion is None:
        raise ValueError("You set one of prompt_template and completion_template. Set both, or neither.")
    for template in (prompt, completion):
        names = {re.split(r"[.\[]", field)[0] for _, field, _, _ in Formatter().parse(template) if field is not None}
        if unknown := names - set(dataset.column_names):
            raise ValueError(
                f"The template {template!r} names {', '.join(map(repr, sorted(unknown)))}, but the columns are "
                f"{', '.join(dataset.column_names)}."
            )
    # In memory, as `map` leaves a copy of the rows in the cache otherwise, and forget rows must leave none.
    return dataset.map(
        lambda row: {"prompt": prompt.format(**row), "completion": completion.format(**row)},
        keep_in_memory=True,
        desc="Filling the templates",
    )
