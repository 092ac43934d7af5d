import doctest
import re

import evaluate
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from rouge_score import rouge_scorer
from sklearn.metrics import roc_auc_score
from tiny import tiny_vit
from transformers import ViTImageProcessorPil

from hf_unlearn.audit import ATTACKS, auc, extraction_probability, mean, queries_needed, score, tpr_at_fpr
from hf_unlearn.evaluate_modules.base import EVAL_SUITES, load_metric, metric_names


NAMES = metric_names()
SECRET = "the code of the door"


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_the_docstring_hold(name):
    module = load_metric(name)
    tests = doctest.DocTestParser().get_doctest(module.inputs_description, {}, name, None, None)
    assert len(tests.examples) >= 3
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(tests).failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_modules_are_loaded_from_their_file_and_describe_themselves(name):
    module = evaluate.load(str(EVAL_SUITES / name / f"{name}.py"))
    assert module.name == name and module.description and module.citation
    words = ("Args:", "Returns:", "n_missing", "reason", "orientation")
    assert all(word in module.inputs_description for word in words)
    card = (EVAL_SUITES / name / "README.md").read_text()
    assert card.startswith("---\ntitle:") and f'load_metric("{name}")' in card
    assert "\nsdk: gradio\nsdk_version: 6." in card and "\napp_file: app.py\n" in card
    assert "hf-unlearn" in (EVAL_SUITES / name / "requirements.txt").read_text().split()


def _leaves(feature):
    if isinstance(feature, dict):
        return [leaf for inner in feature.values() for leaf in _leaves(inner)]
    inner = getattr(feature, "feature", None)
    return [feature] if inner is None else _leaves(inner)


def _documented(module) -> set[str]:
    args = module.inputs_description.split("Args:")[1].split("Returns:")[0]
    names = re.findall(r"^    (\w+(?:, \w+)*) \(", args, flags=re.MULTILINE)
    return {name for line in names for name in line.split(", ")}


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_that_there_is_not_is_answered_with_those_there_are(name):
    module = load_metric(name)
    first = next(iter(dict(module.features[0] if isinstance(module.features, list) else module.features)))
    for inputs in ({}, {first: [SECRET]}, {"examples": [SECRET]}):
        with pytest.raises(ValueError, match=f"^{name} takes no model_id and no lr here. It takes {first}") as error:
            module.compute(**inputs, model_id=SECRET, lr=1)
        assert SECRET not in str(error.value)
    listed = set(re.findall(r"\w+", str(error.value).split("It takes")[1])) - {"or", "else"}
    assert listed == _documented(module)


def test_an_argument_that_goes_with_examples_is_refused_without():
    with pytest.raises(
        ValueError, match=r"takes no p here. It takes predictions, references; or else examples, .*\bp\b"
    ):
        load_metric("extraction_attack").compute(predictions=["a"], references=["a"], p=0.9)
    with pytest.raises(ValueError, match="takes no examples. Give predictions"):
        load_metric("perplexity").compute(examples=["a"])


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_taken_in_64_bit(name):
    features = load_metric(name).features
    for option in features if isinstance(features, list) else [features]:
        assert {leaf.dtype for leaf in _leaves(dict(option))} <= {"float64", "int64", "string"}


@pytest.mark.parametrize("name", NAMES)
def test_no_input_is_written_to_disk_or_quoted_in_an_error(name, evaluate_cache):
    module = load_metric(name)
    names = list(dict(module.features[0] if isinstance(module.features, list) else module.features))
    with pytest.raises(ValueError, match="nothing to compute from"):
        module.compute()
    for wrong in ({n: [[[SECRET]], 1, {"a": SECRET}] for n in names}, dict.fromkeys(names, SECRET)):
        with pytest.raises(ValueError, match="The inputs do not fit") as error:
            module.compute(**wrong)
        assert SECRET not in str(error.value) and error.value.__suppress_context__
    with pytest.raises(ValueError, match="The inputs do not fit") as error:
        module.add(**{n.removesuffix("s"): object() for n in names})
    assert len(module) == 0
    assert not [path for path in (evaluate_cache / "metrics").rglob("*") if path.is_file()]


