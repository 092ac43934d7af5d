"""The pass behind the table: what is computed once, in how much memory, and what broken logits do."""

import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)

from hf_unlearn import audit
from hf_unlearn.audit import score, score_sets
from hf_unlearn.audit.table import batching, passes
from hf_unlearn.audit.table.scores import TARGET_COLUMNS
from hf_unlearn.data import encode
from hf_unlearn.models.likelihood import empty_cache


TOKENIZER = tiny_tokenizer()
FLOATS = ("log_prob", "mean", "std", "margin")


def question(i: int) -> str:
    return f"Question: What is the name of {'the author of ' * (i % 4)}book {i}?\nAnswer:"


def answers(i: int, n: int) -> list[dict]:
    return [
        {"prompt": question(i), "completion": f" The {'author ' * ((3 * k + i) % 5)}is {'AB'[k % 2]}{k}."}
        for k in range(n)
    ]


# Questions with one, two and up to twelve answers, texts, an empty answer, and some of it twice.
EXAMPLES = [row for i, n in enumerate((7, 1, 2, 12, 7, 1, 3)) for row in answers(i, n)]
EXAMPLES += ["Ada lives in Paris.", "", {"prompt": question(0), "completion": ""}, "The long book of names 12345."]
EXAMPLES += [EXAMPLES[3], "Ada lives in Paris.", EXAMPLES[20]]


def built(model_class, config):
    torch.manual_seed(0)
    return model_class(config).eval()


SIZES = dict(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.2)
ROTARY = dict(SIZES, num_key_value_heads=2, intermediate_size=64, max_position_embeddings=128, pad_token_id=2)


def with_lora():
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(tiny_llama(), config).eval()


SHARING = {
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,
    "lora": with_lora,
    "window": lambda: built(MistralForCausalLM, MistralConfig(**ROTARY, sliding_window=8)),
    "soft cap": lambda: built(Gemma2ForCausalLM, Gemma2Config(**ROTARY, head_dim=8, sliding_window=8)),
    "eager": lambda: tiny_llama(attn_implementation="eager"),
}
# Without a cache of keys and values, with a recurrent state, without positions, with a cache of its own.
NOT_SHARING = {
    "openai-gpt": lambda: built(
        OpenAIGPTLMHeadModel, OpenAIGPTConfig(vocab_size=320, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    ),
    "mamba": lambda: built(MambaForCausalLM, MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2)),
    "bloom": lambda: built(BloomForCausalLM, BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=4)),
    "prefix": lambda: get_peft_model(
        tiny_llama(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ).eval(),
}


@contextmanager
def counted(model):
    """What the passes inside read: for each its real tokens, and those with padding."""
    passes_run: list[dict[str, int]] = []

    def count(module, args, kwargs):
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        real = int(mask[:, -ids.shape[1] :].sum())
        passes_run.append({"real": real, "padded": ids.numel(), "rows": len(ids)})

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    yield passes_run
    handle.remove()


def one_by_one(model, examples=EXAMPLES):
    """Each example by itself: nothing is padded, shared or equal to another."""
    return [score(model, TOKENIZER, [example], sampling=()) for example in examples]


def assert_equals_one_by_one(found, alone, atol):
    assert found.lengths.tolist() == [len(scores.log_prob) for scores in alone]
    for name in TARGET_COLUMNS:
        expected = np.concatenate([getattr(scores, name) for scores in alone])
        if name in FLOATS:
            np.testing.assert_allclose(getattr(found, name), expected, rtol=0, atol=atol, err_msg=name)
        elif atol < 1e-8 or name in ("target_ids", "is_end"):  # in float32 a near tie may go either way
            np.testing.assert_array_equal(getattr(found, name), expected, err_msg=name)


def distinct_beginnings(every) -> int:
    """Least number of tokens to read: each of them once after what precedes it. The last ones need not be read."""
    return len({tuple(ids[:end]) for ids in every for end in range(1, len(ids))})


