"""Audit any checkpoint or adapter. Several processes share the work.

    accelerate launch recipes/audit.py --model_name_or_path <checkpoint> --original <model> --retrained <model> \\
        --dataset_name <data> --holdout_split <split> --request <request.json> --output_dir <folder>

`hf-unlearn audit` is the same in one process, and says by its exit code whether anything was found.
"""

from hf_unlearn.run_audit import main


if __name__ == "__main__":
    main()
