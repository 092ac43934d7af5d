"""Unlearn, audit, and write the result.

accelerate launch recipes/unlearn.py --config recipes/<benchmark>/<method>.yaml [--any_field value]
"""

from __future__ import annotations

from hf_unlearn.audit.run import audit
from hf_unlearn.cli.job import Job


def main(argv: list[str] | None = None):
    """Unlearn and audit what the arguments name, by default those of the command line."""
    job = Job.from_arguments(argv)
    erased = job.erase()
    report = audit(**job.audit_of(erased))
    job.write_result(report, erased)


if __name__ == "__main__":
    main()
