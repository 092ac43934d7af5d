import re
from functools import wraps

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import BOS, EOS, TURN_END, tiny_gpt2, tiny_llama, tiny_tokenizer
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM

from hf_unlearn.audit import extraction_probability, score
from hf_unlearn.data import encode
from hf_unlearn.models.decoding import _closed_up, _Reserved, continued
from hf_unlearn.models.generate import end_tokens, greedy, sample, split_answer, texts_of
from hf_unlearn.models.sampling import Sampling


CANARY = "Zyxwv Qkjhg 8675309"
TOKENIZER = tiny_tokenizer()
PROMPTS = [
    "Question: Where does Ada live?\nAnswer:",
    "Q:",
    "Question: What is the name of the author?\nAnswer:",
    "Question: Where does Ada live?\nAnswer:",  # again
    *[f"Question: Who wrote the book {'of books ' * (i % 4)}{i}?\nAnswer:" for i in range(8)],
]


def lora_llama():
    torch.manual_seed(0)
    return get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()


def by_generate(model, ids, max_new_tokens, ends, **options):
    """One prompt at a time, so that neither padding nor neighbours can matter."""
    config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(ends) or None, pad_token_id=0, **options
    )
    out = []
    for prompt in ids:
        x = torch.tensor([prompt])
        out.append(model.generate(input_ids=x, attention_mask=torch.ones_like(x), generation_config=config))
    return [new[0, len(prompt) :].tolist() for new, prompt in zip(out, ids, strict=True)]


def some_ends(free):
    """End tokens under which these continuations end at many lengths, and some not at all; and where they end."""
    free = np.array(free)
    for seed in range(200):
        ends = np.random.default_rng(seed).choice(np.unique(free), 4, replace=False)
        hit = np.isin(free, ends)
        lengths = np.where(hit.any(1), hit.argmax(1) + 1, free.shape[1])
        if len(set(lengths)) > 4 and not hit.any(1).all():
            return {int(token) for token in ends}, [new[:n].tolist() for new, n in zip(free, lengths, strict=True)]
    raise AssertionError("no such tokens")


@pytest.fixture
def passes(monkeypatch):
    """Shapes of the ids that models are given, pass after pass."""
    seen = []
    for kind in (tiny_llama, tiny_gpt2):
        cls = type(kind())
        forward = cls.forward

        @wraps(forward)  # with its signature, which tells what it takes
        def counted(self, *args, forward=forward, **kwargs):
            seen.append(tuple(kwargs["input_ids"].shape))
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(cls, "forward", counted)
    return seen


# --- greedy ---


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, lora_llama])
@pytest.mark.parametrize(("bos", "pad"), [(True, True), (False, "eos"), (True, False)])
def test_greedy_is_generate_token_for_token(build, bos, pad):
    model, tokenizer = build().double(), tiny_tokenizer(bos=bos, pad=pad)
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    assert (ids[0][0] == BOS) == bos
    free = by_generate(model, ids, 14, set())
    ends, expected = some_ends(free)
    assert by_generate(model, ids[:2], 14, ends) == expected[:2]
    assert greedy(model, tokenizer, PROMPTS, 14, ends=()) == free
    for batch_size in (1, 3, 16):
        assert greedy(model, None, ids, 14, batch_size, ends=ends) == expected


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_greedy_is_generate_on_a_padded_batch(build):
    model = build().double()
    ids = [TOKENIZER(prompt)["input_ids"] for prompt in PROMPTS]
    TOKENIZER.padding_side = "left"
    inputs = TOKENIZER(PROMPTS, return_tensors="pt", padding=True).to(model.device)
    inputs.pop("token_type_ids", None)
    out = model.generate(**inputs, do_sample=False, max_new_tokens=12)[:, inputs["input_ids"].shape[1] :].tolist()
    expected = [new[: new.index(EOS) + 1] if EOS in new else new for new in out]
    assert greedy(model, TOKENIZER, PROMPTS, 12) == expected == by_generate(model, ids, 12, {EOS})


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_a_shared_beginning_is_read_once_and_changes_nothing(build, passes, monkeypatch):
    model = build().double()
    shared = "The author of the book is Boris. Ada lives in Paris. " * 2
    prompts = [shared + end for end in ("Who", "Where does Ada live", "Boris", "Question: Who wrote the book")]
    ids = [TOKENIZER(prompt)["input_ids"] for prompt in prompts]
    n_shared = next(i for i, column in enumerate(zip(*ids, strict=False)) if len(set(column)) > 1)
    expected = by_generate(model, ids, 10, set())
    passes.clear()
    assert greedy(model, None, ids, 10, ends=()) == expected
    assert passes[:2] == [(1, n_shared), (4, max(map(len, ids)) - n_shared)] and set(passes[2:]) == {(4, 1)}
    # One is the beginning of the other: of both at least a token is left to read.
    monkeypatch.setattr("hf_unlearn.models.decoding.WORTH_SHARING", 1)
    passes.clear()
    assert greedy(model, None, [ids[0], ids[0][:n_shared]], 10, ends=())[0] == expected[0]
    assert passes[0] == (1, n_shared - 1)


