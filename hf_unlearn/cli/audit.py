"""Audit checkpoints by their names: what `hf-unlearn audit` and the recipes do."""

from __future__ import annotations

import json
import sys
import traceback
from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_unlearn.audit.checks import DEFAULT_THREATS, check_request, threats_of
from hf_unlearn.audit.cost import cost_ratios
from hf_unlearn.audit.records import AuditConfig
from hf_unlearn.audit.threats import THREATS
from hf_unlearn.cli.arguments import (
    DataArguments,
    audit_sets,
    groups_of,
    load_data,
    load_model,
    load_processing_class,
    load_request,
    require_models,
    require_writable,
    split_data,
)


# What runs models is imported where it is used: `--help` and a mistyped option should not take seconds.
if TYPE_CHECKING:
    from trl import ModelConfig

    from hf_unlearn.audit.report import AuditReport
    from hf_unlearn.request import ErasureRequest, Split


#: The exit code where the audit did not run to its end; the others are those of a report.
NOT_RUN = 2
DESCRIPTION = "Audit a model: what an adversary finds in it of the rows that it was to forget."
EXIT_CODES = """
exit codes:
  0  every surface of the chosen threat models that could be tested shows no trace, at the power that RESULT.md states
  1  something was found: a surface is residual or over-forgotten
  2  the audit did not run: a wrong or missing option, data or a model that cannot be read, an error on the way
  3  nothing was found and nothing is shown: a surface is inconclusive, has no baseline, or could not be tested

docs/audit.md says what is tested and what a verdict means.
"""


