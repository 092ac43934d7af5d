"""Membership attacks on the tables: forget set against holdout, under every model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hf_unlearn.audit.measures import membership
from hf_unlearn.audit.measures.classifiers import CLASS_ATTACKS
from hf_unlearn.audit.measures.shadow import lira, logit_confidence, rmia
from hf_unlearn.audit.measures.statistic import MEMBER, Statistic
from hf_unlearn.audit.table.scores import Scores


#: A table a set, by the role of the model: `tables["unlearned"]["forget"]`.
Tables = Mapping[str, Mapping[str, Scores]]
#: Scores of the forget set `(n,)` and of the holdout `(m,)`.
Pair = tuple[np.ndarray, np.ndarray]

# A label has no text to compress and no least likely part, so the other attacks are this one again, or made for text.
LABEL_ATTACKS = ("loss",)
# More references than this add little (Zarifzadeh et al., arXiv 2312.03262).
MOST_REFERENCES = 4
# Half of the holdout is the population of RMIA, so with fewer records neither half says anything.
MIN_HOLDOUT = 20


def membership_findings(tables: Tables) -> dict[Statistic, dict[str, Any]]:
    """The scores of every attack that the tables allow, by model; `None` for a model that an attack cannot be run on."""
    found = {_against_holdout(name): values for name, values in _of_one_model(tables).items()}
    if "retrained" in tables:
        found[_against_holdout("reference", "membership-ref")] = _reference(tables)
        if len(tables["retrained"]["holdout"]) >= MIN_HOLDOUT:
            found[_against_holdout("rmia", "membership-ref")] = _rmia(tables)
    if "original" in tables:
        found[_against_holdout("likelihood_drop", "two-checkpoint")] = _drop(tables)
    return found


def lira_finding(tables: Tables, shadows: Sequence[Scores]) -> dict[Statistic, dict[str, Any]]:
    """LiRA, or U-LiRA: the share of forget records that are likelier under a model that was trained on them.

    The ratio compares with models trained on the records (`shadows`, which for U-LiRA were unlearned afterwards), and with
    the retrained models but the first, which is the one that is attacked for comparison. A ratio above 1 is the decision
    that errs least where both are equally likely beforehand.

    Args:
        tables: of the models, with at least three retrained ones.
        shadows (sequence of [`Scores`]): the forget set under each shadow model, at least two.
    """
    phi = {role: logit_confidence(sets["forget"]) for role, sets in tables.items()}
    phi_in = np.stack([logit_confidence(table) for table in shadows])
    phi_out = np.stack([values for role, values in phi.items() if role.startswith("retrained_")])

    def says_member(values: np.ndarray) -> np.ndarray:
        ratio = lira(values, phi_in, phi_out)
        return np.where(np.isnan(ratio), np.nan, ratio > 0)

    attacked = {role: says_member(phi[role]) for role in ("original", "unlearned", "retrained") if role in phi}
    return {Statistic("lira_says_member", "forget", MEMBER, "membership-ref", "rate"): attacked}


def _of_one_model(tables: Tables) -> dict[str, dict[str, Pair]]:
    """Attacks that need no other model."""
    sets = tables["unlearned"]
    of_labels = sets["forget"].of_labels
    names = LABEL_ATTACKS if of_labels else tuple(membership.ATTACKS)
    attacks: dict[str, Callable[[Scores], np.ndarray]] = {name: membership.ATTACKS[name] for name in names}
    if of_labels and all(scores.class_log_probs is not None for scores in sets.values()):
        # The confidence is the loss again.
        attacks |= {name: attack for name, attack in CLASS_ATTACKS.items() if name != "confidence"}
    if (frequencies := _token_frequencies(tables)) is not None:
        attacks["dc_pdd"] = lambda scores: membership.dc_pdd(scores, frequencies)
    found = {
        name: {role: (attack(of["forget"]), attack(of["holdout"])) for role, of in tables.items()}
        for name, attack in attacks.items()
    }
    if "holdout_lowercase" in sets:
        found["lowercase"] = {
            role: tuple(membership.lowercase_ratio(of[key], of[f"{key}_lowercase"]) for key in ("forget", "holdout"))
            for role, of in tables.items()
        }
    if "holdout_recall" in sets:
        found["recall"] = {role: _recall(of) for role, of in tables.items()}
    return found


def _recall(of: Mapping[str, Scores]) -> Pair:
    forget, holdout = (membership.recall(of[key], of[f"{key}_recall"]) for key in ("forget", "holdout"))
    # The first records of the holdout are the prefix: what is read twice is easy, trained on or not.
    holdout[: int(of["holdout_recall"].meta["prefix_rows"])] = np.nan
    return forget, holdout


def _token_frequencies(tables: Tables) -> np.ndarray | None:
    """How often tokens occur in the retain set, which is like the others and of which none is attacked."""
    sets = tables["unlearned"]
    if sets["forget"].of_labels or not len(sets.get("retain", ())):
        return None
    if not all(of[key].has_target_ids for of in tables.values() for key in ("forget", "retain", "holdout")):
        return None  # tables from files
    largest = max(int(sets[key].target_ids.max(initial=0)) for key in ("forget", "retain", "holdout"))
    return membership.token_frequencies(sets["retain"].target_ids, largest + 1)


def _reference(tables: Tables) -> dict[str, Pair | None]:
    # Against itself the retrained model scores 0 everywhere: an AUC of 0.5 by definition, not by measurement. Where there
    # is another one, of another seed, its AUC is what a model that never saw the forget set gets.
    reference = tables["retrained"]
    values: dict[str, Pair | None] = {
        role: tuple(membership.reference_loss(of[key], reference[key]) for key in ("forget", "holdout"))
        for role, of in tables.items()
        if role != "retrained"
    }
    return values | {"retrained": values.get("retrained_2")}


def _rmia(tables: Tables) -> dict[str, Pair | None]:
    """RMIA with the retrained models as references, but the second: that one is attacked in place of the first.

    The first half of the holdout is the population, and has no score.
    """
    references = [of for role, of in tables.items() if role.startswith("retrained") and role != "retrained_2"]
    references = references[:MOST_REFERENCES]
    n = len(tables["retrained"]["holdout"])
    population, attacked = slice(0, n // 2), slice(n // 2, n)

    def scores(of: Mapping[str, Scores]) -> Pair:
        known = [table["holdout"][population].valid for table in (of, *references)]
        if not np.all(known, axis=0).any():  # logits that are no numbers
            return np.full(len(of["forget"]), np.nan), np.full(n, np.nan)
        others = of["holdout"][population], [r["holdout"][population] for r in references]
        holdout = rmia(of["holdout"][attacked], [r["holdout"][attacked] for r in references], *others)
        forget = rmia(of["forget"], [r["forget"] for r in references], *others)
        return forget, np.concatenate([np.full(n // 2, np.nan), holdout])

    values: dict[str, Pair | None] = {
        role: scores(tables[role]) for role in ("original", "unlearned", "retrained_2") if role in tables
    }
    return {role: of for role, of in values.items() if role != "retrained_2"} | {
        "retrained": values.get("retrained_2")
    }


def _drop(tables: Tables) -> dict[str, Pair | None]:
    """What whoever has the original too sees: which records became less likely. They do under retraining as well."""
    original = tables["original"]
    return {
        role: tuple(membership.likelihood_drop(original[key], of[key]) for key in ("forget", "holdout"))
        for role, of in tables.items()
        if role != "original"
    }


def _against_holdout(attack: str, surface: str = "membership") -> Statistic:
    return Statistic(f"membership_auc_{attack}", "forget against holdout", MEMBER, surface, "auc")
