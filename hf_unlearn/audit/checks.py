"""What `audit()` is asked for, checked before a model is loaded: an error after hours helps nobody."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from hf_unlearn.audit.config import AuditConfig
from hf_unlearn.audit.measures.statistic import Groups
from hf_unlearn.audit.verdicts.surfaces import THREATS
from hf_unlearn.data.rows import FORMATS, format_of, label_of
from hf_unlearn.storage.digest import digest_of_text


#: Sets of rows that an audit knows.
SETS = ("forget", "retain", "holdout", "test", "siblings", "unrelated")
#: What is tested if nothing is said: what is read from likelihoods and answers, which is cheap.
DEFAULT_THREATS = ("extraction", "membership")
# The share of the holdout that may have been trained on without making it useless.
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
    check_threats(threats, ("original",))  # whether there is an original is checked with the other models
    return threats


def sets_of(split) -> dict[str, Any]:
    """Sets of rows by their name, from a dictionary or an object with attributes of these names; `None` is left out.

    Raises:
        ValueError: there is no forget set, a name is not known, or a set is nothing that has a length and positions.
    """
    if isinstance(split, Mapping):
        unknown = [name for name in split if name not in SETS]
        if unknown:
            raise ValueError(
                f"There is no set {', '.join(map(repr, unknown))} in an audit. The sets are {', '.join(SETS)}. Either "
                "rename it, or leave it out."
            )
        given = split
    else:
        given = {name: getattr(split, name, None) for name in SETS}
        if all(rows is None for rows in given.values()) and split is not None:
            raise ValueError(
                f"You gave a {type(split).__name__} as split, and it is not known which rows these are. Give "
                "{'forget': rows, 'retain': ..., 'holdout': ...}, or split(rows, request)."
            )
    sets = {name: rows for name, rows in given.items() if rows is not None}
    for name, rows in sets.items():
        if isinstance(rows, (str, Mapping)) or not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
            raise ValueError(
                f"The {name} set is a {type(rows).__name__}, but an audit reads rows more than once and by position. Give "
                "a list of rows or a Dataset (not streamed)."
            )
    if not len(sets.get("forget", ())):
        raise ValueError(
            "There is no forget set to audit. Give split=split(rows, request), or a dictionary with its rows under 'forget'."
        )
    return sets


def check_threats(threats: Sequence[str], models: Sequence[str]) -> None:
    """Find out before hours of work that a threat model is not known, or lacks a model.

    Raises:
        ValueError: with the cause and what to do.
    """
    for threat in threats:
        if threat not in THREATS:
            raise ValueError(f"There is no threat model {threat!r}. There are {', '.join(THREATS)}.")
    if "both_checkpoints" in threats and "original" not in models:
        raise ValueError(
            'You chose the threat model "both_checkpoints", in which an adversary has the original too, but gave no '
            "original. Either give it, or leave the threat model out."
        )


def check_request(
    models: Mapping[str, Any],
    sets: Mapping[str, Any],
    threats: Sequence[str],
    config: AuditConfig,
    groups=None,
) -> list[str]:
    """Find out before hours of work that an audit cannot run, or could not mean what it says.

    Args:
        models (`dict`): objects or names by role, as `Models.given`.
        sets (`dict`): rows by name, from [`sets_of`].
        threats (sequence of `str`): from [`threats_of`].
        config ([`AuditConfig`]): how much of what is tried.
        groups (*optional*): as for `audit`.

    Returns:
        `list[str]`: what a reader of the report must know of the request.

    Raises:
        ValueError: with the cause and what to do. No message has the content of a row.
    """
    _check_config(config)
    check_threats(threats, list(models))
    _check_retrained(models)
    _check_shadows(models)
    _check_groups(groups, sets)
    _check_relearning(threats, sets, Groups.of(groups, 0))
    return _check_shared_rows(sets)


def _check_config(config: AuditConfig) -> None:
    from hf_unlearn.audit.attacks.quantization import WEIGHT_ATTACKS

    if not isinstance(config, AuditConfig):
        raise ValueError(
            f"You gave a {type(config).__name__} as config. Give an AuditConfig, as in AuditConfig(max_rows=50)."
        )
    for name in _AT_LEAST_ONE:
        if getattr(config, name) < 1:
            raise ValueError(f"You set {name}={getattr(config, name)}, but it must be at least 1.")
    unknown = [name for name in config.weight_attacks if name not in WEIGHT_ATTACKS]
    if isinstance(config.weight_attacks, str) or unknown:
        unknown = config.weight_attacks if isinstance(config.weight_attacks, str) else ", ".join(map(repr, unknown))
        raise ValueError(
            f"You set weight_attacks to {unknown}. Give a list of the attacks that there are: {', '.join(WEIGHT_ATTACKS)}."
        )


def _check_retrained(models: Mapping[str, Any]) -> None:
    retrained = {role: model for role, model in models.items() if role.startswith("retrained")}
    for (first, a), (second, b) in combinations(retrained.items(), 2):
        if a is b or (isinstance(a, str) and isinstance(b, str) and _place(a) == _place(b)):
            raise ValueError(
                f"The models {first} and {second} are the same one. Several retrained models show how far other seeds "
                "differ, and the same twice would show no difference. Either give one of another seed, or leave it out."
            )


def _check_shadows(models: Mapping[str, Any]) -> None:
    shadows, others = (sum(role.startswith(prefix) for role in models) for prefix in ("shadow_", "retrained_"))
    if shadows and min(shadows, others) < 2:
        raise ValueError(
            f"LiRA compares the spread of models trained on the forget set with that of models that were not, but you gave "
            f"{shadows} shadows and {others} retrained models beside the first. Either give at least two of each, or leave "
            "the shadows out."
        )


def _place(name: str) -> str:
    """A folder by its full path, whatever it was called; a Hub id as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


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
        n = len(sets.get(name, ()))
        if labels is not None:
            _check_labels(list(labels), n, name)


