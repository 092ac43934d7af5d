"""Checks of what `audit()` is asked for, made before a model is loaded and not after hours of work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from hf_unlearn.audit.config import AuditConfig
from hf_unlearn.audit.measures.statistic import Groups
from hf_unlearn.audit.verdicts.surfaces import THREATS
from hf_unlearn.data.content import content_digests
from hf_unlearn.data.rows import require_rows


#: Names of the sets of rows that an audit reads.
SETS = ("forget", "retain", "holdout", "test", "siblings", "unrelated")
#: The threat models by default: those that read likelihoods and answers, which is cheap.
DEFAULT_THREATS = ("extraction", "membership")
# At most this share of the holdout may be in the forget set as well: benchmarks have a few duplicates of their own.
FEW = 0.01
_AT_LEAST_ONE = ("batch_size", "max_rows", "max_new_tokens", "relearning_batch_size", "n_samples")


def threats_of(threat_model: Sequence[str] | str) -> tuple[str, ...]:
    """The threat models by name, from one, several or `"all"`; each once.

    Raises:
        ValueError: there is none, or one is not known.
    """
    threats = tuple(dict.fromkeys([threat_model] if isinstance(threat_model, str) else threat_model))
    if not threats:
        raise ValueError(f"You chose no threat model, so nothing would be tested. There are {', '.join(THREATS)}.")
    if "all" in threats:
        return THREATS
    if unknown := [threat for threat in threats if threat not in THREATS]:
        raise ValueError(f"There is no threat model {unknown[0]!r}. There are {', '.join(THREATS)}.")
    return threats


def sets_of(split) -> dict[str, Any]:
    """Sets of rows by their name, from a dictionary or an object with attributes of these names; `None` is left out.

    Raises:
        ValueError: there is no forget set, a name is not known, or a set has no length and positions.
    """
    given = split if isinstance(split, Mapping) else {name: getattr(split, name, None) for name in SETS}
    if unknown := [name for name in given if name not in SETS]:
        raise ValueError(
            f"There is no set {', '.join(map(repr, unknown))} in an audit. The sets are {', '.join(SETS)}. Either rename it, "
            "or leave it out."
        )
    sets = {name: rows for name, rows in given.items() if rows is not None}
    if not sets and split is not None:
        raise ValueError(
            f"You gave a {type(split).__name__} as split, which does not say what its rows are for. Give {{'forget': rows, "
            "'retain': ..., 'holdout': ...}, or split(rows, request)."
        )
    for name, rows in sets.items():
        require_rows(rows, f"{name} set")
    if not len(sets.get("forget", ())):
        raise ValueError(
            "There is no forget set to audit. Give split=split(rows, request), or a dictionary with its rows under 'forget'."
        )
    return sets


def check_request(
    models: Mapping[str, Any],
    sets: Mapping[str, Any],
    threats: Sequence[str],
    config: AuditConfig,
    groups=None,
) -> list[str]:
    """Find out before hours of work that an audit cannot run, or that its result would be misleading.

    Args:
        models (`dict`): objects or names by role, as `Models.given`.
        sets (`dict`): rows by name, from [`sets_of`].
        threats (sequence of `str`): from [`threats_of`].
        config ([`AuditConfig`]): how much is tried.
        groups (*optional*): as for [`audit`].

    Returns:
        `list[str]`: what a reader of the report must know of the request.

    Raises:
        ValueError: with the cause and the remedy. No message quotes a row.
    """
    _check_config(config)
    _check_models(models, threats)
    _check_groups(groups, sets)
    _check_relearning(threats, sets, Groups.of(groups, 0))
    return _check_shared_rows(sets)


def _check_config(config: AuditConfig) -> None:
    from hf_unlearn.audit.attacks.quantization import WEIGHT_ATTACKS

    if not isinstance(config, AuditConfig):
        raise ValueError(f"You gave a {type(config).__name__} as config. Give one such as AuditConfig(max_rows=50).")
    for name in _AT_LEAST_ONE:
        if getattr(config, name) < 1:
            raise ValueError(f"You set {name}={getattr(config, name)}, but it must be at least 1.")
    attacks = config.weight_attacks
    unknown = [attacks] if isinstance(attacks, str) else [name for name in attacks if name not in WEIGHT_ATTACKS]
    if unknown:
        raise ValueError(
            f"You set weight_attacks to {', '.join(map(repr, unknown))}. Give a list of the attacks that there are: "
            f"{', '.join(WEIGHT_ATTACKS)}."
        )


def _check_models(models: Mapping[str, Any], threats: Sequence[str]) -> None:
    if "both_checkpoints" in threats and "original" not in models:
        raise ValueError(
            'You chose the threat model "both_checkpoints", in which an adversary has the original too, but gave no '
            "original. Either give it, or leave the threat model out."
        )
    retrained = {role: _place(model) for role, model in models.items() if role.startswith("retrained")}
    for (first, a), (second, b) in combinations(retrained.items(), 2):
        if a is b or (isinstance(a, str) and a == b):
            raise ValueError(
                f"The models {first} and {second} are the same one. Several retrained models show how much seeds differ, and "
                "the same model twice would show no difference. Either give one of another seed, or leave it out."
            )
    shadows, others = (sum(role.startswith(prefix) for role in models) for prefix in ("shadow_", "retrained_"))
    if shadows and min(shadows, others) < 2:
        raise ValueError(
            f"LiRA compares the spread of models trained on the forget set with that of models that were not, but you gave "
            f"{shadows} shadows and {others} retrained models beside the first. Either give at least two of each, or leave "
            "the shadows out."
        )


def _place(model):
    """A folder by its full path, however it was written; a Hub id or an object as it is."""
    return str(Path(model).resolve()) if isinstance(model, str) and Path(model).exists() else model


def _check_groups(groups, sets: Mapping[str, Any]) -> None:
    if groups is None:
        return
    by_set = groups if isinstance(groups, Mapping) else {"forget": groups}
    if not {"forget"} <= set(by_set) <= {"forget", "holdout"}:
        raise ValueError(
            f"You gave groups of {', '.join(by_set)}. Give a label for each row of the forget set, or a dictionary of "
            "labels for 'forget' and 'holdout'."
        )
    for name, labels in by_set.items():
        labels, n = labels if labels is None else list(labels), len(sets.get(name, ()))
        if labels is not None and len(labels) != n:
            raise ValueError(
                f"You gave {len(labels)} groups for {n} rows of the {name} set. Give one label per row, in the same order."
            )
        if any(isinstance(label, (list, tuple, set, Mapping)) for label in labels or ()):
            raise ValueError(
                f"The groups of the {name} set are lists or objects. Give one text or number per row, the same for all rows "
                "about one person."
            )
        if missing := sum(label is None or label != label for label in labels or ()):  # NaN is not itself
            raise ValueError(
                f"{missing} of the {n} rows of the {name} set have no group. Either give each its own label, or leave the "
                "groups out."
            )


def _check_relearning(threats: Sequence[str], sets: Mapping[str, Any], groups: Groups | None) -> None:
    if "relearning" not in threats or any(len(sets.get(name, ())) for name in ("retain", "unrelated")):
        return
    parts = len(sets["forget"]) if groups is None else len(set(groups.forget))
    if parts < 2:
        raise ValueError(
            'You chose the threat model "relearning", but there is nothing to train on: no retain set, no unrelated rows, and '
            f"{parts} forget {'row' if groups is None else 'group'}, which cannot be halved. Either give a retain set, or "
            "leave the threat model out."
        )


def _check_shared_rows(sets: Mapping[str, Any]) -> list[str]:
    """Notes on rows of the forget set that other sets have too; an error where many are in the holdout."""
    notes = []
    if len(sets.get("holdout", ())):
        notes += never_trained_on(sets["forget"], "holdout", sets["holdout"])
    if len(sets.get("retain", ())) and (n := _n_shared(sets["forget"], "retain set", sets["retain"])):
        notes.append(
            f"{n} {'rows' if n > 1 else 'row'} of the forget set can be found in the retain set as well. A model trained on "
            "the retain set has seen this content, so the comparison with it shows nothing about these rows."
        )
    return notes


def never_trained_on(forget: Sequence, name: str, rows: Sequence) -> list[str]:
    """A note where a few rows of a set that must not have been trained on are copies of forget rows.

    Args:
        name (`str`): what the rows are.

    Raises:
        ValueError: more than one of a hundred rows are.
    """
    n = _n_shared(forget, name, rows)
    says = (
        f"{n} {'rows are' if n > 1 else 'row is'} in the forget set and in the {name}. The {name} must hold rows never trained "
        "on. Take what was trained on out of it."
    )
    if n > FEW * len(rows):
        raise ValueError(says)
    return [says] if n else []


def _n_shared(forget: Sequence, name: str, rows: Sequence) -> int:
    """How many forget rows have a copy among the rows, each of which is the copy of one."""
    contents = (Counter(content_digests(forget, "forget set")), Counter(content_digests(rows, name)))
    return sum((n for digest, n in (contents[0] & contents[1]).items() if digest is not None))
