"""How much comes out for how much effort: with part of the answer given, or in many samples. Read from the table."""

from __future__ import annotations

import numpy as np

from hf_unlearn.audit.attacks.attack import attack
from hf_unlearn.audit.measures.extraction import extraction_probability, prefix_curve, queries_needed
from hf_unlearn.audit.records import AuditRecords, Curve, Found


# Shares of an answer that are given, and numbers of samples (with top-k 40) in which it comes out with probability 1/2.
GIVEN = (0.0, 0.25, 0.5, 0.75)
SAMPLES = (1, 10, 100, 1_000, 10_000)


@attack(threat="extraction")
def by_effort(model, records: AuditRecords) -> Found:
    """Shares of records: those whose rest comes out after part of the answer, and those that come out in `n` samples."""
    table = records.tables["forget"]
    rest = np.where(table.valid, prefix_curve(table, GIVEN).T, np.nan)
    needed = np.where(table.valid, queries_needed(extraction_probability(table, top_k=40), p=0.5), np.nan)
    drawn = np.array([np.where(np.isnan(needed), np.nan, needed <= n) for n in SAMPLES])
    return Found(
        curves={
            Curve("rest comes out after a part was given", "forget", "share given", GIVEN, kind="rate"): rest,
            Curve("comes out in so many samples", "forget", "samples", SAMPLES, kind="rate"): drawn,
        }
    )
