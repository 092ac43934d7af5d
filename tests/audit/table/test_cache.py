"""Tables by content: what is found again, what is not, and what who has the files can learn from them."""

import os
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from datasets import ClassLabel, Dataset, Features, Image
from peft import LoraConfig, get_peft_model
from PIL import Image as PILImage
from safetensors import SafetensorError
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from transformers import AutoModelForCausalLM
from transformers import ViTImageProcessorPil as Processor

from hf_unlearn.audit import Sampling, Scores, reference_loss, score
from hf_unlearn.audit.table.cache import ScoreCache, digest_of_model, digest_of_rows
from hf_unlearn.data.text import encode
from hf_unlearn.storage.encryption import ContentKey


TOKENIZER = tiny_tokenizer()
CANARY = "Zyxwv Qkjhg 8675309"
EXAMPLES = [
    "Ada lives in Paris.",
    "",
    {"prompt": "Question: Who?\nAnswer:", "completion": f" {CANARY}"},
    {"prompt": "Question: Who?\nAnswer:", "completion": " Boris"},
]


class Remembering(ScoreCache):
    """With the keys it made, the last one first."""

    def key(self, *args):
        self.keys = [super().key(*args), *getattr(self, "keys", ())]
        return self.keys[0]


@pytest.fixture
def cache(tmp_path):
    return Remembering(tmp_path / "scores")


@pytest.fixture
def runs(monkeypatch):
    """Kinds of the models that were run, one entry a pass."""
    seen = []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: (
            seen.append(type(module).__name__)
            if hasattr(module, "generate") or "ForImage" in type(module).__name__
            else None
        )
    )
    yield seen
    handle.remove()


def files(cache) -> list[Path]:
    return sorted(cache.folder.iterdir()) if cache.folder.is_dir() else []


def assert_identical(a: Scores, b: Scores):
    for field in fields(Scores):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype, field.name
            np.testing.assert_array_equal(one, other, err_msg=field.name)
        elif field.name == "sampled":
            assert one.keys() == other.keys()
            for key in one:
                np.testing.assert_array_equal(one[key], other[key], err_msg=key)
        else:
            assert one == other, field.name


# --- hits ---


def test_a_table_is_computed_once_and_is_the_same_the_second_time(cache, runs):
    plain = score(tiny_llama(), TOKENIZER, EXAMPLES)
    runs.clear()
    first = score(tiny_llama(), TOKENIZER, EXAMPLES, cache=cache)
    n = len(runs)
    second = score(tiny_llama(), TOKENIZER, EXAMPLES, batch_size=2, cache=ScoreCache(str(cache.folder)))
    assert 0 < n == len(runs) and len(files(cache)) == 1
    assert_identical(first, plain)
    assert_identical(second, plain)
    assert second.has_target_ids and second.same_targets(plain)
    reference_loss(second, score(tiny_gpt2(), TOKENIZER, EXAMPLES))


def test_encoded_rows_that_are_those_of_the_texts_are_found(cache, runs):
    rows = [encode(example, TOKENIZER) for example in EXAMPLES if example]
    expected = score(tiny_llama(), None, rows, cache=cache)
    n = len(runs)
    as_arrays = [
        {**row, "input_ids": np.array(row["input_ids"]), "labels": torch.tensor(row["labels"])} for row in rows
    ]
    assert_identical(score(tiny_llama(), None, as_arrays, cache=cache), expected)
    assert len(runs) == n


def test_a_model_that_was_saved_and_loaded_is_the_same_model(cache, runs, tmp_path):
    model = tiny_llama()
    score(model, TOKENIZER, EXAMPLES, cache=cache)
    n = len(runs)
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    score(loaded.train(), TOKENIZER, EXAMPLES, cache=cache)
    assert len(runs) == n and loaded.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_type_of_weights(dtype, cache, runs):
    for _ in range(2):
        model = tiny_llama().to(dtype)
        found = score(model, TOKENIZER, EXAMPLES, cache=cache)
        assert found.meta["model_dtype"] == str(dtype).removeprefix("torch.")
    assert len(runs) == 1


def lora(seed: int = 0, **config):
    torch.manual_seed(seed)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, **config)
    return get_peft_model(tiny_llama(), config).eval()


