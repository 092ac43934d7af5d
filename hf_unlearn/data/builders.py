"""Data sets of several files, in a folder or on the Hub, whose CSV and JSON files are read without guesses."""

from __future__ import annotations

import os.path
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from datasets import (
    BuilderConfig,
    Dataset,
    DatasetBuilder,
    DownloadConfig,
    DownloadManager,
    Features,
    load_dataset_builder,
)
from datasets.exceptions import DatasetGenerationError
from datasets.table import cast_array_to_feature
from huggingface_hub import snapshot_download

from hf_unlearn.data.delimited import parse_delimited
from hf_unlearn.data.files import PARSERS, of_split, read_table, rows_of
from hf_unlearn.data.json_rows import parse_json
from hf_unlearn.data.rows import LABEL_COLUMNS


# The options of a builder that are kept to; of the others, what is no default is refused.
_KEPT_TO = {"csv": ("sep", "delimiter", "features", "chunksize"), "json": ("field", "features", "chunksize")}
_METADATA = ("metadata.csv", "metadata.jsonl")


def load_folder(folder: str, split: str, config: str | None) -> Dataset:
    """A split, or a slice of one, of a folder of files; in memory.

    Raises:
        ValueError: a file breaks the rules of its kind, the files do not fit each other, or the data set sets options for its
            CSV or JSON files that are not kept to.
    """
    with tempfile.TemporaryDirectory() as cache:
        builder = load_dataset_builder(folder, config, cache_dir=cache)
    _warn_of_unread(folder, builder)
    if builder.name not in _KEPT_TO:
        return prepared(folder, split, config)
    parse, features = _parser(builder), builder.config.features or builder.info.features
    of_splits = builder.config.data_files.items()
    return of_split(folder, split, {str(name): partial(_read, parse, files, features) for name, files in of_splits})


def local_copy(name: str, config: str | None) -> str | None:
    """The folder with a copy of a data set of the Hub, where its files are to be read here; else `None`.

    Raises:
        ConnectionError: the Hub cannot be reached, and there is no copy.
        ValueError: it cannot be reached, and what `load_dataset` kept was read with guesses.
    """
    try:
        builder = load_dataset_builder(name, config)
    except ConnectionError:
        if (folder := _downloaded_before(name)) is None:
            raise
        return folder
    if builder.name == "cache":  # the Hub cannot be reached
        if builder.info.builder_name not in _KEPT_TO:
            return None
        if (folder := _downloaded_before(name)) is None:
            raise ValueError(
                f"{name} holds {builder.info.builder_name} files, the Hub cannot be reached, and what load_dataset kept of "
                "them may have other cells than the files. Download the files (hf download --repo-type dataset), or give "
                "their folder."
            )
        return folder
    files = [str(file) for of_split in (builder.config.data_files or {}).values() for file in of_split]
    if builder.name not in _KEPT_TO and not any(os.path.basename(file) in _METADATA for file in files):
        return None
    # hf://datasets/owner/name@revision/path
    revision, paths = (
        files[0].split("@", 1)[1].split("/", 1)[0],
        [file.split("@", 1)[1].split("/", 1)[1] for file in files],
    )
    return snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=["README.md", *paths])


def _downloaded_before(name: str) -> str | None:
    try:
        return snapshot_download(name, repo_type="dataset", local_files_only=True)
    except FileNotFoundError:
        return None


def _parser(builder: DatasetBuilder) -> Callable[[str], pa.Table]:
    kind, config, default = builder.name, builder.config, builder.BUILDER_CONFIG_CLASS()
    known = {*_KEPT_TO[kind], *(field.name for field in fields(BuilderConfig))}
    other = [
        f.name for f in fields(default) if f.name not in known and getattr(config, f.name) != getattr(default, f.name)
    ]
    if other:
        raise ValueError(
            f"The data set sets {', '.join(other)} for its {kind} files, which is not kept to here. Save the rows as .jsonl or "
            ".parquet, and give that file."
        )
    return partial(parse_delimited, delimiter=config.sep) if kind == "csv" else partial(parse_json, field=config.field)


def _read(parse: Callable[[str], pa.Table], files: list, features: Features | None) -> Dataset:
    with tempfile.TemporaryDirectory() as folder:  # for files that are compressed
        manager = DownloadManager(download_config=DownloadConfig(cache_dir=folder))
        paths = list(manager.iter_files(manager.extract([str(file) for file in files])))
        tables = [read_table(path, parse) for path in paths]
    first = set(tables[0].column_names)
    if parse.func is parse_delimited and (other := [set(table.column_names) != first for table in tables]).count(True):
        raise ValueError(
            f"{paths[other.index(True)]} has other columns than {paths[0]}. Give all files the same columns."
        )
    table = None
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        pass
    if table is None:
        raise ValueError(
            f"A column has other types in {paths[0]} than in other files. Write it as one type in all of them."
        )
    return rows_of(table) if features is None else _as_declared(table, features)