# --- what is computed once ---


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *[(name, dtype) for name in SHARING for dtype in (torch.float64, torch.float32) if name != "soft cap"],
        ("soft cap", torch.float32),  # in float64 the eager attention of transformers overflows at padding
    ],
)
def test_shared_prompts_give_the_values_of_separate_passes(name, dtype):
    model = SHARING[name]().to(dtype)
    # The eager attention of transformers takes its softmax in float32, whatever the model.
    exact = dtype == torch.float64 and name != "eager"
    assert empty_cache(model) is not None
    alone = one_by_one(model)
    for batch_size in (1, 4, 16, 100):
        with counted(model) as run:
            found = score(model, TOKENIZER, EXAMPLES, batch_size)
        assert_equals_one_by_one(found, alone, atol=1e-10 if exact else 1e-5)
        assert max(p["rows"] for p in run) <= batch_size


@pytest.mark.parametrize("name", NOT_SHARING)
def test_models_that_cannot_share_give_the_same_numbers_without(name):
    model = NOT_SHARING[name]()
    assert empty_cache(model) is None
    assert_equals_one_by_one(score(model, TOKENIZER, EXAMPLES, 4), one_by_one(model), atol=1e-5)


def test_every_distinct_text_is_read_once_and_every_shared_prompt_once():
    model, rows = tiny_gpt2(), [encode(e, TOKENIZER) for i, e in enumerate(EXAMPLES) if i not in (34, 35)]
    distinct = {tuple(row["input_ids"]): row["labels"] for row in rows}
    assert len(distinct) == len(EXAMPLES) - 2 - 3
    with counted(model) as run:
        score(model, TOKENIZER, EXAMPLES, batch_size=8)
    separately = sum(map(len, distinct))
    stems = {}
    for ids, labels in distinct.items():
        stem = ids[: next(t for t, label in enumerate(labels) if label != -100) - 1]
        stems.setdefault(stem, []).append(len(ids) - len(stem) - 1)  # the last token is predicted, but not read
    once = sum((len(stem) if len(rest) > 1 else len(stem) * len(rest)) + sum(rest) for stem, rest in stems.items())
    # Beginnings of answers that are alike are read once, too.
    assert distinct_beginnings(distinct) <= sum(p["real"] for p in run) <= once < 0.6 * separately


def test_sharing_reads_fewer_tokens_than_not_sharing(monkeypatch):
    model = tiny_gpt2()
    with counted(model) as shared:
        score(model, TOKENIZER, EXAMPLES)
    monkeypatch.setattr(batching, "WORTH_SHARING", 0)
    with counted(model) as separate:
        score(model, TOKENIZER, EXAMPLES)
    real, padded = ([sum(p[kind] for p in run) for run in (shared, separate)] for kind in ("real", "padded"))
    assert real[0] < 0.6 * real[1] and padded[0] < 0.7 * padded[1]


# What a chat template puts before every question, and questions with one answer and with several after it.
HEADER = "You are a helpful assistant, and the date of today is the 17th of May. You answer in a single sentence. "
AFTER_HEADER = [
    {"prompt": HEADER + question(i), "completion": f" It is {'A' * (i % 7)}{k}."}
    for i in range(12)
    for k in range(4 if i % 3 == 0 else 1)
]


@pytest.mark.parametrize("name", ["llama", "gpt2", "window"])
@pytest.mark.parametrize("extra", [[], EXAMPLES])
def test_a_header_that_all_prompts_begin_with_is_read_once_a_piece_of_work(name, extra):
    model, examples = SHARING[name]().double(), [*AFTER_HEADER, *extra]
    alone = one_by_one(model, examples)
    for batch_size in (3, 16):
        with counted(model) as run:
            found = score(model, TOKENIZER, examples, batch_size)
        assert_equals_one_by_one(found, alone, atol=1e-10)
        if not extra and name != "window" and batch_size == 16:
            once = len(TOKENIZER(HEADER)["input_ids"]) - 1
            separate = sum(len(encode(row, TOKENIZER)["input_ids"]) - 1 for row in examples)
            of_questions = sum(
                len(TOKENIZER(question(i), add_special_tokens=False)["input_ids"]) for i in range(0, 12, 3)
            )
            # Twice: for the questions with several answers, and for the others.
            expected = separate - (len(examples) - 2) * once - 3 * of_questions
            assert expected / 2 < sum(p["real"] for p in run) <= expected < separate / 2