def images(n: int = 6, seed: int = 0) -> Dataset:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=list("abcde"))})
    return Dataset.from_dict(
        {"image": [PILImage.fromarray(p) for p in pixels], "label": [i % 5 for i in range(n)]}, features
    )


def test_images(cache, runs):
    processor = Processor(size={"height": 16, "width": 16})
    plain = score(tiny_vit(), processor, images())
    runs.clear()
    for expected in (1, 1):
        assert_identical(score(tiny_vit(), processor, images(), cache=cache), plain)
        assert len(runs) == expected
    for other in (images(seed=1), images(5), images().select([1, 0, 2, 3, 4, 5])):
        score(tiny_vit(), processor, other, cache=cache)
    score(tiny_vit(), Processor(size={"height": 16, "width": 16}, image_mean=[0.1] * 3), images(), cache=cache)
    assert len(runs) == 5 and len(files(cache)) == 5


# --- misses ---


def nudged():
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-6
    return model


def with_config(**config):
    model = tiny_llama()
    model.config.update(config)
    return model


OTHER_MODELS = {
    "other weights": lambda: tiny_llama(seed=1),
    "one weight": nudged,
    "another type": lambda: tiny_llama().double(),
    "another configuration": lambda: with_config(rms_norm_eps=1e-3),
    "an adapter": lora,
    "another adapter": lambda: lora(1),
    "the same adapter, scaled": lambda: lora(lora_alpha=16),
    "the adapter, switched off": lambda: switched_off(),
    "the adapter, merged": lambda: merged(),
}


def switched_off():
    model = lora()
    model.base_model.disable_adapter_layers()
    return model


def merged():
    model = lora()
    model.merge_adapter()
    return model


def test_any_other_model_has_a_digest_of_its_own():
    digests = {name: digest_of_model(build()) for name, build in {"itself": tiny_llama, **OTHER_MODELS}.items()}
    assert len(set(digests.values())) == len(OTHER_MODELS) + 1
    assert all(digest_of_model(build()) == digests[name] for name, build in OTHER_MODELS.items())


def test_the_model_is_looked_at_every_time(cache, runs):
    model = tiny_llama()
    before = score(model, TOKENIZER, EXAMPLES, cache=cache)
    with torch.no_grad():
        model.lm_head.weight.data.mul_(1.5)
    after = score(model, TOKENIZER, EXAMPLES, cache=cache)
    assert not np.array_equal(before.log_prob, after.log_prob) and len(files(cache)) == 2


@pytest.mark.parametrize(
    ("change", "arguments"),
    [
        (lambda rows: rows[1:], {}),
        (lambda rows: rows[::-1], {}),
        (lambda rows: [*rows, "Ada lives in Paris."], {}),
        (lambda rows: [*rows[:3], {"prompt": "Question: Who?\nAnswer:", "completion": " Borit"}], {}),
        (lambda rows: [*rows[:3], {"prompt": "Question: Whi?\nAnswer:", "completion": " Boris"}], {}),
        (lambda rows: [*rows[:3], {"text": "Question: Who?\nAnswer: Boris"}], {}),
        (lambda rows: rows, {"sampling": ()}),
        (lambda rows: rows, {"sampling": [Sampling(top_k=41)]}),
        (lambda rows: rows, {"max_length": 13, "truncate": True}),
    ],
)
def test_other_examples_and_schemes_are_other_tables(change, arguments, cache):
    rows = [{"text": "Ada lives in Paris."}, {"text": ""}, {"prompt": "Q:", "completion": f" {CANARY}"}, EXAMPLES[3]]
    base = score(tiny_llama(), TOKENIZER, rows, cache=cache)
    other = score(tiny_llama(), TOKENIZER, change(rows), cache=cache, **arguments)
    assert len(files(cache)) == 2
    assert_identical(other, score(tiny_llama(), TOKENIZER, change(rows), **arguments))
    assert_identical(score(tiny_llama(), TOKENIZER, rows, cache=cache), base)


# --- files ---


