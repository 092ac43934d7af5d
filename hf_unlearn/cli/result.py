"""What a result says of a run beside the numbers: the request, the data and the costs, and never whom it is about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_unlearn.audit.cost import cost_ratios
from hf_unlearn.request.selector import columns_of, values_of


if TYPE_CHECKING:
    from hf_unlearn.cli.arguments import DataArguments
    from hf_unlearn.request.request import ErasureRequest
    from hf_unlearn.request.split import Split


def described(request: ErasureRequest, parts: Split) -> dict[str, Any]:
    """What a result may say of a request: its number and scope, and never whom it is about."""
    selector, n = request.selector, len(values_of(request.selector))
    if "rows" in selector:
        selects = f"rows by their position ({n})"
    else:
        columns = columns_of(selector)
        of = f"their column {columns[0]}" if len(columns) == 1 else f"any of their columns {', '.join(columns)}"
        how = "mentions; names" if "mentions" in selector else f"{selector.get('operator', 'in')}; values"
        selects = f"rows by {of} ({how}: {n}, not shown)"
    holdout = None if parts.holdout_rows == 0 else f"{parts.counts()['holdout']} of {parts.holdout_rows} rows fit it"
    return {
        "id": request.subject_request_id,
        "kind": request.kind,
        "selects": selects,
        "submitted": request.submitted_time,
        "regulation": request.regulation,
        "holdout": holdout,
        "rows": rows_of(parts),
    }


def rows_of(parts: Split) -> dict[str, int]:
    """How many rows were read, and what becomes of them; `copies` of erased rows are among the erased or the kept ones."""
    counts = parts.counts()
    forget, retain = counts["forget"], counts["retain"]
    return {"read": forget + retain, "erased": forget, "kept": retain, "copies": counts["duplicates"]}


def data_names(arguments: DataArguments) -> dict[str, Any]:
    """Which rows they were, by name."""
    splits = {name: getattr(arguments, f"{name}_split") for name in ("train", "validation", "holdout")}
    return {"name": arguments.dataset_name, "config": arguments.dataset_config, "splits": splits}


def cost_beside(checkpoint: str | None) -> dict[str, Any] | None:
    """What was written beside the checkpoint when it was made."""
    path = Path(checkpoint or "").parent / "cost.json"
    return json.loads(path.read_text("utf-8")) if checkpoint and path.is_file() else None


def cost_of_edit(cost: Mapping[str, Any] | None, retraining: Mapping[str, Any] | None) -> dict[str, Any]:
    """Both costs and their ratios, where both are known."""
    if cost is None or retraining is None:
        return {}
    return {"unlearning": dict(cost), "retraining": dict(retraining), **cost_ratios(cost, retraining)}
