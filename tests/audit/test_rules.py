"""Rules that hold for the whole audit: what it may cost, what it may import, and what published numbers rest on."""

import inspect
import subprocess
import sys
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from cases import text_rows
from tiny import EOS, tiny_gpt2, tiny_llama, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig, TopKLogitsWarper, TopPLogitsWarper

from hf_unlearn.audit import (
    DEFAULT_SAMPLING,
    AuditConfig,
    Sampling,
    ScoreCache,
    audit,
    min_k,
    min_k_plus_plus,
    score,
    score_sets,
    truth_ratio,
)
from hf_unlearn.audit.attacks.answers import answer_rouge
from hf_unlearn.audit.measures.summaries import PRIVLEAK_K
from hf_unlearn.audit.measures.text_overlap import rouge_l
from hf_unlearn.audit.table.passes import Passes
from hf_unlearn.models.likelihood import target_statistics


TOKENIZER = tiny_tokenizer()
BUILD = {"llama": tiny_llama, "gpt2": tiny_gpt2}


# A value that is read, a copy to numpy or to a list (`resolve_conj`), and a shape that depends on values.
WAITS = {"item", "_local_scalar_dense", "is_nonzero", "equal", "resolve_conj", "nonzero", "argwhere"}
WAITS |= {"masked_select", "_unique2", "unique_dim", "bincount", "repeat_interleave"}


