"""The attacks of an audit: those of this package, and those of packages that add to it."""

from __future__ import annotations

from collections.abc import Sequence

from hf_unlearn.audit.attacks import (
    answers,
    effort,
    guidance,
    leakage,
    patching,
    probing,
    prompts,
    quantization,
    reconstruction,
    relearning,
    stability,
)
from hf_unlearn.audit.attacks.attack import DECLARED, Attack
from hf_unlearn.plugins import load_plugins


#: In the order of the rows of a report.
MODULES = (
    effort,
    prompts,
    leakage,
    answers,
    probing,
    quantization,
    relearning,
    guidance,
    reconstruction,
    patching,
    stability,
)


def attacks_of(threats: Sequence[str], stability: bool = True) -> list[Attack]:
    """The attacks of these threat models, and with `stability` also those that belong to none.

    Another package adds an attack by an entry point of the group `hf_unlearn.attacks` that names the declaring module.
    """
    load_plugins("hf_unlearn.attacks")
    rank = {module.__name__: i for i, module in enumerate(MODULES)}
    declared = sorted(DECLARED.values(), key=lambda a: rank.get(a.run.__module__, len(rank)))
    return [found for found in declared if (stability if found.threat is None else found.threat in threats)]


def obstacles(model, kind: str, threats: Sequence[str]) -> dict[str, str]:
    """Names of the attacks of these threat models that cannot run on a model, with the reason for each.

    Call it before a training: the audit would leave the surfaces of these attacks `not_tested`.

    Args:
        model (`nn.Module`): only its architecture is checked; it needs no weights.
        kind (`str`): `"text"` or `"image"`.
    """
    asked = {found.name: found.obstacle(model) for found in attacks_of(threats) if kind in found.kinds}
    return {name: reason for name, reason in asked.items() if reason is not None}
