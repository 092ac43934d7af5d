"""`hf-unlearn audit`: audit checkpoints by their names."""

from __future__ import annotations

import sys
import traceback

from hf_unlearn.cli.job import Job
from hf_unlearn.cli.options import parse_audit


#: The exit code where the audit did not run to its end; the others are those of a report.
NOT_RUN = 2
DESCRIPTION = "Audit a model: what an adversary finds in it of the rows that it was to forget."
EXIT_CODES = """
exit codes:
  0  every surface of the chosen threat models that could be tested shows no trace, at the power that RESULT.md states
  1  something was found: a surface is residual or over-forgotten
  2  the audit did not run: a wrong or missing option, data or a model that cannot be read, an error on the way
  3  nothing was found and nothing is shown: a surface is inconclusive, has no baseline, or could not be tested

docs/audit.md says what is tested and what a verdict means.
"""


def main(argv: list[str] | None = None) -> int:
    """Audit what the arguments name; return the exit code that `EXIT_CODES` lists.

    What is wrong with a request is said without a traceback. An error on the way has one, and ends with 2 as well: 1, with
    which Python ends otherwise, would say that something was found.
    """
    try:
        try:
            job = Job(*parse_audit(argv, prog="hf-unlearn audit", description=DESCRIPTION, epilog=EXIT_CODES))
        except (ValueError, OSError) as error:
            print(f"hf-unlearn audit: error: {error}", file=sys.stderr)
            return NOT_RUN
        from hf_unlearn.audit.run import audit

        report = audit(**job.audit_of())
        job.write_result(report)
        return report.exit_code
    except Exception:
        traceback.print_exc()
        return NOT_RUN
