"""Models without a plain cache of keys and values: greedy output is that of a plain loop of one sequence without padding."""

from functools import cache

import numpy as np
import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from tiny import tiny_llama
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MptConfig,
    MptForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from hf_unlearn.audit import score
from hf_unlearn.models.generate import greedy, sample
from hf_unlearn.models.likelihood import empty_cache


WIDE = {"vocab_size": 320, "initializer_range": 0.3}
STATE = WIDE | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
ATTENTION = WIDE | {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "pad_token_id": 2}
HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8, "mamba_expand": 2}
GPT = WIDE | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 32}
MODELS = {
    "mamba": (MambaForCausalLM, MambaConfig, STATE),
    "mamba2": (
        Mamba2ForCausalLM,
        Mamba2Config,
        STATE | {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    ),
    "rwkv": (
        RwkvForCausalLM,
        RwkvConfig,
        {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 128},
    ),
    "bloom": (BloomForCausalLM, BloomConfig, WIDE | {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": (MptForCausalLM, MptConfig, WIDE | {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128}),
    "jamba": (
        JambaForCausalLM,
        JambaConfig,
        ATTENTION
        | {"num_hidden_layers": 2, "num_key_value_heads": 2, "use_mamba_kernels": False, "mamba_d_state": 8}
        | {"mamba_dt_rank": 4, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    ),
    "recurrent_gemma": (
        RecurrentGemmaForCausalLM,
        RecurrentGemmaConfig,
        ATTENTION | {"num_hidden_layers": 3, "head_dim": 8, "lru_width": 32, "attention_window_size": 16},
    ),
    "granitemoehybrid": (
        GraniteMoeHybridForCausalLM,
        GraniteMoeHybridConfig,
        ATTENTION
        | HEADS
        | EXPERTS
        | {"num_hidden_layers": 2, "num_key_value_heads": 2, "layer_types": ["mamba", "attention"]},
    ),
    "openai-gpt": (OpenAIGPTLMHeadModel, OpenAIGPTConfig, GPT),
}
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(5, 320, n).tolist() for n in (9, 3, 14, 9, 22, 5, 17)]
N_NEW = 10


@cache
def model_of(name):
    torch.manual_seed(0)
    if name == "prefix":
        return get_peft_model(tiny_llama(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    model_class, config_class, sizes = MODELS[name]
    return model_class(config_class(**sizes)).eval()


@cache
def one_at_a_time(name):
    said = []
    with torch.no_grad():
        for prompt in PROMPTS:
            row = list(prompt)
            for _ in range(N_NEW):
                row.append(int(model_of(name)(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
            said.append(row[len(prompt) :])
    assert len({token for new in said for token in new}) > 2
    return said


def with_answers(said):
    """Rows whose answers are what is said, but for a token in the middle of it."""
    answers = [[*new[:5], (new[5] + 1) % 300, *new[6:]] for new in said]
    return [
        {"input_ids": p + answer, "labels": [-100] * len(p) + answer}
        for p, answer in zip(PROMPTS, answers, strict=True)
    ]


@pytest.mark.parametrize("name", [*MODELS, "prefix"])
def test_greedy_is_a_plain_loop_token_for_token(name):
    model, said = model_of(name), one_at_a_time(name)
    assert empty_cache(model) is None
    for batch_size in (1, 3, 16):
        assert greedy(model, None, PROMPTS, N_NEW, batch_size, ends=()) == said
    # The answers are drafts, which change nothing.
    assert greedy(model, None, with_answers(said), N_NEW, 4, ends=()) == said
    end = said[0][4]
    until_end = [new[: new.index(end) + 1] if end in new else new for new in said]
    assert greedy(model, None, with_answers(said), N_NEW, 4, ends=[end]) == until_end
    limits = [1 + (5 * i) % N_NEW for i in range(len(PROMPTS))]
    assert greedy(model, None, PROMPTS, limits, 4, ends=()) == [new[:n] for new, n in zip(said, limits, strict=True)]


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_each_row_alone(name):
    rows = with_answers(one_at_a_time(name))
    together = score(model_of(name), None, rows, 4, sampling=())
    for column in ("log_prob", "mean", "std", "margin"):
        alone = [getattr(score(model_of(name), None, [row], sampling=()), column) for row in rows]
        np.testing.assert_allclose(getattr(together, column), np.concatenate(alone), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["mamba", "bloom"])
def test_samples_do_not_depend_on_the_batch(name):
    drawn = sample(model_of(name), None, PROMPTS, 3, N_NEW, ends=(), batch_size=32)
    assert sample(model_of(name), None, PROMPTS[::-1], 3, N_NEW, ends=(), batch_size=4)[::-1] == drawn
    assert len({tuple(new) for samples in drawn for new in samples}) == 3 * len(PROMPTS)


def test_a_pass_has_no_more_logits_than_fit_into_memory(monkeypatch):
    model, said = model_of("bloom"), one_at_a_time("bloom")
    rows = []
    handle = model.register_forward_hook(lambda module, args, output: rows.append(len(output.logits)))
    for room, most in ((3 * 320, 3), (1, 1)):
        rows.clear()
        monkeypatch.setattr("hf_unlearn.models.rereading.max_logits", lambda device, room=room: room)
        assert greedy(model, None, with_answers(said), N_NEW, 16, ends=()) == said
        assert max(rows) == most
    handle.remove()


def test_an_answer_that_is_known_takes_few_passes():
    model, said = model_of("mamba"), one_at_a_time("mamba")
    rows = [{"input_ids": p + a, "labels": [-100] * len(p) + a} for p, a in zip(PROMPTS, said, strict=True)]
    passes = []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    assert greedy(model, None, rows, N_NEW, 16, ends=()) == said
    handle.remove()
    assert len(passes) <= 4 < N_NEW
