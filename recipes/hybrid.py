"""A hybrid: a fast edit, then gentle repair on the retain set, with the audit after each stage.

    accelerate launch recipes/hybrid.py --edit recipes/tofu/wga.yaml --repair recipes/tofu/repair.yaml \\
        --output_dir runs/tofu/hybrid

Each stage is a run of unlearn.py with its own recipe; the second starts from the checkpoint of the first, and both are
compared with the model before the first.
"""

from __future__ import annotations

import argparse

import unlearn
from accelerate import PartialState

from hf_unlearn.cli.job import Job
from hf_unlearn.cli.unlearning import parse_unlearning


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edit", required=True, help="recipe of the first stage")
    parser.add_argument("--repair", required=True, help="recipe of the second stage")
    parser.add_argument(
        "--output_dir", required=True, help="folder for both: <output_dir>/edit and <output_dir>/repair"
    )
    arguments, more = parser.parse_known_args()

    edit, repair = f"{arguments.output_dir}/edit", f"{arguments.output_dir}/repair"
    original = parse_unlearning(["--config", arguments.edit, *more])[2].model_name_or_path
    second = ["--config", arguments.repair, *more, "--original", original, "--output_dir", repair]
    # A mistake in the second stage is found before the first, with the original in place of what that will make.
    Job.from_arguments([*second, "--model_name_or_path", original])
    unlearn.main(["--config", arguments.edit, *more, "--output_dir", edit])
    PartialState().wait_for_everyone()  # the main process writes the checkpoint, and audits it
    unlearn.main([*second, "--model_name_or_path", f"{edit}/model"])


if __name__ == "__main__":
    main()
