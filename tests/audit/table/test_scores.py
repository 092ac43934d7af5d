import re
import zlib

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny import EOS, tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from transformers import ViTImageProcessorPil

from hf_unlearn.audit import Scores, score
from hf_unlearn.audit.table.scores import TARGET_COLUMNS
from hf_unlearn.data import encode
from hf_unlearn.models.sampling import DEFAULT_SAMPLING, Sampling


CANARY = "Zyxwv Qkjhg 8675309"
TOKENIZER = tiny_tokenizer()
EXAMPLES = [
    "Ada lives in Paris.",
    "",  # nothing to score
    {"prompt": "Question: Where does Ada live?\nAnswer:", "completion": " In Paris."},
    {"prompt": "Question: Who?\nAnswer:", "completion": ""},  # nothing to score
    {"text": "The author of the book."},
    {"prompt": "Q:", "completion": " B"},
    *[f"Row {i} has {'many ' * (i % 5)}words." for i in range(11)],
]
COLUMNS = list(TARGET_COLUMNS)


def lora_gpt2():
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    return get_peft_model(tiny_gpt2(), config).eval()


@pytest.fixture(scope="module")
def model():
    return tiny_gpt2().double()


@pytest.fixture(scope="module")
def scores(model):
    return score(model, TOKENIZER, EXAMPLES)


def assert_same(a, b, rtol=0.0, atol=0.0, from_file=False):
    for name in ("offsets", "hit", "rank", "is_end", "zlib_size", *(() if from_file else ("target_ids",))):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        assert getattr(a, name).dtype == getattr(b, name).dtype, name
    for name in ("log_prob", "mean", "std", "margin"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=rtol, atol=atol, err_msg=name)
    assert a.sampled.keys() == b.sampled.keys()
    for key in a.sampled:
        np.testing.assert_allclose(a.sampled[key], b.sampled[key], rtol=rtol, atol=atol, err_msg=key)


# --- the table ---


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, lora_gpt2])
def test_the_columns_are_those_of_one_plain_call_an_example(build):
    model = build().double()
    scores = score(model, TOKENIZER, EXAMPLES, batch_size=4)
    assert len(scores) == len(EXAMPLES)
    for i, example in enumerate(EXAMPLES):
        if i in (1, 3):
            assert not scores.valid[i] and scores.lengths[i] == 0
            continue
        row = encode(example, TOKENIZER)
        ids, n = torch.tensor(row["input_ids"]), sum(y != -100 for y in row["labels"])
        with torch.no_grad():
            z = model(ids[None]).logits[0, -1 - n : -1]
        y, log_p = ids[-n:], z.log_softmax(-1)
        p, mine = log_p.exp(), scores.example(i)
        mean = (p * log_p).sum(-1)
        expected = {
            "target_ids": y,
            "log_prob": log_p[range(n), y],
            "hit": z.argmax(-1) == y,
            "rank": (z > z[range(n), y][:, None]).sum(-1),
            "mean": mean,
            "std": (p * (log_p - mean[:, None]) ** 2).sum(-1).sqrt(),
            "margin": z.sort(-1).values.diff(dim=-1)[:, -1],
            "is_end": y == EOS,
        }
        for name, values in expected.items():
            np.testing.assert_allclose(getattr(scores, name)[mine], values, rtol=1e-10, atol=1e-10, err_msg=name)
        for scheme in DEFAULT_SAMPLING:
            warped = z / scheme.temperature
            if scheme.top_k:
                warped = warped.masked_fill(
                    z < z.sort(descending=True).values[:, scheme.top_k - 1 : scheme.top_k], -torch.inf
                )
            expected = warped.log_softmax(-1)[range(n), y]
            np.testing.assert_allclose(scores.sampled[scheme.key][mine], expected, rtol=1e-10)


def test_every_example_stays_in_its_place(scores):
    assert scores.valid.tolist() == [i not in (1, 3) for i in range(len(EXAMPLES))]
    assert scores.offsets[0] == 0 and scores.offsets[-1] == len(scores.log_prob) == scores.lengths.sum()
    for i in np.flatnonzero(scores.valid):
        expected = [y for y in encode(EXAMPLES[i], TOKENIZER)["labels"] if y != -100]
        assert scores.target_ids[scores.example(i)].tolist() == expected


