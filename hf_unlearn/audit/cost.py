"""The cost of an erasure compared with the cost of retraining."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


#: What a run did: the same on every machine.
WORK = (
    "optimizer_updates",
    "parameter_updates",
    "examples",
    "tokens",
    "examples_no_gradient",
    "tokens_no_gradient",
    "flops_estimate",
)
#: What the run took of its machine.
MACHINE = (
    "wall_seconds",
    "cpu_seconds",
    "accelerator_hours",
    "peak_memory_bytes",
    "peak_accelerator_memory_bytes",
    "energy_kwh_estimate",
)


def cost_ratios(cost: Mapping[str, Any], retraining: Mapping[str, Any]) -> dict[str, Any]:
    """Each part of a cost over the same part of the cost of retraining: **lower = cheaper**, 1 = as much as retraining.

    Args:
        cost, retraining (`dict`): the `result` of a [`~hf_unlearn.training.cost.CostCallback`] each, or its file.

    Returns:
        `dict` for JSON: `ratios`, by part, `None` where a part is not known or retraining had none of it; and `notes`, which
        must be read with them. Times, memory and energy of unlike machines can't be compared, and then a note says so.
    """
    ratios, notes = dict.fromkeys((*WORK, *MACHINE)), []
    for name in ratios:
        if cost.get(name) is not None and retraining.get(name):
            ratios[name] = cost[name] / retraining[name]
    ours, theirs = (_machines(side) for side in (cost, retraining))
    if not ours or not theirs:
        notes.append("It is not known what one of the runs ran on, so time, memory and energy may not be comparable.")
    elif ours != theirs:
        notes.append(
            f"The runs were on unlike hardware ({'; '.join(ours)} against retraining on {'; '.join(theirs)}). The ratios of "
            "time, memory and energy compare machines as well as methods. Those of updates, examples, tokens and "
            "operations do not depend on the machine."
        )
    if cost.get("processes") != retraining.get("processes"):
        notes.append(
            f"The runs had {cost.get('processes')} and {retraining.get('processes')} processes, among which wall time and "
            "memory are divided."
        )
    if ratios["flops_estimate"] is not None:
        notes.append("Operations are estimated from the number of tokens and parameters.")
    if ratios["energy_kwh_estimate"] is not None:
        notes.append("Energy is an estimate, of the whole machine.")
    return {"ratios": ratios, "notes": notes}


def _machines(cost: Mapping[str, Any]) -> list[str]:
    """The machines of a run, in words."""
    found = []
    for machine in cost.get("hardware", ()):
        words = f"{machine['cpu']}, {machine['threads']} threads"
        if machine["accelerator"]:
            words += f", {machine['accelerators']} x {machine['accelerator']}"
        found.append(words)
    return sorted(found)
