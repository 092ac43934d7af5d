"""The change of weights: one trainer, four axes."""

from hf_unlearn.training.config import UnlearningConfig
from hf_unlearn.training.trainer import NonFiniteLossError, UnlearningTrainer


__all__ = ["NonFiniteLossError", "UnlearningConfig", "UnlearningTrainer"]