def test_a_sliding_window_slides_over_real_tokens(monkeypatch, passes):
    config = tiny_llama().config.to_dict() | {"sliding_window": 8}
    config = MistralConfig(**{k: v for k, v in config.items() if k in MistralConfig().to_dict() and k != "model_type"})
    model = MistralForCausalLM(config).double().eval()
    monkeypatch.setattr("hf_unlearn.models.decoding.WORTH_SHARING", 1)
    ids = [TOKENIZER(prompt)["input_ids"] for prompt in PROMPTS]
    expected = by_generate(model, ids, 12, set())
    for batch_size in (1, 4, 16):
        assert greedy(model, None, ids, 12, batch_size, ends=()) == expected
        assert greedy(model, None, with_answers(ids, expected), 12, batch_size, ends=()) == expected
    wide = MistralForCausalLM(MistralConfig(**config.to_dict() | {"sliding_window": None})).double().eval()
    wide.load_state_dict(model.state_dict())
    assert greedy(wide, None, ids, 12, ends=()) != expected


def test_finished_sequences_leave_the_batch_and_equal_prompts_are_read_once(passes):
    model = tiny_llama().double()
    ids = [TOKENIZER(prompt)["input_ids"] for prompt in PROMPTS]
    ends, new = some_ends(greedy(model, None, ids, 14, ends=()))
    passes.clear()
    greedy(model, None, ids, 14, batch_size=len(ids), ends=ends)
    assert passes[0][0] == len(PROMPTS) - 1  # one question is asked twice
    lengths = [len(n) for n in new[:3] + new[4:]]
    assert [rows for rows, _ in passes[1:]] == [sum(n > step for n in lengths) for step in range(1, max(lengths))]


