import json
from types import SimpleNamespace

import pytest

from hf_unlearn.audit.verdicts.of_surfaces import surface_verdict, surface_verdicts
from hf_unlearn.audit.verdicts.surfaces import SURFACES


def row(verdict, reason=None, statistic="loss", surface="membership"):
    return SimpleNamespace(verdict=verdict, reason=reason, statistic=statistic, surface=surface)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["no_trace_found", "residual", "over_forgotten"], "residual"),
        (["inconclusive", "over_forgotten", "no_trace_found"], "over_forgotten"),
        (["no_baseline", "inconclusive", "no_trace_found"], "inconclusive"),
        (["no_trace_found", "no_baseline"], "no_baseline"),
        (["no_trace_found", "no_trace_found"], "no_trace_found"),
        (["not_tested", None, "no_trace_found"], "no_trace_found"),
        (["not_tested", None], "not_tested"),
        ([], "not_tested"),
    ],
)
def test_a_surface_takes_its_worst_row(rows, expected):
    assert surface_verdict("membership", [row(verdict) for verdict in rows]).verdict == expected


def test_an_attack_without_a_signal_is_listed_once_another_had_one():
    blind, clean = row("no_baseline", "no_signal_before", "zlib"), row("no_trace_found", statistic="loss")
    found = surface_verdict("membership", [blind, clean])
    assert (found.verdict, found.listed, found.surface) == ("no_trace_found", ("zlib",), "membership")
    alone = surface_verdict("membership", [blind])
    assert (alone.verdict, alone.reason, alone.listed) == ("no_baseline", "no_signal_before", ())
    # Another reason for no baseline is not waved through.
    assert surface_verdict("membership", [row("no_baseline", "no_original"), clean]).verdict == "no_baseline"


def test_what_only_informs_is_listed():
    found = surface_verdict("membership", [row(None, "no_margin"), row("residual", statistic="probability")])
    assert (found.verdict, found.listed) == ("residual", ("loss",))
    only = surface_verdict("membership", [row(None, "no_margin")])
    assert (only.verdict, only.reason, only.listed) == ("not_tested", "no_margin", ("loss",))


def test_every_surface_is_there_tested_or_not():
    found = surface_verdicts(
        [row("residual"), row("no_trace_found", surface="verbatim"), row("residual", surface=None)]
    )
    assert tuple(found) == tuple(SURFACES)
    assert found["membership"].verdict == "residual" and found["verbatim"].verdict == "no_trace_found"
    assert sum(v.verdict == "not_tested" for v in found.values()) == len(SURFACES) - 2
    json.dumps({name: v.as_dict() for name, v in found.items()}, allow_nan=False)
