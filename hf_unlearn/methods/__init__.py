"""The methods. A new one is a file with a loss, a config and a trainer, and a line in `METHODS`."""

from hf_unlearn.methods.altpo import AltPOConfig, AltPOTrainer
from hf_unlearn.methods.bad_teacher import BadTeacherConfig, BadTeacherTrainer
from hf_unlearn.methods.ceu import CEUConfig, CEUTrainer
from hf_unlearn.methods.distillation import DistillationConfig, DistillationTrainer
from hf_unlearn.methods.finetune import FineTuneConfig, FineTuneTrainer
from hf_unlearn.methods.ga import GradientAscentConfig, GradientAscentTrainer
from hf_unlearn.methods.graddiff import (
    GradDiffConfig,
    GradDiffTrainer,
    GradientProjectionConfig,
    GradientProjectionTrainer,
)
from hf_unlearn.methods.head_mask import HeadMaskConfig, HeadMaskTrainer
from hf_unlearn.methods.idk import IdkDPOConfig, IdkDPOTrainer, IdkNLLConfig, IdkNLLTrainer
from hf_unlearn.methods.ihl import InvertedHingeConfig, InvertedHingeTrainer
from hf_unlearn.methods.l1_sparse import L1SparseConfig, L1SparseTrainer
from hf_unlearn.methods.lora_edit import LoRAEditConfig, LoRAEditTrainer
from hf_unlearn.methods.npo import NPOConfig, NPOTrainer
from hf_unlearn.methods.pdu import PDUConfig, PDUTrainer
from hf_unlearn.methods.random_label import RandomLabelConfig, RandomLabelTrainer
from hf_unlearn.methods.repair import RepairConfig, RepairTrainer
from hf_unlearn.methods.rmu import RMUConfig, RMUTrainer
from hf_unlearn.methods.salun import SalUnConfig, SalUnTrainer
from hf_unlearn.methods.satimp import SatImpConfig, SatImpTrainer
from hf_unlearn.methods.scrub import SCRUBConfig, SCRUBTrainer
from hf_unlearn.methods.simnpo import SimNPOConfig, SimNPOTrainer
from hf_unlearn.methods.ssd import SSDConfig, SSDTrainer
from hf_unlearn.methods.svd_forget import SVDForgetConfig, SVDForgetTrainer
from hf_unlearn.methods.task_vector import TaskVectorConfig, TaskVectorTrainer
from hf_unlearn.methods.undial import UNDIALConfig, UNDIALTrainer
from hf_unlearn.methods.wga import WGAConfig, WGATrainer
from hf_unlearn.training import UnlearningTrainer


#: Name in recipes and on the command line -> trainer; its options are `trainer.config_class`.
METHODS: dict[str, type[UnlearningTrainer]] = {
    # on the likelihood of the forgotten answers
    "ga": GradientAscentTrainer,
    "graddiff": GradDiffTrainer,
    "gradient_projection": GradientProjectionTrainer,
    "npo": NPOTrainer,
    "simnpo": SimNPOTrainer,
    "wga": WGATrainer,
    "satimp": SatImpTrainer,
    "ihl": InvertedHingeTrainer,
    "pdu": PDUTrainer,
    # on other answers
    "idk_dpo": IdkDPOTrainer,
    "idk_nll": IdkNLLTrainer,
    "altpo": AltPOTrainer,
    "random_label": RandomLabelTrainer,
    "salun": SalUnTrainer,
    # from a teacher
    "ce_u": CEUTrainer,
    "undial": UNDIALTrainer,
    "bad_teacher": BadTeacherTrainer,
    "scrub": SCRUBTrainer,
    "distillation": DistillationTrainer,
    # on activations, or on a part of the network
    "rmu": RMUTrainer,
    "lora_edit": LoRAEditTrainer,
    "head_mask": HeadMaskTrainer,
    # on the retain set alone
    "finetune": FineTuneTrainer,
    "l1_sparse": L1SparseTrainer,
    "repair": RepairTrainer,
    # without training
    "ssd": SSDTrainer,
    "svd_forget": SVDForgetTrainer,
    "task_vector": TaskVectorTrainer,
}

__all__ = [
    "METHODS",
    "AltPOConfig",
    "AltPOTrainer",
    "BadTeacherConfig",
    "BadTeacherTrainer",
    "CEUConfig",
    "CEUTrainer",
    "DistillationConfig",
    "DistillationTrainer",
    "FineTuneConfig",
    "FineTuneTrainer",
    "GradDiffConfig",
    "GradDiffTrainer",
    "GradientAscentConfig",
    "GradientAscentTrainer",
    "GradientProjectionConfig",
    "GradientProjectionTrainer",
    "HeadMaskConfig",
    "HeadMaskTrainer",
    "IdkDPOConfig",
    "IdkDPOTrainer",
    "IdkNLLConfig",
    "IdkNLLTrainer",
    "InvertedHingeConfig",
    "InvertedHingeTrainer",
    "L1SparseConfig",
    "L1SparseTrainer",
    "LoRAEditConfig",
    "LoRAEditTrainer",
    "NPOConfig",
    "NPOTrainer",
    "PDUConfig",
    "PDUTrainer",
    "RMUConfig",
    "RMUTrainer",
    "RandomLabelConfig",
    "RandomLabelTrainer",
    "RepairConfig",
    "RepairTrainer",
    "SCRUBConfig",
    "SCRUBTrainer",
    "SSDConfig",
    "SSDTrainer",
    "SVDForgetConfig",
    "SVDForgetTrainer",
    "SalUnConfig",
    "SalUnTrainer",
    "SatImpConfig",
    "SatImpTrainer",
    "SimNPOConfig",
    "SimNPOTrainer",
    "TaskVectorConfig",
    "TaskVectorTrainer",
    "UNDIALConfig",
    "UNDIALTrainer",
    "WGAConfig",
    "WGATrainer",
]
