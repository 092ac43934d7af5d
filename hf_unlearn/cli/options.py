"""The options of an audit, for `hf-unlearn audit` and for the recipes that audit what they made."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields, make_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from hf_unlearn.audit.checks import DEFAULT_THREATS, threats_of
from hf_unlearn.audit.config import AuditConfig
from hf_unlearn.audit.verdicts.surfaces import THREATS
from hf_unlearn.cli.arguments import DataArguments


if TYPE_CHECKING:
    from hf_unlearn.cli.model_arguments import ModelArguments


# Fields of `AuditConfig` whose names are, or could be, those of an option of a method: the audit's have a prefix.
_PREFIXED = ("batch_size", "max_rows", "max_new_tokens", "n_samples")
# What an audit shares with the training before it, whose options have these names.
_SHARED = ("seed", "max_length", "truncate")


def option_of(name: str) -> str:
    """The option that sets a field of `AuditConfig`."""
    return f"audit_{name}" if name in _PREFIXED else name


def _options(chosen: Sequence[Field]) -> list[tuple[str, Any, Any]]:
    """Fields of `AuditConfig` as options: same defaults and help, and a list where the field is a sequence."""
    types, options = get_type_hints(AuditConfig), []
    for one in chosen:
        kind, default = types[one.name], {"default": one.default}
        if get_origin(kind) is Sequence:  # a parser knows lists
            kind, default = list[get_args(kind)[0]], {"default_factory": partial(list, one.default)}
        options.append((option_of(one.name), kind, field(**default, metadata=one.metadata)))
    return options


EffortArguments = make_dataclass(
    "EffortArguments", _options([one for one in fields(AuditConfig) if one.name not in _SHARED])
)
SharedArguments = make_dataclass(
    "SharedArguments", _options([one for one in fields(AuditConfig) if one.name in _SHARED])
)


@dataclass
class ThreatArguments(EffortArguments, DataArguments):
    """Which rows are audited, against whom and with what effort, and what models are compared."""

    threat_model: list[str] = field(
        default_factory=lambda: list(DEFAULT_THREATS),
        metadata={"help": f"What the adversary can do, of: {', '.join(THREATS)}; or all."},
    )
    score_cache: str | None = field(
        default=None,
        metadata={
            "help": (
                "Folder that keeps the likelihoods of models scored before, encrypted with keys made from the texts; "
                "delete it with the records."
            )
        },
    )
    group_column: str | None = field(
        default=None,
        metadata={"help": "Column with the person each row is about: rows of one person are not independent."},
    )
    original: str | None = field(default=None, metadata={"help": "The model before unlearning."})
    retrained: list[str] | None = field(
        default=None, metadata={"help": "Models trained without the forget set; further ones show the noise of seeds."}
    )
    shadows: list[str] | None = field(
        default=None,
        metadata={"help": "Models trained on the forget rows with other seeds, and unlearned likewise, for (U-)LiRA."},
    )

    def __post_init__(self):
        super().__post_init__()
        self.threat_model = list(threats_of(self.threat_model))
        self.retrained, self.shadows = _names(self.retrained), _names(self.shadows)

    def audit_config(self, shared: Any) -> AuditConfig:
        """How much of what the audit tries.

        Args:
            shared: what has the seed and the lengths: the config of the training, or these options themselves.
        """
        sources = {one.name: shared if one.name in _SHARED else self for one in fields(AuditConfig)}
        return AuditConfig(**{name: getattr(source, option_of(name)) for name, source in sources.items()})


@dataclass
class AuditArguments(ThreatArguments, SharedArguments):
    """What to audit against what."""

    output_dir: str = field(default="audit", metadata={"help": "Folder for result.json and RESULT.md."})
    use_cpu: bool = field(default=False, metadata={"help": "Score on the CPU even where there is an accelerator."})

    @property
    def device(self):
        """Where models run, as of the config of a training. Several processes find each other here."""
        from accelerate import PartialState

        return PartialState(cpu=self.use_cpu).device


def _names(names: list[str] | str | None) -> list[str]:
    """A list of names, from what may be one of them, as in a YAML file."""
    return [names] if isinstance(names, str) else list(names or [])


class _Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults beside the options, and the exit codes one per line."""


def parse_audit(argv: list[str] | None = None, **texts: str) -> tuple[AuditArguments, ModelArguments]:
    """The options of the command line, and of a YAML file (`--config`). `texts` are those of the help."""
    from trl import TrlParser

    from hf_unlearn.cli.model_arguments import ModelArguments

    parser = TrlParser((AuditArguments, ModelArguments), formatter_class=_Help, allow_abbrev=False, **texts)
    for action in parser._actions:  # they may stand in a YAML file that is shared with a training, and do nothing here
        if action.dest.startswith(("lora_", "use_peft", "use_rslora", "use_dora")):
            action.help = SUPPRESS
    return parser.parse_args_and_config(argv)
