"""Rows from the Hub or from disk, by the same name."""

from __future__ import annotations

import os
from pathlib import Path

from datasets import Dataset, load_dataset, load_from_disk


_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}


def load_rows(name: str, split: str = "train", config: str | None = None) -> Dataset:
    """Load one split of a data set.

    Args:
        name (`str`): a Hub id, a folder that `load_dataset` reads or `save_to_disk` wrote, or a `.json`, `.jsonl`,
            `.parquet`, `.csv` or `.txt` file.
        split (`str`, *optional*, defaults to `"train"`): also a slice of one, as in `"train[:200]"`. A single file is
            all `train`.
        config (`str`, *optional*): configuration of the data set.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a file of another kind, or a split that does not exist.
    """
    path = Path(name)
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise ValueError(f"{name} is no file that can be read: give one of {', '.join(_BUILDERS)}.")
        return load_dataset(_BUILDERS[path.suffix], data_files=str(path), split=split)
    if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        data = load_from_disk(name)
        if isinstance(data, Dataset):
            return data
        if split not in data:
            raise ValueError(f"{name} has no split {split!r}. It has {', '.join(data)}.")
        return data[split]
    if not path.exists() and (os.path.isabs(name) or name.startswith(".") or name.count("/") != 1):
        raise FileNotFoundError(f"There is no {name}. Give an existing file or folder, or a Hub id (owner/name).")
    return load_dataset(name, config, split=split)


def with_templates(dataset: Dataset, prompt: str | None, completion: str | None) -> Dataset:
    """Add the columns `prompt` and `completion`, made from the other columns of a row.

    Args:
        prompt, completion (`str`, *optional*): templates such as `"Question: {question}\\nAnswer:"` and `" {answer}"`.
            Nothing is done if both are `None`.

    Raises:
        ValueError: only one is given, or it names a column that does not exist.
    """
    if prompt is None and completion is None:
        return dataset
    if prompt is None or completion is None:
        raise ValueError("You set one of prompt_template and completion_template. Set both, or neither.")
    for template in (prompt, completion):
        try:
            template.format(**dict.fromkeys(dataset.column_names, ""))
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"The template {template!r} names {error}, but the columns are {', '.join(dataset.column_names)}."
            ) from None
    # In memory: a map leaves a copy of the rows in the cache, and forget rows must leave none.
    return dataset.map(
        lambda row: {"prompt": prompt.format(**row), "completion": completion.format(**row)},
        keep_in_memory=True,
        desc="Filling the templates",
    )
