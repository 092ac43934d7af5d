"""A model by its name."""

from __future__ import annotations

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoTokenizer,
)


def names_image_classifier(config) -> bool:
    """Whether the config of a checkpoint is that of an image classifier."""
    return any("ForImageClassification" in name for name in config.architectures or ())


def load_model(name: str, processing_class=None):
    """A causal language model or image classifier and its tokenizer or image processor, by Hub id or folder.

    Args:
        processing_class (*optional*): used instead of the one that belongs to the model.
    """
    image = names_image_classifier(AutoConfig.from_pretrained(name))
    model_class, processor_class = (
        (AutoModelForImageClassification, AutoImageProcessor) if image else (AutoModelForCausalLM, AutoTokenizer)
    )
    # Not in the 16 bit of many checkpoints, in which small steps round away.
    model = model_class.from_pretrained(name, dtype=torch.float32)
    return model, processing_class or processor_class.from_pretrained(name)
