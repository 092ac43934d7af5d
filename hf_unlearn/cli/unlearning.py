"""The options of unlearning: those of the method, of an audit, and of a training."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hf_unlearn.cli.options import ThreatArguments
from hf_unlearn.methods import METHODS


if TYPE_CHECKING:
    from hf_unlearn.cli.model_arguments import ModelArguments
    from hf_unlearn.training.config import UnlearningConfig


@dataclass
class MethodArguments:
    """How to forget."""

    method: str = field(default="npo", metadata={"help": "Objective.", "choices": sorted(METHODS)})


@dataclass
class UnlearnArguments(MethodArguments, ThreatArguments):
    """What to forget, how, and what to compare the outcome with."""

    original: str | None = field(
        default=None, metadata={"help": "The model before any edit, where model_name_or_path has been edited already."}
    )
    stop_against: str = field(
        default="validation",
        metadata={
            "help": "When forgetting is enough: as the validation rows, or as the forget rows under the retrained model.",
            "choices": ("validation", "retrained"),
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.stop_against == "retrained" and not self.retrained:
            raise ValueError(
                'You set stop_against="retrained", but no retrained model. Either set retrained, or '
                'stop_against="validation".'
            )


def parse_unlearning(argv: list[str] | None = None) -> tuple[UnlearnArguments, UnlearningConfig, ModelArguments]:
    """The options of the command line, and of a YAML file (`--config`)."""
    from trl import TrlParser

    from hf_unlearn.cli.model_arguments import ModelArguments

    # Which options there are depends on the method, so its name is read first.
    first = TrlParser((MethodArguments,), allow_abbrev=False)
    argv = list(sys.argv[1:] if argv is None else argv)
    known = [argument for argument in argv if argument not in ("-h", "--help")]  # the help is that of all options
    method = first.parse_args_and_config(known, return_remaining_strings=True)[0].method
    parser = TrlParser((UnlearnArguments, METHODS[method].config_class, ModelArguments), allow_abbrev=False)
    return parser.parse_args_and_config(argv)
