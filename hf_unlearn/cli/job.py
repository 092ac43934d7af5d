"""One erasure or one audit, from its arguments to its result: loaded and checked as a whole before the first step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_unlearn.audit.checks import check_request, never_trained_on
from hf_unlearn.audit.roles import Models
from hf_unlearn.cli.arguments import load_data, load_request, split_data
from hf_unlearn.cli.checkpoints import (
    load_config,
    load_model,
    load_processing_class,
    require_models,
    require_writable,
    save_trained,
)
from hf_unlearn.cli.result import cost_beside, cost_of_edit, data_names, described, rows_of
from hf_unlearn.cli.sets import audit_sets, evaluation_sets, groups_of, require_encodable, say_what_cannot_run
from hf_unlearn.evidence.coverage import rows_of_the_request


# What runs models is imported where it is used: `--help` and a mistyped option should not take seconds.
if TYPE_CHECKING:
    from datasets import DatasetDict

    from hf_unlearn.audit.report import AuditReport
    from hf_unlearn.cli.model_arguments import ModelArguments
    from hf_unlearn.cli.options import ThreatArguments
    from hf_unlearn.request.request import ErasureRequest
    from hf_unlearn.request.split import Split
    from hf_unlearn.training import UnlearningConfig


@dataclass(frozen=True)
class Erased:
    """What an erasure leaves, whatever made it.

    Attributes:
        model (`str`): folder of the checkpoint.
        cost (`dict`): plain numbers, as [`~hf_unlearn.training.cost.CostCallback`].result.
        steps (`dict`): `steps` that were taken, and `best_checkpoint_step` where one was chosen.
        guarantee (`dict`): `kind`, and what that kind states: `"empirical"` states nothing, and only an audit can tell.
    """

    model: str
    cost: dict[str, Any]
    steps: dict[str, Any]
    guarantee: dict[str, Any]


class Job:
    """What is asked for, checked for all roles before a model is loaded, and what follows from it.

        job = Job.from_arguments(["--config", "recipes/registry/npo.yaml"])
        erased = job.erase()
        report = audit(**job.audit_of(erased))
        job.write_result(report, erased)

    Args:
        arguments ([`~hf_unlearn.cli.options.ThreatArguments`]): data, request, and what the audit tries and compares.
        model_config ([`ModelArguments`]): the model to erase from, or to audit.
        training ([`UnlearningConfig`], *optional*): how to erase; without it a model is audited as it is.

    Attributes:
        request ([`ErasureRequest`]), data (`DatasetDict`), parts ([`Split`]): what must go, of which rows.
        sets (`dict[str, Dataset]`), groups (`dict[str, list]`, *optional*): of the audit.
        models (`dict`): names by role: `original`, `unlearned` (the checkpoint that `erase` writes, or the audited one),
            `retrained` (a list, or `None`) and `shadows`.
        processing_class: tokenizer or image processor.
        audit_config ([`AuditConfig`]): how much of what the audit tries.

    Raises:
        ValueError: something of it is wrong or missing; before any model is loaded.
        OSError: the request or the data cannot be read, or the result cannot be written.
    """

    def __init__(
        self, arguments: ThreatArguments, model_config: ModelArguments, training: UnlearningConfig | None = None
    ):
        self.arguments, self.model_config, self.training = arguments, model_config, training
        settings = arguments if training is None else training
        self.output_dir, self.seed, self.device = settings.output_dir, settings.seed, settings.device
        name = model_config.model_name_or_path
        given = (arguments.original, *arguments.retrained, *arguments.shadows)
        require_writable(self.output_dir, *(() if training is None else (name, *given)))
        require_models(model_config, *given)
        self.models = {
            "original": arguments.original or (None if training is None else name),
            "unlearned": name if training is None else f"{self.output_dir}/model",
            "retrained": arguments.retrained or None,
            "shadows": arguments.shadows,
        }
        self.request: ErasureRequest = load_request(arguments.request)
        self.data: DatasetDict = load_data(arguments)
        self.parts: Split = split_data(self.data, self.request, arguments.duplicates)
        self.sets = audit_sets(self.data, self.request, self.parts, arguments.sibling_values)
        self.groups = groups_of(self.sets, arguments.group_column)
        self.audit_config = arguments.audit_config(settings)
        roles = Models(**self.models).given
        notes = check_request(roles, self.sets, arguments.threat_model, self.audit_config, self.groups)
        if "validation" in self.data and training is not None:
            notes += never_trained_on(self.parts.forget, "validation split", self.data["validation"])
        for note in notes:
            print(f"Note: {note}")
        self.processing_class, config = load_processing_class(model_config), load_config(model_config)
        lengths = {"max_length": settings.max_length, "truncate": settings.truncate}
        from hf_unlearn.data.reach import said_of

        reach = require_encodable(self.sets, self.processing_class, config, **lengths)
        print(rows_of_the_request(rows_of(self.parts)))
        print("\n".join(said_of(f"{name} set", part) for name, part in reach.items()))
        changes = {} if training is None else {"method": arguments.method, "training": training}
        say_what_cannot_run(config, arguments.threat_model, model_config.trust_remote_code, **changes)

    @classmethod
    def from_arguments(cls, argv: list[str] | None = None) -> Job:
        """A job of unlearning, from a command line (by default that of the process) and its recipe."""
        from hf_unlearn.cli.unlearning import parse_unlearning

        arguments, training, model_config = parse_unlearning(argv)
        return cls(arguments, model_config, training)

    def erase(self) -> Erased:
        """Unlearn, and write the checkpoint and what it cost. Several processes share the work."""
        from trl import get_peft_config

        from hf_unlearn.methods import METHODS
        from hf_unlearn.training.cost import CostCallback

        cost, training = CostCallback(), self.training
        model = load_model(self.model_config)
        with cost:  # some methods compute much before the first step
            trainer = METHODS[self.arguments.method](
                model=model,
                args=training,
                forget_dataset=self.parts.forget,
                retain_dataset=self.parts.retain,
                # The holdout of the audit decides nothing here: a number that chose the model cannot judge it.
                eval_dataset=evaluation_sets(self.data, self.request, self.parts, self.seed),
                processing_class=self.processing_class,
                peft_config=get_peft_config(self.model_config),
                callbacks=[cost],
            )
        if self.arguments.stop_against == "retrained":
            trainer.stopping.never_trained = self._loss_of_the_retrained_model()
        with cost:
            trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        checkpoint = save_trained(trainer, self.processing_class, cost, self.output_dir)
        steps = {"steps": trainer.state.global_step, "best_checkpoint_step": trainer.state.best_global_step}
        return Erased(checkpoint, cost.result, steps, {"kind": trainer.guarantee})

    def _loss_of_the_retrained_model(self):
        from hf_unlearn.audit.measures import membership
        from hf_unlearn.audit.table.score import score

        retrained = load_model(self.model_config, self.models["retrained"][0]).to(self.device)
        return membership.loss(
            score(retrained, self.processing_class, self.parts.forget, self.audit_config.batch_size)
        )

    def audit_of(self, erased: Erased | None = None) -> dict[str, Any]:
        """What `audit` takes, for what was erased, or for the model as it is. Models are names, loaded in their turn."""
        from hf_unlearn.audit.table.cache import ScoreCache

        cache = self.arguments.score_cache
        return {
            "model": self.models["unlearned"] if erased is None else erased.model,
            "original": self.models["original"],
            "retrained": self.models["retrained"],
            "shadows": self.models["shadows"],
            "split": self.sets,
            "holdout_rows": self.parts.holdout_rows,
            "groups": self.groups,
            "threat_model": self.arguments.threat_model,
            "processing_class": self.processing_class,
            "config": self.audit_config,
            "cache": None if cache is None else ScoreCache(cache),
            "load": partial(load_model, self.model_config),
            "device": self.device,
        }

    def write_result(self, report: AuditReport, erased: Erased | None = None) -> None:
        """Write `result.json` and `RESULT.md`, and print the table; of several processes the first one does."""
        from accelerate import PartialState

        from hf_unlearn.evidence.page import to_table
        from hf_unlearn.evidence.result import write_result
        from hf_unlearn.evidence.tables import text_table

        if not PartialState().is_main_process:
            return
        cost = cost_beside(self.models["unlearned"]) if erased is None else erased.cost
        retraining = cost_beside((self.models["retrained"] or [None])[0])
        result = replace(report, cost=cost_of_edit(cost, retraining)).as_dict()
        write_result(self.output_dir, result, self._run(erased))
        print(f"{text_table(to_table(result))}\n\n{report}")
        print(f"\nWritten to {self.output_dir}/result.json and {self.output_dir}/RESULT.md.")

    def _run(self, erased: Erased | None) -> dict[str, Any]:
        """What a result says of the run: whether of an erasure or of a model as it is."""
        if erased is None:
            made, config = {"model": self.models["unlearned"]}, {}
        else:
            made = {"method": self.arguments.method, **erased.steps, "guarantee": erased.guarantee}
            config = {**self.training.to_dict(), **vars(self.model_config)}
        return {
            **made,
            "models": {role: name for role, name in self.models.items() if name},
            "data": data_names(self.arguments),
            "request": described(self.request, self.parts),
            "seed": self.seed,
            "config": {**vars(self.arguments), **config},
        }
