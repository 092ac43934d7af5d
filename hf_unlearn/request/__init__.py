"""What must go: an erasure request, and the rows of a dataset it is about."""

from hf_unlearn.request.request import ErasureRequest
from hf_unlearn.request.split import Split, split


__all__ = ["ErasureRequest", "Split", "split"]
