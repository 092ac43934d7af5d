import doctest
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from rouge_score import rouge_scorer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_unlearn.audit import ATTACKS, auc, extraction_probability, queries_needed, score


SUITES = Path(__file__).resolve().parents[2] / "eval_suites"
NAMES = ["extraction_attack", "membership_inference", "perplexity"]
WORDS = "the a cat dog sat ran on under mat tree and then it was gone .".split()


@pytest.fixture(autouse=True)
def evaluate_cache(tmp_path, monkeypatch):
    """A cache of its own: modules are copied into it, and inputs are written there until they are computed."""
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(SUITES.parent)
    _forget_modules()
    yield tmp_path
    _forget_modules()


def _forget_modules():
    for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return (
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).double().eval()
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_the_docstring_hold(name):
    module = evaluate.load(f"eval_suites/{name}")
    tests = doctest.DocTestParser().get_doctest(module.inputs_description, {}, name, None, None)
    assert len(tests.examples) >= 3
    assert doctest.DocTestRunner().run(tests).failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_modules_are_loaded_from_their_file_and_describe_themselves(name):
    module = evaluate.load(str(SUITES / name / f"{name}.py"))
    assert module.name == name and module.description and module.citation
    assert all(word in module.inputs_description for word in ("Args:", "Returns:", "n_missing"))
    card = (SUITES / name / "README.md").read_text()
    assert card.startswith("---\ntitle:") and f"eval_suites/{name}" in card


def test_membership_inference_agrees_with_the_audit_in_64_bit():
    rng = np.random.default_rng(0)
    members, others = rng.normal(0.5, 1, 50) + 1e8, rng.normal(0, 1, 40) + 1e8
    module = evaluate.load("eval_suites/membership_inference")
    results = module.compute(predictions=np.r_[members, others], references=[1] * 50 + [0] * 40, fprs=[0.001, 0.1])
    expected = auc(members, others)
    assert (results["auc"], results["auc_low"], results["auc_high"]) == (expected.value, expected.low, expected.high)
    assert results["n_members"] == 50 and results["n_non_members"] == 40
    assert np.isnan(results["tpr_at_fpr=0.001"]) and 0 < results["tpr_at_fpr=0.1"] < 1
    assert results["fpr_at_fpr=0.1"] <= 0.1


def test_membership_inference_counts_missing_scores_and_refuses_other_labels():
    module = evaluate.load("eval_suites/membership_inference")
    results = module.compute(predictions=[2.0, float("nan"), 1.0], references=[1, 1, 0])
    assert (results["auc"], results["n_missing"]) == (1, 1)
    with pytest.raises(ValueError, match="1 for members"):
        module.compute(predictions=[2.0, 1.0], references=[1, 2])


def test_extraction_from_strings():
    module = evaluate.load("eval_suites/extraction_attack")
    predictions = ["the cat sat on the mat and then", " the dog sat", "it", "a tree"]
    references = [" the cat sat on the mat", "the cat sat", "", "a trees"]
    results = module.compute(predictions=predictions, references=references)
    assert results["verbatim_rate"] == pytest.approx(1 / 3)
    assert results["word_match"] == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    recall = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score("a trees", "a tree")["rougeL"].recall
    assert recall == 1
    assert results["rougeL_recall"] == pytest.approx((1 + 2 / 3 + recall) / 3)
    assert (results["n"], results["n_missing"]) == (3, 1)
    assert results["verbatim_rate_low"] < results["verbatim_rate"] < results["verbatim_rate_high"]


def test_a_longer_word_is_not_verbatim():
    module = evaluate.load("eval_suites/extraction_attack")
    results = module.compute(predictions=["call 123", "call 12, now"], references=["call 12", "call 12"])
    assert results["verbatim_rate"] == 0.5


@pytest.fixture(scope="module")
def examples(model, tokenizer):
    """The first completion is what the model writes greedily; the second differs from it in the last word."""
    prompt = tokenizer("the cat", return_tensors="pt")["input_ids"]
    ids = prompt
    with torch.no_grad():
        for _ in range(4):
            # Special tokens can't be written as words.
            logits = model(ids).logits[0, -1]
            logits[:3] = -torch.inf
            ids = torch.cat([ids, logits.argmax().reshape(1, 1)], dim=1)
    words = tokenizer.convert_ids_to_tokens(ids[0, 2:])
    other = next(word for word in WORDS if word != words[-1])
    return [
        {"prompt": "the cat", "completion": " " + " ".join(words)},
        {"prompt": "the cat", "completion": " " + " ".join([*words[:-1], other])},
        {"prompt": "the cat", "completion": ""},
    ]


