"""The trainer that every method is a subclass of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_unlearn.data.pairing import PairedDataset, UnlearningCollator, batches
from hf_unlearn.data.text import context_length, encode_dataset, limits_of
from hf_unlearn.models.dropout import Dropout
from hf_unlearn.models.kinds import require_kind
from hf_unlearn.models.likelihood import TargetLogits, is_image_classifier, scored_positions, target_logits
from hf_unlearn.models.load import load_model, load_processing_class
from hf_unlearn.models.sharding import whole
from hf_unlearn.training.checkpoints import Checkpoints, load_state
from hf_unlearn.training.checks import check_run, check_sharding, say_what_is_read, warn_of_readable_images
from hf_unlearn.training.config import UnlearningConfig
from hf_unlearn.training.constraints import constraints_of
from hf_unlearn.training.evaluation import LikelihoodEvaluation
from hf_unlearn.training.objective import Objective
from hf_unlearn.training.reference import Reference, cached_log_probs
from hf_unlearn.training.updates import UPDATE_RULES, TwoGradients, UpdateRule
from hf_unlearn.training.where import attach_adapter, freeze_except_matrices, made_dense


class RunCallback(TrainerCallback):
    """Tells the trainer where its run is, after a start, a resume or a retry with smaller batches."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.begin_run(state.global_step)

    def on_epoch_begin(self, args, state, control, **kwargs):
        # Here, because not every data loader passes `set_epoch` on to its data set.
        epoch = int(state.epoch or 0)
        self.trainer.train_dataset.set_epoch(epoch)
        self.trainer.train_dataset.set_phase(self.trainer.phase(epoch))

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.begin_step()

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if self.trainer.accelerator.scaler is not None:
            return  # float16: the scaler skips steps with infinite gradients, and lowers its scale
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if gradients:
            norm = torch.stack([g.to(torch.float32).square().sum() for g in gradients]).sum()
            self.trainer.require_finite(whole(norm), "gradient")

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.take_back()
        self.trainer.after_step()


