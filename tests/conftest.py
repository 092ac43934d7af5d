"""Settings that every test runs under: no network, one thread, a home of its own for caches."""

import os
import tempfile


# Before anything of Hugging Face is imported: the constants are read at import.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HOME=tempfile.mkdtemp(prefix="hf-home-"),
)

import atexit
import gc
import shutil

import pytest
import torch


atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
torch.set_num_threads(1)


def pytest_collection_finish():
    # The Trainer collects garbage after each run. What the imports made is no garbage, and takes long to look through.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
