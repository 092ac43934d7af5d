"""Guidance by two checkpoints: against the tables of the models alone, numpy, and greedy decoding step by step."""

import copy

import numpy as np
import pytest
import torch
from cases import image_rows, text_rows
from scipy.special import log_softmax
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit

from hf_unlearn.audit import loss, score
from hf_unlearn.audit.attacks.guidance import guided, guided_extraction, guided_scores
from hf_unlearn.audit.measures.extraction import extraction_strength, verbatim_extracted
from hf_unlearn.audit.measures.membership import likelihood_drop
from hf_unlearn.audit.table import streaming
from hf_unlearn.data import encode, encode_dataset
from hf_unlearn.data.pairing import UnlearningCollator
from hf_unlearn.models.likelihood import target_logits


COLUMNS = ("log_prob", "hit", "rank", "mean", "std", "margin")
EXAMPLES = [*text_rows(7), "Ada lives in Paris.", "", {"prompt": "Question:", "completion": ""}, *text_rows(3, 40)]
EMPTY = [8, 9]


def learned(build, rows, seed, steps=60):
    """A tiny model that half knows the rows, so that some targets are hits and some are not."""
    model, inputs = build(seed=seed), UnlearningCollator(0)(list(encode_dataset(rows, tiny_tokenizer())))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(steps):
        out = target_logits(model, inputs)
        out.token_mean(-out.log_probs).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module", params=[tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def pair(request):
    """Before, and after."""
    return learned(request.param, text_rows(7), 0, 45), learned(request.param, text_rows(7, 40), 1, 30)


def assert_same_table(found, expected, atol):
    for name in ("offsets", "target_ids", "is_end", "hit", "rank"):
        assert (getattr(found, name) == getattr(expected, name)).all(), name
    for name in ("log_prob", "mean", "std", "margin"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=atol, err_msg=name)
    assert found.same_targets(expected)


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), tiny_tokenizer(bos=False, pad="eos")], ids=["bos", "no bos"])
def test_weight_0_is_the_model_after_and_1_the_model_before(pair, tokenizer):
    before, after = (copy.deepcopy(model).double() for model in pair)
    at_0, at_1 = guided_scores(before, after, tokenizer, EXAMPLES, weights=(0, 1), batch_size=16)
    assert_same_table(at_0, score(after, tokenizer, EXAMPLES, sampling=()), 1e-10)
    assert_same_table(at_1, score(before, tokenizer, EXAMPLES, sampling=()), 1e-10)
    assert at_0.lengths[EMPTY].sum() == 0 and at_0.missing["no_target"] == EMPTY
    for w, model in ((0, after), (1, before)):
        result, table = guided_extraction(before, after, tokenizer, EXAMPLES, [w]), score(model, tokenizer, EXAMPLES)
        np.testing.assert_array_equal(result.extraction_strength[0], extraction_strength(table))
        np.testing.assert_allclose(result.log_prob[0], -loss(table), atol=1e-10)
        scored = table.valid
        np.testing.assert_array_equal(result.verbatim[0][scored], verbatim_extracted(table)[scored])
        assert np.isnan(result.verbatim[0][~scored]).all()


def alone(model, ids):
    with torch.no_grad():
        return log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double().numpy(), axis=-1)


@pytest.mark.parametrize("weight", [-0.5, 0.3, 0.8, 2.5])
def test_formula_by_numpy(pair, weight):
    before, after = (copy.deepcopy(model).double() for model in pair)
    tokenizer = tiny_tokenizer()
    (table,) = guided_scores(before, after, tokenizer, EXAMPLES, [weight])
    for i, row in enumerate(EXAMPLES):
        if i in EMPTY:
            continue
        encoded = encode(row, tokenizer)
        ids, labels = encoded["input_ids"], np.array(encoded["labels"])
        places = np.flatnonzero(labels[1:] != -100)
        lp_o, lp_u = (alone(model, ids)[places] for model in (before, after))
        lp = log_softmax(lp_u + weight * (lp_o - lp_u), axis=-1)
        own = lp[np.arange(len(places)), labels[places + 1]]
        part = table.example(i)
        np.testing.assert_allclose(table.log_prob[part], own, atol=1e-10)
        assert (table.hit[part] == (lp.argmax(-1) == labels[places + 1])).all()
        np.testing.assert_allclose(table.mean[part], (np.exp(lp) * lp).sum(-1), atol=1e-10)