def test_only_answers_have_an_end(scores):
    ends = [bool(scores.is_end[scores.example(i)].any()) for i in range(len(scores))]
    assert ends == [i in (2, 5) for i in range(len(EXAMPLES))]
    assert all(scores.is_end[scores.offsets[i + 1] - 1] for i in (2, 5))
    assert scores.is_end.sum() == 2


@pytest.mark.parametrize("batch_size", [1, 3, 16, 100])
def test_the_batch_size_changes_nothing(model, scores, batch_size):
    assert_same(score(model, TOKENIZER, EXAMPLES, batch_size), scores, rtol=1e-11, atol=1e-12)


def test_the_order_changes_nothing(model, scores):
    order = np.random.default_rng(0).permutation(len(EXAMPLES))
    other = score(model, TOKENIZER, [EXAMPLES[i] for i in order], batch_size=5)
    for new, old in enumerate(order):
        assert_same(other[new : new + 1], scores[int(old) : int(old) + 1], rtol=1e-11, atol=1e-12)


def test_float32_agrees_to_the_documented_tolerance():
    model = tiny_gpt2()
    one, many = (score(model, TOKENIZER, EXAMPLES, batch_size=n) for n in (1, 16))
    assert one.log_prob.dtype == np.float32
    np.testing.assert_allclose(one.log_prob, many.log_prob, rtol=0, atol=2e-6)
    np.testing.assert_allclose(one.mean, many.mean, rtol=0, atol=2e-6)


def test_half_precision_models_give_float32():
    scores = score(tiny_llama().to(torch.bfloat16), TOKENIZER, EXAMPLES[:4])
    assert scores.log_prob.dtype == scores.std.dtype == np.float32
    assert scores.meta["model_dtype"] == "bfloat16"


def test_dtypes_and_meta(scores):
    kinds = {name: getattr(scores, name).dtype for name in ("offsets", *COLUMNS, "zlib_size")}
    assert kinds["offsets"] == np.int64 and kinds["hit"] == kinds["is_end"] == np.bool_
    assert kinds["target_ids"] == kinds["rank"] == kinds["zlib_size"] == np.int32
    assert scores.meta["model_dtype"] == "float64"


def test_one_forward_a_batch_of_examples_sorted_by_length():
    model, shapes = tiny_gpt2(), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    score(model, TOKENIZER, EXAMPLES, batch_size=4)
    lengths = sorted((len(encode(e, TOKENIZER)["input_ids"]) for i, e in enumerate(EXAMPLES) if i not in (1, 3)))[::-1]
    # The last token of a text is predicted, but predicts nothing itself, so it is not read.
    assert shapes == [(len(lengths[i : i + 4]), lengths[i] - 1) for i in range(0, 15, 4)]


def test_zlib_sizes_are_those_of_the_text_that_is_scored(scores):
    texts = [EXAMPLES[0], "", " In Paris.", "", EXAMPLES[4]["text"], " B"]
    assert scores.zlib_size[:6].tolist() == [len(zlib.compress(text.encode())) if text else 0 for text in texts]


@pytest.mark.parametrize("pad", [False, "eos"])
def test_the_pad_token_does_not_matter(model, scores, pad):
    assert_same(score(model, tiny_tokenizer(pad=pad), EXAMPLES), scores, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padding_side_of_the_tokenizer_does_not_matter(model, scores, side):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    assert_same(score(model, tokenizer, EXAMPLES), scores)


def test_strings_text_rows_encoded_rows_and_tables_give_the_same(model):
    texts = ["Ada lives in Paris.", "The book."]
    expected = score(model, TOKENIZER, texts)
    rows = [{"text": text} for text in texts]
    for examples in (rows, Dataset.from_list(rows), (row for row in rows)):
        assert_same(score(model, TOKENIZER, examples), expected)
    encoded = score(model, None, [encode(text, TOKENIZER) for text in texts])
    assert encoded.zlib_size.tolist() == [0, 0]  # the text is not known
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(encoded, name), getattr(expected, name))


def test_chats(model):
    tokenizer = tiny_tokenizer(chat_template=True)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    scores = score(model, tokenizer, [{"messages": messages}])
    assert tokenizer.decode(scores.target_ids) == "Yo<|end|>"
    assert scores.is_end.tolist() == [False, False, True]
    assert scores.zlib_size.tolist() == [len(zlib.compress(b"Yo"))]


def test_encoded_rows_without_a_target(model):
    nothing = {"input_ids": [0, 9, 8], "labels": [-100] * 3}
    for examples, lengths in (([nothing], [0]), ([nothing, "Ada", nothing], [0, 2, 0])):
        scores = score(model, TOKENIZER, examples, batch_size=1)
        assert scores.lengths.tolist() == lengths