def test_inputs_added_one_by_one_give_the_same(evaluate_cache):
    module = load_metric("membership_inference")
    scores, labels = [0.3, 0.1, 0.7, 0.2, 0.25], [1, 0, 1, 1, 0]
    whole = module.compute(predictions=scores, references=labels)
    module.add(prediction=scores[0], reference=labels[0])
    module.add_batch(predictions=scores[1:4], references=labels[1:4])
    assert not [path for path in (evaluate_cache / "metrics").rglob("*") if path.is_file()]
    np.testing.assert_equal(module.compute(predictions=scores[4:], references=labels[4:]), whole)


def test_inputs_stay_in_memory_but_for_several_processes(evaluate_cache):
    first = load_metric("membership_inference", num_process=2, process_id=0)
    assert not first.keep_in_memory and load_metric("membership_inference").keep_in_memory


def test_membership_inference_agrees_with_the_audit_in_64_bit():
    rng = np.random.default_rng(0)
    members, others = rng.normal(0.5, 1, 50) + 1e8, rng.normal(0, 1, 40) + 1e8
    module = load_metric("membership_inference")
    results = module.compute(predictions=np.r_[members, others], references=[1] * 50 + [0] * 40, fprs=[0.001, 0.1])
    expected, point = auc(members, others), tpr_at_fpr(members, others, 0.1)
    assert (results["auc"], results["auc_low"], results["auc_high"]) == (expected.value, expected.low, expected.high)
    assert results["tpr_at_fpr=0.1_high"] == point.tpr.high and results["fpr_at_fpr=0.1"] == point.fpr.value
    assert results["reason"].startswith("tpr_at_fpr=0.001: unmeasurable") and "higher" in results["orientation"]
    assert results["n_members"] == 50 and results["n_non_members"] == 40
    assert np.isnan(results["tpr_at_fpr=0.001"]) and 0 < results["tpr_at_fpr=0.1"] < 1
    assert results["fpr_at_fpr=0.1"] <= 0.1


def test_membership_inference_beside_a_retrained_model():
    rng = np.random.default_rng(0)
    labels = np.array([1] * 40 + [0] * 45)
    ours, theirs = rng.normal(labels, 1), rng.normal(0.2 * labels, 1)
    results = load_metric("membership_inference").compute(predictions=ours, references=labels, retrained=theirs)
    assert results["auc_retrained"] == pytest.approx(roc_auc_score(labels, theirs))
    assert results["auc_difference"] == pytest.approx(roc_auc_score(labels, ours) - roc_auc_score(labels, theirs))
    assert results["auc_difference_low"] < results["auc_difference"] < results["auc_difference_high"]
    same = load_metric("membership_inference").compute(predictions=ours, references=labels, retrained=ours)
    assert same["auc_difference"] == 0


def test_membership_inference_scores_the_retrained_model_and_asks_whether_the_sets_are_of_a_kind(model, tokenizer):
    words = [word for word in tokenizer.get_vocab() if word.isalpha()][2:]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 6)) for _ in range(200)]
    module, labels = load_metric("membership_inference"), [1] * 100 + [0] * 100
    options = {"references": labels, "model": model, "processing_class": tokenizer, "attack": "loss"}
    results = module.compute(examples=texts, retrained=model, **options)
    assert results["auc_difference"] == 0 and results["auc"] == results["auc_retrained"]
    assert results["blind_auc_low"] < 0.5 < results["blind_auc_high"]
    results = module.compute(examples=[*texts[:100], *["the cat ran"] * 100], **options)
    assert results["blind_auc_low"] > 0.9 and "auc_difference" not in results


