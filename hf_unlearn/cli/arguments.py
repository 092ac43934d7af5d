"""Which data and which request: the options that all commands share, and the loading they ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hf_unlearn.request.split import DUPLICATES


# What loads models and rows is imported where it is used: `--help` and a mistyped option should not take seconds.
if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

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
    duplicates: str = field(
        default="error",
        metadata={
            "help": "What to do with rows that the request does not match, but that are copies of rows that it does.",
            "choices": DUPLICATES,
        },
    )
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
    from hf_unlearn.data.load import load_rows
    from hf_unlearn.data.templates import with_templates

    rows = load_rows(arguments.dataset_name, name, arguments.dataset_config)
    return with_templates(rows, arguments.prompt_template, arguments.completion_template, f"split {name}")


def load_request(path: str | None) -> ErasureRequest:
    if path is None:
        raise ValueError(
            "No erasure request was given, so it is not known what to forget. Set request to a JSON file."
        )
    from hf_unlearn.request.request import ErasureRequest

    return ErasureRequest.load(path)


def split_data(data: DatasetDict, request: ErasureRequest, duplicates: str) -> Split:
    """Forget, retain and holdout of a request, with the counts printed."""
    from hf_unlearn.request.split import split

    parts = split(data, request, duplicates=duplicates)
    print(parts)
    return parts
