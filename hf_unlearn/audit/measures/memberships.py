"""Membership attacks on the tables: forget set against holdout, under every model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hf_unlearn.audit.measures import membership
from hf_unlearn.audit.measures.classifiers import CLASS_ATTACKS
from hf_unlearn.audit.measures.shadow import lira, logit_confidence, rmia
from hf_unlearn.audit.measures.statistic import MEMBER, Statistic
from hf_unlearn.audit.roles import ROLES, further_retrained
from hf_unlearn.audit.table.scores import Scores


#: One table per set, by the role of the model: `tables["unlearned"]["forget"]`.
Tables = Mapping[str, Mapping[str, Scores]]
#: Membership scores of the forget set `(n,)` and of the holdout `(m,)`.
Pair = tuple[np.ndarray, np.ndarray]

# More references than this add little (Zarifzadeh et al., arXiv 2312.03262).
MOST_REFERENCES = 4
# Half of the holdout is the population of RMIA, so with fewer records neither half says anything.
MIN_HOLDOUT = 20


def membership_findings(tables: Tables) -> dict[Statistic, dict[str, Any]]:
    """The scores of every attack that the tables allow, by model; `None` for a model that an attack cannot be run on."""
    found = {_against_holdout(name): values for name, values in _of_one_model(tables).items()}
    if "retrained" in tables:
        reference = tables["retrained"]
        pairs = _by_role(tables, lambda sets, key: membership.reference_loss(sets[key], reference[key]), "retrained")
        # Against itself the retrained model scores 0 everywhere: an AUC of 0.5 by definition, not by measurement. Where
        # there is another one, of another seed, its AUC is what a model that never saw the forget set gets.
        found[_against_holdout("reference", "membership-ref")] = pairs | {"retrained": pairs.get("retrained_2")}
        if len(reference["holdout"]) >= MIN_HOLDOUT:
            found[_against_holdout("rmia", "membership-ref")] = _rmia(tables)
    if "original" in tables:
        # An adversary who has the original too sees which records became less likely. They do under retraining as well.
        original = tables["original"]
        pairs = _by_role(tables, lambda sets, key: membership.likelihood_drop(original[key], sets[key]), "original")
        found[_against_holdout("likelihood_drop", "two-checkpoint")] = pairs
    return found


def lira_finding(tables: Tables, shadows: Sequence[Scores]) -> dict[Statistic, dict[str, Any]]:
    """LiRA, or U-LiRA: the share of forget records that are likelier under a model that was trained on them.

    The ratio compares models trained on the records (`shadows`, which for U-LiRA were unlearned afterwards) with all
    retrained models except the first, which is attacked for comparison. A ratio above 1 is the decision that errs least
    where both are equally likely beforehand.

    Args:
        tables: of the models, with at least three retrained ones.
        shadows (sequence of [`Scores`]): the forget set under each shadow model, at least two.
    """
    phi = {role: logit_confidence(sets["forget"]) for role, sets in tables.items()}
    phi_in = np.stack([logit_confidence(table) for table in shadows])
    phi_out = np.stack([phi[role] for role in further_retrained(phi)])
    ratios = {role: lira(phi[role], phi_in, phi_out) for role in ROLES if role in phi}
    says_member = {role: np.where(np.isnan(ratio), np.nan, ratio > 0) for role, ratio in ratios.items()}
    return {Statistic("lira_says_member", "forget", MEMBER, "membership-ref", "rate"): says_member}


def _by_role(
    tables: Tables, attack: Callable[[Mapping[str, Scores], str], np.ndarray], left_out: str | None = None
) -> dict[str, Pair]:
    """What an attack says of the forget set and of the holdout, under every model but one."""
    return {
        role: (attack(sets, "forget"), attack(sets, "holdout")) for role, sets in tables.items() if role != left_out
    }


def _of_one_model(tables: Tables) -> dict[str, dict[str, Pair]]:
    """Attacks that need no other model."""
    sets = tables["unlearned"]
    attacks = membership.ATTACKS
    if sets["forget"].of_labels:
        # A label has no text to compress and no least likely part: the other attacks are this one again.
        attacks = {"loss": attacks["loss"]}
        if all(scores.class_log_probs is not None for scores in sets.values()):
            # The confidence is the loss again.
            attacks |= {name: attack for name, attack in CLASS_ATTACKS.items() if name != "confidence"}
    if (frequencies := _token_frequencies(tables)) is not None:
        attacks = attacks | {"dc_pdd": lambda scores: membership.dc_pdd(scores, frequencies)}
    found = {
        name: {role: (attack(sets["forget"]), attack(sets["holdout"])) for role, sets in tables.items()}
        for name, attack in attacks.items()
    }
    if "holdout_lowercase" in sets:
        ratio = membership.lowercase_ratio
        found["lowercase"] = _by_role(tables, lambda sets, key: ratio(sets[key], sets[f"{key}_lowercase"]))
    if "holdout_recall" in sets:
        found["recall"] = _by_role(tables, lambda sets, key: membership.recall(sets[key], sets[f"{key}_recall"]))
        for _, holdout in found["recall"].values():
            # The first records of the holdout are the prefix: what is read twice is easy, trained on or not.
            holdout[: int(sets["holdout_recall"].meta["prefix_rows"])] = np.nan
    return found


def _token_frequencies(tables: Tables) -> np.ndarray | None:
    """How often tokens occur in the retain set, which is like the other sets and is not attacked."""
    sets = tables["unlearned"]
    if sets["forget"].of_labels or not len(sets.get("retain", ())):
        return None
    keys = ("forget", "retain", "holdout")
    if not all(by_set[key].has_target_ids for by_set in tables.values() for key in keys):
        return None  # tables from files
    largest = max(int(sets[key].target_ids.max(initial=0)) for key in keys)
    return membership.token_frequencies(sets["retain"].target_ids, largest + 1)


def _rmia(tables: Tables) -> dict[str, Pair | None]:
    """RMIA with the retrained models except the second as references: the second is attacked in place of the first.

    The first half of the holdout is the population, and has no score.
    """
    roles = [role for role in ("retrained", *further_retrained(tables)) if role != "retrained_2"]
    references = [tables[role] for role in roles[:MOST_REFERENCES]]
    n = len(tables["retrained"]["holdout"])
    population, attacked = slice(0, n // 2), slice(n // 2, n)

    def scores(sets: Mapping[str, Scores]) -> Pair:
        known = [table["holdout"][population].valid for table in (sets, *references)]
        if not np.all(known, axis=0).any():  # logits that are no numbers
            return np.full(len(sets["forget"]), np.nan), np.full(n, np.nan)
        others = sets["holdout"][population], [r["holdout"][population] for r in references]
        holdout = rmia(sets["holdout"][attacked], [r["holdout"][attacked] for r in references], *others)
        forget = rmia(sets["forget"], [r["forget"] for r in references], *others)
        return forget, np.concatenate([np.full(n // 2, np.nan), holdout])

    values: dict[str, Pair | None] = {
        role: scores(tables[role]) for role in ("original", "unlearned") if role in tables
    }
    return values | {"retrained": scores(tables["retrained_2"]) if "retrained_2" in tables else None}


def _against_holdout(attack: str, surface: str = "membership") -> Statistic:
    return Statistic(f"membership_auc_{attack}", "forget against holdout", MEMBER, surface, "auc")
