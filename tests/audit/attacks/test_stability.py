"""Distances between models, against scipy and torchmetrics, and against the logits that transformers gives unpadded."""

import copy
import gc
import weakref
from itertools import combinations

import numpy as np
import pytest
import torch
from cases import image_rows, text_rows
from peft import LoraConfig, get_peft_model
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr, softmax
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from torchmetrics import KLDivergence

from hf_unlearn.audit.attacks.stability import (
    distances,
    divergences,
    null_band,
    pairwise_distances,
    zrf,
)
from hf_unlearn.audit.table import streaming
from hf_unlearn.data import encode
from hf_unlearn.models.modes import fresh_copy


NAMES = ("kl_ref_model", "kl_model_ref", "js", "tv", "top1_agreement")
IMAGE_NAMES = (*NAMES, "activation_distance", "top5_agreement")
# Of different lengths, a text without a prompt, and nothing to score in two places.
EXAMPLES = [*text_rows(9), "Ada lives in Paris.", "", {"prompt": "Question:", "completion": ""}, *text_rows(3, 40)]
EMPTY = [10, 11]


def vit_of(n_classes, seed=0):
    return tiny_vit(n_classes, seed, initializer_range=0.3).double()


def expected(p, q):
    """One row of the table from two rows of probabilities, by scipy; q is the reference."""
    return {
        "kl_ref_model": rel_entr(q, p).sum(-1),
        "kl_model_ref": rel_entr(p, q).sum(-1),
        "js": jensenshannon(p, q, axis=-1) ** 2,  # scipy gives its root
        "tv": np.abs(p - q).sum(-1) / 2,
        "top1_agreement": (p.argmax(-1) == q.argmax(-1)).astype(float),
        "activation_distance": np.linalg.norm(p - q, axis=-1),
        "top5_agreement": np.array(
            [len({*np.argsort(-a)[:5]} & {*np.argsort(-b)[:5]}) / 5 for a, b in zip(p, q, strict=True)]
        ),
    }


def test_formulas_against_scipy_and_torchmetrics():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0, 3, (2, 40, 50))
    ours[:, 7], theirs[:, 7] = -np.inf, -np.inf  # ruled out by both
    ours[:10, 9] = -np.inf  # ruled out by one: the reference cannot be explained by the model
    p, q = softmax(ours, axis=-1), softmax(theirs, axis=-1)
    found = dict(zip(IMAGE_NAMES, divergences(torch.tensor(ours), torch.tensor(theirs), IMAGE_NAMES).T, strict=True))
    for name, values in expected(p, q).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12, atol=1e-14, err_msg=name)
    assert np.isinf(found["kl_ref_model"][:10]).all() and np.isfinite(found["kl_ref_model"][10:]).all()
    assert np.isfinite(found["kl_model_ref"]).all()
    for name, (a, b) in {"kl_ref_model": (q, p), "kl_model_ref": (p, q)}.items():
        library = KLDivergence(reduction="mean").set_dtype(torch.float64)
        value = float(
            library(
                torch.tensor(a[10:, 10:] / a[10:, 10:].sum(-1, keepdims=True)),
                torch.tensor(b[10:, 10:] / b[10:, 10:].sum(-1, keepdims=True)),
            )
        )
        mine = divergences(torch.tensor(ours[10:, 10:]), torch.tensor(theirs[10:, 10:]), [name])
        assert abs(mine.mean() - value) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_ends_of_the_ranges(dtype):
    z = torch.randn(200, 300, dtype=torch.float64).mul(8).to(dtype)
    z = z.float() if dtype == torch.float16 else z
    same = dict(zip(IMAGE_NAMES, divergences(z, z.clone(), IMAGE_NAMES).T, strict=True))
    for name, values in same.items():
        assert (values == (1 if name.endswith("agreement") else 0)).all(), name
    # No token that both may say.
    apart = z.clone(), z.clone()
    apart[0][:, 150:], apart[1][:, :150] = -torch.inf, -torch.inf
    found = dict(zip(IMAGE_NAMES, divergences(*apart, IMAGE_NAMES).T, strict=True))
    atol = 1e-6 if dtype != torch.float64 else 1e-14
    np.testing.assert_allclose(found["js"], np.log(2), atol=atol)
    np.testing.assert_allclose(found["tv"], 1, atol=atol)
    assert (found["js"] <= np.log(2)).all() and (found["tv"] <= 1).all()
    assert np.isinf(found["kl_ref_model"]).all() and not found["top1_agreement"].any()
    # One certain, the other certain of something else: underflow, not NaN.
    sure = torch.zeros(2, 1, 30, dtype=z.dtype)
    sure[0, 0, 0] = sure[1, 0, 1] = 5000
    found = divergences(sure[0], sure[1], NAMES)[0]
    np.testing.assert_allclose(found, [5000, 5000, np.log(2), 1, 0], rtol=1e-6)


