"""Audit checkpoints by their names: what `hf-unlearn audit` and the recipes do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from trl import ModelConfig, TrlParser

from hf_unlearn.arguments import (
    DataArguments,
    audit_sets,
    load_data,
    load_model,
    load_processing_class,
    load_request,
    require_models,
    require_writable,
    split_data,
)
from hf_unlearn.audit.auditing import DEFAULT_THREATS, audit
from hf_unlearn.audit.cost import cost_ratios
from hf_unlearn.audit.report import AuditReport
from hf_unlearn.audit.scoring.cache import ScoreCache
from hf_unlearn.audit.threats import THREATS, AuditConfig, check_threats
from hf_unlearn.data import EmptyTargetError, encode, encode_dataset, has_images
from hf_unlearn.evidence.page import print_table, to_table
from hf_unlearn.evidence.result import write_result


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
        default=None, metadata={"help": "Folder that keeps the likelihoods of models scored before (no texts)."}
    )
    group_column: str | None = field(
        default=None, metadata={"help": "Column that says whose a row is: rows of one person are not independent."}
    )

    def __post_init__(self):
        if "all" in self.threat_model:
            self.threat_model = list(THREATS)

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
    output_dir: str = field(default="audit", metadata={"help": "Folder for result.json and RESULT.md."})
    max_length: int | None = field(default=None, metadata={"help": "Longest row in tokens; default: the context."})
    truncate: bool = field(default=False, metadata={"help": "Cut longer rows instead of raising an error."})
    use_cpu: bool = field(default=False, metadata={"help": "Score on the CPU even where there is an accelerator."})
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap intervals and of what is drawn."})

    def __post_init__(self):
        DataArguments.__post_init__(self)
        ThreatArguments.__post_init__(self)
        self.retrained = as_names(self.retrained)


def as_names(names: list[str] | str | None) -> list[str]:
    """A list of names, from what may be one of them, as in a YAML file."""
    return [names] if isinstance(names, str) else list(names or [])


def require_encodable(sets: dict, processing_class, n_classes: int | None = None, **lengths) -> None:
    """Find out before hours of work that a row of the audit cannot be scored. An empty answer can: it is missing.

    Of images the labels are looked at, and not the pixels.
    """
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
                raise ValueError(f"Row {index} of the {name} set: {error}") from None


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
        models (`dict`): `unlearned` and, where there are such, `original` and `retrained`, names of checkpoints.
        run (`dict`): what the result says of the run.
        cost (`dict`, *optional*): of the edit; without it what lies beside the checkpoint, if anything does.
    """
    groups = None
    if arguments.group_column is not None:
        groups = sets["forget"][arguments.group_column]
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
        groups=groups,
    )
    report.cost = cost_of_edit(
        cost or _cost_beside(models["unlearned"]), _cost_beside((models.get("retrained") or [None])[0])
    )
    if PartialState().is_main_process:
        write_result(output_dir, report.as_dict(), run)
        print(print_table(to_table(report.as_dict())))
        untested = [name for name, surface in report.surfaces.items() if surface["verdict"] == "not_tested"]
        for name, surface in report.surfaces.items():
            if name not in untested:
                print(f"\n{name.upper()}: {surface['verdict'].replace('_', ' ')}\n{surface['wording']}")
        print(f"\nNot tested: {', '.join(untested)}. Nothing is said about these.\n\n{report.caveat}")
        for note in report.notes:
            print(f"\n{note}")
        print(f"\nWritten to {output_dir}/result.json and {output_dir}/RESULT.md.")
    return report


def _cost_beside(checkpoint: str | None) -> dict[str, Any] | None:
    """What `finetune.py` and `unlearn.py` wrote beside the checkpoint that they made."""
    path = Path(checkpoint or "").parent / "cost.json"
    return json.loads(path.read_text("utf-8")) if checkpoint and path.is_file() else None


def cost_of_edit(cost: Mapping[str, Any] | None, retraining: Mapping[str, Any] | None) -> dict[str, Any]:
    """Both costs and their ratios, where both are known."""
    if cost is None or retraining is None:
        return {}
    return {"unlearning": dict(cost), "retraining": dict(retraining), **cost_ratios(cost, retraining)}


def main(argv: list[str] | None = None) -> int:
    """Audit what the arguments name; 1 where something of the forget set was found, else 0."""
    parser = TrlParser((AuditArguments, ModelConfig))
    arguments, model_config = parser.parse_args_and_config(argv)
    state = PartialState(cpu=arguments.use_cpu)  # the process group, where there are several processes
    require_writable(arguments.output_dir)
    require_models(model_config, arguments.original, *arguments.retrained)
    check_threats(arguments.threat_model, ["original"] * (arguments.original is not None))
    data = load_data(arguments)
    request = load_request(arguments.request)
    report = audit_checkpoints(
        sets=audit_sets(data, request, split_data(data, request), arguments.sibling_values),
        processing_class=load_processing_class(model_config),
        model_config=model_config,
        models={
            "original": arguments.original,
            "unlearned": model_config.model_name_or_path,
            "retrained": arguments.retrained or None,
        },
        arguments=arguments,
        config=arguments.audit_config(arguments.seed, arguments.max_length, arguments.truncate),
        device=state.device,
        output_dir=arguments.output_dir,
        run={"model": model_config.model_name_or_path, "seed": arguments.seed, "config": vars(arguments)},
    )
    return report.exit_code