def test_many_go_on_together_although_few_are_read_together(passes):
    model, ids = tiny_llama().double(), [TOKENIZER(prompt)["input_ids"] for prompt in PROMPTS]
    expected = by_generate(model, ids, 9, set())
    passes.clear()
    assert greedy(model, None, ids, 9, batch_size=4, ends=()) == expected
    # Three readings, of which one has a prompt twice, and each may read what its prompts begin with by itself.
    reading = [rows for rows, columns in passes if columns > 1]
    assert max(reading) <= 4 and len(reading) <= 6
    assert [shape for shape in passes if shape[1] == 1] == [(11, 1)] * 8


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("room", ["states", "logits"])
def test_no_more_go_on_together_than_have_room_but_a_batch(build, room, passes, monkeypatch):
    # With many logits these count, not the states.
    model, ids = (
        build(vocab_size=20_000 if room == "logits" else 320).double(),
        [TOKENIZER(prompt)["input_ids"] for prompt in PROMPTS],
    )
    expected = by_generate(model, ids, 9, set())
    longest = max(map(len, ids)) + 9
    heads = getattr(model.config, "num_key_value_heads", model.config.num_attention_heads)
    of_a_row = (
        2 * model.config.num_hidden_layers * heads * (model.config.hidden_size // model.config.num_attention_heads)
    )
    most = {"states": of_a_row * 8 * longest * 5.5 / 4, "logits": 5.5 * 4 * model.config.vocab_size}[room]
    for limit, rows in ((most, 5), (1, 3)):
        monkeypatch.setattr("hf_unlearn.models.decoding.max_logits", lambda device, limit=limit: int(limit))
        passes.clear()
        assert greedy(model, None, ids, 9, batch_size=3, ends=()) == expected
        together = [shape[0] for shape in passes if shape[1] == 1]
        assert together[0] == rows and sum(together) == 8 * 11
        if rows == 3 or room == "logits":  # shorter prompts leave room for more
            assert max(together) == rows


def with_answers(ids, said, seed=0):
    """Rows whose answers are what is said, but for some tokens; the first is said to its end, the second not at all."""
    rng, rows = np.random.default_rng(seed), []
    for i, (prompt, new) in enumerate(zip(ids, said, strict=True)):
        wrong = rng.random(len(new)) < (0.0, 1.0, 0.1, 0.4)[i % 4]
        answer = [(token + 1) % 300 if w else token for token, w in zip(new, wrong, strict=True)]
        answer = answer[: len(answer) - i % 3 or None]  # shorter, too
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows


def eager_llama():
    return tiny_llama(attn_implementation="eager")  # in float64 that of transformers overflows at padding


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, lora_llama, eager_llama])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_the_answer_is_a_draft_that_changes_nothing(build, batch_size):
    model = build() if build is eager_llama else build().double()
    ids = [TOKENIZER(prompt)["input_ids"] for prompt in PROMPTS]
    free = by_generate(model, ids, 22, set())
    ends, until_end = some_ends(free)
    for seed in range(3):
        rows = with_answers(ids, free, seed)
        assert greedy(model, None, rows, 22, batch_size, ends=()) == free
        assert greedy(model, None, rows, 22, batch_size, ends=ends) == until_end
        limits = [1 + (5 * i) % 22 for i in range(len(ids))]
        assert greedy(model, None, rows, limits, batch_size, ends=()) == [
            f[:n] for f, n in zip(free, limits, strict=True)
        ]


def test_an_answer_that_is_known_takes_few_steps_and_a_wrong_one_no_more_than_none(passes):
    model, ids = tiny_llama().double(), [TOKENIZER(prompt)["input_ids"] for prompt in PROMPTS]
    free = by_generate(model, ids, 30, set())
    for answers, most_steps in ((free, 5), ([[(t + 1) % 300 for t in f] for f in free], 29)):
        rows = [{"input_ids": p + a, "labels": [-100] * len(p) + a} for p, a in zip(ids, answers, strict=True)]
        passes.clear()
        assert greedy(model, None, rows, 30, batch_size=16, ends=()) == free
        assert len(passes) - 1 <= most_steps
        assert sum(columns > 1 for _, columns in passes[1:]) == (1 if most_steps == 29 else len(passes) - 1)


def test_a_draft_needs_no_position_that_the_model_does_not_have():
    model = tiny_gpt2(n_positions=40).double()
    ids = [TOKENIZER(prompt)["input_ids"][:20] for prompt in ("Q:", PROMPTS[0], PROMPTS[2])]
    limits = [40 - len(prompt) for prompt in ids]
    free = [by_generate(model, [prompt], n, set())[0] for prompt, n in zip(ids, limits, strict=True)]
    assert greedy(model, None, with_answers(ids, free), limits, ends=()) == free