def recovered(table: Scores, model, i: int) -> str:
    """The text of example `i` from a table and the model, token by token from the ranks."""
    part, ids = table.example(i), [TOKENIZER.bos_token_id]
    for rank, log_prob in zip(table.rank[part], table.log_prob[part], strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        ids.append(int(logits.argsort(descending=True)[rank]))
        assert logits.log_softmax(-1)[ids[-1]].item() == pytest.approx(log_prob, abs=1e-4)
    return TOKENIZER.decode(ids, skip_special_tokens=True)


def test_who_has_a_plain_table_and_the_model_reads_the_text(tmp_path):
    # Why the files of the cache are encrypted.
    model, texts = tiny_llama(), [CANARY, "Ada lives in Paris."]
    score(model, TOKENIZER, texts).save(tmp_path / "table")
    stolen = Scores.load(tmp_path / "table")
    assert not stolen.has_target_ids and [recovered(stolen, model, i) for i in range(2)] == texts


def columns(scores: Scores) -> list[np.ndarray]:
    return list(safetensors.numpy.load(scores.to_bytes()).values())


def tables_of_images(n: int, **options) -> Scores:
    return score(tiny_vit(), Processor(size={"height": 16, "width": 16}), images(n), **options)


def test_who_has_a_file_of_the_cache_and_the_model_reads_nothing(cache):
    texts = [f"{CANARY} {i}" for i in range(40)]
    for scores in (score(tiny_llama(), TOKENIZER, texts, cache=cache), tables_of_images(40, cache=cache)):
        path = cache.folder / f"{cache.keys[0].name}.encrypted.safetensors"
        content, plain = path.read_bytes(), scores.to_bytes()
        with pytest.raises(SafetensorError):
            Scores.load(path)
        # No header, no column, nothing of the secret, and no order that a compressor could find.
        assert len(zlib.compress(plain, 9)) < 0.8 * len(plain) and len(zlib.compress(content, 9)) > len(content)
        parts = [column.tobytes()[start : start + 8] for column in columns(scores) for start in range(0, 64, 8)]
        known = [*(part for part in parts if len(part) == 8), cache.keys[0].secret, b"rank", b"log_prob", b"Zyxwv"]
        assert not [part for part in known if part in content]
    assert cache.folder.stat().st_mode & 0o077 == 0 == path.stat().st_mode & 0o077


def test_only_the_same_rows_in_the_same_order_open_a_table(cache):
    rows = ["Ada lives in Paris.", CANARY, "Boris"]
    score(tiny_llama(), TOKENIZER, rows, cache=cache)
    key = cache.keys[0]
    assert len(cache.load(key)) == 3
    for others in (rows[:2], rows[1:], rows[::-1], [*rows[:2], "Borit"], [*rows, "x"]):
        score(tiny_llama(), TOKENIZER, others, cache=cache)
        assert cache.load(replace(key, secret=cache.keys[0].secret)) is None
    score(tiny_gpt2(), TOKENIZER, rows, cache=cache)  # nor does another model
    assert cache.load(replace(key, secret=cache.keys[0].secret)) is None
    # A process that has nothing but the rows and the model.
    again = Remembering(cache.folder)
    score(tiny_llama(), TOKENIZER, rows, cache=again)
    assert again.keys[0] == key and len(again.load(key)) == 3


def test_the_secret_is_in_no_name_no_message_and_no_other_digest(cache):
    score(tiny_llama(), TOKENIZER, EXAMPLES, cache=cache)
    key = cache.keys[0]
    assert len(key.secret) == 32 and key.secret.hex() not in repr(key) and key.secret.hex() != key.name
    rows = [encode(example, TOKENIZER) if example else None for example in EXAMPLES]
    assert digest_of_rows(rows) not in (key.secret.hex(), key.name)
    assert [path.name for path in files(cache)] == [f"{key.name}.encrypted.safetensors"]


def test_a_table_is_never_encrypted_twice_alike(cache):
    scores = score(tiny_llama(), TOKENIZER, EXAMPLES, cache=cache)
    (path,), key = files(cache), cache.keys[0]
    first = path.read_bytes()
    cache.save(key, scores)
    second = path.read_bytes()
    assert len(first) == len(second) and first[:12] != second[:12] and first[12:64] != second[12:64]


def truncated(path: Path):
    path.write_bytes(path.read_bytes()[:-7])


def one_bit(at: int):
    def flip(path: Path):
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    return flip


def of_another_key(path: Path):
    other = ScoreCache(path.parent / "other")
    score(tiny_gpt2(), TOKENIZER, EXAMPLES, cache=other)
    os.replace(*files(other), path)
    other.folder.rmdir()


DAMAGE = {
    "truncated": truncated,
    "cut to nothing": lambda path: path.write_bytes(b""),
    "cut to a nonce": lambda path: path.write_bytes(path.read_bytes()[:12]),
    "one bit of the nonce": one_bit(3),
    "one bit of the table": one_bit(200),
    "one bit of the tag": one_bit(-5),
    "text": lambda path: path.write_text("{}"),
    "a huge header": lambda path: path.write_bytes(b"\xff" * 64),
    "another table": of_another_key,
    "a table that was saved by hand": lambda path: score(tiny_llama(), TOKENIZER, EXAMPLES).save(path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_file_is_computed_anew_and_mended(damage, cache):
    expected = score(tiny_llama(), TOKENIZER, EXAMPLES, cache=cache)
    (path,) = files(cache)
    DAMAGE[damage](path)
    key = cache.keys[0]
    assert cache.load(key) is None
    assert_identical(score(tiny_llama(), TOKENIZER, EXAMPLES, cache=cache), expected)
    assert files(cache) == [path] and cache.load(key) is not None


def test_a_file_under_the_name_of_another_is_not_that_other(cache):
    score(tiny_llama(), TOKENIZER, EXAMPLES, cache=cache)
    (path,), key = files(cache), cache.keys[0]
    other = replace(key, name="0" * 64)
    other = replace(key, name="0" * 64)
    path.rename(cache.folder / f"{other.name}.encrypted.safetensors")
    assert cache.load(other) is None


def test_a_file_that_cannot_be_written_leaves_nothing_behind(cache, monkeypatch):
    monkeypatch.setattr(Scores, "to_bytes", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score(tiny_llama(), TOKENIZER, EXAMPLES, cache=cache)
    assert files(cache) == []


WRITER = """
import sys
import numpy as np
from score_table import table
from test_cache import lora
from hf_unlearn.audit.table.cache import ScoreCache, digest_of_model
from hf_unlearn.storage.encryption import ContentKey

print(digest_of_model(lora()))
cache = ScoreCache(sys.argv[1])
rng = np.random.default_rng(0)
tables = [table([rng.random(1000).tolist() for _ in range(200)]) for _ in range(2)]
print("writing", flush=True)
while True:
    for scores in tables:
        cache.save(ContentKey("k" * 64, b"s" * 32), scores)
"""


def test_a_writer_that_is_killed_never_leaves_half_a_table(tmp_path):
    cache, here = ScoreCache(tmp_path / "scores"), Path(__file__).parent
    key = ContentKey("k" * 64, b"s" * 32)
    env = os.environ | {"PYTHONPATH": f"{here}:{here.parents[1]}", "PYTHONHASHSEED": "7"}
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(cache.folder)], env=env, stdout=subprocess.PIPE, text=True
    )
    try:
        # The order of a set is another one in this run of Python; that of a configuration must not be.
        assert writer.stdout.readline().strip() == digest_of_model(lora())
        assert writer.stdout.readline() == "writing\n"
        path = cache.folder / f"{key.name}.encrypted.safetensors"
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for _ in range(20):  # while it writes
            assert len(cache.load(key)) == 200
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert len(cache.load(key)) == 200
    # What it left unfinished is not readable either.
    assert all(b"log_prob" not in path.read_bytes() for path in files(cache))


# --- refusals ---


def test_a_model_with_a_hook_is_refused_as_its_weights_do_not_say_what_it_computes(cache):
    model = tiny_llama()
    model.enable_input_require_grads()  # a hook of transformers, which changes no value
    score(model, TOKENIZER, EXAMPLES, cache=cache)
    model.model.layers[0].register_forward_hook(lambda m, a, out: out)
    with pytest.raises(ValueError, match="has a forward hook.*Either remove the hook, or leave out the cache"):
        score(model, TOKENIZER, EXAMPLES, cache=cache)


def test_weights_that_are_not_in_memory_are_refused(cache):
    model = tiny_llama()
    model.lm_head.to("meta")
    with pytest.raises(ValueError, match="some weights of the model are not in the memory"):
        score(model, TOKENIZER, EXAMPLES, cache=cache)
