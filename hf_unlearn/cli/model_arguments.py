"""The options of loading a model. trl is imported here, so that this file is imported where options are parsed."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import ModelConfig


@dataclass
class ModelArguments(ModelConfig):
    """Those of trl, and whether code that comes with a checkpoint may run."""

    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run Python code that comes with a checkpoint: read it before."}
    )
