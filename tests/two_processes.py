"""Trains every method in this process's share of a world of two, and saves the weights: started by torchrun."""

import os
import sys

import torch
from cases import TRAINING_FREE, WITH_RULES, make_trainer, text_rows, weights
from peft import LoraConfig
from tiny import tiny_tokenizer

from hf_unlearn.cli.checkpoints import save_trained
from hf_unlearn.models.load import load_model
from hf_unlearn.training.cost import CostCallback


def logits_of(model):
    with torch.no_grad():
        return model.eval()(torch.arange(5, 15)[None]).logits


def main(folder: str):
    results = {}
    for method, rule in [*WITH_RULES, *((method, "add") for method in TRAINING_FREE)]:
        trainer = make_trainer(
            method,
            f"{folder}/{method}",
            update_rule=rule,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            ddp_find_unused_parameters=False,
            eval_dataset={"forget": text_rows(8), "holdout": text_rows(7, offset=200)},
        )
        assert trainer.accelerator.num_processes == 2, "the launch gave one process, not two"
        trainer.train()
        metrics = trainer.evaluate()
        results[f"{method}-{rule}"] = {
            "weights": weights(trainer.accelerator.unwrap_model(trainer.model)),
            "logs": [log for log in trainer.state.log_history if "loss" in log],
            "eval": {key: metrics[key] for key in ("eval_forget_loss", "eval_holdout_loss", "eval_forget_gap")},
        }
    for name, adapter in {"whole": None, "adapter": LoraConfig(r=2, target_modules="all-linear")}.items():
        saved = f"{folder}/saved {name}"
        cost = CostCallback()
        trainer = make_trainer("graddiff", saved, per_device_train_batch_size=2, peft_config=adapter, callbacks=[cost])
        trainer.train()
        logits = logits_of(trainer.accelerator.unwrap_model(trainer.model))
        os.makedirs(saved, exist_ok=True)
        loaded = load_model(save_trained(trainer, tiny_tokenizer(), cost, saved), dtype="auto")  # in each
        torch.testing.assert_close(logits_of(loaded), logits)
    if trainer.is_world_process_zero():
        torch.save(results, f"{folder}/results.pt")


if __name__ == "__main__":
    main(sys.argv[1])
