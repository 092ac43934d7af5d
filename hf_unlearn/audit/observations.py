"""What an audit says of itself: whether its sets and models are fit to be compared, and what the edit did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_unlearn.audit.measures import membership
from hf_unlearn.audit.measures.extraction import exact_memorization
from hf_unlearn.audit.measures.likelihoods import FURTHER_PASSES
from hf_unlearn.audit.measures.membership import too_short
from hf_unlearn.audit.measures.memberships import Tables
from hf_unlearn.audit.measures.statistic import Groups, Statistic
from hf_unlearn.audit.roles import further_retrained
from hf_unlearn.audit.table.scores import Scores
from hf_unlearn.audit.verdicts.verdict import Verdict, reference_warning
from hf_unlearn.audit.verdicts.worst_records import worst_records
from hf_unlearn.statistics.estimate import known_mean
from hf_unlearn.data.rows import content_of
from hf_unlearn.statistics.exchangeability import blind_baseline


WORST = 10
# What tells which of the kept records an edit exposes.
EXPOSED = ("answer_probability", "retain")
# A model that keeps less of its accuracy on the retain set than this share is called damaged.
KEPT = 0.9


def baseline_of(sets: Mapping[str, Any], seed: int, groups: Groups | None = None):
    """Whether forget set and holdout can be told apart without any model."""
    if not len(sets.get("forget", ())) or not len(sets.get("holdout", ())):
        return None
    of_sides = None if groups is None else (groups.forget, groups.holdout)
    return blind_baseline(sets["forget"], sets["holdout"], groups=of_sides, seed=seed, content=content_of)


def checks_of(baseline, verdicts: Sequence[Verdict], tables: Tables) -> list[dict[str, Any]]:
    checks = []
    if baseline is not None:
        checks.append({"check": "blind_baseline", **baseline.as_dict(), "warns": baseline.shift is True})
        if baseline.shift is True:
            checks[-1]["says"] = (
                "Forget set and holdout differ in kind: a classifier that never saw a model tells them apart. An attack "
                "that compares them may find that difference and not what was trained on; only the difference to the "
                "retrained model counts."
            )
    if reference_warning(verdicts) is not None:
        checks.append(
            {
                "check": "reference_saw_forget_set",
                "warns": True,
                "says": "The retrained model looks as if it had been trained on the forget set. Nothing that is compared "
                "with it shows anything. Train it without these rows, and audit again.",
            }
        )
    missing = {
        f"{role}, {name}": int((~scores.valid).sum())
        for role, of_role in tables.items()
        for name, scores in of_role.items()
        if not scores.valid.all() and not name.endswith(FURTHER_PASSES)
    }
    if missing:
        says = ", ".join(f"{n} of the {name}" for name, n in missing.items())
        checks.append(
            {
                "check": "not_scored",
                "counts": missing,
                "warns": True,
                "says": f"Some examples could not be scored (no target, or logits that are no numbers): {says}. They are "
                "missing in every number, and in no total silently.",
            }
        )
    return checks + _too_short(tables["unlearned"])


def _too_short(sets: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """How many texts have so few tokens that Min-K reads a single one; of labels there is no Min-K."""
    if sets["forget"].of_labels:
        return []
    counts = {name: int(too_short(sets[name]).sum()) for name in ("forget", "holdout") if name in sets}
    if not any(counts.values()):
        return []
    says = ", ".join(f"{n} of the {name} set" for name, n in counts.items())
    return [
        {
            "check": "too_short_for_min_k",
            "counts": counts,
            "warns": True,
            "says": f"Some texts have fewer than five tokens to score ({says}). For these Min-K and Min-K++ read the least "
            "likely token alone, which is a larger share than the 20 % of the others.",
        }
    ]


def worst_of(values: Mapping[Statistic, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records that show most against the retrained model, by their positions. Averages hide single leaks.

    Of the retain set too: an edit exposes some of those that are kept.
    """
    found = []
    for statistic, of_roles in values.items():
        unlearned, retrained = of_roles.get("unlearned"), of_roles.get("retrained")
        exposed = statistic.surface is not None or (statistic.name, statistic.set) == EXPOSED
        if not exposed or statistic.kind == "auc" or unlearned is None or retrained is None:
            continue
        further = [of_roles[role] for role in further_retrained(of_roles)]
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


def notes_of(tables: Tables) -> list[str]:
    """What a reader must know of the models that were compared."""
    notes = []
    if "retrained" not in tables:
        notes.append(
            "There is no retrained model to compare with. How much of a number would be there without the forget set "
            "is unknown, and no number alone shows that it is forgotten."
        )
    if not len(tables["unlearned"].get("holdout", ())):
        notes.append("There is no holdout, so membership inference was not run.")
    return notes + (_what_the_edit_did(tables) if "original" in tables else [])


def _what_the_edit_did(tables: Tables) -> list[str]:
    """Notes where nothing was forgotten, or much was lost that should be kept."""
    notes = []
    before, after = (known_mean(membership.loss(tables[role]["forget"])) for role in ("original", "unlearned"))
    retrained = known_mean(membership.loss(tables["retrained"]["forget"])) if "retrained" in tables else np.inf
    if after - before < 0.05 and before < retrained - 0.05:
        notes.append(f"Nothing was forgotten: the loss on the forget set is {after:.3f}, and was {before:.3f}.")
    if len(tables["unlearned"].get("retain", ())):
        before, after = (known_mean(exact_memorization(tables[role]["retain"])) for role in ("original", "unlearned"))
        if after < KEPT * before:
            notes.append(
                f"Much was lost that should be kept: next-token accuracy on the retain set is {after:.3f}, and was "
                f"{before:.3f}. A model that knows nothing leaves no trace, and is of no use."
            )
    return notes
