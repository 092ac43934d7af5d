"""Audit any checkpoint or adapter.

    accelerate launch recipes/audit.py --model_name_or_path <checkpoint> --original <model> --retrained <model> \\
        --dataset_name <data> --holdout_split <split> --request <request.json> --output_dir <folder>
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
from hf_unlearn.audit.audit import AuditReport, audit, score_sets
from hf_unlearn.data import EmptyTargetError, encode, encode_dataset, has_images
from hf_unlearn.evidence.result import print_table, to_table, write_result


@dataclass
class AuditArguments(DataArguments):
    """What to audit against what."""

    original: str | None = field(default=None, metadata={"help": "The model before unlearning."})
    retrained: str | None = field(default=None, metadata={"help": "Model trained without the forget set."})
    output_dir: str = field(default="audit", metadata={"help": "Folder for result.json and RESULT.md."})
    audit_batch_size: int = field(default=32, metadata={"help": "Examples a forward pass."})
    max_length: int | None = field(default=None, metadata={"help": "Longest row in tokens; default: the context."})
    truncate: bool = field(default=False, metadata={"help": "Cut longer rows instead of raising an error."})
    use_cpu: bool = field(default=False, metadata={"help": "Score on the CPU even where there is an accelerator."})
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap intervals."})


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


def audit_models(
    sets: dict,
    processing_class,
    model_config: ModelConfig,
    models: dict,
    batch_size: int,
    device,
    lengths: dict,
    output_dir: str,
    run: dict,
) -> AuditReport:
    """Score one model after the other (there is never a second one in memory), compare, write and print."""
    tables = {}
    for name, path in models.items():
        if path is not None:
            model = load_model(model_config, path)
            if not getattr(model, "is_quantized", False):
                model.to(device)
            tables[name] = score_sets(model, processing_class, sets, batch_size, name=f"{name} model", **lengths)
            del model
    report = audit(tables, seed=run["seed"])
    write_result(output_dir, report.as_dict(), run)
    print(print_table(to_table(report.as_dict())))
    for note in report.notes:
        print(f"\n{note}")
    print(f"\nWritten to {output_dir}/result.json and {output_dir}/RESULT.md.")
    return report


def main():
    arguments, model_config = TrlParser((AuditArguments, ModelConfig)).parse_args_and_config()
    require_writable(arguments.output_dir)
    require_models(model_config, arguments.original, arguments.retrained)
    data = load_data(arguments)
    request = load_request(arguments.request)
    audit_models(
        sets=audit_sets(data, request, split_data(data, request), arguments.sibling_values),
        processing_class=load_processing_class(model_config),
        model_config=model_config,
        models={
            "original": arguments.original,
            "unlearned": model_config.model_name_or_path,
            "retrained": arguments.retrained,
        },
        batch_size=arguments.audit_batch_size,
        device="cpu" if arguments.use_cpu else PartialState().device,
        lengths={"max_length": arguments.max_length, "truncate": arguments.truncate},
        output_dir=arguments.output_dir,
        run={"model": model_config.model_name_or_path, "seed": arguments.seed, "config": vars(arguments)},
    )


if __name__ == "__main__":
    main()