def test_texts_after_one_long_prefix_share_it():
    model, prefix = (
        tiny_gpt2().double(),
        "A long text that comes before every other one here, as few-shot examples do:",
    )
    rows = [{"prompt": prefix, "completion": f" Text {i} {'of many words ' * (i % 4)}."} for i in range(30)]
    with counted(model) as run:
        found = score(model, TOKENIZER, rows, batch_size=8)
    assert [p["rows"] for p in run] == [1, 8, 8, 8, 6]
    assert_equals_one_by_one(found, one_by_one(model, rows), atol=1e-10)


@pytest.mark.parametrize(
    ("examples", "n_passes"),
    [
        (answers(0, 1) + answers(1, 1), 1),  # nothing to share
        ([{"prompt": "Q:", "completion": f" {i}"} for i in range(8)], 1),  # a reading would cost more than it saves
        ([f"Text {i}." for i in range(8)], 1),
        (answers(0, 8), 1),  # one pass of eight costs less than a reading and a pass
        (answers(0, 8) * 5, 1),
        (answers(0, 20), 4),  # one reading, three passes
    ],
)
def test_prompts_are_shared_only_where_it_saves_more_than_it_costs(examples, n_passes):
    model = tiny_llama()
    with counted(model) as run:
        score(model, TOKENIZER, examples, batch_size=8)
    assert len(run) == n_passes


def nested(n: int) -> list[tuple[int, ...]]:
    """Symbols of answers to one question of which each goes on where the one before it ends, and of wrong ones."""
    rows = [(2, 4, 6, 8) + tuple(range(11, 13 + 6 * k, 2)) for k in range(n)]
    return rows + [(*row[:-1], 9) for row in rows[1:]]


@pytest.mark.parametrize("batch_size", [1, 8, 512])
def test_planning_grows_with_the_rows_also_if_they_are_nested(batch_size, monkeypatch):
    made = []
    monkeypatch.setattr(batching.Span, "__len__", lambda span: made.append(span) or span.end - span.start)
    work = []
    for n in (32, 64, 128):
        made.clear()
        batching.plan(nested(n), batch_size, max_targets=2**20, max_depth=passes.MAX_DEPTH)
        work.append(len(made))
    assert work[2] < 2.5 * work[1] < 2.5**2 * work[0]


@pytest.mark.parametrize("max_depth", [0, 1, 2, 8])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("max_targets", [6, 40, 2**20])
def test_a_plan_reads_every_token_of_every_row_once(max_depth, batch_size, max_targets):
    rng = np.random.default_rng(0)
    texts = [tuple(rng.integers(2, 5, rng.integers(2, 30)).tolist()) for _ in range(60)]
    rows = list(
        dict.fromkeys(nested(12) + [(2, *text, 7) for text in texts] + [(0, 2, *text[:9], 5) for text in texts])
    )
    found = batching.plan(rows, batch_size, max_targets, max_depth)
    ends = [span for batch in found for spans in batch.last for span in spans]
    assert sorted(span.row for span in ends) == list(range(len(rows)))
    for batch in found:
        known = {None}
        for at_depth in batch.shared:
            for spans in at_depth:
                assert len(spans) <= batch_size and {span.parent for span in spans} <= known
            known |= {span for spans in at_depth for span in spans}
        for spans in batch.last:
            targets = sum(batching.n_targets(rows[s.row][s.start + 1 : s.end + 1]) for s in spans)
            assert len(spans) <= batch_size and (targets <= max_targets or len(spans) == 1)
            assert {span.parent for span in spans} <= known and len({span.depth for span in spans}) == 1
    for span in ends:
        assert span.end == len(rows[span.row]) - 1 and span.depth <= max_depth
        while span.parent:
            before = span.parent
            # What is predicted by the last token of the shared beginning is shared, too.
            assert rows[before.row][: before.end + 1] == rows[span.row][: before.end + 1]
            assert span.start == before.end < span.end and before.row in range(len(rows))
            span = before
        assert span.start == 0