def test_membership_inference_of_images():
    images = [{"pixel_values": torch.randn(3, 16, 16), "labels": i % 5} for i in range(12)]
    labels = [1] * 6 + [0] * 6
    classifier = tiny_vit()
    with torch.no_grad():
        pixels = torch.stack([row["pixel_values"] for row in images])
        p = classifier(pixel_values=pixels).logits.double().softmax(-1).numpy()
    chance = p[np.arange(12), [row["labels"] for row in images]]
    for attack, values in {"loss": np.log(chance), "entropy": (p * np.log(p)).sum(1), "confidence": chance}.items():
        results = load_metric("membership_inference").compute(
            examples=images, references=labels, model=classifier, processing_class=object(), attack=attack
        )
        assert results["auc"] == pytest.approx(roc_auc_score(labels, values)) and "blind_auc" not in results
    features = Features({"image": Image(), "label": ClassLabel(num_classes=5)})
    rng = np.random.default_rng(0)
    pictures = [PILImage.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(24)]
    rows = Dataset.from_dict({"image": pictures, "label": [i % 5 for i in range(24)]}, features=features)
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    options = {"references": [1] * 12 + [0] * 12, "model": classifier, "processing_class": processor, "attack": "loss"}
    table, rows_of_it = (
        load_metric("membership_inference").compute(examples=e, **options) for e in (rows, list(rows))
    )
    np.testing.assert_equal(table, rows_of_it)
    assert 0 <= table["blind_auc_low"] <= table["blind_auc"]


def test_membership_inference_counts_missing_scores_and_refuses_other_labels():
    module = load_metric("membership_inference")
    results = module.compute(predictions=[2.0, float("nan"), 1.0], references=[1, 1, 0])
    assert (results["auc"], results["n_missing"]) == (1, 1)
    with pytest.raises(ValueError, match="1 for members"):
        module.compute(predictions=[2.0, 1.0], references=[1, 2])


def test_extraction_from_strings():
    module = load_metric("extraction_attack")
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
    module = load_metric("extraction_attack")
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
    other = next(word for word in tokenizer.get_vocab() if word.isalpha() and word != words[-1])
    return [
        {"prompt": "the cat", "completion": " " + " ".join(words)},
        {"prompt": "the cat", "completion": " " + " ".join([*words[:-1], other])},
        {"prompt": "the cat", "completion": ""},
    ]


def test_extraction_from_a_model(model, tokenizer, examples):
    module = load_metric("extraction_attack")
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
    module = load_metric("extraction_attack")
    before = set((evaluate_cache / "metrics").rglob("*"))
    module.compute(examples=examples, model=model, processing_class=tokenizer)
    assert set((evaluate_cache / "metrics").rglob("*")) == before


def test_extraction_refuses_ambiguous_and_incomplete_calls(model, tokenizer, examples):
    module = load_metric("extraction_attack")
    with pytest.raises(ValueError, match="Either give predictions and references"):
        module.compute(predictions=["a"], references=["a"], examples=examples, model=model)
    with pytest.raises(ValueError, match="no processing_class"):
        module.compute(examples=examples, model=model)
    with pytest.raises(ValueError, match="no model"):
        module.compute(examples=examples)


