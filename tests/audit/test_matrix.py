"""Every number of the table by another route, over types, models, BOS, padding and batch sizes.

The yardstick is `model(ids).logits` of one example without padding, and what torchmetrics, scipy, lm-eval and
transformers' own warpers and `generate` make of it, to 1e-6 in float64 and 1e-5 in float32. So that there are hits and
near-certain tokens, the models know some of the rows by heart.
"""

from copy import deepcopy
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy
from tiny import EOS, PAD, tiny_gpt2, tiny_llama, tiny_tokenizer
from transformers import GenerationConfig
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from hf_unlearn.audit import (
    Sampling,
    answer_probability,
    corpus_perplexity,
    exact_memorization,
    extraction_probability,
    greedy,
    loss,
    min_k,
    min_k_plus_plus,
    perplexity,
    score,
    verbatim_extracted,
)
from hf_unlearn.audit.table.reduction import sum_by_example


# Prompts and answers of different lengths, more than a batch of 16; the models know the first of them by heart.
ROWS = [
    {
        "prompt": f"Question: Who wrote book {'of books ' * (i % 4)}{i}?\nAnswer:",
        "completion": f" {'author ' * (i % 5)}{i}.",
    }
    for i in range(15)
]
# The beginning of an answer that is known: the end token is the only one that is not hit.
ROWS.append({**ROWS[8], "completion": " author author"})
# Questions that have several answers, of which each is read once for all of them.
ROWS += [
    {"prompt": f"Question: Who {'wrote all the ' * n}books?\nAnswer:", "completion": f" {answer}"}
    for n in (4, 8)
    for answer in ("author 1.", "author 2 or another.", "nobody.", "of books", "many wrote them")
]
KNOWN = 9
SAMPLING = (
    Sampling(),
    Sampling(top_k=40),
    Sampling(temperature=0.7),
    Sampling(top_p=0.6),
    Sampling(temperature=0.9, top_k=20, top_p=0.8),
)
N_NEW = 6
WITHOUT_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
BUILD = {
    "llama": lambda: tiny_llama(max_position_embeddings=256),
    "gpt2": lambda: tiny_gpt2(n_positions=256, **WITHOUT_DROPOUT),
}


