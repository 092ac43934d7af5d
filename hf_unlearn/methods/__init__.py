"""The methods. A new one is a file with a loss, a config and a trainer, and a line in `METHODS`."""

import importlib

from hf_unlearn.methods.table import Methods


#: Name in recipes and on the command line -> file in this folder, and the trainer in it.
METHODS = Methods(
    {
        # on the likelihood of the forgotten answers
        "ga": "ga.GradientAscentTrainer",
        "graddiff": "graddiff.GradDiffTrainer",
        "gradient_projection": "graddiff.GradientProjectionTrainer",
        "npo": "npo.NPOTrainer",
        "simnpo": "simnpo.SimNPOTrainer",
        "wga": "wga.WGATrainer",
        "satimp": "satimp.SatImpTrainer",
        "ihl": "ihl.InvertedHingeTrainer",
        "pdu": "pdu.PDUTrainer",
        # on other answers
        "idk_dpo": "idk.IdkDPOTrainer",
        "idk_nll": "idk.IdkNLLTrainer",
        "altpo": "altpo.AltPOTrainer",
        "random_label": "random_label.RandomLabelTrainer",
        "salun": "salun.SalUnTrainer",
        # from a teacher
        "ce_u": "ceu.CEUTrainer",
        "undial": "undial.UNDIALTrainer",
        "bad_teacher": "bad_teacher.BadTeacherTrainer",
        "scrub": "scrub.SCRUBTrainer",
        "distillation": "distillation.DistillationTrainer",
        # on activations, or on a part of the network
        "rmu": "rmu.RMUTrainer",
        "lora_edit": "lora_edit.LoRAEditTrainer",
        "head_mask": "head_mask.HeadMaskTrainer",
        # on the retain set alone
        "finetune": "finetune.FineTuneTrainer",
        "l1_sparse": "l1_sparse.L1SparseTrainer",
        "repair": "repair.RepairTrainer",
        # without training
        "ssd": "ssd.SSDTrainer",
        "svd_forget": "svd_forget.SVDForgetTrainer",
        "task_vector": "task_vector.TaskVectorTrainer",
    }
)
register_method = METHODS.register

__all__ = ["METHODS", "register_method", *sorted(METHODS.classes)]


def __getattr__(name: str):
    # For users: `from hf_unlearn.methods import NPOTrainer` imports one method, not all.
    if name in METHODS.classes:
        return getattr(importlib.import_module(METHODS.classes[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
