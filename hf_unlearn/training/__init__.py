"""The change of weights: one trainer, four axes."""

from hf_unlearn.training.checkpoints import NonFiniteLossError
from hf_unlearn.training.config import UnlearningConfig
from hf_unlearn.training.trainer import UnlearningTrainer


__all__ = ["NonFiniteLossError", "UnlearningConfig", "UnlearningTrainer"]
