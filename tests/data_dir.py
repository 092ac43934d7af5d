"""Where the real data that some tests read lies: beside the repository, or where HF_UNLEARN_TEST_DATA says."""

import os
from pathlib import Path


def data_dir() -> Path | None:
    """The data folder, or `None` where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("HF_UNLEARN_TEST_DATA", default))
    return path if path.is_dir() else None


DATA = data_dir()
