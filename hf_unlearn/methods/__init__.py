"""The methods. A new one is a file with a loss, a config and a trainer, and a line in `METHODS`."""

from hf_unlearn.methods.ga import GradientAscentConfig, GradientAscentTrainer
from hf_unlearn.methods.graddiff import GradDiffConfig, GradDiffTrainer
from hf_unlearn.methods.idk import IdkDPOConfig, IdkDPOTrainer, IdkNLLConfig, IdkNLLTrainer
from hf_unlearn.methods.npo import NPOConfig, NPOTrainer
from hf_unlearn.methods.simnpo import SimNPOConfig, SimNPOTrainer
from hf_unlearn.methods.wga import WGAConfig, WGATrainer
from hf_unlearn.training import UnlearningTrainer


#: Name in recipes and on the command line -> trainer; its options are `trainer.config_class`.
METHODS: dict[str, type[UnlearningTrainer]] = {
    "ga": GradientAscentTrainer,
    "graddiff": GradDiffTrainer,
    "npo": NPOTrainer,
    "simnpo": SimNPOTrainer,
    "idk_dpo": IdkDPOTrainer,
    "idk_nll": IdkNLLTrainer,
    "wga": WGATrainer,
}

__all__ = [
    "METHODS",
    "GradDiffConfig",
    "GradDiffTrainer",
    "GradientAscentConfig",
    "GradientAscentTrainer",
    "IdkDPOConfig",
    "IdkDPOTrainer",
    "IdkNLLConfig",
    "IdkNLLTrainer",
    "NPOConfig",
    "NPOTrainer",
    "SimNPOConfig",
    "SimNPOTrainer",
    "WGAConfig",
    "WGATrainer",
]