def test_a_model_is_loaded_by_its_name(model, tokenizer, examples, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    module = load_metric("extraction_attack")
    loaded = module.compute(examples=examples, model=str(tmp_path / "model"))
    given = module.compute(examples=examples, model=model, processing_class=tokenizer)
    for key in ("verbatim_rate", "exact_memorization", "extraction_strength_high"):
        assert loaded[key] == pytest.approx(given[key], rel=1e-6)


TEXTS = ["the cat sat on the mat .", "a dog ran", "it was gone and then it was the dog under a tree", ""]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_perplexity_agrees_with_the_loss_of_the_model(model, tokenizer, batch_size):
    module = load_metric("perplexity")
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
    assert results["mean_perplexity_high"] == mean(np.array(results["perplexities"])).high


def test_the_interval_of_the_corpus_perplexity_agrees_with_the_delta_method():
    rng, module = np.random.default_rng(0), load_metric("perplexity")
    for n in (40, 640):
        rows = [(-rng.gamma(4, 0.5, size=rng.integers(1, 30))).tolist() for _ in range(n)]
        results = module.compute(predictions=rows)
        low, high = results["corpus_perplexity_low"], results["corpus_perplexity_high"]
        assert low < results["corpus_perplexity"] < high and results["reason"] is None
        # The ratio of two means, by the delta method: another route to the same interval.
        lengths, sums = np.array([len(r) for r in rows]), np.array([-np.sum(r) for r in rows])
        ratio = sums.sum() / lengths.sum()
        error = np.std(sums - ratio * lengths) / lengths.mean() / np.sqrt(n)
        assert np.log(high / low) == pytest.approx(2 * 1.96 * error, rel=0.15)
    alone = module.compute(predictions=[[-1.0, -2.0]])
    assert np.isnan(alone["corpus_perplexity_low"]) and "corpus_perplexity: one text" in alone["reason"]


def test_intervals_keep_to_what_a_perplexity_can_be():
    module = load_metric("perplexity")
    results = module.compute(predictions=[[-0.1], [-4.0], [-0.2]])
    assert 1 == results["mean_perplexity_low"] < results["mean_perplexity"] < results["mean_perplexity_high"]
    same = module.compute(predictions=[[-2.0, -1.0]] * 12)
    for name in ("mean_perplexity", "corpus_perplexity"):
        assert np.isnan(same[f"{name}_low"]) and np.isnan(same[f"{name}_high"])
        assert f"{name}: no spread" in same["reason"]


def test_losses_are_no_log_probabilities():
    for row in ([1.2, 0.3], [-1.0, 1e-3]):
        with pytest.raises(
            ValueError, match="^Item 1 of predictions has values above 0.*Give log-probabilities, not losses"
        ):
            load_metric("perplexity").compute(predictions=[[-1.0], row])
    assert load_metric("perplexity").compute(predictions=[[0.0], [-1.0, float("nan")]])["n_missing"] == 1


def test_perplexity_loads_a_model_by_its_path(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    module = load_metric("perplexity")
    loaded = module.compute(predictions=TEXTS, model=str(tmp_path / "model"))
    given = module.compute(predictions=TEXTS, model=model, processing_class=tokenizer)
    np.testing.assert_allclose(loaded["perplexities"], given["perplexities"], rtol=1e-5)


def test_perplexity_of_log_probabilities_keeps_64_bit_and_empty_texts():
    module = load_metric("perplexity")
    results = module.compute(predictions=[[-1.0 - 1e-12], [], [-2.0, -4.0]])
    np.testing.assert_array_equal(results["perplexities"], np.exp([1 + 1e-12, np.nan, 3]))
    assert (results["n"], results["n_missing"]) == (2, 1)


def test_perplexity_refuses_incomplete_calls(model):
    module = load_metric("perplexity")
    with pytest.raises(ValueError, match="no model"):
        module.compute(predictions=TEXTS)
    with pytest.raises(ValueError, match="no processing_class"):
        module.compute(predictions=TEXTS, model=model)
    with pytest.raises(ValueError, match="leave out model"):
        module.compute(predictions=[[-1.0]], model=model)


@pytest.mark.parametrize("attack", ["loss", "zlib", "min_k", "min_k_plus_plus"])
def test_membership_inference_from_a_model(model, tokenizer, examples, attack, evaluate_cache):
    module = load_metric("membership_inference")
    labels = [i % 2 for i in range(len(examples))]
    results = module.compute(
        examples=examples, references=labels, model=model, processing_class=tokenizer, attack=attack
    )
    values = ATTACKS[attack](score(model, tokenizer, examples))
    alone = module.compute(predictions=values, references=labels)
    assert alone.pop("reason") in results["reason"] and "blind_auc: a side has fewer than 10" in results["reason"]
    np.testing.assert_equal({key: results[key] for key in alone}, alone)
    with pytest.raises(ValueError, match="You gave examples as well as predictions"):
        module.compute(examples=examples, predictions=values, references=labels)
    with pytest.raises(ValueError, match="no processing_class"):
        module.compute(examples=examples, references=labels, model=model)
    with pytest.raises(ValueError, match="a label for each"):
        module.compute(examples=examples, references=labels[1:], model=model, processing_class=tokenizer)


def test_long_texts_can_be_cut_where_the_error_says_so(model, tokenizer):
    module = load_metric("perplexity")
    text = "a long text " * 400
    with pytest.raises(ValueError, match="Set truncate=True"):
        module.compute(predictions=[text], model=model, processing_class=tokenizer)
    assert module.compute(predictions=[text], model=model, processing_class=tokenizer, truncate=True)["n"] == 1
