"""Arguments that the recipes and the command line share, and the loading they ask for."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_unlearn.data.rows import format_of
from hf_unlearn.storage.files import replaced_folder


# What loads models and rows is imported where it is used: `--help` and a mistyped option should not take seconds.
if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_unlearn.cli.model_arguments import ModelArguments
    from hf_unlearn.request.request import ErasureRequest
    from hf_unlearn.request.split import Split


@dataclass
class DataArguments:
    """Where the rows are and which of them must go. Splits may be slices, as in `train[:200]`."""

    dataset_name: str | None = field(default=None, metadata={"help": "Hub id, folder or file of the data set."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    train_split: str = field(default="train", metadata={"help": "Rows that the model was trained on."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Rows never trained on, which decide when to stop."}
    )
    holdout_split: str | None = field(
        default=None, metadata={"help": "Rows never trained on, for the audit alone: not those of validation_split."}
    )
    prompt_template: str | None = field(
        default=None, metadata={"help": 'Makes the prompt from columns: "Question: {question}\\nAnswer:".'}
    )
    completion_template: str | None = field(default=None, metadata={"help": 'Makes the answer: " {answer}".'})
    request: str | None = field(default=None, metadata={"help": "JSON file of the erasure request."})
    sibling_values: list[str] | None = field(
        default=None, metadata={"help": "Classes like those to forget, by name: the audit shows what happens to them."}
    )

    def __post_init__(self):
        if self.dataset_name is None:
            raise ValueError("No data set was given. Set dataset_name, in the recipe or on the command line.")
        for name in ("prompt_template", "completion_template"):
            if getattr(self, name) is not None:  # a line break typed on the command line
                setattr(self, name, getattr(self, name).replace("\\n", "\n"))


def load_data(arguments: DataArguments) -> DatasetDict:
    """The splits that the arguments name, as `train`, `validation` and `holdout`, templates filled in."""
    from datasets import DatasetDict

    names = {
        "train": arguments.train_split,
        "validation": arguments.validation_split,
        "holdout": arguments.holdout_split,
    }
    return DatasetDict(
        {name: _load_split(arguments, split_name) for name, split_name in names.items() if split_name is not None}
    )


def _load_split(arguments: DataArguments, name: str) -> Dataset:
    from hf_unlearn.data.load import load_rows, with_templates

    rows = load_rows(arguments.dataset_name, name, arguments.dataset_config)
    return with_templates(rows, arguments.prompt_template, arguments.completion_template)


def load_request(path: str | None) -> ErasureRequest:
    if path is None:
        raise ValueError(
            "No erasure request was given, so it is not known what to forget. Set request to a JSON file."
        )
    from hf_unlearn.request.request import ErasureRequest

    return ErasureRequest.load(path)


def split_data(data: DatasetDict, request: ErasureRequest) -> Split:
    """Forget, retain and holdout of a request, with the counts printed."""
    from hf_unlearn.request.split import split

    parts = split(data, request)
    print(parts)
    return parts


def audit_sets(
    data: DatasetDict, request: ErasureRequest, parts: Split, sibling_values: list[str] | None = None
) -> dict[str, Dataset]:
    """The sets that the audit compares: those that there are.

    Where the request is about a class, `holdout` has the rows of that class, so the rest of the holdout is `test`, and
    those of `sibling_values` among them `siblings`.

    Raises:
        ValueError: `sibling_values` are given, but the request is not about a class, or there is no holdout.
    """
    from hf_unlearn.request.request import ErasureRequest
    from hf_unlearn.request.split import split

    sets = {"forget": parts.forget, "retain": parts.retain, "holdout": parts.holdout}
    is_class = request.kind == "class" and "holdout" in data
    if is_class:
        column, values = request.selector["column"], request.selector["values"]
        others = ErasureRequest.attribute(column, "not in", values)
        sets["test"] = split(data, others, text_columns=[]).holdout
    if sibling_values:
        if not is_class:
            raise ValueError(
                "You set sibling_values, which are classes of the holdout, but the request is not about a class, or "
                "there is no holdout. Either set holdout_split, or leave sibling_values out."
            )
        siblings = ErasureRequest.of_class(column, sibling_values)
        sets["siblings"] = split(data, siblings, text_columns=[]).holdout
    return {name: rows for name, rows in sets.items() if rows is not None}


def groups_of(sets: Mapping[str, Any], column: str | None) -> dict[str, list] | None:
    """The person each row of the forget set and of the holdout is about: the values of a column.

    Raises:
        ValueError: the forget set has no such column; the message lists those that it has.
    """
    if column is None:
        return None
    columns = sets["forget"].column_names
    if column not in columns:
        raise ValueError(
            f"You set group_column={column!r}, but the forget set has no such column. Its columns are "
            f"{', '.join(columns)}. Set one of them, or leave group_column out."
        )
    named = {name: sets[name] for name in ("forget", "holdout") if name in sets}
    return {name: list(rows[column]) for name, rows in named.items() if column in rows.column_names}


_TEMPLATES = (
    " Or make a prompt and an answer from these columns with prompt_template and completion_template, as in "
    "--prompt_template 'Question: {question}\\nAnswer:' --completion_template ' {answer}'."
)


def require_encodable(
    sets: Mapping[str, Any], processing_class, config, max_length: int | None, truncate: bool
) -> None:
    """Find out before hours of work that a row of the audit cannot be scored. An empty answer can: it is missing.

    Of images the labels are looked at, and not the pixels.

    Args:
        config (`PretrainedConfig`): of the model, which says how long a text and how high a label may be.

    Raises:
        ValueError: with the set, the position of the row in it, and the reason; never the content of the row.
    """
    from types import SimpleNamespace

    from hf_unlearn.data.images import has_images
    from hf_unlearn.data.text import EmptyTargetError, encode, encode_dataset
    from hf_unlearn.data.text import context_length

    max_length = max_length or context_length(SimpleNamespace(config=config))
    for name, rows in sets.items():
        if has_images(rows):
            encode_dataset(rows, processing_class, name=f"{name} set", n_classes=getattr(config, "num_labels", None))
            continue
        for index, row in enumerate(rows):
            try:
                encode(row, processing_class, max_length, truncate)
            except EmptyTargetError:
                continue
            except ValueError as error:
                hint = "" if format_of(row) else _TEMPLATES
                raise ValueError(f"Row {index} of the {name} set: {error}{hint}") from None


def loading(arguments: ModelArguments, name: str) -> dict[str, Any]:
    """The options to load a checkpoint with; the revision is that of `model_name_or_path` and of no other."""
    revision = arguments.model_revision if name == arguments.model_name_or_path else None
    return {"revision": revision, "trust_remote_code": arguments.trust_remote_code}


def load_config(arguments: ModelArguments, name: str | None = None):
    """The config of `model_name_or_path`, or of `name`; see [`~hf_unlearn.models.load.load_config`]."""
    from hf_unlearn.models import load

    name = name or arguments.model_name_or_path
    return load.load_config(name, **loading(arguments, name))


def load_processing_class(arguments: ModelArguments):
    """The tokenizer or image processor of `model_name_or_path`."""
    from hf_unlearn.models import load

    name = arguments.model_name_or_path
    return load.load_processing_class(name, **loading(arguments, name))


def load_model(arguments: ModelArguments, name: str | None = None):
    """`model_name_or_path`, or `name` with the other options the same; see [`~hf_unlearn.models.load.load_model`]."""
    from trl import get_quantization_config

    from hf_unlearn.models import load

    name = name or arguments.model_name_or_path
    return load.load_model(
        name,
        dtype=arguments.dtype,
        attn_implementation=arguments.attn_implementation,
        quantization_config=get_quantization_config(arguments),
        **loading(arguments, name),
    )


def require_models(arguments: ModelArguments, *names: str | None) -> None:
    """Find out before hours of work that a model to compare with does not exist.

    Raises:
        ValueError: no model was given, or see [`~hf_unlearn.models.load.require_model`].
    """
    from hf_unlearn.models.load import require_model

    if arguments.model_name_or_path is None:
        raise ValueError("No model was given. Set model_name_or_path, in the recipe or on the command line.")
    for name in (arguments.model_name_or_path, *names):
        if name is not None:
            require_model(name, **loading(arguments, name))


def require_writable(folder: str, *inputs: str | None) -> None:
    """Find out before hours of work that the result cannot be written, or would be written over what it came from.

    Raises:
        OSError: with the cause and what to do.
        ValueError: the checkpoint would replace one of the `inputs`, or a folder that holds something else.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"Nothing can be written to output_dir={folder!r} ({error.strerror}). Either make it writable, or set "
            "another output_dir."
        ) from None
    checkpoint = Path(folder) / "model"
    if checkpoint.exists():
        if any(name is not None and checkpoint.resolve() == Path(name).resolve() for name in inputs):
            raise ValueError(
                f"The checkpoint would replace {checkpoint}, which this run reads. Set another output_dir."
            )
        if not (checkpoint / "config.json").exists() and not (checkpoint / "adapter_config.json").exists():
            raise ValueError(
                f"{checkpoint} exists and is no checkpoint. Either move it away, or set another output_dir."
            )


def save_plain(model, processing_class, folder: str) -> str:
    """Write a checkpoint that `from_pretrained` loads with no code of this package; return the folder.

    An adapter is merged into its base: an unlearned adapter beside the base can be taken off again. A quantized base
    cannot be merged without loss, so there the adapter itself is written.
    """
    if hasattr(model, "merge_and_unload") and not getattr(model, "is_quantized", False):
        model = model.merge_and_unload()
    with replaced_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        processing_class.save_pretrained(unfinished)
    print(f"The checkpoint is in {folder}.")
    return folder


def save_trained(trainer, processing_class, cost, folder: str) -> str:
    """Write `<folder>/model`, and what it cost beside it, for an audit to compare; return the checkpoint.

    One process writes, and the others wait for it: all of them read it in an audit, which they share.
    """
    checkpoint = f"{folder}/model"
    if trainer.is_world_process_zero():
        save_plain(trainer.accelerator.unwrap_model(trainer.model), processing_class, checkpoint)
        cost.save(f"{folder}/cost.json")
    trainer.accelerator.wait_for_everyone()
    return checkpoint
