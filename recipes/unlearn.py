"""Unlearn, audit, and write the result.

accelerate launch recipes/unlearn.py --config recipes/<benchmark>/<method>.yaml [--any_field value]
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field

from trl import ModelConfig, TrlParser, get_peft_config

from hf_unlearn.audit import score
from hf_unlearn.audit.checks import check_request
from hf_unlearn.audit.measures import membership
from hf_unlearn.cli.arguments import (
    DataArguments,
    audit_sets,
    load_data,
    load_model,
    load_processing_class,
    load_request,
    require_models,
    require_writable,
    save_plain,
    split_data,
)
from hf_unlearn.cli.audit import ThreatArguments, as_names, audit_checkpoints, described, groups_of, require_encodable
from hf_unlearn.data.text import context_length
from hf_unlearn.methods import METHODS
from hf_unlearn.request import split
from hf_unlearn.training.cost import CostCallback


@dataclass
class MethodArguments:
    """How to forget."""

    method: str = field(default="npo", metadata={"help": "Objective.", "choices": sorted(METHODS)})


@dataclass
class UnlearnArguments(MethodArguments, ThreatArguments, DataArguments):
    """What to forget, how, and what to compare the outcome with."""

    retrained: list[str] | None = field(
        default=None,
        metadata={"help": "Models trained without the forget set, to compare; further ones show the noise of seeds."},
    )
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
        DataArguments.__post_init__(self)
        ThreatArguments.__post_init__(self)
        self.retrained = as_names(self.retrained)


def parse_arguments(argv: list[str] | None = None):
    # Which options there are depends on the method, so its name is read first.
    first = TrlParser((MethodArguments,), allow_abbrev=False)
    argv = list(sys.argv[1:] if argv is None else argv)
    known = [argument for argument in argv if argument not in ("-h", "--help")]  # the help is that of all options
    method = first.parse_args_and_config(known, return_remaining_strings=True)[0].method
    parser = TrlParser((UnlearnArguments, METHODS[method].config_class, ModelConfig), allow_abbrev=False)
    return parser.parse_args_and_config(argv)


def main(argv: list[str] | None = None):
    arguments, config, model_config = parse_arguments(argv)
    if arguments.stop_against == "retrained" and not arguments.retrained:
        raise ValueError(
            'You set stop_against="retrained", but no retrained model. Either set retrained, or stop_against="validation".'
        )
    require_writable(config.output_dir, model_config.model_name_or_path, *arguments.retrained, arguments.original)
    require_models(model_config, *arguments.retrained, arguments.original)

    data = load_data(arguments)
    request = load_request(arguments.request)
    parts = split_data(data, request)

    sets = audit_sets(data, request, parts, arguments.sibling_values)
    processing_class = load_processing_class(model_config)
    model = load_model(model_config)
    lengths = {"max_length": config.max_length or context_length(model), "truncate": config.truncate}
    require_encodable(sets, processing_class, n_classes=model.config.num_labels, **lengths)
    audit_config = arguments.audit_config(config.seed, **lengths)
    audited = {name: rows for name, rows in sets.items() if rows is not None}
    original = arguments.original or model_config.model_name_or_path
    roles = {"unlearned": config.output_dir, "original": original}
    check_request(roles, audited, arguments.threat_model, audit_config, groups_of(sets, arguments.group_column))
    cost = CostCallback()
    with cost:  # some methods compute much before the first step
        trainer = METHODS[arguments.method](
            model=model,
            args=config,
            forget_dataset=parts.forget,
            retain_dataset=parts.retain,
            # The holdout of the audit decides nothing here: a number that chose the model cannot judge it.
            eval_dataset=evaluation_sets(data, request, parts, config.seed),
            processing_class=processing_class,
            peft_config=get_peft_config(model_config),
            callbacks=[cost],
        )
    if arguments.stop_against == "retrained":
        retrained = load_model(model_config, arguments.retrained[0])
        scores = score(retrained.to(config.device), processing_class, parts.forget, arguments.audit_batch_size)
        trainer.stopping.never_trained = membership.loss(scores)
        del retrained
    with cost:
        trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    checkpoint = f"{config.output_dir}/model"
    if trainer.is_world_process_zero():
        save_plain(trainer.accelerator.unwrap_model(trainer.model), processing_class, checkpoint)
        cost.save(f"{config.output_dir}/cost.json")
    trainer.accelerator.wait_for_everyone()  # all of them read it in the audit, which they share
    state, device = trainer.state, config.device
    del trainer, model  # the audit loads one model after the other, and this one would stay beside them
    audit_checkpoints(
        sets=sets,
        processing_class=processing_class,
        model_config=model_config,
        models={
            "original": original,
            "unlearned": checkpoint,
            "retrained": arguments.retrained or None,
        },
        arguments=arguments,
        config=audit_config,
        device=device,
        cost=cost.result,
        output_dir=config.output_dir,
        run={
            "method": arguments.method,
            "request": described(request, parts),
            "seed": config.seed,
            "steps": state.global_step,
            "best_checkpoint_step": state.best_global_step,
            "config": {**vars(arguments), **config.to_dict(), **vars(model_config)},
        },
    )


def evaluation_sets(data, request, parts, seed: int) -> dict:
    """What is evaluated during training: the forget set, as many retain rows, and rows never trained on.

    Those are validation rows that the request would be about too: all of them for records, those of the class for a class.
    """
    size = min(len(parts.retain), len(parts.forget))
    sample = sorted(random.Random(seed).sample(range(len(parts.retain)), size))
    sets = {"forget": parts.forget, "retain": parts.retain.select(sample)}
    validation = split(data, request, holdout_split="validation").holdout
    if validation is not None:
        sets["holdout"] = validation
    return sets


if __name__ == "__main__":
    sys.exit(main())
