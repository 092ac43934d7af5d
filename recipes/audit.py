"""Audit any checkpoint or adapter. Several processes share the work.

    accelerate launch recipes/audit.py --model_name_or_path <checkpoint> --original <model> --retrained <model> \\
        --dataset_name <data> --holdout_split <split> --request <request.json> --output_dir <folder>

`hf-unlearn audit` is the same in one process, and says by its exit code what was found. This recipe ends with 0 wherever the
audit has run, because launchers take anything else for a crash.
"""

import sys

from hf_unlearn.cli.audit import NOT_RUN, main


if __name__ == "__main__":
    sys.exit(NOT_RUN if main() == NOT_RUN else 0)
