"""Trains in a world of two under FSDP 2 on the CPU, and saves the whole weights: started by torchrun."""

import os
import sys

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from cases import make_trainer, text_rows
from peft import LoraConfig
from tiny import tiny_tokenizer

from hf_unlearn.cli.checkpoints import save_trained
from hf_unlearn.models.sharding import is_sharded, whole
from hf_unlearn.training import NonFiniteLossError
from hf_unlearn.training.cost import CostCallback
from hf_unlearn.training.updates import Project


# Each with the rule's or the reference's own way through sharded tensors; by name method and arguments.
CASES = {
    "project": ("graddiff", {"update_rule": "project"}),
    "orthogonal": ("graddiff", {"update_rule": "orthogonal"}),
    # Resumed as well, for which torch needs an optimizer that has a state.
    "gru": (
        "graddiff",
        {"update_rule": "gru", "gru_gamma": 0.5, "max_steps": 4, "optim": "adamw_torch", "learning_rate": 1e-3},
    ),
    "gru, tied weights": ("graddiff", {"update_rule": "gru", "model": "gpt2"}),
    "project, images": ("graddiff", {"update_rule": "project", "model": "vit"}),
    "project, part of the weights": ("npo", {"update_rule": "project", "trainable_layers": [1]}),
    "kl": ("graddiff", {"retain_loss": "kl"}),
    "project, kl": ("graddiff", {"update_rule": "project", "retain_loss": "kl", "max_steps": 3}),
    "project, logits of the start": ("undial", {"update_rule": "project"}),
}


def use_cpu_as_accelerator():
    """accelerate shards where it sees accelerators; here two processes on the CPU stand for them."""
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)

    def set_device(self):
        self.device = torch.device("cpu")

    PartialState.set_device = set_device


def sharded_trainer(method, folder, **arguments):
    # What accelerate would wrap by itself in a ViT are two modules of which one holds the other.
    layer = {"transformer_layer_cls_to_wrap": ["ViTLayer"]} if arguments.get("model") == "vit" else None
    trainer = make_trainer(
        method,
        folder,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        use_cpu=False,
        fsdp=True,
        fsdp_config=layer,
        **arguments,
    )
    assert trainer.accelerator.num_processes == 2, "the launch gave one process, not two"
    assert trainer.accelerator.distributed_type == DistributedType.FSDP
    assert trainer.accelerator.is_fsdp2
    return trainer


def whole_weights(trainer):
    state = trainer.model.state_dict()
    assert all(is_sharded(value) for value in state.values()), "the weights are not sharded"
    return {name: whole(value) for name, value in state.items()}


def saved(trainer, folder):
    os.makedirs(folder, exist_ok=True)
    with CostCallback() as cost:
        pass
    save_trained(trainer, tiny_tokenizer(), cost, folder)


class Poisoned(Project):
    """Puts one NaN into the part of the gradient that the second process has."""

    def __call__(self, forget, retain):
        step = super().__call__(forget, retain)
        if torch.distributed.get_rank() == 1:
            step[0].to_local()[0] = torch.nan
        return step


def poisoned(folder):
    trainer = sharded_trainer("graddiff", folder, update_rule="project")
    trainer._rule = Poisoned(trainer.args)
    try:
        trainer.train()
    except NonFiniteLossError as error:
        return str(error)
    return "no error"


def refusals(folder):
    found = []
    for arguments in ({"update_rule": "subspace"}, {"saliency": 0.5}):
        try:
            make_trainer("graddiff", folder, **({"use_cpu": False, "fsdp": True} | arguments))
        except ValueError as error:
            found.append(str(error))
    return found


def main(folder: str):
    use_cpu_as_accelerator()
    results = {"weights": {}}
    for name, (method, arguments) in CASES.items():
        # An evaluation leaves some weights whole, as they were before the next step.
        evaluation = (
            {} if arguments.get("model") == "vit" else {"eval_dataset": text_rows(3), "eval_strategy": "steps"}
        )
        saving = {"save_strategy": "steps", "save_steps": 2} if name == "gru" else {}
        trainer = sharded_trainer(
            method,
            f"{folder}/{name}",
            **arguments,
            **evaluation,
            **saving,
            **({"eval_steps": 1} if evaluation else {}),
        )
        trainer.train()
        results["weights"][name] = whole_weights(trainer)
        if name == "gru, tied weights":
            saved(trainer, f"{folder}/{name}")
        if name == "gru":
            resumed = sharded_trainer(method, f"{folder}/resumed", **arguments)
            resumed.train(resume_from_checkpoint=f"{folder}/{name}/checkpoint-2")
            results["weights"]["gru, resumed"] = whole_weights(resumed)
    results["poisoned"] = [None, None]
    torch.distributed.all_gather_object(results["poisoned"], poisoned(folder))
    results["refusals"] = refusals(folder)
    adapter = LoraConfig(r=2, target_modules="all-linear", init_lora_weights="gaussian")
    trainer = sharded_trainer("graddiff", folder, peft_config=adapter, update_rule="project", retain_loss="kl")
    trainer.train()
    results["adapter"] = whole_weights(trainer)
    saved(trainer, f"{folder}/adapter")
    if trainer.is_world_process_zero():
        results["folder"] = folder
        torch.save(results, f"{folder}/results.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