class _Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults beside the options, and the exit codes a line each."""


@dataclass
class ThreatArguments:
    """Against whom is tested, and with what effort."""

    threat_model: list[str] = field(
        default_factory=lambda: list(DEFAULT_THREATS),
        metadata={"help": f"What the adversary can do, of: {', '.join(THREATS)}; or all."},
    )
    audit_batch_size: int = field(default=32, metadata={"help": "Examples a forward pass of the audit."})
    audit_max_rows: int = field(
        default=200, metadata={"help": "Rows of a set for audits that generate, train or look into the layers."}
    )
    audit_max_new_tokens: int = field(default=200, metadata={"help": "Longest generated answer."})
    relearning_steps: list[int] = field(
        default_factory=lambda: list(AuditConfig.relearning_steps), metadata={"help": "Steps to measure after."}
    )
    relearning_rates: list[float] = field(
        default_factory=lambda: list(AuditConfig.relearning_rates), metadata={"help": "Learning rates of relearning."}
    )
    weight_attacks: list[str] = field(
        default_factory=lambda: list(AuditConfig.weight_attacks), metadata={"help": "Quantization, pruning, noise."}
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
        default=None, metadata={"help": "Column that says whose a row is: rows of one person are not independent."}
    )

    def __post_init__(self):
        self.threat_model = list(threats_of(self.threat_model))

    def audit_config(self, seed: int, max_length: int | None, truncate: bool) -> AuditConfig:
        return AuditConfig(
            batch_size=self.audit_batch_size,
            max_rows=self.audit_max_rows,
            max_new_tokens=self.audit_max_new_tokens,
            relearning_steps=self.relearning_steps,
            relearning_rates=self.relearning_rates,
            weight_attacks=self.weight_attacks,
            seed=seed,
            max_length=max_length,
            truncate=truncate,
        )


@dataclass
class AuditArguments(ThreatArguments, DataArguments):
    """What to audit against what."""

    original: str | None = field(default=None, metadata={"help": "The model before unlearning."})
    retrained: list[str] | None = field(
        default=None, metadata={"help": "Models trained without the forget set; further ones show the noise of seeds."}
    )
    shadows: list[str] | None = field(
        default=None,
        metadata={"help": "Models trained on the forget rows with other seeds, and unlearned likewise, for (U-)LiRA."},
    )
    output_dir: str = field(default="audit", metadata={"help": "Folder for result.json and RESULT.md."})
    max_length: int | None = field(default=None, metadata={"help": "Longest row in tokens; default: the context."})
    truncate: bool = field(default=False, metadata={"help": "Cut longer rows instead of raising an error."})
    use_cpu: bool = field(default=False, metadata={"help": "Score on the CPU even where there is an accelerator."})
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap intervals and of what is drawn."})

    def __post_init__(self):
        DataArguments.__post_init__(self)
        ThreatArguments.__post_init__(self)
        self.retrained, self.shadows = as_names(self.retrained), as_names(self.shadows)


def as_names(names: list[str] | str | None) -> list[str]:
    """A list of names, from what may be one of them, as in a YAML file."""
    return [names] if isinstance(names, str) else list(names or [])


_READABLE = ({"prompt", "completion"}, {"messages"}, {"text"}, {"input_ids"}, {"pixel_values"})
_TEMPLATES = (
    " Or make a prompt and an answer from these columns with prompt_template and completion_template, as in "
    "--prompt_template 'Question: {question}\\nAnswer:' --completion_template ' {answer}'."
)


def require_encodable(sets: dict, processing_class, n_classes: int | None = None, **lengths) -> None:
    """Find out before hours of work that a row of the audit cannot be scored. An empty answer can: it is missing.

    Of images the labels are looked at, and not the pixels.
    """
    from hf_unlearn.data import EmptyTargetError, encode, encode_dataset, has_images

    for name, rows in sets.items():
        if rows is not None and has_images(rows):
            encode_dataset(rows, processing_class, name=f"{name} set", n_classes=n_classes)
            continue
        for index, row in enumerate(rows or []):
            try:
                encode(row, processing_class, **lengths)
            except EmptyTargetError:
                continue
            except ValueError as error:
                hint = "" if any(columns <= set(row) for columns in _READABLE) else _TEMPLATES
                raise ValueError(f"Row {index} of the {name} set: {error}{hint}") from None


def audit_checkpoints(
    sets: dict,
    processing_class,
    model_config: ModelConfig,
    models: Mapping[str, Any],
    arguments: ThreatArguments,
    config: AuditConfig,
    device,
    output_dir: str,
    run: dict,
    cost: Mapping[str, Any] | None = None,
) -> AuditReport:
    """Audit models by their names, write the result, and print it. Several processes share the work.

    Args:
        models (`dict`): `unlearned` and, where there are such, `original`, `retrained` and `shadows`, names of
            checkpoints.
        run (`dict`): what the result says of the run, beside the models, the data and how these were split.
        cost (`dict`, *optional*): of the edit; without it what lies beside the checkpoint, if anything does.
    """
    from accelerate import PartialState

    from hf_unlearn.audit.run import audit
    from hf_unlearn.audit.table.cache import ScoreCache
    from hf_unlearn.evidence.page import print_table, to_table
    from hf_unlearn.evidence.result import write_result

    report = audit(
        models["unlearned"],
        models.get("original"),
        models.get("retrained"),
        sets,
        arguments.threat_model,
        processing_class,
        config,
        cache=None if arguments.score_cache is None else ScoreCache(arguments.score_cache),
        load=partial(load_model, model_config),
        device=device,
        groups=groups_of(sets, arguments.group_column),
        shadows=models.get("shadows", ()),
    )
    report.cost = cost_of_edit(
        cost or _cost_beside(models["unlearned"]), _cost_beside((models.get("retrained") or [None])[0])
    )
    if PartialState().is_main_process:
        about = {"models": {role: name for role, name in models.items() if name}, "data": _data(arguments)}
        write_result(output_dir, report.as_dict(), about | run)
        print(f"{print_table(to_table(report.as_dict()))}\n\n{report}")
        print(f"\nWritten to {output_dir}/result.json and {output_dir}/RESULT.md.")
    return report


def _data(arguments: DataArguments) -> dict[str, Any]:
    """Which rows they were, by name."""
    splits = {name: getattr(arguments, f"{name}_split") for name in ("train", "validation", "holdout")}
    return {"name": arguments.dataset_name, "config": arguments.dataset_config, "splits": splits}


def described(request: ErasureRequest, parts: Split) -> dict[str, Any]:
    """What a result may say of a request: its number and scope, and never whom it is about."""
    selector = request.selector
    if "column" in selector:
        values = selector.get("values", selector.get("value"))
        n = len(values) if isinstance(values, list) else 1
        selects = (
            f"rows by their column {selector['column']} ({selector.get('operator', 'in')}; values: {n}, not shown)"
        )
    else:
        selects = f"rows by their position ({len(selector['rows'])})"
    holdout = None if parts.holdout_rows == 0 else f"{parts.counts()['holdout']} of {parts.holdout_rows} rows fit it"
    return {
        "id": request.subject_request_id,
        "kind": request.kind,
        "selects": selects,
        "submitted": request.submitted_time,
        "regulation": request.regulation,
        "holdout": holdout,
    }


def _cost_beside(checkpoint: str | None) -> dict[str, Any] | None:
    """What `finetune.py` and `unlearn.py` wrote beside the checkpoint that they made."""
    path = Path(checkpoint or "").parent / "cost.json"
    return json.loads(path.read_text("utf-8")) if checkpoint and path.is_file() else None


def cost_of_edit(cost: Mapping[str, Any] | None, retraining: Mapping[str, Any] | None) -> dict[str, Any]:
    """Both costs and their ratios, where both are known."""
    if cost is None or retraining is None:
        return {}
    return {"unlearning": dict(cost), "retraining": dict(retraining), **cost_ratios(cost, retraining)}


def parse_arguments(argv: list[str] | None = None) -> tuple[AuditArguments, ModelConfig]:
    """The options of the command line, and of a YAML file (`--config`)."""
    from trl import ModelConfig, TrlParser

    parser = TrlParser(
        (AuditArguments, ModelConfig),
        prog="hf-unlearn audit",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    for action in parser._actions:  # they may stand in a YAML file that is shared with a training, and do nothing here
        if action.dest.startswith(("lora_", "use_peft", "use_rslora", "use_dora")):
            action.help = SUPPRESS
    return parser.parse_args_and_config(argv)


def main(argv: list[str] | None = None) -> int:
    """Audit what the arguments name; return the exit code that `EXIT_CODES` lists.

    What is wrong with a request is said without a traceback. An error on the way has one, and ends with 2 as well: 1, with
    which Python ends otherwise, would say that something was found.
    """
    try:
        try:
            prepared = _prepare(argv)
        except (ValueError, OSError) as error:
            print(f"hf-unlearn audit: error: {error}", file=sys.stderr)
            return NOT_RUN
        return audit_checkpoints(**prepared).exit_code
    except Exception:
        traceback.print_exc()
        return NOT_RUN


def _prepare(argv: list[str] | None) -> dict[str, Any]:
    """What [`audit_checkpoints`] takes, from the arguments; all that can be wrong with them is found before a model runs."""
    arguments, model_config = parse_arguments(argv)
    from accelerate import PartialState

    from hf_unlearn.audit.roles import Models

    device = PartialState(cpu=arguments.use_cpu).device  # and the process group, where there are several processes
    require_writable(arguments.output_dir)
    require_models(model_config, arguments.original, *arguments.retrained, *arguments.shadows)
    name = model_config.model_name_or_path
    models = {"original": arguments.original, "unlearned": name, "retrained": arguments.retrained or None}
    models["shadows"] = arguments.shadows
    request, data = load_request(arguments.request), load_data(arguments)
    parts = split_data(data, request)
    sets = audit_sets(data, request, parts, arguments.sibling_values)
    config = arguments.audit_config(arguments.seed, arguments.max_length, arguments.truncate)
    given = {set_name: rows for set_name, rows in sets.items() if rows is not None}
    groups = groups_of(sets, arguments.group_column)
    check_request(Models(**models).given, given, arguments.threat_model, config, groups)
    processing_class = load_processing_class(model_config)
    require_encodable(sets, processing_class, **_limits(model_config, arguments))
    return {
        "sets": sets,
        "processing_class": processing_class,
        "model_config": model_config,
        "models": models,
        "arguments": arguments,
        "config": config,
        "device": device,
        "output_dir": arguments.output_dir,
        "run": {
            "model": name,
            "request": described(request, parts),
            "seed": arguments.seed,
            "config": vars(arguments),
        },
    }


def _limits(model_config: ModelConfig, arguments: AuditArguments) -> dict[str, Any]:
    """How long a text and how high a label may be, as the config of the model says."""
    from types import SimpleNamespace

    from hf_unlearn.cli.arguments import load_config
    from hf_unlearn.data.text import context_length

    config = load_config(model_config)
    length = arguments.max_length or context_length(SimpleNamespace(config=config))
    return {"n_classes": getattr(config, "num_labels", None), "max_length": length, "truncate": arguments.truncate}