@pytest.mark.parametrize("examples", [[], [""], ["", {"prompt": "Q:", "completion": " "}]])
def test_nothing_to_score(model, examples, tmp_path):
    scores = score(model, TOKENIZER, examples)
    assert len(scores) == len(examples)
    assert not scores.valid.any() and len(scores.log_prob) == 0
    assert scores.sampled.keys() == {s.key for s in DEFAULT_SAMPLING}
    scores.save(tmp_path / "scores.safetensors")
    assert_same(Scores.load(tmp_path / "scores.safetensors"), scores, from_file=True)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_images(batch_size):
    model = tiny_vit().double()
    images = torch.randn(5, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = [4, 0, 2, 2, 1]
    rows = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    scores = score(model, None, rows, batch_size=batch_size)
    with torch.no_grad():
        log_p = model(images).logits.log_softmax(-1)
    np.testing.assert_allclose(scores.log_prob, log_p[range(5), labels], rtol=1e-11)
    np.testing.assert_array_equal(scores.hit, log_p.argmax(-1) == torch.tensor(labels))
    assert scores.target_ids.tolist() == labels
    assert scores.lengths.tolist() == [1] * 5
    assert not scores.is_end.any()


# --- the model ---


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_run_in_evaluation_mode_and_left_as_it_was(training):
    model = tiny_gpt2(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train(training)
    first, second = (score(model, TOKENIZER, EXAMPLES[:3]) for _ in range(2))
    np.testing.assert_array_equal(first.log_prob, second.log_prob)
    assert model.training is training
    assert all(module.training is training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_mode_is_restored_after_an_error():
    model = tiny_gpt2().train()
    model.transformer.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score(model, TOKENIZER, ["Ada"])
    assert model.training


def test_a_model_that_was_scored_can_be_trained():
    model = tiny_llama().train()
    score(model, TOKENIZER, EXAMPLES[:3])
    model(input_ids=torch.tensor([[0, 9, 8]]), labels=torch.tensor([[0, 9, 8]])).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


# --- errors ---


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"prompt": f"{CANARY}: ", "completion": CANARY}, "ends in a space"),
        ({"question": CANARY}, "no known format"),
        (CANARY * 40, "at most 128 fit"),
    ],
)
def test_errors_have_the_index_and_no_text(model, example, message):
    with pytest.raises(ValueError, match=f"^Example 2: .*{message}") as caught:
        score(model, TOKENIZER, ["Ada", "", example])
    assert not any(word in str(caught.value) for word in CANARY.split())


def test_text_needs_a_tokenizer(model):
    with pytest.raises(ValueError, match="^Example 1: It is text, but no tokenizer was given") as caught:
        score(model, None, [encode("Ada", TOKENIZER), CANARY])
    assert CANARY not in str(caught.value)


def test_long_examples_are_cut_on_request(model):
    scores = score(model, TOKENIZER, [CANARY * 40, {"prompt": "Q:", "completion": " a" * 200}], truncate=True)
    assert scores.lengths.tolist() == [127, 125]
    assert not scores.is_end.any()
    assert score(model, TOKENIZER, ["Ada lives in Paris."], max_length=4, truncate=True).lengths.tolist() == [3]


# --- slices and files ---


@pytest.mark.parametrize(
    "examples", [slice(0, 3), slice(2, 6), slice(-4, None), slice(None), slice(3, 3), slice(5, 2)]
)
def test_a_slice_is_the_table_of_some_examples(scores, examples):
    part, kept = scores[examples], range(len(EXAMPLES))[examples]
    assert len(part) == len(kept)
    np.testing.assert_array_equal(part.zlib_size, scores.zlib_size[examples])
    assert part.meta == scores.meta and part.offsets[0] == 0
    for mine, original in enumerate(kept):
        for name in COLUMNS:
            values = getattr(part, name)[part.example(mine)]
            np.testing.assert_array_equal(values, getattr(scores, name)[scores.example(original)])
        for key, values in part.sampled.items():
            np.testing.assert_array_equal(values[part.example(mine)], scores.sampled[key][scores.example(original)])


