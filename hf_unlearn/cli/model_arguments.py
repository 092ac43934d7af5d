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

    def __post_init__(self):
        super().__post_init__()
        # trl takes a single name out of its list, and peft then takes it for a pattern of whole names.
        if isinstance(self.lora_target_modules, str) and self.lora_target_modules.isidentifier():
            self.lora_target_modules = [self.lora_target_modules]