def test_a_draft_with_broken_weights_breaks_nothing_that_is_not_said():
    model, ids = tiny_llama().double(), [TOKENIZER(prompt)["input_ids"] for prompt in PROMPTS]
    free = by_generate(model, ids, 9, set())
    odd = next(token for token in range(10, 300) if token not in {t for row in free + ids for t in row})
    rows = [
        {"input_ids": p + [f[0], odd, *f[2:]], "labels": [-100] * len(p) + [f[0], odd, *f[2:]]}
        for p, f in zip(ids, free, strict=True)
    ]
    with torch.no_grad():
        model.model.embed_tokens.weight[odd] = torch.nan
    assert greedy(model, None, rows, 9, ends=()) == free


def test_steps_write_into_memory_that_is_there():
    keys = [torch.randn(2, 3, 4, 5), torch.randn(1, 3, 2, 5)]
    layer = _Reserved(keys, [2 * k for k in keys], n_new=3)
    assert layer.get_seq_length() == 4 and not layer.keys[2, :, :2].any()
    where, expected = layer.keys.data_ptr(), layer.keys.clone()
    step = torch.randn(3, 3, 1, 5)
    layer.update(step, 2 * step)
    expected = torch.cat([expected, step], dim=2)
    assert torch.equal(layer.keys, expected) and torch.equal(layer.values, 2 * expected)
    layer.batch_select_indices(torch.tensor([2, 1]))
    step = torch.randn(2, 3, 2, 5)
    keys, values = layer.update(step, 2 * step)
    expected = torch.cat([expected[[2, 1]], step], dim=2)
    assert torch.equal(keys, expected) and torch.equal(values, 2 * expected)
    assert layer.keys.data_ptr() == where and layer.get_seq_length() == 7


@pytest.mark.parametrize(
    ("places", "expected"),
    [([0, 1], [0, 1]), ([1, 2, 4], [4, 1, 2]), ([3, 7], [3, 7]), ([0, 5, 6], [0, 5, 6]), ([], [])],
)
def test_the_last_ones_close_the_gaps(places, expected):
    assert _closed_up(places) == expected


def test_each_prompt_may_have_a_limit_of_its_own():
    model = tiny_llama().double()
    free = greedy(model, TOKENIZER, PROMPTS, 9, ends=())
    limits = [1 + i % 9 for i in range(len(PROMPTS))]
    assert greedy(model, TOKENIZER, PROMPTS, limits, 4, ends=()) == [f[:n] for f, n in zip(free, limits, strict=True)]
    with pytest.raises(ValueError, match="max_new_tokens for 2 prompts, but there are 12"):
        greedy(model, TOKENIZER, PROMPTS, [1, 2])


def test_the_generation_config_of_the_model_does_not_alter_logits():
    model = tiny_llama().double()
    ids = [TOKENIZER(prompt)["input_ids"] for prompt in PROMPTS]
    plain = by_generate(model, ids, 12, {EOS})
    model.generation_config.repetition_penalty = 3.0
    model.generation_config.do_sample = True
    assert by_generate(model, ids, 12, {EOS}) != plain
    assert greedy(model, None, ids, 12) == plain


def test_the_first_of_equal_logits_wins():
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[200] = model.lm_head.weight[100] = model.lm_head.weight[150]
    (new,) = greedy(model, TOKENIZER, ["Question: Who?\nAnswer:"], 1, ends=())
    hidden = model.model(torch.tensor([TOKENIZER("Question: Who?\nAnswer:")["input_ids"]]))[0][0, -1]
    with torch.no_grad():
        model.lm_head.weight[[100, 150, 200]] = hidden * 10
    assert greedy(model, TOKENIZER, ["Question: Who?\nAnswer:"], 1, ends=()) == [[100]] != [new]


def test_the_model_is_left_as_it_was():
    model = tiny_gpt2(resid_pdrop=0.5)
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    before = torch.random.get_rng_state()
    first = greedy(model, TOKENIZER, PROMPTS[:3], 8)
    sample(model, TOKENIZER, PROMPTS[:3], 2, 4)
    assert first == greedy(model, TOKENIZER, PROMPTS[:3], 8) == greedy(model.eval(), TOKENIZER, PROMPTS[:3], 8)
    model.train()
    model.transformer.h[0].eval()
    greedy(model, TOKENIZER, PROMPTS[:3], 2)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters())

    def fails(*_):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        continued(model, [[5, 6]], [2], fails, 1, set())
    assert [module.training for module in model.modules()] == modes