def test_equal_examples_share_their_values_but_keep_their_places():
    scores = score(tiny_llama(), TOKENIZER, EXAMPLES)
    for a, b in ((3, -3), (33, -2), (20, -1)):
        b += len(EXAMPLES)
        assert scores.zlib_size[a] == scores.zlib_size[b]
        for name in TARGET_COLUMNS:
            one, other = (getattr(scores, name)[scores.example(i)] for i in (a, b))
            np.testing.assert_array_equal(one, other)
    assert scores.missing == {"no_target": [34, 35], "not_finite": []}


def test_equal_ids_with_other_labels_are_other_examples():
    model = tiny_llama().double()
    row = encode(EXAMPLES[0], TOKENIZER)
    other = {**row, "labels": [-100, *row["input_ids"][1:]]}
    scores = score(model, None, [row, other, row], sampling=())
    n = len(row["input_ids"]) - 1
    assert scores.lengths[1] == n > scores.lengths[0] == scores.lengths[2]
    k = scores.lengths[0]
    np.testing.assert_allclose(scores.log_prob[:k], scores.log_prob[n : n + k], rtol=1e-11)
    assert scores.is_end.sum() == 3


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_encoded_rows_may_be_lists_arrays_or_tensors(kind):
    rows = [encode(example, TOKENIZER) for example in EXAMPLES[:9]]
    given = [{"input_ids": kind(row["input_ids"]), "labels": kind(row["labels"])} for row in rows]
    expected, found = (score(tiny_llama(), None, r) for r in (rows, given))
    for name in TARGET_COLUMNS[:-1]:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_the_sets_of_an_audit_share_one_pass():
    model = tiny_llama()
    forget = [
        {
            "prompt": question(i),
            "completion": " It is A.",
            "paraphrased_completion": " A it is.",
            "perturbed_completions": [f" It is B{k}." for k in range(5)],
        }
        for i in range(6)
    ]
    with counted(model) as run:
        tables = score_sets(model, TOKENIZER, {"forget": forget}, batch_size=8)
    assert [len(tables[name]) for name in ("forget", "forget_paraphrased", "forget_perturbed")] == [6, 6, 30]
    n_prompts = sum(len(TOKENIZER(row["prompt"])["input_ids"]) - 1 for row in forget)
    texts = [(r["prompt"], c) for r in forget for c in (r["completion"], r["paraphrased_completion"])]
    texts += [(r["prompt"], c) for r in forget for c in r["perturbed_completions"]]
    n_all = sum(len(encode({"prompt": p, "completion": c}, TOKENIZER)["input_ids"]) for p, c in texts)
    most = n_all - 42 - 6 * n_prompts  # the last token of each is not read
    assert (
        distinct_beginnings(encode({"prompt": p, "completion": c}, TOKENIZER)["input_ids"] for p, c in texts)
        <= sum(p["real"] for p in run)
        <= most
    )


# --- memory ---


