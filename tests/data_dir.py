"""Where the real data that some tests read lies: beside the repository, or where HF_UNLEARN_TEST_DATA says.

Without it these tests are skipped. With HF_UNLEARN_REQUIRE_DATA=1, as in CI, it is an error if it is not there.
"""

import os
from pathlib import Path


def data_dir() -> Path | None:
    """The data folder, or `None` where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("HF_UNLEARN_TEST_DATA", default))
    if path.is_dir():
        return path
    if os.environ.get("HF_UNLEARN_REQUIRE_DATA") == "1":
        raise FileNotFoundError("HF_UNLEARN_REQUIRE_DATA is set, but the data is not beside the repository.")
    return None


DATA = data_dir()
