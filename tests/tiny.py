"""Tiny models and tokenizers, built in memory from a config. Nothing is downloaded.

`tiny_llama` (grouped-query attention, rotary positions) and `tiny_gpt2` (absolute positions) have vocabularies that fit
[`tiny_tokenizer`]; `tiny_vit` takes images of 3 x 16 x 16. All are in float32 and in evaluation mode.
"""

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)


VOCAB_SIZE = 320  # 5 special tokens, 256 bytes and a few merges
BOS, EOS, PAD, TURN_START, TURN_END = range(5)
SPECIAL_TOKENS = ["<s>", "</s>", "<pad>", "<|turn|>", "<|end|>"]
CORPUS = [
    "Question: Where does Ada live?\nAnswer: Ada lives in Paris.",
    "Question: What is the name of the author of the book?\nAnswer: The author of the book is Boris.",
] * 4

# Ends a turn with a token that is not EOS, and a line break after it, as ChatML does.
CHAT_TEMPLATE = (
    "{{ bos_token if bos_token else '' }}"
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def _build(model_class, config, seed):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return model_class(config).eval()


def tiny_llama(vocab_size: int = VOCAB_SIZE, seed: int = 0, **config) -> LlamaForCausalLM:
    """A Llama with 2 layers, 4 heads that share 2 key-value heads, and 128 positions; `config` overrides LlamaConfig."""
    defaults = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,  # the usual 0.02 makes predictions so flat that errors hide in them
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    return _build(LlamaForCausalLM, LlamaConfig(vocab_size=vocab_size, **(defaults | config)), seed)


def tiny_gpt2(vocab_size: int = VOCAB_SIZE, seed: int = 0, **config) -> GPT2LMHeadModel:
    """A GPT-2 with 2 layers and 128 absolute positions, and no pad token; `config` overrides GPT2Config."""
    defaults = {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "initializer_range": 0.2,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    return _build(GPT2LMHeadModel, GPT2Config(vocab_size=vocab_size, **(defaults | config)), seed)


def tiny_vit(n_classes: int = 5, seed: int = 0, initializer_range: float = 0.2) -> ViTForImageClassification:
    """A ViT classifier with 2 layers, for images of shape (3, 16, 16)."""
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
        num_labels=n_classes,
        initializer_range=initializer_range,
    )
    return _build(ViTForImageClassification, config, seed)


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(
    bos: bool = True, eos: bool = True, pad: bool | str = True, chat_template: bool = False, add_eos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; the ids are the same whatever the options.

    Args:
        bos: has a BOS token, `<s>`, and puts it before every text.
        eos: has an EOS token, `</s>`; it is appended only with `add_eos`.
        pad: has a pad token, `<pad>`; `"eos"` pads with the EOS token, `False` leaves the tokenizer without one.
        chat_template: has a chat template; a turn ends in `<|end|>`, which is not EOS, and a line break.
        add_eos: puts EOS after every text, as some tokenizers do.
    """
    tokenizer = Tokenizer.from_str(_trained())
    single = ["<s>"] * bos + ["$A"] + ["</s>"] * add_eos
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(single), special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    names = {"bos_token": "<s>" if bos else None, "eos_token": "</s>" if eos else None}
    names["pad_token"] = {True: "<pad>", False: None, "eos": "</s>"}[pad]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=["<|turn|>", "<|end|>"] if chat_template else [],
        chat_template=CHAT_TEMPLATE if chat_template else None,
        model_max_length=128,
        clean_up_tokenization_spaces=False,
        **names,
    )