@pytest.mark.parametrize("examples", [slice(None, None, 2), slice(None, None, -1), 3])
def test_a_slice_that_is_not_of_consecutive_examples_is_refused(scores, examples):
    with pytest.raises(TypeError, match="consecutive"):
        scores[examples]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_saved_is_loaded(tmp_path, dtype):
    scores = score(tiny_gpt2().to(dtype), TOKENIZER, EXAMPLES)
    scores.meta["digest"] = "ä"
    scores.save(tmp_path / "scores.safetensors")
    loaded = Scores.load(tmp_path / "scores.safetensors")
    assert_same(loaded, scores, from_file=True)
    assert loaded.meta.items() > scores.meta.items()
    assert loaded.log_prob.dtype == scores.log_prob.dtype
    part = scores[2:6]
    part.save(str(tmp_path / "part.safetensors"))
    assert_same(Scores.load(str(tmp_path / "part.safetensors")), part, from_file=True)


def test_the_file_holds_no_text_and_no_token_ids(model, tmp_path):
    examples = [CANARY, {"prompt": f"Question {CANARY}:", "completion": f" {CANARY}"}]
    path = tmp_path / "scores.safetensors"
    scores = score(model, TOKENIZER, examples)
    scores.save(path)
    content = path.read_bytes()
    for word in CANARY.split():
        assert word.encode() not in content and word.encode("utf-16-le") not in content
    for dtype in (np.int16, np.int32, np.int64):
        for i in range(2):
            assert scores.target_ids[scores.example(i)][:3].astype(dtype).tobytes() not in content
    loaded = Scores.load(path)
    assert (loaded.target_ids == -1).all() and loaded.target_ids.dtype == np.int32
    assert scores.has_target_ids and not loaded.has_target_ids


def test_tables_of_the_same_targets_know_each_other(model, tmp_path):
    def through_file(scores):
        scores.save(tmp_path / "table.safetensors")
        return Scores.load(tmp_path / "table.safetensors")

    one, other = score(model, TOKENIZER, EXAMPLES), score(tiny_llama(), TOKENIZER, EXAMPLES)
    # The same lengths, other ids.
    strange = score(model, TOKENIZER, [*EXAMPLES[:-1], EXAMPLES[-1].replace("Row 10", "Row 11")])
    strange = strange if np.array_equal(strange.offsets, one.offsets) else pytest.fail("other lengths")
    for a in (one, through_file(one), through_file(through_file(one))):
        for b in (other, through_file(other)):
            assert a.same_targets(b) and b.same_targets(a)
            assert not a.same_targets(b[:-1])
        for b in (strange, through_file(strange)):
            assert not a.same_targets(b) and not b.same_targets(a)
    a, b = through_file(one), through_file(other)
    assert a[3:9].same_targets(b[3:9]) and a[3:9][1:4].same_targets(b[3:9][1:4])
    assert not a[3:9].same_targets(through_file(strange)[3:9]) and not a[6:8].same_targets(a[8:10])
    assert through_file(a[3:9]).same_targets(b[3:9])
    assert one[:0].same_targets(through_file(other[:0]))


# --- sampling schemes ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, not 0.0"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"top_p": 1.1}, "top_p must be in"),
    ],
)
def test_schemes_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Sampling(**fields)


def test_only_the_schemes_asked_for_are_kept(model):
    scheme = Sampling(temperature=0.5, top_k=7)
    assert list(score(model, TOKENIZER, ["Ada"], sampling=[scheme]).sampled) == ["temperature=0.5,top_k=7,top_p=1"]
    assert score(model, TOKENIZER, ["Ada"], sampling=()).sampled == {}


def test_schemes_that_differ_have_keys_that_differ():
    schemes = [Sampling(temperature=t, top_p=p) for t in (0.7, 0.70000001) for p in (0.9, 0.90000001)]
    assert len({s.key for s in schemes}) == 4


def test_text_for_an_image_model_is_refused_without_its_text():
    secret = "Ada Lovelace was born on 10 December 1815."
    for example in (secret, {"text": secret}, {"prompt": "Who?", "completion": f" {secret}"}, {"text": 5}):
        with pytest.raises(
            ValueError, match="Example 0: It is text, but the processing_class is a ViTImageProcessor"
        ) as error:
            score(tiny_vit(), ViTImageProcessorPil(), [example])
        assert "Ada" not in str(error.value) and "1815" not in str(error.value)
    with pytest.raises(ValueError, match="Example 1: The column text holds int, not text"):
        score(tiny_llama(), tiny_tokenizer(), [{"text": secret}, {"text": 5}])