def test_symmetry_and_ties():
    a, b = torch.randn(2, 20, 30, dtype=torch.float64)
    forth, back = (dict(zip(NAMES, divergences(x, y, NAMES).T, strict=True)) for x, y in ((a, b), (b, a)))
    assert (forth["kl_ref_model"] == back["kl_model_ref"]).all()
    for name in ("js", "tv", "top1_agreement"):
        np.testing.assert_allclose(forth[name], back[name], atol=1e-15)
    # Of equal logits the first counts as the largest.
    tied = torch.tensor([[0.0, 2.0, 2.0, 1.0]]), torch.tensor([[0.0, 2.0, 1.0, 2.0]])
    assert divergences(*tied, ["top1_agreement"]).item() == 1
    assert divergences(tied[0], tied[0].flip(1), ["top1_agreement"]).item() == 1
    assert divergences(tied[0], torch.tensor([[3.0, 2.0, 2.0, 1.0]]), ["top1_agreement"]).item() == 0


def test_small_differences_in_float32_are_right():
    z = torch.randn(600, 1000, dtype=torch.float64) * 5  # more than a chunk
    other = z + 1e-2 * torch.randn_like(z)
    exact, rounded = divergences(z, other, NAMES), divergences(z.float(), other.float(), NAMES)
    np.testing.assert_allclose(rounded, exact, atol=2e-6)
    assert (rounded >= 0).all()


def alone(model, row, tokenizer):
    """Probabilities at the targets of one row, without padding, as transformers gives them."""
    encoded = encode(row, tokenizer)
    ids, labels = torch.tensor([encoded["input_ids"]]), np.array(encoded["labels"])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1].numpy()
    return softmax(logits[labels[1:] != -100], axis=-1)


@pytest.mark.parametrize("bos, pad", [(True, True), (False, "eos")])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_language_models_against_unpadded_logits(build, bos, pad):
    tokenizer = tiny_tokenizer(bos=bos, pad=pad)
    model, reference = build(seed=0).double(), build(seed=1).double()
    found = distances(model, reference, tokenizer, EXAMPLES, batch_size=16)
    assert set(found) == set(NAMES)
    for i, row in enumerate(EXAMPLES):
        if i in EMPTY:
            assert all(np.isnan(found[name][i]) for name in NAMES)
            continue
        values = expected(alone(model, row, tokenizer), alone(reference, row, tokenizer))
        for name in NAMES:
            np.testing.assert_allclose(found[name][i], values[name].mean(), rtol=1e-9, err_msg=name)
    one = distances(model, reference, tokenizer, EXAMPLES, batch_size=1)
    for name in NAMES:
        np.testing.assert_allclose(one[name], found[name], atol=1e-12)


def test_float32_and_16_bit():
    model, reference = tiny_gpt2(seed=0), tiny_gpt2(seed=1)
    exact = distances(copy.deepcopy(model).double(), copy.deepcopy(reference).double(), tiny_tokenizer(), EXAMPLES)
    for dtype, atol in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        found = distances(model.to(dtype), reference.to(dtype), tiny_tokenizer(), EXAMPLES, batch_size=16)
        for name in ("kl_ref_model", "kl_model_ref", "js", "tv"):
            np.testing.assert_allclose(found[name], exact[name], atol=atol, rtol=atol)


def test_equal_models_are_at_distance_0():
    model = tiny_llama()
    found = distances(model, copy.deepcopy(model), tiny_tokenizer(), EXAMPLES)
    for name, values in found.items():
        assert (values[~np.isnan(values)] == (1 if name == "top1_agreement" else 0)).all()
        assert np.flatnonzero(np.isnan(values)).tolist() == EMPTY


@pytest.mark.parametrize("n_classes", [12, 5])
def test_image_classifiers(n_classes):
    model, reference, rows = vit_of(n_classes, 0), vit_of(n_classes, 1), image_rows(11)
    found = distances(model, reference, None, rows, batch_size=4)
    pixels = torch.stack([row["pixel_values"] for row in rows])
    with torch.no_grad():
        p, q = (softmax(m(pixels).logits.numpy(), axis=-1) for m in (model, reference))
    # With five classes all of them are always the first five.
    assert set(found) == set(IMAGE_NAMES) - ({"top5_agreement"} if n_classes == 5 else set())
    for name, values in found.items():
        np.testing.assert_allclose(values, expected(p, q)[name], rtol=1e-10, atol=1e-12)