def _as_declared(table: pa.Table, features: Features) -> Dataset:
    """The columns in the types that the data set declares."""
    if missing := [name for name in features if name not in table.column_names]:
        raise ValueError(
            f"The data set declares the columns {', '.join(map(repr, missing))}, which its files lack. They have "
            f"{', '.join(map(repr, table.column_names))}. Correct the features in its README."
        )
    arrays = []
    for name, feature in features.items():
        column = table[name]
        if pa.types.is_string(column.type) and getattr(feature, "dtype", None) not in ("string", "large_string"):
            column = pa.chunked_array(  # an empty cell of CSV is no number and no date
                [pa.array([cell or None for cell in chunk.to_pylist()], pa.string()) for chunk in column.chunks],
                pa.string(),
            )
        try:
            arrays.append(cast_array_to_feature(column, feature))
            continue
        except (pa.ArrowException, ValueError, TypeError, KeyError):
            pass
        raise ValueError(  # out here, as the original error quotes the cell
            f"A cell of the column {name!r} does not have the type that the data set declares. Correct the cell, or the "
            "features in its README."
        )
    return rows_of(pa.table(arrays, schema=features.arrow_schema))


def prepared(name: str, split: str, config: str | None = None, data_files: str | None = None) -> Dataset:
    """Rows of other files than CSV and JSON, as `load_dataset` reads them; but tables beside images are read without guesses.

    Raises:
        ValueError: a file is damaged.
    """
    # `load_dataset` writes all rows to its cache, where rows that are erased from the source would stay.
    with tempfile.TemporaryDirectory() as cache:
        builder: Any = load_dataset_builder(name, config, data_files=data_files, cache_dir=cache)
        if any(os.path.basename(file) in _METADATA for files in builder.config.data_files.values() for file in files):
            if not hasattr(builder, "_read_metadata"):  # of another version of datasets
                raise ValueError(
                    f"The table beside the images in {name} cannot be read. Save the data set as .parquet."
                )
            builder._read_metadata = _read_metadata
        try:
            builder.download_and_prepare()
        except (DatasetGenerationError, pa.ArrowException) as error:
            reason = type(error.__cause__ or error).__name__
        else:
            return _of_prepared(builder, split, data_files or name)
    raise ValueError(f"{data_files or name} cannot be read ({reason}). Write its files anew.")


def _of_prepared(builder: DatasetBuilder, split: str, name: str) -> Dataset:
    try:
        return builder.as_dataset(split, in_memory=True)
    except ValueError as error:
        raise ValueError(f"{name} has no split {split!r}, or no row in it. ({error})") from None


def _warn_of_unread(folder: str, builder: DatasetBuilder) -> None:
    """Say which files of rows are left out: without a card, only those of the most frequent kind are read."""
    read = {os.path.realpath(str(file)) for files in builder.config.data_files.values() for file in files}
    unread = sorted(
        str(path.relative_to(folder))
        for path in Path(folder).rglob("*")
        if path.suffix in (*PARSERS, ".parquet") and str(path.resolve()) not in read
    )
    if unread and not (Path(folder) / "README.md").exists():
        warnings.warn(
            f"{len(unread)} files in {folder} are not read, as others are of another kind or name their split: "
            f"{', '.join(unread[:5])}. Move them out, write all of one kind, or say in a README.md what is read.",
            stacklevel=4,
        )


def _read_metadata(file: str, metadata_ext: str) -> Iterator[pa.Table]:
    """The table beside the files of images: texts as they are, and classes by their index."""
    if metadata_ext == ".parquet":
        yield pa.parquet.read_table(file)
        return
    table = read_table(file, PARSERS[metadata_ext])
    for name in set(LABEL_COLUMNS) & set(table.column_names):
        cells = table[name].to_pylist()
        if pa.types.is_string(table[name].type) and all(map(_is_index, cells)):
            table = table.set_column(table.column_names.index(name), name, pa.array(map(int, cells), pa.int64()))
    yield table


def _is_index(cell: str) -> bool:
    return cell.isdecimal() and len(cell) < 10 and str(int(cell)) == cell
