"""Fine-tune a causal language model: a target that has learned its data, or a reference that never saw a part of it.

    accelerate launch recipes/finetune.py --config recipes/registry/finetune.yaml
    accelerate launch recipes/finetune.py --config recipes/registry/finetune.yaml \\
        --request runs/registry/data/requests/person.json --output_dir runs/registry/retrained

With `request`, the forget rows are left out and everything else stays the same: the retrained model of the audit.
"""

from __future__ import annotations

from arguments import (
    DataArguments,
    load_data,
    load_model,
    load_request,
    load_tokenizer,
    require_models,
    require_writable,
    save_plain,
    split_data,
)
from transformers import Trainer, TrainingArguments
from trl import ModelConfig, TrlParser, get_peft_config

from hf_unlearn.data import UnlearningCollator, encode_dataset
from hf_unlearn.data.text import context_length


def main():
    data_args, args, model_args = TrlParser((DataArguments, TrainingArguments, ModelConfig)).parse_args_and_config()
    require_writable(args.output_dir, model_args.model_name_or_path)
    require_models(model_args)
    data = load_data(data_args)
    rows = data["train"]
    if data_args.request is not None:
        rows = split_data(data, load_request(data_args.request)).retain

    tokenizer = load_tokenizer(model_args)
    model = load_model(model_args)
    if model_args.use_peft:
        from peft import get_peft_model

        model = get_peft_model(model, get_peft_config(model_args))
    args.remove_unused_columns = False
    trainer = Trainer(
        model,
        args,
        train_dataset=encode_dataset(rows, tokenizer, context_length(model), name="training set"),
        data_collator=UnlearningCollator(tokenizer.pad_token_id),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        save_plain(trainer.accelerator.unwrap_model(trainer.model), tokenizer, f"{args.output_dir}/model")


if __name__ == "__main__":
    main()