def test_zrf_is_summed_over_the_classes():
    model, rows = vit_of(12), image_rows(9)
    found = zrf(model, None, rows, seed=5)
    fresh = fresh_copy(model, 5)
    # No weight of the fresh network is that of the model, but what every network starts with.
    same = [name for name, w in model.state_dict().items() if torch.equal(w, fresh.state_dict()[name])]
    assert all(name.endswith("bias") or "layernorm" in name for name in same), same
    pixels = torch.stack([row["pixel_values"] for row in rows])
    with torch.no_grad():
        p, q = (softmax(m(pixels).logits.numpy(), axis=-1) for m in (model, fresh))
    np.testing.assert_allclose(found, 1 - jensenshannon(p, q, axis=-1) ** 2, rtol=1e-10)
    assert found.mean() < 0.95  # divided by the number of classes as well it would be 0.99 and more
    assert (zrf(model, None, rows, seed=5) == found).all() and (zrf(model, None, rows, seed=6) != found).any()
    assert (zrf(fresh_copy(model, 5), None, rows, seed=5) == 1).all()
    sure = copy.deepcopy(model)
    with torch.no_grad():
        sure.classifier.bias[3] = 1e4
        fresh_share = q[:, 3]
    np.testing.assert_allclose(
        zrf(sure, None, rows, seed=5), 1 - jensenshannon(np.eye(12)[[3] * 9], q, axis=-1) ** 2, rtol=1e-9
    )
    assert fresh_share.max() < 1


def test_zrf_of_a_model_with_an_adapter():
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_llama(), config)
    assert type(fresh_copy(model, 0)) is type(tiny_llama())
    found = zrf(model, tiny_tokenizer(), EXAMPLES[:3])
    assert ((found > 1 - np.log(2)) & (found < 1)).all()


def test_broken_logits_and_empty_texts_are_missing_and_shift_nobody():
    tokenizer = tiny_tokenizer()
    model, broken = tiny_llama(seed=0), tiny_llama(seed=1)
    whole = distances(model, broken, tokenizer, EXAMPLES)
    token = tokenizer("K")["input_ids"][-1]  # in one of the towns
    hit = [i for i, row in enumerate(EXAMPLES) if i not in EMPTY and token in encode(row, tokenizer)["input_ids"][:-1]]
    assert 0 < len(hit) < len(EXAMPLES) - 2
    with torch.no_grad():
        broken.model.embed_tokens.weight[token] = torch.nan
    for pair in ((model, broken), (broken, model)):
        with pytest.warns(UserWarning, match=f"{len(hit)} of {len(EXAMPLES)} examples are NaN") as caught:
            found = distances(*pair, tokenizer, EXAMPLES, batch_size=16)
        assert len([w for w in caught if "NaN or infinite" in str(w.message)]) == 1
        for name in NAMES:
            assert np.flatnonzero(np.isnan(found[name])).tolist() == sorted(hit + EMPTY), name
    np.testing.assert_allclose(found["js"][~np.isnan(found["js"])], whole["js"][~np.isnan(found["js"])], atol=2e-6)


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_long_texts_are_read_in_parts(build, monkeypatch):
    model, reference, tokenizer = build(seed=0).double(), build(seed=1).double(), tiny_tokenizer()
    examples = ["Ada lives in Paris, and Boris in Ulm. " * 3, *EXAMPLES]
    whole = distances(model, reference, tokenizer, examples)
    monkeypatch.setattr(streaming, "max_logits", lambda device: 2 * 5 * 320)
    assert streaming.max_targets([model, reference]) == 5
    largest = []

    def watched(logits, reference_logits, names):
        largest.append(len(logits))
        return divergences(logits, reference_logits, names)

    monkeypatch.setattr("hf_unlearn.audit.attacks.stability.divergences", watched)
    parts = distances(model, reference, tokenizer, examples)
    assert max(largest) == 5 and len(largest) > len(examples)
    for name in NAMES:
        np.testing.assert_allclose(parts[name], whole[name], atol=1e-12)


def test_processes_share_the_batches(monkeypatch):
    model, reference = tiny_llama(seed=0), tiny_llama(seed=1)
    alone = distances(model, reference, tiny_tokenizer(), EXAMPLES, batch_size=2)
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(now[0]))
    now = [0]

    def gathered(work):
        return [work() for now[0] in range(3)]

    monkeypatch.setattr(streaming, "rank_and_world", lambda: (now[0], 3))
    monkeypatch.setattr(streaming, "gathered", gathered)
    shared = distances(model, reference, tiny_tokenizer(), EXAMPLES, batch_size=2)
    for name in NAMES:
        np.testing.assert_array_equal(shared[name], alone[name])
    assert sorted(passes) == [0, 0, 0, 1, 1, 2, 2]  # 13 rows in batches of 2, each run once