class Synchronizations(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if name in WAITS or by_mask:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def synchronizations(model, rows, batch_size=4):
    forwards = []
    hook = model.register_forward_pre_hook(lambda *_: forwards.append(1))
    with Synchronizations() as seen:
        table = score(model, TOKENIZER, rows, batch_size)
    hook.remove()
    return table, len(forwards), seen.counts


@pytest.mark.parametrize("name", BUILD)
def test_how_often_a_device_is_waited_for_does_not_depend_on_the_length_of_texts(name):
    model = BUILD[name]()
    # They share nothing at their beginning but BOS.
    starts = "ABCDEFGH"
    short = [{"prompt": f"{c}:", "completion": " yes"} for c in starts]
    long = [{"prompt": f"{c}:", "completion": " " + "no or yes" * 8} for c in starts]
    (few, n_few, counts_few), (many, n_many, counts_many) = (synchronizations(model, rows) for rows in (short, long))
    assert many.lengths.min() > 10 * few.lengths.max()
    assert n_few == n_many and few.meta["n_batches"] == many.meta["n_batches"]
    assert counts_few == counts_many and counts_few.total() <= 24 * n_few
    # Twice the batches cost twice as much, not more.
    _, n_twice, counts_twice = synchronizations(model, [*long, *({**r, "prompt": f"x{r['prompt']}"} for r in long)])
    assert counts_twice.total() <= counts_many.total() * n_twice / n_many


def test_two_forget_sets_have_numbers_of_their_own(tmp_path):
    model, cache = tiny_llama().double(), ScoreCache(tmp_path)
    rows = list(text_rows(44))
    first, second, retain, holdout = rows[:12], rows[12:24], rows[24:32], rows[32:]
    reports = []
    for forget in (first, second, first):
        split = {"forget": forget, "retain": retain, "holdout": holdout}
        config = AuditConfig(max_new_tokens=6)
        reports.append(audit(model, split=split, processing_class=TOKENIZER, config=config, cache=cache))
    one, two, again = ({(row["measure"], row["set"]): row["unlearned"] for row in r.rows} for r in reports)
    assert one == again and set(one) == set(two)
    for key in one:
        if key[1] in ("retain", "holdout"):
            assert one[key]["value"] == pytest.approx(two[key]["value"], rel=1e-9), key
    # Whole numbers of few records may agree by chance.
    continuous = ("loss", "answer_probability", "answer_probability_max_over_prompts")
    for measure in continuous:
        assert one[measure, "forget"]["value"] != two[measure, "forget"]["value"]
    differ = {key for key in one if key[1].startswith("forget") and one[key]["value"] != two[key]["value"]}
    assert {"membership_auc_loss", "membership_auc_zlib", "membership_auc_min_k"} <= {measure for measure, _ in differ}


BLOCKED = ("lm_eval", "deepspeed", "bitsandbytes", "gradio", "codecarbon", "skimage", "torchmetrics", "matplotlib")
IMPORT_EVERYTHING = f"""
import importlib, pkgutil, sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
import hf_unlearn
modules = [module.name for module in pkgutil.walk_packages(hf_unlearn.__path__, "hf_unlearn.")]
assert len(modules) > 80, modules
for name in modules:
    importlib.import_module(name)
"""


def test_every_module_is_imported_without_what_is_optional():
    found = subprocess.run([sys.executable, "-c", IMPORT_EVERYTHING], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr


def default(function, name):
    return inspect.signature(function).parameters[name].default


def test_what_published_numbers_rest_on():
    for attack in (min_k, min_k_plus_plus):
        assert default(attack, "k") == 0.2  # arXiv 2310.16789, 2404.02936
    assert PRIVLEAK_K == 0.4  # arXiv 2407.06460
    # arXiv 2410.19482
    assert DEFAULT_SAMPLING == (Sampling(), Sampling(top_k=40), Sampling(temperature=0.7))
    assert default(score, "sampling") == DEFAULT_SAMPLING
    assert default(answer_rouge, "max_new_tokens") == AuditConfig().max_new_tokens == 200  # TOFU
    assert default(rouge_l, "part") == "recall" and default(rouge_l, "stemmer") is True
    assert default(truth_ratio, "variant") == "tofu"


def test_defaults_do_what_they_say():
    table = score(tiny_llama().double(), TOKENIZER, [{"prompt": "Who?", "completion": " 012345678"}])
    assert table.lengths.tolist() == [11]
    assert min_k(table)[0] == pytest.approx(np.sort(table.log_prob)[:2].mean())
    standardized = (table.log_prob - table.mean) / table.std
    assert min_k_plus_plus(table)[0] == pytest.approx(np.sort(standardized)[:2].mean())
    assert set(table.sampled) == {scheme.key for scheme in DEFAULT_SAMPLING}


SCHEMES = [
    Sampling(temperature, top_k, top_p)
    for temperature in (1.0, 0.6, 1.7)
    for top_k in (0, 3, 30, 400)
    for top_p in (1.0, 0.9, 0.4)
]


@pytest.mark.parametrize("name", BUILD)
def test_top_k_and_top_p_together_are_what_generate_draws_from(name):
    model = BUILD[name]().double()
    rows = [{"prompt": f"Where does {c} live?", "completion": f" {c}"} for c in "ABCDEFGHIJKL"]
    table = score(model, TOKENIZER, rows, sampling=SCHEMES)
    ids = torch.tensor(TOKENIZER([row["prompt"] for row in rows])["input_ids"])
    kept = set()
    for scheme in SCHEMES:
        config = GenerationConfig(
            do_sample=True,
            max_new_tokens=1,
            temperature=scheme.temperature,
            top_k=scheme.top_k,
            top_p=scheme.top_p,
            pad_token_id=EOS,
            eos_token_id=EOS,
            output_scores=True,
            return_dict_in_generate=True,
        )
        # What is drawn from, after all that `generate` does to the logits, in its order.
        (warped,) = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config).scores
        first = table.offsets[:-1]
        theirs = warped.log_softmax(-1)[torch.arange(len(ids)), torch.from_numpy(table.target_ids[first]).long()]
        # `generate` works in float32.
        np.testing.assert_allclose(table.sampled[scheme.key][first], theirs, rtol=1e-5, atol=1e-5)
        kept |= {int(n) for n in warped.isfinite().sum(-1)}
    assert len(kept) > 5


def test_the_order_of_top_k_and_top_p_makes_a_difference_and_is_that_of_transformers():
    torch.manual_seed(0)
    logits = 2 * torch.randn(400, 25, dtype=torch.float64)
    scheme = Sampling(top_k=6, top_p=0.5)
    order = logits.argsort(-1, descending=True)
    top_k, top_p = TopKLogitsWarper(scheme.top_k), TopPLogitsWarper(scheme.top_p)
    right, wrong = top_p(None, top_k(None, logits)), top_k(None, top_p(None, logits))
    for place in range(4):
        targets = order[:, place]
        found = target_statistics(logits, targets, [scheme]).sampled[scheme.key]
        theirs, others = (z.log_softmax(-1).gather(1, targets[:, None])[:, 0] for z in (right, wrong))
        np.testing.assert_allclose(found, theirs, rtol=1e-9, atol=1e-9)
        if place < 3:
            assert (found != others).any()


@pytest.fixture
def computed(monkeypatch):
    """How often each text was given to each model, by all that was scored."""
    seen = Counter()

    def counting(self, model, rows, *args, **kwargs):
        seen.update((id(model), tuple(row["input_ids"]), tuple(row["labels"])) for row in rows)
        return init(self, model, rows, *args, **kwargs)

    init = Passes.__init__
    monkeypatch.setattr(Passes, "__init__", counting)
    return seen


def rows_with_repetitions():
    rows = [dict(row) for row in text_rows(60)]
    for i, row in enumerate(rows[:16]):
        row["paraphrased_completion"] = row["completion"] if i % 4 == 0 else f" It is {row['completion'][4:]}"
        row["perturbed_completions"] = [" In Rio.", rows[i + 1]["completion"]]
    rows[20]["completion"] = " in lower case already"
    rows[40] = rows[41] = rows[50]
    return {"forget": rows[:16], "retain": [*rows[16:32], rows[3]], "holdout": rows[32:]}


def test_no_text_is_scored_twice(computed):
    models, sets = (tiny_llama(max_position_embeddings=256), tiny_gpt2(n_positions=256)), rows_with_repetitions()
    for model in models:
        tables = score_sets(model, TOKENIZER, sets)
        # As often as they are in the sets, all the same.
        assert sum(map(len, tables.values())) > len([key for key in computed if key[0] == id(model)])
    assert set(computed.values()) == {1}
    assert len({key[1:] for key in computed}) == len(computed) / 2


def test_no_text_is_scored_twice_in_a_whole_audit(computed):
    model, original = tiny_llama(max_position_embeddings=256), tiny_llama(seed=1, max_position_embeddings=256)
    config = AuditConfig(max_new_tokens=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        audit(model, original, split=rows_with_repetitions(), processing_class=TOKENIZER, config=config)
    assert {key[0] for key in computed} == {id(model), id(original)}
    assert set(computed.values()) == {1}