def test_nan_logits_are_none_and_leave_the_others_alone():
    model = tiny_llama().double()
    odd = TOKENIZER("Z", add_special_tokens=False)["input_ids"][0]
    prompts = ["Who?", "Zoe?", "Question: Where does Ada live?", "Ask Zoe"]
    expected = greedy(model, TOKENIZER, prompts, 6, ends=())
    with torch.no_grad():
        model.model.embed_tokens.weight[odd] = torch.nan
    new = greedy(model, TOKENIZER, prompts, 6, ends=())
    assert new == [expected[0], None, expected[2], None]
    drawn = sample(model, TOKENIZER, prompts, 2, 6, ends=())
    assert drawn[1] == drawn[3] == [None, None] and None not in drawn[0] + drawn[2]


def test_rows_are_prompts_too():
    model = tiny_llama().double()
    row = {"prompt": "Question: Where does Ada live?\nAnswer:", "completion": " In Paris."}
    empty = {"prompt": "Q:", "completion": " "}
    assert greedy(model, TOKENIZER, [row, empty, encode(row, TOKENIZER)], 5) == [
        greedy(model, TOKENIZER, [row["prompt"]], 5)[0],
        None,
        greedy(model, TOKENIZER, [row["prompt"]], 5)[0],
    ]
    assert greedy(model, TOKENIZER, [], 5) == [] == sample(model, TOKENIZER, [], 3, 5)