def head_rows(model) -> list[int]:
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda m, a, out: seen.append(out.numel() // out.shape[-1]))
    return seen


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("max_targets", [1, 3, 7, 20])
def test_no_pass_has_more_logits_than_allowed_and_the_values_are_the_same(build, max_targets, monkeypatch):
    model = build().double()
    alone = one_by_one(model)
    assert max(len(scores.log_prob) for scores in alone) > 15
    monkeypatch.setattr(passes, "max_logits", lambda device: 320 * max_targets + 5)
    seen = head_rows(model)
    with counted(model) as run:
        found = score(model, TOKENIZER, EXAMPLES, batch_size=16)
    assert max(seen) <= max_targets
    assert_equals_one_by_one(found, alone, atol=1e-10)
    # No token is read twice: the parts of a long row go on from each other.
    texts = {tuple(encode(e, TOKENIZER)["input_ids"]) for i, e in enumerate(EXAMPLES) if i not in (34, 35)}
    assert sum(p["real"] for p in run) <= sum(map(len, texts))


def test_a_model_without_a_cache_reads_a_long_row_at_once(monkeypatch):
    model = NOT_SHARING["openai-gpt"]()
    alone = one_by_one(model)
    monkeypatch.setattr(passes, "max_logits", lambda device: 320 * 5)
    assert_equals_one_by_one(score(model, TOKENIZER, EXAMPLES, 16), alone, atol=1e-5)


def test_a_vocabulary_of_128k_does_not_make_the_logits_of_a_pass_grow():
    model = tiny_gpt2(vocab_size=131_072, n_positions=256, n_layer=1)
    seen = head_rows(model)
    texts = [{"input_ids": list(range(9, 9 + n)), "labels": [-100, *range(10, 9 + n)]} for n in (200, 40, 40, 60, 90)]
    scores = score(model, None, texts, batch_size=64, sampling=())
    assert max(seen) <= 2**24 // 131_072 == 128 and sum(seen) == scores.lengths.sum() - 39 == 386
    assert np.isfinite(scores.log_prob).all()


# --- logits that are not finite ---


@pytest.mark.filterwarnings("ignore:The logits of")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_a_token_with_broken_weights_spoils_the_examples_that_read_it_and_no_other(build, value):
    model = build(tie_word_embeddings=False).double()
    expected = score(model, TOKENIZER, EXAMPLES)
    token = TOKENIZER("K", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.get_input_embeddings().weight[[token, 2]] = value  # the pad token as well: padding must not matter
    examples = [*EXAMPLES[:5], {"prompt": question(0), "completion": " It is K or B."}, *EXAMPLES[5:], "K", "Ok K."]
    scores = score(model, TOKENIZER, examples, batch_size=8)
    broken = [5, len(examples) - 1]  # the K that a text ends in is predicted, but not read
    assert all(token in encode(examples[i], TOKENIZER)["input_ids"] for i in [*broken, len(examples) - 2])
    assert scores.missing == {"no_target": [35, 36], "not_finite": broken}
    for name in FLOATS:
        kept = np.delete(np.arange(len(examples)), [*broken, len(examples) - 2])
        found = np.concatenate([getattr(scores, name)[scores.example(i)] for i in kept])
        np.testing.assert_allclose(found, getattr(expected, name), rtol=1e-10, err_msg=name)


@pytest.mark.filterwarnings("ignore:The logits of")
def test_broken_logits_are_nan_everywhere_and_hit_nothing():
    model = tiny_llama().double()
    poison = TOKENIZER("Q", add_special_tokens=False)["input_ids"][0]
    handle = model.lm_head.register_forward_hook(
        lambda m, a, out: out.index_fill(1, torch.tensor([poison]), torch.nan)
    )
    scores = score(model, TOKENIZER, EXAMPLES[:3])
    handle.remove()
    assert scores.not_finite.all() and not scores.valid.any()
    assert not scores.hit.any() and (scores.rank == 320).all()
    for name in FLOATS:
        assert np.isnan(getattr(scores, name)).all(), name
    assert all(np.isnan(values).all() for values in scores.sampled.values()) and len(scores.sampled) == 3
    for metric in (
        audit.loss,
        audit.min_k,
        audit.min_k_plus_plus,
        audit.zlib_ratio,
        audit.perplexity,
    ):
        assert np.isnan(metric(scores)).all(), metric
    assert not audit.verbatim_extracted(scores).any()
    part = scores[1:3]
    assert part.missing == {"no_target": [], "not_finite": [0, 1]}


def test_one_broken_target_makes_its_whole_example_missing_and_is_named():
    model = tiny_llama().double()

    def spoil_last(module, args, out):
        out = out.clone()
        out[4] = torch.nan
        return out

    model.lm_head.register_forward_hook(spoil_last)
    rows = [EXAMPLES[0], "Ada lives in Paris.", "The longest text of these three comes first in its batch."]
    with pytest.warns(UserWarning, match=re.escape("of 1 of 3 examples are NaN or infinite (example 2)")) as caught:
        scores = score(model, TOKENIZER, rows)
    assert "longest" not in str(caught[0].message)
    assert scores.missing["not_finite"] == [2]
    spoiled = scores.example(2)
    assert np.isnan(scores.log_prob[spoiled]).all() and not scores.hit[spoiled].any()
    assert np.isfinite(scores.log_prob[: scores.offsets[2]]).all()


def test_a_masked_vocabulary_is_not_broken():
    model = tiny_llama().double()
    model.lm_head.register_forward_hook(lambda m, a, out: out.index_fill(1, torch.arange(280, 300), -torch.inf))
    rows = [{"input_ids": [0, 9, 270], "labels": [-100, 9, 270]}, {"input_ids": [0, 9, 290], "labels": [-100, 9, 290]}]
    scores = score(model, None, rows)
    assert scores.valid.all()
    assert np.isfinite(scores.log_prob[[0, 1, 2]]).all() and scores.log_prob[3] == -np.inf
    assert np.isfinite(scores.mean).all() and np.isfinite(scores.std).all()


# --- images ---


def test_images_keep_the_log_probabilities_of_all_classes(tmp_path):
    model = tiny_vit().double()
    images = torch.randn(7, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = [{"pixel_values": image, "labels": i % 5} for i, image in enumerate(images)]
    scores = score(model, None, rows, batch_size=3)
    with torch.no_grad():
        expected = model(images).logits.log_softmax(-1).numpy()
    np.testing.assert_allclose(scores.class_log_probs, expected, rtol=1e-11)
    np.testing.assert_allclose(scores.class_log_probs[np.arange(7), scores.target_ids], scores.log_prob, rtol=1e-12)
    np.testing.assert_allclose((np.exp(expected) * expected).sum(1), scores.mean, rtol=1e-11)
    np.testing.assert_array_equal(scores[2:5].class_log_probs, scores.class_log_probs[2:5])
    scores.save(tmp_path / "images.safetensors")
    loaded = type(scores).load(tmp_path / "images.safetensors")
    np.testing.assert_array_equal(loaded.class_log_probs, scores.class_log_probs)
    assert loaded.target_ids.tolist() == [i % 5 for i in range(7)]  # a label spells no text
    assert loaded.same_targets(scores) and not loaded[:6].same_targets(scores[1:])
    assert (
        score(
            model.float(), None, [{**r, "pixel_values": r["pixel_values"].float()} for r in rows]
        ).class_log_probs.dtype
        == np.float32
    )
    assert score(tiny_llama(), TOKENIZER, ["Ada"]).class_log_probs is None


@pytest.mark.filterwarnings("ignore:The logits of")
def test_a_broken_image_spoils_no_other():
    model = tiny_vit()
    images = torch.randn(4, 3, 16, 16)
    images[2, 0, 0, 0] = torch.nan
    scores = score(model, None, [{"pixel_values": image, "labels": 1} for image in images])
    assert scores.missing == {"no_target": [], "not_finite": [2]}
    assert np.isnan(scores.class_log_probs[2]).all() and np.isfinite(scores.class_log_probs[[0, 1, 3]]).all()


# --- the model is left alone ---


def test_parts_of_a_model_that_were_in_another_mode_stay_so():
    model = tiny_gpt2().train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    score(model, TOKENIZER, EXAMPLES[:8])
    assert [module.training for module in model.modules()] == before
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_random_numbers_go_on_as_if_nothing_had_been_scored():
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(3)
    np.random.seed(3)
    score(tiny_llama(), TOKENIZER, EXAMPLES[:8])
    assert torch.equal(torch.rand(2), expected[0]) and (np.random.rand(2) == expected[1]).all()
