import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def written_by(tmp_path_factory):
    """Two folders that a module writes in two processes with different hash seeds, and what the processes printed."""

    def write(module: str):
        folders = [tmp_path_factory.mktemp(module) / "files" for _ in range(2)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", f"hf_unlearn.examples.{module}", str(folder)],
                env={**os.environ, "PYTHONHASHSEED": hash_seed},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for folder, hash_seed in zip(folders, ("1", "4242"), strict=True)
        ]
        printed = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], printed
        return folders, printed

    return write