@pytest.mark.parametrize("weight", [0.5, 1.5])
def test_greedy_decoding_under_guidance_is_the_table(pair, weight):
    before, after = pair
    tokenizer, rows = tiny_tokenizer(), list(text_rows(14, 36))
    (table,) = guided_scores(before, after, tokenizer, rows, [weight])
    matched = []
    for row in rows:
        encoded = encode(row, tokenizer)
        n_prompt = encoded["labels"].count(-100)
        ids, answer = encoded["input_ids"][:n_prompt], encoded["input_ids"][n_prompt:]
        new = []
        for _ in answer:
            lp_o, lp_u = (alone(model, [*ids, *new])[-1] for model in (before, after))
            new.append(int((lp_u + weight * (lp_o - lp_u)).argmax()))
        matched.append(next((k for k, (a, b) in enumerate(zip(new, answer, strict=True)) if a != b), len(answer)))
    hits = [table.hit[table.example(i)] for i in range(len(table))]
    np.testing.assert_array_equal([len(hit) if hit.all() else int(np.argmin(hit)) for hit in hits], matched)
    assert len(set(matched)) > 2


def test_the_difference_extracts_what_neither_model_says():
    # Before: the secret is second; after: much less likely. Twice the difference brings it to the top.
    before, after = torch.tensor([[0.0, -0.2, -5.0]]).double(), torch.tensor([[0.0, -2.0, -5.0]]).double()
    assert before.argmax() == after.argmax() == 0
    assert guided(before, after, 2.0).argmax() == 1
    assert torch.equal(guided(before, after, 0), after) and torch.equal(guided(before, after, 1), before)


def test_tokens_that_both_models_rule_out():
    before, after = torch.randn(2, 4, 6).double()
    before[:, 2] = after[:, 2] = -torch.inf
    for weight in (-1, 0.5, 2, 3):
        mixed = guided(before, after, weight)
        assert (mixed[:, 2] == -torch.inf).all() and mixed[:, [0, 1, 3, 4, 5]].isfinite().all()


def test_batch_size_and_parts_change_nothing(pair, monkeypatch):
    before, after = (copy.deepcopy(model).double() for model in pair)
    examples, tokenizer = ["Ada lives in Paris, and Boris in Ulm. " * 2, *EXAMPLES], tiny_tokenizer()
    whole = guided_scores(before, after, tokenizer, examples, [0.5, 2], batch_size=16)
    one = guided_scores(before, after, tokenizer, examples, [0.5, 2], batch_size=1)
    monkeypatch.setattr(streaming, "max_logits", lambda device: 2 * 6 * 320)
    parts = guided_scores(before, after, tokenizer, examples, [0.5, 2], batch_size=16)
    for a, b, c in zip(whole, one, parts, strict=True):
        assert_same_table(a, b, 1e-10)
        assert_same_table(a, c, 1e-10)


def test_each_model_reads_each_example_once(pair):
    before, after = pair
    passes = []
    hooks = [m.register_forward_pre_hook(lambda *_: passes.append(1)) for m in (before, after)]
    guided_extraction(before, after, tiny_tokenizer(), EXAMPLES, [0, 0.5, 1, 2], batch_size=16)
    for hook in hooks:
        hook.remove()
    assert len(passes) == 2


def test_the_first_token_is_never_a_target():
    """Nothing predicts it, even where its label is given."""
    ids = encode("Ada lives in Paris.", tiny_tokenizer())["input_ids"]
    rows = [{"input_ids": ids, "labels": ids}, *EXAMPLES]
    before, after = tiny_llama(seed=0).double(), tiny_llama(seed=1).double()
    (found,) = guided_scores(before, after, tiny_tokenizer(), rows, [1])
    assert found.lengths[0] == len(ids) - 1
    assert_same_table(found, score(before, tiny_tokenizer(), rows, sampling=()), 1e-10)


