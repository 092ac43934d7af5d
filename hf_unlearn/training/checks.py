"""Refusals of what cannot work, before anything is computed, and warnings of what ends badly."""

from __future__ import annotations

from accelerate.utils import parse_flag_from_env
from transformers.utils import logging

from hf_unlearn.data.reach import reach_of, said_of
from hf_unlearn.data.text import context_length
from hf_unlearn.models.likelihood import is_image_classifier
from hf_unlearn.training.constraints import constraints_of


logger = logging.get_logger(__name__)

_SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")  # set by `accelerate launch`


def require_architecture(trainer_class, args, model) -> None:
    """Refuse a model that the method cannot work on, by its architecture alone.

    Args:
        args ([`UnlearningConfig`]): of the method.
        model (`nn.Module`): it needs no weights, and may be on the device `meta`. Of one with an adapter, which hides parts
            of it, or in 4 or 8 bit, the method itself says what it cannot do.

    Raises:
        ValueError: the method is for models of another kind, or the model lacks what the method changes.
    """
    kind, other = ("image", "text") if is_image_classifier(model) else ("text", "image")
    if kind not in trainer_class.kinds:
        titles = {"text": "causal language models", "image": "image classifiers"}
        raise ValueError(
            f"{trainer_class.__name__} works on {titles[other]}, but this is one of the {titles[kind]}. Choose another "
            "method: `hf-unlearn methods` lists them."
        )
    if not hasattr(model, "peft_config") and not getattr(model, "is_quantized", False):
        for requirement in trainer_class.requires:
            requirement(model, args)


def check_run(trainer_class, args, model, forget_dataset, retain_dataset, eval_dataset, ref_model) -> None:
    """Refuse combinations of arguments of a trainer that cannot work, and warn of one that ends badly."""
    name = trainer_class.__name__
    require_architecture(trainer_class, args, model)
    if trainer_class.needs_whole_weights and (args.fsdp or args.deepspeed or any(map(parse_flag_from_env, _SHARDED))):
        raise ValueError(f"{name} needs whole weights, which FSDP and DeepSpeed spread. Run one process, or DDP.")
    for dataset, title in ((forget_dataset, "forget set"), (retain_dataset, "retain set")):
        if dataset is not None and not hasattr(dataset, "__len__"):
            raise ValueError(
                f"The {title} is streamed, but pairs are drawn from all of it. Either load it without streaming=True, or "
                "take a part: datasets.Dataset.from_list(list(rows.take(10_000)))."
            )
    if forget_dataset is None or len(forget_dataset) == 0:
        raise ValueError(f"{name} needs a forget set with at least one row. Give it as forget_dataset.")
    if args.reads_retain and (retain_dataset is None or len(retain_dataset) == 0):
        raise ValueError(
            f"{name} has retain_loss={args.retain_loss!r} with retain_weight={args.retain_weight}, but no retain "
            'set was given. Either give retain_dataset, or set retain_loss="none" (utility will suffer).'
        )
    if args.update_rule != "add":
        rule = f"You set update_rule={args.update_rule!r}"
        if not trainer_class.reads_forget and trainer_class.n_alternates == 0:
            raise ValueError(f'{rule}, but {name} has no forget loss, and so one gradient. Set update_rule="add".')
        if not args.reads_retain:
            raise ValueError(
                f"{rule}, which needs the gradient of a retain loss, but there is none. Either set "
                'retain_loss="nll" and give a retain set, or set update_rule="add".'
            )
    held = list(constraints_of(args))
    if len(held) > 1:
        raise ValueError(
            f"You set {' and '.join(held)}, and each would break what the other holds. Choose one of them."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"This process sees {args.n_gpu} GPUs and would spread each batch over them (DataParallel), which these "
            "losses do not support. Either start one process per GPU (accelerate launch), or set CUDA_VISIBLE_DEVICES "
            "to one."
        )
    best = args.metric_for_best_model
    watched = isinstance(eval_dataset, dict) and {"forget", "holdout"} <= set(eval_dataset)
    if best in ("forget_gap", "eval_forget_gap"):
        if not watched:
            raise ValueError(
                f"You set metric_for_best_model={best!r}, which compares the evaluation sets named "
                '"forget" and "holdout", but not both are there. Either give both in eval_dataset, or choose another '
                "metric."
            )
        if args.greater_is_better:
            raise ValueError(f"metric_for_best_model={best!r} is best at 0. Set greater_is_better=false.")
    if not trainer_class.bounded and not (args.stop_when_forgotten and watched and args.eval_strategy != "no"):
        logger.warning(
            f"The forget loss of {name} has no lower bound and nothing stops it short of destroying the model. "
            'Give eval_dataset a "forget" and a "holdout" set, set eval_strategy, and leave stop_when_forgotten on.'
        )
    if ref_model is model:
        raise ValueError("ref_model is the model that will be trained. Either leave it out, or give a copy.")


def warn_of_readable_images(trainer, n_forget: int) -> None:
    """Warn where somebody who has both models, before and after, can compute the one image that was forgotten.

    A step of SGD on one image changes the embedding of patches by the image's patches, times a factor, and that of
    positions by the factor alone: the ratio is the image. A retain loss, another optimizer or frozen embeddings leave no
    such ratio.
    """
    args = trainer.args
    parts = ("patch_embeddings", "position_embeddings")
    moves = all(any(part in name for name in trainer.trainable_names) for part in parts)
    if moves and trainer.is_classifier and args.optim == "sgd" and n_forget == 1 and not args.reads_retain:
        logger.warning(
            "Plain SGD on one image: whoever has the model before and after can compute the image from the embeddings. "
            r"Either freeze these (trainable='(?!.*embeddings\.).*'), or publish only one of the two models."
        )


def say_what_is_read(trainer, forget_dataset, retain_dataset) -> None:
    """Log one line about each set: how many rows it has, and what of them no loss reaches."""
    data, args = trainer.train_dataset, trainer.args
    for name, rows, encoded in (("forget", forget_dataset, data.forget), ("retain", retain_dataset, data.retain)):
        if encoded is None or args.process_index:
            continue
        max_length = args.max_length or context_length(trainer.model)
        reach = reach_of(rows, trainer.processing_class, f"{name} set", max_length, args.truncate, encoded)
        # A prompt is never scored. Anything else may be more than was meant.
        log = logger.warning if reach["unreached"].keys() - {"prompt"} else logger.info
        log(said_of(f"{name} set", reach))


def check_sharding(trainer, ref_model) -> None:
    """Refuse what needs whole weights or gradients where no process has them; called once the Trainer is set up."""
    sharded = "DeepSpeed" if trainer.is_deepspeed_enabled else "FSDP" if trainer.is_fsdp_enabled else None
    if sharded is None:
        return
    rule = trainer.args.update_rule
    if rule not in ("add", "subspace") and not trainer.accelerator.is_fsdp2:
        raise ValueError(
            f"You set update_rule={rule!r}, which needs the gradient of each loss, but {sharded} gives none of them. "
            'Either set update_rule="add", or run under DDP or FSDP 2 (fsdp=True).'
        )
    if trainer.constraints:
        raise ValueError(
            f"You set {' and '.join(constraints_of(trainer.args))}, which needs whole weights, but {sharded} spreads them. "
            "Either leave it out, or run under DDP."
        )
    if trainer._reference is not None and ref_model is None and not trainer.accelerator.is_fsdp2:
        raise ValueError(
            f'You set retain_loss="kl", but {sharded} cannot put the weights of the start back for a pass. '
            'Either give ref_model, or set retain_loss="nll".'
        )