def test_extraction_from_a_model(model, tokenizer, examples):
    module = evaluate.load("eval_suites/extraction_attack")
    results = module.compute(examples=examples, model=model, processing_class=tokenizer, p=0.9)
    # The steps of greedy decoding, written out: which tokens of the completion are the model's first choice.
    hits = []
    for example in examples[:2]:
        ids = tokenizer(example["prompt"] + example["completion"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            first = model(ids).logits[0].argmax(-1)
        hits.append((first[1:-1] == ids[0, 2:]).tolist())
    assert results["verbatim_rate"] == np.mean([all(row) for row in hits])
    assert results["exact_memorization"] == pytest.approx(np.mean([np.mean(row) for row in hits]))
    strengths = [1 - min(k for k in range(5) if all(row[k:])) / 4 for row in hits]
    assert results["extraction_strength"] == pytest.approx(np.mean(strengths))
    assert (results["n"], results["n_missing"]) == (2, 1)
    scores = score(model, tokenizer, examples)
    np.testing.assert_array_equal(results["queries_needed"], queries_needed(extraction_probability(scores), 0.9))
    assert np.isnan(results["queries_needed"][2])


def test_extraction_from_a_model_writes_no_text_to_disk(model, tokenizer, examples, evaluate_cache):
    module = evaluate.load("eval_suites/extraction_attack")
    before = set((evaluate_cache / "metrics").rglob("*"))
    module.compute(examples=examples, model=model, processing_class=tokenizer)
    assert set((evaluate_cache / "metrics").rglob("*")) == before


def test_extraction_refuses_ambiguous_and_incomplete_calls(model, tokenizer, examples):
    module = evaluate.load("eval_suites/extraction_attack")
    with pytest.raises(ValueError, match="Either give predictions and references"):
        module.compute(predictions=["a"], references=["a"], examples=examples, model=model)
    with pytest.raises(ValueError, match="no processing_class"):
        module.compute(examples=examples, model=model)


TEXTS = ["the cat sat on the mat .", "a dog ran", "it was gone and then it was the dog under a tree", ""]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_perplexity_agrees_with_the_loss_of_the_model(model, tokenizer, batch_size):
    module = evaluate.load("eval_suites/perplexity")
    results = module.compute(predictions=TEXTS, model=model, processing_class=tokenizer, batch_size=batch_size)
    total = count = 0
    for text, value in zip(TEXTS[:3], results["perplexities"], strict=False):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
        assert value == pytest.approx(log_probs.mean().neg().exp().item(), rel=1e-9)
        total, count = total - log_probs.sum().item(), count + log_probs.numel()
    assert results["corpus_perplexity"] == pytest.approx(np.exp(total / count), rel=1e-9)
    assert results["mean_perplexity"] == pytest.approx(np.mean(results["perplexities"][:3]))
    assert np.isnan(results["perplexities"][3]) and (results["n"], results["n_missing"]) == (3, 1)


def test_perplexity_loads_a_model_by_its_path(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    module = evaluate.load("eval_suites/perplexity")
    loaded = module.compute(predictions=TEXTS, model=str(tmp_path / "model"))
    given = module.compute(predictions=TEXTS, model=model, processing_class=tokenizer)
    np.testing.assert_allclose(loaded["perplexities"], given["perplexities"], rtol=1e-5)


def test_perplexity_of_log_probabilities_keeps_64_bit_and_empty_texts():
    module = evaluate.load("eval_suites/perplexity")
    results = module.compute(predictions=[[-1.0 - 1e-12], [], [-2.0, -4.0]])
    np.testing.assert_array_equal(results["perplexities"], np.exp([1 + 1e-12, np.nan, 3]))
    assert (results["n"], results["n_missing"]) == (2, 1)


def test_perplexity_refuses_incomplete_calls(model):
    module = evaluate.load("eval_suites/perplexity")
    with pytest.raises(ValueError, match="no model"):
        module.compute(predictions=TEXTS)
    with pytest.raises(ValueError, match="no processing_class"):
        module.compute(predictions=TEXTS, model=model)
    with pytest.raises(ValueError, match="leave out model"):
        module.compute(predictions=[[-1.0]], model=model)


@pytest.mark.parametrize("attack", ["loss", "zlib", "min_k", "min_k_plus_plus"])
def test_membership_inference_from_a_model(model, tokenizer, examples, attack, evaluate_cache):
    module = evaluate.load("eval_suites/membership_inference")
    labels = [i % 2 for i in range(len(examples))]
    results = module.compute(
        examples=examples, references=labels, model=model, processing_class=tokenizer, attack=attack
    )
    values = ATTACKS[attack](score(model, tokenizer, examples))
    assert results == module.compute(predictions=values, references=labels)
    with pytest.raises(ValueError, match="Either give scores"):
        module.compute(examples=examples, predictions=values, references=labels)
    with pytest.raises(ValueError, match="Pass both as objects"):
        module.compute(examples=examples, references=labels, model=model)
    with pytest.raises(ValueError, match="a label for each"):
        module.compute(examples=examples, references=labels[1:], model=model, processing_class=tokenizer)


def test_long_texts_can_be_cut_where_the_error_says_so(model, tokenizer):
    module = evaluate.load("eval_suites/perplexity")
    text = "a long text " * 400
    with pytest.raises(ValueError, match="Either set truncate=True"):
        module.compute(predictions=[text], model=model, processing_class=tokenizer)
    assert module.compute(predictions=[text], model=model, processing_class=tokenizer, truncate=True)["n"] == 1
