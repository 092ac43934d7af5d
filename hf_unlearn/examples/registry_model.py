"""The model that learns the registry of fictional people: a small tokenizer and a tiny, untrained Llama."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


MAX_LENGTH = 256


def make_tokenizer(texts: list[str], vocab_size: int = 1000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts `<s>` before a text, once.

    A word is split from the one before at its leading space, so the ids of a prompt are a prefix of the ids of the
    prompt and a completion that starts with a space. Each digit is a token, so no merge gives a number away.

    Args:
        texts (`list[str]`): the texts from which merges are learned. They must not depend on the rows that a model is
            trained on: a vocabulary is a memory too, and erasing rows does not change it.
        vocab_size (`int`, *optional*, defaults to `1000`): entries including the 256 bytes and `<s>`, `</s>`, `<pad>`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def make_base(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """A randomly initialized Llama of about one million parameters, in float32 on the CPU.

    Args:
        tokenizer (`transformers.PreTrainedTokenizerFast`): gives the vocabulary and the special tokens.
        seed (`int`, *optional*, defaults to `0`): seed of the weights. The global random state does not change.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the accelerators
        return LlamaForCausalLM(config)