def test_image_classifiers():
    before, after, rows = tiny_vit(seed=0).double(), tiny_vit(seed=1).double(), image_rows(9)
    at_0, at_1, half = guided_scores(before, after, None, rows, [0, 1, 0.5], batch_size=4)
    assert_same_table(at_0, score(after, None, rows, sampling=()), 1e-12)
    assert_same_table(at_1, score(before, None, rows, sampling=()), 1e-12)
    assert half.meta["targets"] == "label" and (half.lengths == 1).all()
    pixels = torch.stack([row["pixel_values"] for row in rows])
    with torch.no_grad():
        mixed = sum(model(pixels).logits.log_softmax(-1).numpy() for model in (before, after)) / 2
    expected = log_softmax(mixed, axis=-1)[np.arange(9), [row["labels"] for row in rows]]
    np.testing.assert_allclose(half.log_prob, expected, rtol=1e-10)


def test_broken_logits_are_missing(pair):
    before, after = pair[0], copy.deepcopy(pair[1])
    tokenizer = tiny_tokenizer()
    token = tokenizer("K")["input_ids"][-1]
    embeddings = after.get_input_embeddings()
    after.set_output_embeddings(torch.nn.Linear(32, 320, bias=False))  # or GPT-2 would say nothing at all any more
    with torch.no_grad():
        embeddings.weight[token] = torch.nan
    hit = [i for i, r in enumerate(EXAMPLES) if i not in EMPTY and token in encode(r, tokenizer)["input_ids"][:-1]]
    assert hit
    with pytest.warns(UserWarning, match=f"{len(hit)} of {len(EXAMPLES)}"):
        found = guided_extraction(before, after, tokenizer, EXAMPLES, [0.5, 1], batch_size=16)
    for values in (found.verbatim, found.extraction_strength, found.exact_memorization, found.log_prob):
        assert np.flatnonzero(np.isnan(values[0])).tolist() == sorted(hit + EMPTY)
        assert np.flatnonzero(np.isnan(values[1])).tolist() == EMPTY  # the model before is whole


def test_one_broken_target_breaks_its_example(pair):
    before, after = pair[0], copy.deepcopy(pair[1])
    head = after.get_output_embeddings()
    head.register_forward_hook(lambda module, args, logits: logits.index_fill(-2, torch.tensor([3]), torch.nan))
    with pytest.warns(UserWarning, match="2 of 2"):
        half, alone = guided_scores(before, after, tiny_tokenizer(), EXAMPLES[:2], [0.5, 1], batch_size=1)
    assert np.isnan(half.log_prob).all() and np.isnan(half.margin).all() and not half.hit.any()
    assert np.isfinite(alone.log_prob).all()


def test_membership_from_both_checkpoints(pair):
    before, after = (score(model, tiny_tokenizer(), EXAMPLES, sampling=()) for model in pair)
    found = likelihood_drop(before, after)
    for i in range(len(EXAMPLES)):
        part = before.example(i)
        expected = np.nan if i in EMPTY else (before.log_prob[part] - after.log_prob[part]).astype(float).mean()
        np.testing.assert_allclose(found[i], expected, rtol=1e-5)
    # The first seven are what only the model before knows, the last three only the model after.
    assert np.nanmin(found[:7]) > np.nanmax(found[10:])
    with pytest.raises(ValueError, match="different targets"):
        likelihood_drop(before, after[:3])


def test_models_stay_as_they_are(pair):
    before, after = (copy.deepcopy(model).train() for model in pair)
    guided_extraction(before, after, tiny_tokenizer(), EXAMPLES[:3])
    for model, original in zip((before, after), pair, strict=True):
        assert all(module.training for module in model.modules())
        assert all(torch.equal(w, original.state_dict()[name]) for name, w in model.state_dict().items())


@pytest.mark.parametrize("weights", [[], [0.5, float("nan")]])
def test_weights_must_be_numbers(weights):
    with pytest.raises(ValueError, match="at least one weight"):
        guided_scores(tiny_llama(), tiny_llama(), tiny_tokenizer(), EXAMPLES, weights)


def test_other_vocabularies_and_no_examples():
    with pytest.raises(ValueError, match="320 and 384 outputs"):
        guided_scores(tiny_llama(), tiny_llama(vocab_size=384), tiny_tokenizer(), EXAMPLES)
    found = guided_extraction(tiny_llama(), tiny_llama(), tiny_tokenizer(), [], [0, 1])
    assert found.verbatim.shape == found.log_prob.shape == (2, 0)