def ids_of(row, tokenizer):
    """Ids of the prompt and of the answer, which ends in EOS."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    return prompt, tokenizer(row["prompt"] + row["completion"])["input_ids"][len(prompt) :] + [EOS]


def padded(rows, side):
    """Ids, mask and positions, padded with a token that also occurs in the texts."""
    width = max(map(len, rows))
    ids, mask = torch.full((2, len(rows), width), EOS)
    for k, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(len(row))
        ids[k, place], mask[k] = torch.tensor(row), 0
        mask[k, place] = 1
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


@cache
def trained(name, bos):
    """Float32 weights that know the first rows."""
    model, tokenizer = BUILD[name](), tiny_tokenizer(bos=bos)
    pairs = [ids_of(row, tokenizer) for row in ROWS[:KNOWN]]
    inputs = padded([prompt + answer for prompt, answer in pairs], "right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for of_row, (prompt, _) in zip(labels, pairs, strict=True):
        of_row[: len(prompt)] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(60):
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval().state_dict()


@pytest.fixture(
    scope="module",
    params=[
        (dtype, name, bos, pad)
        for dtype in (torch.float64, torch.float32)
        for name in BUILD
        for bos in (True, False)
        for pad in (True, "eos", False)
    ],
    ids=lambda p: (
        f"{str(p[0])[6:]}-{p[1]}-{'bos' if p[2] else 'no_bos'}-pad_{ {True: 'own', 'eos': 'eos', False: 'none'}[p[3]] }"
    ),
)
def cell(request):
    dtype, name, bos, pad = request.param
    model = BUILD[name]()
    model.load_state_dict(trained(name, bos))
    model, tokenizer = model.to(dtype).eval(), tiny_tokenizer(bos=bos, pad=pad)
    pairs = [ids_of(row, tokenizer) for row in ROWS]
    assert all((prompt[0] == 0) == bos for prompt, _ in pairs)
    with torch.no_grad():
        logits = [model(torch.tensor([p + a])).logits[0, len(p) - 1 : -1] for p, a in pairs]
    return SimpleNamespace(
        model=model,
        tokenizer=tokenizer,
        prompts=[prompt for prompt, _ in pairs],
        targets=[torch.tensor(answer) for _, answer in pairs],
        logits=logits,
        tables={size: score(model, tokenizer, ROWS, size, sampling=SAMPLING) for size in (1, 16)},
        tolerance=1e-6 if dtype == torch.float64 else 1e-5,
    )


def same(ours, theirs, cell):
    np.testing.assert_allclose(ours, theirs, rtol=cell.tolerance, atol=cell.tolerance)


def target_log_probs(logits, targets):
    return log_softmax(logits.double().numpy(), axis=-1)[np.arange(len(targets)), targets]


def test_every_column_is_that_of_plain_logits(cell):
    from torchmetrics.text import Perplexity

    log_probs = [target_log_probs(*pair) for pair in zip(cell.logits, cell.targets, strict=True)]
    everything = np.concatenate([log_softmax(z.double().numpy(), axis=-1) for z in cell.logits])
    p = np.exp(everything)
    # Of the paper of Min-K++: mean and deviation of ln p under p.
    mean, std = -entropy(p, axis=-1), np.sqrt((p * (everything + entropy(p, axis=-1)[:, None]) ** 2).sum(-1))
    logits, targets = torch.cat(cell.logits), torch.cat(cell.targets)
    hits = [(z.argmax(-1) == y).numpy()[:-1] for z, y in zip(cell.logits, cell.targets, strict=True)]
    assert 0.2 < np.mean([of.all() for of in hits]) < 0.8  # some answers are known, others not
    top = logits.double().topk(2).values
    by_torchmetrics = Perplexity(ignore_index=-100).set_dtype(torch.float64)
    for z, y in zip(cell.logits, cell.targets, strict=True):
        by_torchmetrics.update(z[None].double(), y[None])

    def smallest(values):
        values = np.split(values, np.cumsum([len(y) for y in cell.targets])[:-1])
        return [np.sort(of)[: max(1, int(0.2 * len(of)))].mean() for of in values]

    for table in cell.tables.values():
        assert table.target_ids.tolist() == targets.tolist()
        same(table.log_prob, np.concatenate(log_probs), cell)
        same(table.mean, mean, cell)
        same(table.std, std, cell)
        same(table.margin, top[:, 0] - top[:, 1], cell)
        assert table.hit.tolist() == (logits.argmax(-1) == targets).tolist()
        assert table.rank.tolist() == (logits > logits.gather(1, targets[:, None])).sum(-1).tolist()
        assert (
            table.is_end.tolist() == (np.diff(np.repeat(np.arange(len(ROWS)), table.lengths), append=-1) != 0).tolist()
        )
        same(loss(table), [-of.mean() for of in log_probs], cell)
        same(answer_probability(table), [np.exp(of.mean()) for of in log_probs], cell)
        same(min_k(table), smallest(np.concatenate(log_probs)), cell)
        standardized = (np.concatenate(log_probs) - mean) / np.maximum(std, 1e-3)
        same(min_k_plus_plus(table), smallest(standardized), cell)
        same(exact_memorization(table), [of.mean() for of in hits], cell)
        assert verbatim_extracted(table).tolist() == [of.all() for of in hits]
        # Not the end token, which the model would not have put there.
        assert verbatim_extracted(table)[15] and not table.hit[table.offsets[16] - 1]
        of_each = [Perplexity().set_dtype(torch.float64) for _ in ROWS]
        for metric, z, y in zip(of_each, cell.logits, cell.targets, strict=True):
            metric.update(z[None].double(), y[None])
        same(perplexity(table), [float(metric.compute()) for metric in of_each], cell)
        same(corpus_perplexity(table), float(by_torchmetrics.compute()), cell)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_logits_give_the_same(cell, side):
    inputs = padded([p + y.tolist() for p, y in zip(cell.prompts, cell.targets, strict=True)], side)
    with torch.no_grad():
        logits = cell.model(**inputs).logits
    kept = [z[mask.bool()] for z, mask in zip(logits, inputs["attention_mask"], strict=True)]
    theirs = [target_log_probs(z[-len(y) - 1 : -1], y) for z, y in zip(kept, cell.targets, strict=True)]
    for table in cell.tables.values():
        same(table.log_prob, np.concatenate(theirs), cell)
        same(loss(table), [-of.mean() for of in theirs], cell)


def test_sampling_schemes_are_the_warpers_of_transformers(cell):
    logits, targets = torch.cat(cell.logits).double(), torch.cat(cell.targets)
    for scheme in SAMPLING:
        warped = logits
        for needed, warper, value in (
            (scheme.temperature != 1, TemperatureLogitsWarper, scheme.temperature),
            (scheme.top_k, TopKLogitsWarper, scheme.top_k),
            (scheme.top_p < 1, TopPLogitsWarper, scheme.top_p),
        ):
            warped = warper(value)(None, warped) if needed else warped
        theirs = target_log_probs(warped, targets)
        assert np.isneginf(theirs).any() == (scheme.top_k > 0 or scheme.top_p < 1)
        for table in cell.tables.values():
            same(table.sampled[scheme.key], theirs, cell)
            summed = np.add.reduceat(theirs, table.offsets[:-1])
            options = {"temperature": scheme.temperature, "top_k": scheme.top_k, "top_p": scheme.top_p}
            same(extraction_probability(table, **options, log=True), summed, cell)


def test_likelihood_and_greedy_flag_are_those_of_lm_eval(cell):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    # It gives a tokenizer without a pad token one, so it gets its own.
    lm = HFLM(pretrained=cell.model, tokenizer=deepcopy(cell.tokenizer), batch_size=16, max_length=256, device="cpu")
    asked = [Instance("loglikelihood", {}, (row["prompt"], row["completion"]), i) for i, row in enumerate(ROWS)]
    theirs = lm.loglikelihood(asked, disable_tqdm=True)
    for table in cell.tables.values():
        # It scores no end token.
        same(sum_by_example(table, table.log_prob, ~table.is_end), [value for value, _ in theirs], cell)
        assert verbatim_extracted(table).tolist() == [is_greedy for _, is_greedy in theirs]


def test_greedy_answers_are_those_of_generate(cell):
    config = GenerationConfig(do_sample=False, max_new_tokens=N_NEW, eos_token_id=EOS, pad_token_id=PAD)

    def until_end(ids):
        return ids[: ids.index(EOS) + 1] if EOS in ids else ids

    questions = list(dict.fromkeys(row["prompt"] for row in ROWS))
    prompts = [list(ids) for ids in dict.fromkeys(map(tuple, cell.prompts))]
    assert len(prompts) == len(questions) > 16
    alone = []
    for prompt in prompts:
        inputs = {name: value for name, value in padded([prompt], "left").items() if name != "position_ids"}
        alone.append(cell.model.generate(**inputs, generation_config=config)[0, len(prompt) :].tolist())
    assert any(ids[-1] == EOS for ids in alone) and any(len(ids) == N_NEW for ids in alone)
    inputs = padded(prompts, "left")
    width = inputs["input_ids"].shape[1]
    together = cell.model.generate(
        **{k: v for k, v in inputs.items() if k != "position_ids"}, generation_config=config
    )
    assert [until_end(ids) for ids in together[:, width:].tolist()] == alone
    # `generate` cannot go on from padding on the right, so there it is done by hand.
    on_the_right = [[] for _ in prompts]
    for _ in range(N_NEW):
        inputs = padded([p + new for p, new in zip(prompts, on_the_right, strict=True)], "right")
        with torch.no_grad():
            logits = cell.model(**inputs).logits
        for new, z, mask in zip(on_the_right, logits, inputs["attention_mask"], strict=True):
            if EOS not in new:
                new.append(int(z[int(mask.sum()) - 1].argmax()))
    assert on_the_right == alone
    before = cell.tokenizer.padding_side
    for side in ("left", "right"):
        cell.tokenizer.padding_side = side
        for size in (1, 16):
            assert greedy(cell.model, cell.tokenizer, questions, N_NEW, size) == alone, (side, size)
    cell.tokenizer.padding_side = before
