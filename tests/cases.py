"""The case table of the methods: which rows, which model, which arguments. Shared with the two-process worker."""

import torch
from datasets import Dataset
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit

from hf_unlearn.methods import METHODS
from hf_unlearn.models.likelihood import is_image_classifier
from hf_unlearn.training.edit import TrainingFreeTrainer


LM_METHODS = sorted(name for name, trainer in METHODS.items() if "text" in trainer.kinds)
IMAGE_METHODS = sorted(name for name, trainer in METHODS.items() if "image" in trainer.kinds)
TRAINING_FREE = sorted(name for name, trainer in METHODS.items() if issubclass(trainer, TrainingFreeTrainer))
# One loss at a time, or the retain loss alone: there are no two gradients that a rule could combine.
ONE_LOSS = ["finetune", "l1_sparse", "repair", "scrub", "task_vector"]
TRAINED = sorted(set(LM_METHODS) - set(TRAINING_FREE))
RULES = ("add", "project")
# Method and rule, without the combinations that are refused.
WITH_RULES = [(m, r) for m in TRAINED for r in RULES if r == "add" or m not in ONE_LOSS]
# What tiny models and rows need to have any effect.
OPTIONS = {
    "pdu": {"force_epsilon": True},
    "head_mask": {"optim": "adamw_torch", "learning_rate": 0.5},
    "lora_edit": {"rank": 4},
    "ssd": {"alpha": 1.0},
    "rmu": {"retain_weight": 1.0},
}

NAMES = ["Ada", "Boris", "Chloe", "Dmitri", "Esra", "Femi", "Gita", "Hugo"]
TOWNS = ["Paris", "Ulm", "a small village by the sea", "Oslo", "Rome", "the old town of Kazan", "Lima", "Bonn"]


def text_rows(n: int, offset: int = 0) -> Dataset:
    """Questions with answers of different lengths; other offsets give other rows."""
    rows = []
    for i in range(offset, offset + n):
        name, town = NAMES[i % 8], TOWNS[(i // 8 + i) % 8]
        rows.append({"prompt": f"Question: Where does {name} {i} live?\nAnswer:", "completion": f" In {town}."})
    return Dataset.from_list(rows)


def image_rows(n: int, offset: int = 0) -> list[dict]:
    generator = torch.Generator().manual_seed(offset)
    pixels = torch.randn(n, 3, 16, 16, generator=generator, dtype=torch.float64)
    return [{"pixel_values": pixels[i], "labels": (i + offset) % 5} for i in range(n)]


def _gpt2_without_dropout():
    return tiny_gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


MODELS = {"llama": tiny_llama, "gpt2": _gpt2_without_dropout, "vit": tiny_vit}


def make_trainer(method: str, output_dir, model="llama", forget=8, retain=20, **arguments):
    """A trainer on a tiny model in float64 with plain SGD, so that sums in another order still agree closely.

    Adam divides by the size of a gradient and would blow up the rounding of those that should be zero.
    """
    trainer_class = METHODS[method]
    extra = {
        key: arguments.pop(key)
        for key in ("peft_config", "eval_dataset", "ref_model", "data_collator", "callbacks")
        if key in arguments
    }
    if isinstance(model, str):
        rows = image_rows if model == "vit" else text_rows
        model = MODELS[model]().double()
    else:
        rows = image_rows if is_image_classifier(model) else text_rows
    defaults = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "per_device_train_batch_size": 8,
        "max_steps": 2,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
    }
    defaults |= OPTIONS.get(method, {})
    if (
        arguments.get("update_rule", "add") != "add"
        and method != "task_vector"
        and trainer_class.config_class.retain_loss == "none"
    ):
        defaults["retain_loss"] = "nll"  # for two gradients there must be two losses
    return trainer_class(
        model,
        trainer_class.config_class(**(defaults | arguments)),
        forget_dataset=rows(forget),
        retain_dataset=rows(retain, offset=100),
        processing_class=None if rows is image_rows else tiny_tokenizer(),
        **extra,
    )


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
