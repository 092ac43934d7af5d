"""Trains in a world of two under FSDP2 on the CPU, and saves the whole weights: started by torchrun."""

import sys

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from cases import make_trainer


def use_cpu_as_accelerator():
    """accelerate shards where it sees accelerators; here two processes on the CPU stand for them."""
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)

    def set_device(self):
        self.device = torch.device("cpu")

    PartialState.set_device = set_device


def whole(model):
    return {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in model.state_dict().items()}


def main(folder: str, cases: list[str]):
    use_cpu_as_accelerator()
    results = {}
    for case in cases:
        method, model, rule, retain_loss = case.split("-")
        trainer = make_trainer(
            method,
            f"{folder}/{case}",
            model=model,
            update_rule=rule,
            retain_loss=retain_loss,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            use_cpu=False,
            fsdp=True,
        )
        assert trainer.accelerator.num_processes == 2, "the launch gave one process, not two"
        assert trainer.accelerator.distributed_type == DistributedType.FSDP
        assert trainer.accelerator.is_fsdp2
        trainer.train()
        results[case] = {
            "weights": whole(trainer.model),
            "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        }
    if trainer.is_world_process_zero():
        torch.save(results, f"{folder}/results.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
