"""Erasure requests of the data sets that are made here, in the keys of OpenDSR 1.0."""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping


def requests_of(scopes: Mapping[str, tuple[str, dict]], rng: random.Random) -> dict[str, dict]:
    """A request for each scope, `name -> (kind, selector)`, as [`~hf_unlearn.request.ErasureRequest`] reads it.

    The ids are drawn from `rng` and the time is fixed: same seed, same bytes.
    """
    return {
        name: {
            "regulation": "gdpr",
            "subject_request_id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
            "subject_request_type": "erasure",
            "submitted_time": "2026-01-01T00:00:00Z",
            "subject_identities": [],
            "api_version": "1.0",
            "extensions": {"hf-unlearn": {"scope": {"kind": kind, "selector": selector}}},
        }
        for name, (kind, selector) in scopes.items()
    }