def _check_labels(labels: list, n: int, name: str) -> None:
    if len(labels) != n:
        raise ValueError(
            f"You gave {len(labels)} groups for {n} rows of the {name} set. Give one label a row, in the same order."
        )
    missing = sum(label is None or label != label for label in labels)  # NaN is not itself
    if missing:
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
    """Rows of the forget set that other sets have too: a note, and many of them in the holdout an error."""
    others = {name: sets[name] for name in ("holdout", "retain") if len(sets.get(name, ()))}
    if not others:
        return []
    forget = _contents(sets["forget"])
    shared = {name: sum((forget & _contents(rows)).values()) for name, rows in others.items()}
    notes = []
    if n := shared.get("holdout"):
        said = f"{n} {'rows are' if n > 1 else 'row is'} in the forget set and in the holdout. The holdout must hold rows never "
        said += "trained on. Take what was trained on out of it."
        # Benchmarks have a few duplicates of their own.
        if n > FEW * len(sets["holdout"]):
            raise ValueError(said)
        notes.append(said)
    if n := shared.get("retain"):
        notes.append(
            f"{n} {'rows' if n > 1 else 'row'} of the forget set can be found in the retain set as well. A model trained on "
            "the retain set has seen this content, so that nothing is shown about it."
        )
    return notes


def _contents(rows: Sequence) -> Counter:
    """How often each content occurs."""
    from datasets import Dataset, Image

    from hf_unlearn.data.images import has_images

    if has_images(rows) and isinstance(rows, Dataset):  # their bytes say enough, and are read without being decoded
        rows = rows.cast_column("image", Image(decode=False))
    return Counter(digest for digest in map(_digest, rows) if digest is not None)


def _digest(row) -> bytes | None:
    """A hash of what a model is trained on; `None` where there is nothing to compare."""
    row = {"text": row} if isinstance(row, str) else row
    kind = format_of(row)
    if kind is None:
        return None
    contents = [row[column] for column in FORMATS[kind]]
    if kind in ("pixels", "image"):
        return digest_of_text("image", _pixels(*contents), label_of(row))
    if kind == "ids":
        contents = np.asarray(contents).tolist()
    if kind == "messages":
        contents = [[(message.get("role"), message.get("content")) for message in row["messages"]]]
    return digest_of_text(kind, *contents)


def _pixels(image) -> str:
    """A hash of the pixels; of an image that is not decoded, of its file."""
    if isinstance(image, Mapping):
        content = image.get("bytes") or Path(image["path"]).read_bytes()
        return hashlib.blake2b(content).hexdigest()
    pixels = np.ascontiguousarray(image)
    return hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
