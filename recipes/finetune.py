"""Fine-tune a model: a target that has learned its data, or a reference that never saw a part of it.

    accelerate launch recipes/finetune.py --config recipes/registry/finetune.yaml
    accelerate launch recipes/finetune.py --config recipes/registry/finetune.yaml \\
        --request runs/registry/data/requests/person.json --output_dir runs/registry/retrained

With `request`, the forget rows are left out and everything else stays the same: the retrained model of the audit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_unlearn.cli.arguments import DataArguments, load_data, load_request, split_data
from hf_unlearn.cli.checkpoints import (
    load_model,
    load_processing_class,
    require_models,
    require_writable,
    save_trained,
)
from hf_unlearn.cli.model_arguments import ModelArguments
from hf_unlearn.data import AugmentedRows, ImageRows, UnlearningCollator, encode_dataset
from hf_unlearn.data.text import context_length, limits_of
from hf_unlearn.models.likelihood import is_image_classifier
from hf_unlearn.training.cost import CostCallback
from hf_unlearn.training.where import attach_adapter


@dataclass
class FinetuneArguments(DataArguments):
    """What to learn, and how it is shown."""

    augment: bool = field(default=False, metadata={"help": "Shift and flip images at random (4 pixels at most)."})


def main():
    # Not before hf_unlearn, which keeps a warning about 4-bit kernels from who does not quantize.
    from transformers import Trainer, TrainingArguments
    from trl import TrlParser, get_peft_config

    parser = TrlParser((FinetuneArguments, TrainingArguments, ModelArguments))
    data_args, args, model_args = parser.parse_args_and_config()
    require_writable(args.output_dir, model_args.model_name_or_path)
    require_models(model_args)
    data = load_data(data_args)
    rows = data["train"]
    if data_args.request is not None:
        rows = split_data(data, load_request(data_args.request), data_args.duplicates).retain

    processing_class = load_processing_class(model_args)
    model = load_model(model_args)
    limits = limits_of(model.config, is_image_classifier(model))
    encoded = encode_dataset(rows, processing_class, context_length(model), name="training set", **limits)
    if data_args.augment:
        if not isinstance(encoded, ImageRows):
            raise ValueError(
                "You set augment=True, which shifts and flips images, but the rows are text. Leave it off."
            )
        encoded = AugmentedRows(encoded, args.seed if args.data_seed is None else args.data_seed)
    checkpointing = bool(getattr(args, "activation_checkpointing", False) or args.gradient_checkpointing)
    model = attach_adapter(model, get_peft_config(model_args), checkpointing)
    args.remove_unused_columns = False
    cost = CostCallback()
    trainer = Trainer(
        model,
        args,
        train_dataset=encoded,
        data_collator=UnlearningCollator(getattr(processing_class, "pad_token_id", None)),
        processing_class=processing_class,
        callbacks=[cost],
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    save_trained(trainer, processing_class, cost, args.output_dir)


if __name__ == "__main__":
    main()