def test_models_stay_as_they_are():
    model, reference = tiny_llama(seed=0).train(), tiny_llama(seed=1)
    reference.model.layers[1].train()
    modes = [[module.training for module in m.modules()] for m in (model, reference)]
    weights = [copy.deepcopy(m.state_dict()) for m in (model, reference)]
    state = torch.get_rng_state()
    distances(model, reference, tiny_tokenizer(), EXAMPLES)
    zrf(model, tiny_tokenizer(), EXAMPLES[:2])
    assert torch.equal(torch.get_rng_state(), state)
    assert [[module.training for module in m.modules()] for m in (model, reference)] == modes
    for m, before in zip((model, reference), weights, strict=True):
        assert all(torch.equal(w, before[name]) for name, w in m.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in m.parameters())


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((tiny_llama(), tiny_llama(vocab_size=384)), r"320 and 384 outputs.*resize_token_embeddings\(320\)"),
        ((tiny_llama(), tiny_vit()), "A language model and an image classifier"),
    ],
)
def test_models_that_cannot_be_compared(pair, message):
    with pytest.raises(ValueError, match=message):
        distances(*pair, tiny_tokenizer(), EXAMPLES)


def test_a_cut_vocabulary_can_be_compared():
    padded = tiny_llama(vocab_size=384)
    padded.resize_token_embeddings(320)
    assert np.isfinite(distances(tiny_llama(), padded, tiny_tokenizer(), text_rows(2))["js"]).all()


def test_errors_hold_no_text():
    with pytest.raises(ValueError, match="Example 1: ") as caught:
        distances(tiny_llama(), tiny_llama(), tiny_tokenizer(), ["fine", "Zanzibar " * 300])
    assert "Zanzibar" not in str(caught.value)


def test_nothing_to_compare():
    found = distances(tiny_llama(), tiny_llama(), tiny_tokenizer(), [])
    assert all(values.shape == (0,) for values in found.values()) and set(found) == set(NAMES)


def test_models_by_name_are_loaded(tmp_path):
    model = tiny_llama(seed=1)
    model.save_pretrained(tmp_path)
    by_name = distances(tiny_llama(), str(tmp_path), tiny_tokenizer(), EXAMPLES[:4])
    as_object = distances(tiny_llama(), model, tiny_tokenizer(), EXAMPLES[:4])
    assert all((by_name[name] == as_object[name]).all() for name in NAMES)


def test_pairs_hold_two_models_at_a_time():
    alive, most = weakref.WeakSet(), []

    def load(seed):
        gc.collect()  # what is only in a cycle is as good as gone
        model = tiny_llama(seed=seed)
        alive.add(model)
        most.append(len(alive))
        return model

    gc.freeze()  # collecting is fast when it leaves out what all other tests have imported
    examples = iter(EXAMPLES[:5])  # is read once
    pairs = pairwise_distances([lambda seed=seed: load(seed) for seed in range(3)], tiny_tokenizer(), examples)
    gc.collect()
    gc.unfreeze()
    assert max(most) == 2 and not alive and len(pairs) == 3
    for pair, (a, b) in zip(pairs, combinations(range(3), 2), strict=True):
        again = distances(tiny_llama(seed=a), tiny_llama(seed=b), tiny_tokenizer(), EXAMPLES[:5])
        assert all((pair[name] == again[name]).all() for name in NAMES)


def test_null_band():
    rng = np.random.default_rng(0)
    pairs = [{name: rng.random(7) for name in NAMES} for _ in range(60)]
    pairs[3]["js"][2] = np.nan  # one record could not be scored
    band = null_band(pairs)
    means = {name: np.array([np.nanmean(pair[name]) for pair in pairs]) for name in NAMES}
    assert band.n_pairs == 60
    np.testing.assert_allclose(band.values["js"], means["js"])
    # Either model of a pair may be the reference.
    both = np.concatenate([means["kl_ref_model"], means["kl_model_ref"]])
    np.testing.assert_allclose(np.sort(band.values["kl_ref_model"]), np.sort(both))
    np.testing.assert_allclose(np.sort(band.values["kl_model_ref"]), np.sort(both))
    # Two of 60 are at or above it, and for an agreement at or below.
    assert (means["js"] >= band.bound["js"]).sum() == 2 and (means["tv"] > band.bound["tv"]).sum() == 1
    assert (means["top1_agreement"] < band.bound["top1_agreement"]).sum() == 1
    few = null_band(pairs[:3])
    assert few.bound["js"] == few.values["js"].max()
    assert few.bound["top1_agreement"] == few.values["top1_agreement"].min()


def test_a_band_needs_two_models():
    with pytest.raises(ValueError, match="two retrained models or more, .* not 1"):
        pairwise_distances([tiny_llama()], tiny_tokenizer(), EXAMPLES)
    with pytest.raises(ValueError, match="at least one pair"):
        null_band([])
