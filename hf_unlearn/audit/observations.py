"""What an audit says about itself: whether its sets and models can be compared, and what the edit did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_unlearn.audit.measures import membership
from hf_unlearn.audit.measures.extraction import exact_memorization
from hf_unlearn.audit.measures.membership import too_short
from hf_unlearn.audit.measures.memberships import Tables
from hf_unlearn.audit.measures.score_sets import CHANGED_FROM
from hf_unlearn.audit.measures.statistic import Groups, Statistic
from hf_unlearn.audit.roles import further_retrained
from hf_unlearn.audit.verdicts.verdict import Verdict, reference_warning
from hf_unlearn.audit.verdicts.worst_records import worst_records
from hf_unlearn.data.rows import content_of
from hf_unlearn.statistics.estimate import known_mean
from hf_unlearn.statistics.exchangeability import blind_baseline


WORST = 10
# The statistic that shows which of the kept records an edit exposes.
EXPOSED = ("answer_probability", "retain")
# A model that keeps less than this share of its accuracy on the retain set is called damaged.
KEPT = 0.9


def baseline_of(sets: Mapping[str, Any], seed: int, groups: Groups | None = None):
    """Whether forget set and holdout can be told apart without any model; `None` where one of them is missing."""
    if not len(sets.get("forget", ())) or not len(sets.get("holdout", ())):
        return None
    labels = None if groups is None else (groups.forget, groups.holdout)
    return blind_baseline(sets["forget"], sets["holdout"], groups=labels, seed=seed, content=content_of)


def checks_of(baseline, verdicts: Sequence[Verdict], tables: Tables) -> list[dict[str, Any]]:
    """The checks of an audit: `check` is the name, and what `says` something `warns` readers."""
    checks = []
    if baseline is not None:
        checks.append({"check": "blind_baseline", **baseline.as_dict(), "warns": False})
        if baseline.shift is True:
            checks[0] |= _warning(
                "blind_baseline",
                "Forget set and holdout differ in kind: a classifier that never saw a model tells them apart. An attack that "
                "compares them may find this difference and not what was trained on, so only the comparison with the "
                "retrained model counts.",
            )
    if reference_warning(verdicts) is not None:
        checks.append(
            _warning(
                "reference_saw_forget_set",
                "The retrained model looks as if it had been trained on the forget set, so a comparison with it shows nothing. "
                "Train it without these rows, and audit again.",
            )
        )
    missing = {
        f"{role}, {name}": int((~scores.valid).sum())
        for role, table in tables.items()
        for name, scores in table.items()
        if not scores.valid.all() and CHANGED_FROM not in scores.meta
    }
    if missing:
        counted = ", ".join(f"{n} of the {name}" for name, n in missing.items())
        says = f"Some examples could not be scored (no target, or logits that are not numbers): {counted}. Every number leaves "
        checks.append(_warning("not_scored", f"{says}them out and says how many are missing.", counts=missing))
    sets = tables["unlearned"]
    if not sets["forget"].of_labels:  # labels have no Min-K
        counts = {name: int(too_short(sets[name]).sum()) for name in ("forget", "holdout") if name in sets}
        if any(counts.values()):
            counted = ", ".join(f"{n} of the {name} set" for name, n in counts.items())
            says = f"Some texts have fewer than five tokens to score ({counted}). For these, Min-K and Min-K++ read the least "
            says += "likely token alone, which is a larger share than the 20 % of the others."
            checks.append(_warning("too_short_for_min_k", says, counts=counts))
    return checks


def _warning(check: str, says: str, **facts) -> dict[str, Any]:
    return {"check": check, "warns": True, "says": says, **facts}


def worst_of(values: Mapping[Statistic, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Positions of the records that show most compared with the retrained model, since averages hide single leaks.

    Records of the retain set are listed too: an edit exposes some of those that are kept.
    """
    found = []
    for statistic, by_role in values.items():
        unlearned, retrained = by_role.get("unlearned"), by_role.get("retrained")
        exposed = statistic.surface is not None or (statistic.name, statistic.set) == EXPOSED
        if not exposed or statistic.kind == "auc" or unlearned is None or retrained is None:
            continue
        further = [by_role[role] for role in further_retrained(by_role)]
        worst = worst_records(unlearned, retrained, WORST, further)
        shown = [(int(i), round(float(x), 6)) for i, x in zip(worst.indices, worst.excess, strict=True) if x > 0]
        found.append(
            {
                "measure": statistic.name,
                "set": statistic.set,
                "records": [i if statistic.records is None else statistic.records[i] for i, _ in shown],
                "excess": [excess for _, excess in shown],
                "share_above": worst.share_above.as_dict(),
                "limit": None if np.isnan(worst.limit) else worst.limit,
                "n_missing": worst.n_missing,
            }
        )
    return found


def notes_of(tables: Tables, holdout_rows: int = 0) -> list[str]:
    """What a reader must know about the models that were compared.

    Args:
        holdout_rows (`int`, *optional*): number of holdout rows before those that do not fit the request were left out.
    """
    notes = []
    if "retrained" not in tables:
        notes.append(
            "There is no retrained model to compare with. It is unknown what each number would be without the forget set, and "
            "no number alone shows that it is forgotten."
        )
    if not len(tables["unlearned"].get("holdout", ())):
        notes.append(
            f"None of the {holdout_rows} holdout rows fits the request, so there is nothing to compare the forget set with, and "
            "membership inference was not run. Give a holdout with rows that the request would also be about. Or, if it is about "
            "a person whom the texts name, select by `mentions`, and the whole holdout is compared."
            if holdout_rows
            else "There is no holdout, so membership inference was not run."
        )
    return notes + (_what_the_edit_did(tables) if "original" in tables else [])


def _what_the_edit_did(tables: Tables) -> list[str]:
    """Notes where nothing was forgotten, or where much was lost that should be kept."""
    notes = []
    before, after = (known_mean(membership.loss(tables[role]["forget"])) for role in ("original", "unlearned"))
    retrained = known_mean(membership.loss(tables["retrained"]["forget"])) if "retrained" in tables else np.inf
    if after - before < 0.05 and before < retrained - 0.05:
        notes.append(f"Nothing was forgotten: the loss on the forget set is {after:.3f}, and was {before:.3f} before.")
    if len(tables["unlearned"].get("retain", ())):
        before, after = (known_mean(exact_memorization(tables[role]["retain"])) for role in ("original", "unlearned"))
        if after < KEPT * before:
            notes.append(
                f"Much was lost that should be kept: next-token accuracy on the retain set is {after:.3f}, and was "
                f"{before:.3f} before. A model that knows nothing leaves no trace, but is of no use."
            )
    return notes
