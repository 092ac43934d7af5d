"""What a run costs: time, passes through the model, memory, and on request energy.

cost = CostCallback()
trainer = NPOTrainer(..., callbacks=[cost])
with cost:
    trainer.train()
cost.save("cost.json")
"""

from __future__ import annotations

import json
import time
import uuid
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from hf_unlearn.models.processes import gathered
from hf_unlearn.storage.files import write_whole
from hf_unlearn.training.meters import EnergyMeter, cpu_seconds, hardware, peak_memory


_PASSES = ("examples", "tokens", "examples_no_gradient", "tokens_no_gradient", "flops_estimate")
_UPDATES = ("optimizer_updates", "parameter_updates")
_SUMS = ("wall_seconds", "cpu_seconds", "accelerator_hours", *_UPDATES, *_PASSES, "energy_kwh_estimate")
_PEAKS = ("peak_memory_bytes", "peak_accelerator_memory_bytes")
# The name of the cost so far in the state of the trainer, and so in its checkpoints.
_STATE = "hf_unlearn.cost"


class CostCallback(TrainerCallback):
    """Measures what lies in its `with` blocks; without any, what lies between the start and the end of `train()`.

    Blocks add up, so that a block can measure what a method computes in its constructor, or a method that does not train.
    A resumed run goes on from the cost in its checkpoint; steps after that checkpoint are lost. Every process must enter
    and leave the blocks.

    Args:
        energy (`bool`, *optional*, defaults to `False`): estimate the energy with codecarbon (the extra `energy`). It runs
            offline, writes no file and sends nothing.

    Attributes:
        result (`dict`): plain numbers for JSON, of all processes together; **lower = cheaper**, `None` = not known.

            * `wall_seconds`; `cpu_seconds`, user and system; `accelerator_hours`, devices times wall time, 0 on the CPU;
            * `optimizer_updates`; `parameter_updates`, the sum over these of the parameters that could move;
            * `examples`, `tokens`: rows and tokens (padding and the patches of images included) that went through the
              model for a gradient, counted once per pass. `examples_no_gradient`, `tokens_no_gradient`: without one, as in
              an evaluation. Passes through other models (a teacher) are not counted. `None` under `torch.compile`;
            * `flops_estimate`: 2 operations per token and parameter in the forward pass; for a gradient 2 more, and another
              2 per parameter that can move (Kaplan et al., arXiv 2001.08361: 6 in all). Without embeddings and attention
              scores. The Trainer's own `total_flos` takes pixels for tokens, counts frozen weights as trained and leaves
              out evaluations;
            * `peak_memory_bytes`: largest resident memory of one process since it began, loading included;
              `peak_accelerator_memory_bytes`: largest allocation on one device in the blocks;
            * `energy_kwh_estimate`: of the whole machine;
            * `processes`, and `hardware`: a list of the different machines.

    Raises:
        ImportError: `energy=True`, but codecarbon is not installed.
    """

    def __init__(self, energy: bool = False):
        self._meter = EnergyMeter() if energy else None
        self._run = uuid.uuid4().hex
        self._past: dict[str, Any] | None = None  # cost of all processes before the open block
        self._started: tuple[float, float] | None = None
        self._opened_by_train = False
        self._counts: dict[str, float] = {}
        self._device, self._n_devices = torch.device("cpu"), 1
        self._model, self._n_movable, self._forward, self._backward = None, 0, 0, 0
        self._hook, self._is_compiled = None, False

    @property
    def result(self) -> dict[str, Any]:
        if self._past is None:
            raise RuntimeError("No cost was measured yet. Train with this callback, or work in a `with` block of it.")
        return self._past

    def save(self, path: str | Path) -> None:
        """Write `result` as JSON."""
        write_whole(path, json.dumps(self.result, indent=1, sort_keys=True) + "\n")

    def __enter__(self) -> CostCallback:
        if self._started is not None:
            raise RuntimeError("The cost is being measured already. Leave the `with` block before you enter another.")
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._start()
        return self

    def __exit__(self, error_type=None, *_) -> None:
        cost = self._stop()
        self._unhook()
        # After an error the other processes may not be here.
        self._past = total_cost([self._past, cost if error_type is not None else _of_all_processes(cost)])

    def _start(self) -> None:
        self._counts = dict.fromkeys(_UPDATES + _PASSES, 0)
        if self._meter is not None:
            self._meter.start()
        self._started = time.perf_counter(), cpu_seconds()
        self._count_passes()

    def _stop(self) -> dict[str, Any]:
        """The cost of this process since the start."""
        on_cuda = self._device.type == "cuda"
        if on_cuda:
            torch.cuda.synchronize(self._device)
        wall, cpu = time.perf_counter() - self._started[0], cpu_seconds() - self._started[1]
        self._started = None
        return {
            "wall_seconds": wall,
            "cpu_seconds": cpu,
            "accelerator_hours": 0.0 if self._device.type == "cpu" else wall / 3600 * self._n_devices,
            **self._counts,
            "energy_kwh_estimate": None if self._meter is None else self._meter.stop(),
            "peak_memory_bytes": peak_memory(),
            "peak_accelerator_memory_bytes": torch.cuda.max_memory_allocated(self._device) if on_cuda else None,
            "processes": 1,
            "hardware": [hardware(self._device, self._n_devices)],
        }

    # Called by the Trainer

    def on_init_end(self, args, state, control, model=None, **kwargs):
        self._watch(model, args)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._watch(model, args)
        if self._started is None:
            self._opened_by_train = True
            self.__enter__()
        saved = state.stateful_callbacks.get(_STATE) if state.global_step > 0 else None
        if saved is not None and saved["run"] != self._run:
            self._past = total_cost([saved["cost"], self._past])

    def on_step_end(self, args, state, control, **kwargs):
        self._counts["optimizer_updates"] += 1
        self._counts["parameter_updates"] += self._n_movable
        if control.should_save:
            self._keep(state)

    def on_epoch_end(self, args, state, control, **kwargs):
        if control.should_save:
            self._keep(state)

    def on_evaluate(self, args, state, control, **kwargs):
        if self._started is not None and state.global_step > 0:  # the best one so far will be saved
            self._keep(state)

    def on_train_end(self, args, state, control, **kwargs):
        if self._opened_by_train:
            self._opened_by_train = False
            self.__exit__()

    def _keep(self, state) -> None:
        """Put the cost so far into the state of the trainer, before the state is saved."""
        self._past = total_cost([self._past, _of_all_processes(self._stop())])
        state.stateful_callbacks[_STATE] = {"run": self._run, "cost": self._past}
        self._start()

    # Passes through the model

    def _watch(self, model: nn.Module, args) -> None:
        if self._model is None or self._model() is not model:
            self._unhook()
            # Weakly: the cost outlives the model. Sizes are taken before FSDP 1 cuts and flattens the parameters.
            self._model = weakref.ref(model)
            self._n_movable = _size(p for p in model.parameters() if p.requires_grad)
            multiplied = _multiplied(model)
            self._forward = 2 * _size(multiplied)
            self._backward = self._forward + 2 * _size(p for p in multiplied if p.requires_grad)
            self._is_compiled = args.torch_compile
        self._device, self._n_devices = args.device, max(1, args.n_gpu)
        if self._started is not None:
            self._count_passes()

    def _count_passes(self) -> None:
        model = None if self._model is None else self._model()
        if model is None or self._hook is not None:
            return
        if self._is_compiled:  # a hook that counts would be compiled anew at every count
            self._counts |= dict.fromkeys(_PASSES)
            return
        # No bound method: a deep copy of the model would copy this object.
        self._hook = model.register_forward_pre_hook(lambda *call: self._count_pass(*call), with_kwargs=True)

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _count_pass(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._started is None:
            return
        rows, tokens = _rows_and_tokens(model, args, kwargs)
        gradient = torch.is_grad_enabled() and self._n_movable > 0
        suffix = "" if gradient else "_no_gradient"
        self._counts[f"examples{suffix}"] += rows
        self._counts[f"tokens{suffix}"] += tokens
        self._counts["flops_estimate"] += tokens * (self._forward + (self._backward if gradient else 0))


def total_cost(costs: Sequence[dict[str, Any] | None], side_by_side: bool = False) -> dict[str, Any]:
    """The cost of several runs one after the other, such as an edit and its repair, or of processes side by side.

    Sums are `None` where one part is; peaks are maxima. Processes side by side share their wall time and their updates,
    of which the largest counts.

    Args:
        costs (sequence of `dict`): as [`CostCallback.result`]; `None` is left out.
    """
    costs = [cost for cost in costs if cost is not None]
    total: dict[str, Any] = {}
    for name in _SUMS:
        values = [cost[name] for cost in costs]
        shared = side_by_side and name in ("wall_seconds", *_UPDATES)
        total[name] = None if None in values else (max if shared else sum)(values)
    for name in _PEAKS:
        total[name] = max((cost[name] for cost in costs if cost[name] is not None), default=None)
    total["processes"] = (sum if side_by_side else max)(cost["processes"] for cost in costs)
    total["hardware"] = []
    for cost in costs:
        total["hardware"] += [machine for machine in cost["hardware"] if machine not in total["hardware"]]
    return total


def _of_all_processes(cost: dict[str, Any]) -> dict[str, Any]:
    return total_cost(gathered(lambda: cost), side_by_side=True)


def _rows_and_tokens(model: nn.Module, args: tuple, kwargs: dict) -> tuple[int, int]:
    names = ("pixel_values", "inputs_embeds", "input_ids")
    inputs = next((kwargs[name] for name in names if name in kwargs), args[0] if args else None)
    if inputs is None:
        return 0, 0
    if inputs.dim() == 4:  # images: a token for each patch, and one for the class
        patch = getattr(model.config, "patch_size", None) or tuple(inputs.shape[2:])
        height, width = patch if isinstance(patch, (tuple, list)) else (patch, patch)
        return len(inputs), len(inputs) * ((inputs.shape[2] // height) * (inputs.shape[3] // width) + 1)
    return len(inputs), len(inputs) * inputs.shape[1]


def _size(parameters: Iterable[nn.Parameter]) -> int:
    """Number of weights: the whole ones where ZeRO-3 divides them, and two per byte where they are packed in 4 bit."""
    return sum(getattr(p, "ds_numel", p.numel()) * (2 if p.dtype == torch.uint8 else 1) for p in parameters)


def _multiplied(model: nn.Module) -> list[nn.Parameter]:
    """The weights that each token is multiplied with: all but the embeddings, and a head that is tied to one."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None and hasattr(head, "weight"):
        embeddings.discard(id(head.weight))
    return [p for p in model.parameters() if id(p) not in embeddings]