class UnlearningTrainer(Objective, LikelihoodEvaluation, Checkpoints, Trainer):
    """Base of the methods: a subclass **is** the objective, everything else is configuration.

    A subclass defines `forget_loss` and, if it needs one, names its `reference`; all that it can override is in
    [`~hf_unlearn.training.objective.Objective`]. Forget rows, alternate answers and retain rows go through the model in
    one forward pass; the loss gets their [`TargetLogits`] and does not run the model itself.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): causal language model or image classifier to unlearn from. A
            name loads it from the Hub or a folder, with its tokenizer or image processor.
        args ([`UnlearningConfig`]): of the class that belongs to the trainer.
        forget_dataset (`Dataset`): rows to forget: `{"prompt", "completion"}`, `{"messages"}`, `{"text"}`,
            `{"image", "label"}`, or already encoded (`input_ids` and `labels`, or `pixel_values` and `labels`).
        retain_dataset (`Dataset`, *optional*): rows to keep. Required unless nothing reads it.
        eval_dataset (`Dataset` or `dict[str, Dataset]`, *optional*): e.g. `{"forget": ..., "retain": ...,
            "holdout": ...}`. Each logs `eval_<name>_loss` (mean negative log-likelihood per target, in nats) and
            `eval_<name>_accuracy` (share of targets that are the most likely one). With `"forget"` and `"holdout"`,
            `eval_forget_gap` is the absolute difference of their losses: 0 is best, so it serves as
            `metric_for_best_model` (with `greater_is_better=False`); `eval_forget_auc` and `eval_forget_p_value` compare
            them row by row, see [`~hf_unlearn.training.stopping.compare_losses`].
        processing_class (`PreTrainedTokenizerBase` or `BaseImageProcessor`, *optional*): needed for rows of text or
            images that are not encoded.
        data_collator (`Callable`, *optional*): defaults to [`UnlearningCollator`].
        ref_model (`PreTrainedModel`, *optional*): model to compare with instead of the model at its start.
        peft_config (`PeftConfig`, *optional*): attach this adapter and train it alone.
        callbacks, optimizers: as in `Trainer`.

    Raises:
        ValueError: when the combination cannot work, before anything is computed.
    """

    # The losses are divided by the counts of the whole step, over micro-batches and processes.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model,
        args: UnlearningConfig | None = None,
        forget_dataset=None,
        retain_dataset=None,
        eval_dataset=None,
        processing_class=None,
        data_collator=None,
        ref_model=None,
        peft_config=None,
        callbacks=None,
        optimizers=(None, None),
    ):
        if args is None:
            args = self.config_class(output_dir=f"{type(self).__name__}_output")
        if not isinstance(args, self.config_class):
            raise ValueError(
                f"{type(self).__name__} got a {type(args).__name__} as args. Give a {self.config_class.__name__}."
            )
        if isinstance(model, str):
            model, processing_class = load_model(model), processing_class or load_processing_class(model)
        for one in (model, ref_model):
            if one is not None:
                require_kind(one)
        self.is_classifier = is_image_classifier(model)
        check_run(type(self), args, model, forget_dataset, retain_dataset, eval_dataset, ref_model)

        max_length = args.max_length or context_length(model)
        self.encode = partial(
            encode_dataset,
            tokenizer=processing_class,
            max_length=max_length,
            truncate=args.truncate,
            **limits_of(model.config, self.is_classifier),
        )
        data = PairedDataset(
            self.encode(forget_dataset, name="forget set"),
            # Rows that no loss reads are not paired: they would go through the model for nothing.
            self.encode(retain_dataset, name="retain set") if args.reads_retain else None,
            seed=args.seed if args.data_seed is None else args.data_seed,
            reads_forget=self.reads_forget,
        )
        collate = data_collator or UnlearningCollator(getattr(processing_class, "pad_token_id", None))
        if isinstance(eval_dataset, dict):
            eval_dataset = {
                name: self.encode(rows, name=f"{name} evaluation set") for name, rows in eval_dataset.items()
            }
        elif eval_dataset is not None:
            eval_dataset = self.encode(eval_dataset, name="evaluation set")

        checkpointing = bool(getattr(args, "activation_checkpointing", False) or args.gradient_checkpointing)
        if self.needs_dense_weights:
            model = made_dense(model, peft_config, type(self).__name__)
        model = self.adapt(attach_adapter(model, peft_config, checkpointing), args, data, collate)
        held = constraints_of(args)
        self.trainable_names = self.select(model, args)
        for setting, constraint in held.items():
            if constraint.matrices_only:
                self.trainable_names = freeze_except_matrices(model, args, setting, constraint.reaches)
        self.constraints = list(held.values())
        self._compares_retain = args.retain_loss == "kl" or self.retain_reference
        is_compared = self._compares_retain and args.reads_retain or self.reference == "logits"
        self._reference = Reference(model, ref_model) if is_compared else None
        self._ref_model = ref_model
        self.teacher: nn.Module | None = None
        rule_class = UPDATE_RULES[args.update_rule]
        self._rule: UpdateRule | None = rule_class and rule_class(args)
        self.eval_losses: dict[str, np.ndarray] = {}
        self.stopping = self.stopping_class(self, args.stop_level if args.stop_when_forgotten else None)
        self._is_prepared = False
        self._dropout: Dropout | None = None
        self.begin_run(0)

        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=data,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=self._likelihood_metrics,
            callbacks=[RunCallback(self), self.stopping, *(callbacks or [])],
            optimizers=optimizers,
        )
        check_sharding(self, ref_model)
        warn_of_readable_images(self, len(forget_dataset))
        say_what_is_read(self, forget_dataset, retain_dataset)
        if self.n_alternates:
            data.alternates = self.alternates(forget_dataset, () if retain_dataset is None else retain_dataset)

    # Training

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        with self.without_dropout():
            return self._train(resume_from_checkpoint, *args, **kwargs)

    def _train(self, resume_from_checkpoint, *args, **kwargs):
        # Before the Trainer loads a checkpoint to resume from: the reference is the model at its very start.
        if not self._is_prepared:
            self._prepare()
            self._is_prepared = True
        last = resume_from_checkpoint is True
        checkpoint = get_last_checkpoint(self.args.output_dir) if last else resume_from_checkpoint
        if checkpoint:
            state = load_state(checkpoint)
            if self._rule is not None:
                self._rule.load_state(state, [p for p in self.model.parameters() if p.requires_grad])
            self.load_method_state(state)
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        if self.state.global_step == 0:
            raise ValueError(
                f"No step was taken: {len(self.train_dataset)} forget rows do not fill a batch and "
                "dataloader_drop_last is on. Either turn it off, or lower per_device_train_batch_size."
            )
        self._finish()
        return output

    def _prepare(self):
        data, model = self.train_dataset, self.accelerator.unwrap_model(self.model)
        if self.reference == "log_probs":
            self._cache_log_probs()
        for constraint in self.constraints:
            rows = {"forget": data.forget, "retain": data.retain, None: ()}[constraint.reads]
            constraint.prepare(model, self.batches(rows))
        self.prepare()

    def batches(self, rows: Sequence[dict], limit: int | None = None) -> Iterator[dict]:
        """Batches of encoded rows, in their order, on the device of the run; `limit` takes that many, evenly spread."""
        return batches(rows, self.data_collator, self.args.per_device_eval_batch_size, self.args.device, limit)

    def _finish(self):
        self.finish()
        self.model_wrapped = self.model

    def begin_run(self, step: int):
        """Discard what an earlier run left unfinished. Called when training starts, resumes or is retried."""
        self._terms: dict[str, Tensor] = {}
        self._terms_since = step  # of the last log
        self._step_terms: dict[str, Tensor] = {}
        self._gradients: TwoGradients | None = None  # of the step under way

    def begin_step(self):
        self._step_terms = {}

    def step_terms(self) -> dict[str, float]:
        """The terms of the loss in this optimizer step, over its micro-batches and all processes."""
        return self._mean_over_processes(self._step_terms, 1)

    def _mean_over_processes(self, terms: dict[str, Tensor], steps: int) -> dict[str, float]:
        names = sorted(terms)
        values = torch.stack([terms[name].float() for name in names]) / steps
        return dict(zip(names, self.accelerator.reduce(values, "mean").tolist(), strict=True))

    def _cache_log_probs(self):
        data = self.train_dataset
        compute = partial(
            cached_log_probs,
            self.model if self._ref_model is None else self._ref_model.to(self.args.device),
            collate=self.data_collator,
            batch_size=self.args.per_device_eval_batch_size,
            accelerator=self.accelerator,
        )
        cache = {"forget": compute(lambda i: data.forget[i], len(data.forget), name="forget set")}
        if data.alternates is not None:
            n, k = len(data.alternates), len(data.alternates[0])  # every row has as many candidates
            found = compute(lambda i: data.alternates[i // k][i % k], n * k, name="alternates")
            cache["alternate"] = found.reshape(n, k)
        data.reference_log_probs = cache
        self._ref_model = None  # only its numbers are needed

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and "parts" in batches[0]:
            num_items = self._count(batches, device)
        return batches, num_items

    def _count(self, batches, device) -> dict[str, Tensor]:
        """Targets, examples and tokens of each part over the step, divided by the number of processes."""
        counts = torch.zeros(len(batches[0]["parts"]), 3, dtype=torch.float64)
        for batch in batches:
            scored = scored_positions(batch["labels"]).sum(-1)
            sizes = list(batch["parts"].values())
            counts[:, 0] += torch.stack([part.sum() for part in scored.split(sizes)]).cpu()
            counts[:, 1] += torch.tensor(sizes)
            if "attention_mask" in batch:
                tokens = batch["attention_mask"].sum(-1)
                counts[:, 2] += torch.stack([part.sum() for part in tokens.split(sizes)]).cpu()
        # Averaged, because so are the gradients: mean of (local sum / (total / P)) = sum of local sums / total.
        counts = self.accelerator.reduce(counts.to(device, torch.float32), "mean")
        return dict(zip(batches[0]["parts"], counts, strict=True))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "parts" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = sum(term for term in self.losses(model, inputs, num_items_in_batch) if term is not None)
        return (loss, {}) if return_outputs else loss

    def losses(self, model, inputs, counts) -> tuple[Tensor | None, Tensor | None]:
        """The weighted forget and retain loss of a paired batch, from one forward pass; `None` for a part not there.

        Overridden only by methods with a different forward pass.

        Args:
            inputs (`dict`): inputs of the model, `parts` (rows of each part, in order), `reference_log_probs`.
            counts (`dict[str, Tensor (3,)]` or `None`): targets, examples and tokens of each part in the whole step.
        """
        inputs = dict(inputs)
        sizes, cached = inputs.pop("parts"), inputs.pop("reference_log_probs")
        parts = target_logits(model, inputs).split(sizes)
        for name, part in parts.items():
            part.counts = counts[name][:2].unbind() if counts is not None else None
        retain = parts.pop("retain", None)

        forget_loss = retain_loss = None
        if parts:
            references = cached
            if self.reference == "logits" or self.reference == "teacher" and self.teacher is not None:
                references = {name: self._reference_of(name, inputs, sizes) for name in parts}
            names = {"forget": "reference", "alternate": "alternate_reference"}
            terms = self.forget_loss(**parts, **{names[part]: value for part, value in references.items()})
            terms = terms if isinstance(terms, dict) else {"forget_loss": terms}
            forget_loss = sum(terms.values())
            self.record(terms)
        if retain is not None:
            reference = self._reference_of("retain", inputs, sizes) if self._compares_retain else None
            retain_loss = self.retain_loss(retain, reference)
            self.record({"retain_loss": retain_loss})
        self.require_finite(sum(term for term in (forget_loss, retain_loss) if term is not None))
        if forget_loss is not None:
            forget_loss = self.args.forget_weight * forget_loss
        if retain_loss is not None:
            retain_loss = self.retain_weight() * retain_loss
        return forget_loss, retain_loss

    def _reference_of(self, part: str, inputs, sizes) -> TargetLogits:
        start = sum(list(sizes.values())[: list(sizes).index(part)])
        rows = {key: value[start : start + sizes[part]] for key, value in inputs.items()}
        if self.reference == "teacher" and part != "retain":
            with torch.no_grad():
                return target_logits(self.teacher, rows)
        return self._reference.target_logits(self.accelerator.unwrap_model(self.model), rows)

    def training_step(self, model, inputs, num_items_in_batch=None):
        # With a retain part and another one there are two gradients.
        if self._rule is not None and "retain" in inputs["parts"] and len(inputs["parts"]) > 1:
            loss = self._two_gradients_step(model, inputs, num_items_in_batch)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        for constraint in self.constraints:
            constraint.after_backward()
        return loss

    def _two_gradients_step(self, model, inputs, counts) -> Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        gradients = self._gradients = self._gradients or TwoGradients(self.accelerator)
        with gradients.apart(model):
            with self.compute_loss_context_manager():
                losses = self.losses(model, inputs, counts)
            gradients.backward(model, losses)
        if self.accelerator.sync_gradients:
            gradients.combine(model, self._rule)
            self._gradients = None
        return sum(loss.detach() for loss in losses)

    def take_back(self) -> None:
        """Undo what an optimizer step has done to weights that the configuration holds. Called after each step."""
        for constraint in self.constraints:
            constraint.after_step()

    # Logging

    def record(self, terms: dict[str, Tensor]):
        """Log terms of a loss, as the mean over the steps since the last log."""
        for name, value in terms.items():
            self._terms[name] = self._terms.get(name, 0.0) + value.detach()
            self._step_terms[name] = self._step_terms.get(name, 0.0) + value.detach()

    def log(self, logs, *args, **kwargs):
        steps = self.state.global_step - self._terms_since
        if "loss" in logs and self._terms and steps > 0:
            logs = {**logs, **self._mean_over_processes(self._terms, steps)}
            self._terms, self._terms_since = {}, self.state.global_step
        super().log(logs, *args, **kwargs)
