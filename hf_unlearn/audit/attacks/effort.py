"""How much comes out with how much effort: of the answer given beforehand, or of samples. Read from the table."""

from __future__ import annotations

import numpy as np

from hf_unlearn.audit.attacks.attack import attack
from hf_unlearn.audit.measures.extraction import extraction_probability, queries_needed
from hf_unlearn.audit.measures.prefixes import prefix_curve
from hf_unlearn.audit.records import AuditRecords, Curve, Found


# Shares of an answer that are given, and samples (top-k 40, chance of one half) that are drawn.
GIVEN = (0.0, 0.25, 0.5, 0.75)
SAMPLES = (1, 10, 100, 1_000, 10_000)


@attack(threat="extraction")
def by_effort(model, records: AuditRecords) -> Found:
    """The share of records whose rest comes out after a part was given, and that come out in so many samples."""
    table = records.tables["forget"]
    rest = np.where(table.valid, prefix_curve(table, fractions=GIVEN).T, np.nan)
    needed = np.where(table.valid, queries_needed(extraction_probability(table, top_k=40), p=0.5), np.nan)
    drawn = np.array([np.where(np.isnan(needed), np.nan, needed <= n) for n in SAMPLES])
    return Found(
        curves={
            Curve("rest comes out after a part was given", "forget", "share given", GIVEN, kind="rate"): rest,
            Curve("comes out in so many samples", "forget", "samples", SAMPLES, kind="rate"): drawn,
        }
    )
