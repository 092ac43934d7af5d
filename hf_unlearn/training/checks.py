"""What cannot work is said before anything is computed."""

from __future__ import annotations

from transformers.utils import logging

from hf_unlearn.models.likelihood import is_image_classifier
from hf_unlearn.training.constraints import constraints_of


logger = logging.get_logger(__name__)


def check_run(trainer_class, args, model, forget_dataset, retain_dataset, eval_dataset, ref_model) -> None:
    """Refuse combinations of arguments of a trainer that cannot work, and warn of one that ends badly.

    Raises:
        ValueError: with the cause and what to do.
    """
    name = trainer_class.__name__
    kind, other = ("image", "text") if is_image_classifier(model) else ("text", "image")
    if kind not in trainer_class.kinds:
        titles = {"text": "causal language models", "image": "image classifiers"}
        raise ValueError(
            f"{name} works on {titles[other]}, but this is one of the {titles[kind]}. Choose another method: "
            "`hf-unlearn methods` lists them."
        )
    for dataset, title in ((forget_dataset, "forget set"), (retain_dataset, "retain set")):
        if dataset is not None and not hasattr(dataset, "__len__"):
            raise ValueError(
                f"The {title} is streamed, but pairs are drawn from all of it. Load it without streaming=True, or "
                "take a part: datasets.Dataset.from_list(list(rows.take(10_000)))."
            )
    if forget_dataset is None or len(forget_dataset) == 0:
        raise ValueError(f"{name} needs a forget set with at least one row. Give it as forget_dataset.")
    if args.reads_retain and (retain_dataset is None or len(retain_dataset) == 0):
        raise ValueError(
            f"{name} has retain_loss={args.retain_loss!r} with retain_weight={args.retain_weight}, but no retain "
            'set was given. Either give retain_dataset, or set retain_loss="none" (utility will suffer).'
        )
    if args.update_rule != "add" and not trainer_class.reads_forget and trainer_class.n_alternates == 0:
        raise ValueError(
            f"You set update_rule={args.update_rule!r}, but {name} has the retain loss alone, and so no two gradients. Set "
            'update_rule="add".'
        )
    if args.update_rule != "add" and not args.reads_retain:
        raise ValueError(
            f"You set update_rule={args.update_rule!r}, which weighs the forget gradient against that of the retain "
            'loss, but there is no retain loss. Either set retain_loss="nll" and give a retain set, or set '
            'update_rule="add".'
        )
    held = list(constraints_of(args))
    if len(held) > 1:
        raise ValueError(
            f"You set {' and '.join(held)}, which each hold the weights in a way of their own that the other one would "
            "break. Choose one of them."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"This process sees {args.n_gpu} GPUs and would spread each batch over them (DataParallel), which these "
            "losses do not support. Either start one process a GPU (accelerate launch), or set "
            "CUDA_VISIBLE_DEVICES to one."
        )
    best = args.metric_for_best_model
    if best in ("forget_gap", "eval_forget_gap"):
        if not isinstance(eval_dataset, dict) or not {"forget", "holdout"} <= set(eval_dataset):
            raise ValueError(
                f"You set metric_for_best_model={best!r}, which compares the evaluation sets named "
                '"forget" and "holdout", but they are not both there. Either give both in eval_dataset, or choose '
                "another metric."
            )
        if args.greater_is_better:
            raise ValueError(f"metric_for_best_model={best!r} is best at 0. Set greater_is_better=false.")
    watched = isinstance(eval_dataset, dict) and {"forget", "holdout"} <= set(eval_dataset)
    if not trainer_class.bounded and not (args.stop_when_forgotten and watched and args.eval_strategy != "no"):
        logger.warning(
            f"The forget loss of {name} has no lower bound and nothing stops it short of destroying the model. "
            'Give eval_dataset a "forget" and a "holdout" set, set eval_strategy, and leave stop_when_forgotten on.'
        )
    if ref_model is model:
        raise ValueError("ref_model is the model that will be trained. Leave it out, or give a copy.")


def warn_of_readable_images(trainer, n_forget: int) -> None:
    """Warn where whoever has the model before and after can compute the one image that was forgotten.

    A step of SGD on one image adds a multiple of the image's patches to the embedding of patches, and one of the same
    multiple to that of positions, so that the ratio is the image. A retain loss, another optimizer or frozen embeddings
    leave no such ratio.
    """
    moved = [name for name in trainer.trainable_names if "embeddings" in name]
    both = all(any(part in name for name in moved) for part in ("patch_embeddings", "position_embeddings"))
    if (
        is_image_classifier(trainer.model)
        and both
        and trainer.args.optim == "sgd"
        and n_forget == 1
        and not trainer.args.reads_retain
    ):
        logger.warning(
            "Plain SGD on one image: whoever has the model before and after can compute the image from the embeddings. "
            r"Either freeze these (trainable='(?!.*embeddings\.).*'), or publish only one of the two models."
        )


def check_sharding(trainer, ref_model) -> None:
    """Refuse what cannot work where no process has whole weights or gradients; known once the Trainer is set up."""
    sharded = "DeepSpeed" if trainer.is_deepspeed_enabled else "FSDP" if trainer.is_fsdp_enabled else None
    if sharded is None:
        return
    rule = trainer.args.update_rule
    if rule not in ("add", "subspace") and not trainer.accelerator.is_fsdp2:
        raise ValueError(
            f"You set update_rule={rule!r} under {sharded}, which keeps the gradients to itself, where the rule needs "
            'that of each loss. Either set update_rule="add", or run under DDP or FSDP 2 (fsdp=True).'
        )
    if trainer.constraints:
        raise ValueError(
            f"You set {' and '.join(constraints_of(trainer.args))} under {sharded}, where no process has whole weights to "
            "choose from. Either leave it out, or run under DDP."
        )
    if trainer._reference is not None and ref_model is None and not trainer.accelerator.is_fsdp2:
        raise ValueError(
            f'You set retain_loss="kl" under {sharded}, where the weights of the start cannot be put back for a pass. '
            'Either give ref_model, or set retain_loss="nll".'
        )