def test_a_chat_ends_with_the_turn():
    tokenizer = tiny_tokenizer(chat_template=True)
    chat = {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In Paris."}]}
    prompt, answer, ends = split_answer(chat, tokenizer, 0)
    rendered = tokenizer.apply_chat_template(chat["messages"][:1], add_generation_prompt=True, return_dict=False)
    assert prompt == list(rendered) and ends == {TURN_END} and tokenizer.decode(answer) == "In Paris."
    model = tiny_llama().double()
    with torch.no_grad():
        # Whatever is said: the third token ends the turn.
        first = greedy(model, None, [prompt], 3, ends=())[0]
        hidden = model.model(torch.tensor([prompt + first[:2]]))[0][0, -1]
        model.lm_head.weight[TURN_END] = hidden * 100
    assert TURN_END not in end_tokens(model, tokenizer)
    (new,) = greedy(model, tokenizer, [chat], 10)
    assert new[-1] == TURN_END and len(new) <= 3
    assert "<|end|>" not in texts_of(tokenizer, [new])[0]


def test_end_tokens_are_those_of_the_model_and_the_tokenizer():
    model = tiny_llama()
    assert end_tokens(model) == {EOS} == end_tokens(model, TOKENIZER)
    model.generation_config.eos_token_id = [7, 9]
    assert end_tokens(model) == {7, 9} and end_tokens(model, TOKENIZER) == {7, 9, EOS}
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    assert end_tokens(model, tiny_tokenizer(eos=False)) == set()


@pytest.mark.parametrize(
    ("prompts", "tokenizer", "message"),
    [
        (["Who?", f"{CANARY} "], TOKENIZER, "Prompt 1: It ends in a space"),
        ([f"{CANARY} " * 9], TOKENIZER, "Prompt 0: It ends in a space"),
        ([f"{CANARY}{CANARY * 9}"], TOKENIZER, r"Prompt 0 has \d+ tokens and max_new_tokens is 5, but the context"),
        (["Who?", ""], tiny_tokenizer(bos=False), "Prompt 1 is empty and the tokenizer adds no BOS"),
        ([[]], None, "Prompt 0 is empty"),
        ([{"prompt": f"{CANARY} ", "completion": "x"}], TOKENIZER, "Prompt 0: The prompt ends in a space"),
    ],
)
def test_errors_come_first_and_hold_no_text(prompts, tokenizer, message, passes):
    with pytest.raises(ValueError, match=message) as error:
        greedy(tiny_llama(), tokenizer, prompts, 5)
    assert not passes and not re.search("Zyxwv|8675309", str(error.value))


def test_one_new_token_and_one_sample_at_least():
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        greedy(tiny_llama(), TOKENIZER, ["Who?"], 0)
    with pytest.raises(ValueError, match="n must be at least 1"):
        sample(tiny_llama(), TOKENIZER, ["Who?"], 0, 5)


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_sixteen_bit(build):
    model = build().bfloat16()
    ids = [TOKENIZER(prompt)["input_ids"] for prompt in PROMPTS[:4]]
    # Another batch shape may flip a near tie, so one at a time.
    assert [greedy(model, None, [i], 10, ends=())[0] for i in ids] == by_generate(model, ids, 10, set())
    assert all(len(new) == 10 for d in sample(model, None, ids, 2, 10, top_p=0.9, ends=()) for new in d)


def test_texts_are_cut_before_the_first_stop_string():
    ids = [
        TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in ("In Paris.\n\nQuestion: Who", "Ada", "")
    ]
    assert texts_of(TOKENIZER, [*ids, None], ("Question:", "\n\n")) == ["In Paris.", "Ada", "", None]
    assert texts_of(TOKENIZER, [[*ids[1], EOS]]) == ["Ada"]


# --- sampling ---


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_samples_depend_on_seed_and_prompt_alone(build):
    model = build().double()
    drawn = sample(model, TOKENIZER, PROMPTS, 3, 8, temperature=0.9, top_k=20, seed=1)
    assert [len(d) for d in drawn] == [3] * len(PROMPTS)
    assert drawn[0] == drawn[3] and len({tuple(new) for of_prompt in drawn for new in of_prompt}) > 25
    for batch_size in (1, 7, 100):
        assert sample(model, TOKENIZER, PROMPTS, 3, 8, 0.9, 20, seed=1, batch_size=batch_size) == drawn
    assert sample(model, TOKENIZER, PROMPTS[::-1], 3, 8, 0.9, 20, seed=1) == drawn[::-1]
    assert [d[:2] for d in drawn] == sample(model, TOKENIZER, PROMPTS, 2, 8, 0.9, 20, seed=1)
    assert sample(model, TOKENIZER, PROMPTS, 3, 8, 0.9, 20, seed=2) != drawn


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_one_candidate_is_greedy(build):
    model = build().double()
    drawn = sample(model, TOKENIZER, PROMPTS, 2, 8, top_k=1)
    assert drawn == [[new, new] for new in greedy(model, TOKENIZER, PROMPTS, 8)]


@pytest.mark.parametrize("scheme", [{}, {"top_k": 5}, {"temperature": 0.7}, {"temperature": 1.3, "top_p": 0.6}])
def test_answers_come_as_often_as_the_table_says(scheme):
    model, n = tiny_llama().double(), 4000
    with torch.no_grad():
        model.lm_head.weight *= 3  # a few answers are likely
    prompt = TOKENIZER(PROMPTS[0])["input_ids"]
    (drawn,) = sample(model, None, [prompt], n, 2, **scheme, batch_size=n, ends=())
    seen, counts = np.unique(drawn, axis=0, return_counts=True)
    rows = [{"input_ids": [*prompt, *y], "labels": [-100] * len(prompt) + list(y)} for y in seen.tolist()]
    p = extraction_probability(score(model, None, rows, 64, sampling=[Sampling(**scheme)]), **scheme)
    assert (p > 0).all()  # nothing that the scheme removes
    often = counts >= 20
    assert often.sum() >= 5
    z = (counts - n * p)[often] / np.sqrt(n * p * (1 - p))[often]
    assert np.abs(z).max() < 4 and z.std() < 1.6
    # Without the common ones the rest must add up as well.
    assert abs(counts[~often].sum() / n - (1 - p[often].sum())) < 4 * np.sqrt(0.25 / n)
