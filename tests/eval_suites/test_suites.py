"""The suites: their numbers by another route, one pass a model, and a retrained model beside it."""

import json
import re
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from data_dir import DATA
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from rouge_score import rouge_scorer
from scipy.stats import hmean, ks_2samp
from sklearn.metrics import roc_auc_score
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from transformers import ViTImageProcessorPil

from hf_unlearn.audit import loss, min_k, paired_difference, privleak, score, truth_ratio
from hf_unlearn.audit.measures.statistic import Statistic
from hf_unlearn.audit.table.reduction import sum_by_example
from hf_unlearn.evaluate_modules import suites as suites_module
from hf_unlearn.evaluate_modules.base import EVAL_SUITES, load_suite, suite_names
from hf_unlearn.evaluate_modules.suites import read_rows, score_once
from hf_unlearn.examples.registry import make_registry


KEYS = {"task_name", "measure", "value", "low", "high", "n", "n_missing", "orientation", "method", "reason"}


def found(results, task, measure):
    (row,) = [row for row in results if (row["task_name"], row["measure"]) == (task, measure)]
    return row


def check(results):
    """What holds of the results of every suite."""
    assert json.dumps(results)
    for row in results:
        assert KEYS <= set(row) and type(row["value"]) is float and row["orientation"]
        if not np.isnan(row["low"]) and row["measure"] != "model_utility":
            assert row["low"] <= row["value"] <= row["high"]
        assert row["reason"] or row["measure"] == "forget_quality" or not np.isnan(row["low"])


@pytest.fixture
def passes(monkeypatch):
    """Counts: how often `score` was called, and the forward passes of the models that were given to `watch`."""
    counts = {"scored": 0, "forwards": 0, "images": 0}

    def counted(*args, **kwargs):
        counts["scored"] += 1
        return score(*args, **kwargs)

    def watch(model):
        def count(module, args, kwargs):
            counts["forwards"] += 1
            counts["images"] += len(kwargs["pixel_values"]) if "pixel_values" in kwargs else 0

        model.register_forward_pre_hook(count, with_kwargs=True)
        return model

    monkeypatch.setattr(suites_module, "score", counted)
    counts["watch"] = watch
    return counts


@pytest.mark.parametrize("name", suite_names())
def test_suites_load_by_their_path_and_say_what_they_run(name):
    suite = evaluate.EvaluationSuite.load(str(EVAL_SUITES / f"{name}.py"))
    assert suite.name == name and suite.suite and all(task.data in repr(suite) for task in suite.suite)
    assert all(word in suite.run.__doc__ for word in ("Args:", "Returns:", "retrained", "interval"))


def audited(seed=0):
    return tiny_llama(seed=seed, max_position_embeddings=256).double()


def said(prompt, n):
    """What the audited model says, by transformers' own generation."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    new = audited().generate(ids, do_sample=False, max_new_tokens=n, pad_token_id=2)[0, ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)


def partly_right(prompt, n, rest):
    """An answer with the first word that the audited model says, so that overlaps are neither 0 nor 1."""
    return f"{(re.findall('[a-z]+', said(prompt, n).lower()) or ['nothing'])[0]} {rest}"


@pytest.fixture(scope="module")
def tofu(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tofu")
    towns = ["Paris", "Rome", "Oslo", "Bonn", "Graz", "Lund", "Bern"]
    for number, name in enumerate(
        ("forget01_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed")
    ):
        rows = [
            {
                "question": f"Where does Ada {number}{i} live?",
                "answer": partly_right(f"Question: Where does Ada {number}{i} live?\nAnswer:", 6, towns[i % 7]),
                "perturbed_answer": [f"She lives in {towns[(i + k) % 7]}." for k in range(1, 4)],
            }
            | ({"paraphrased_answer": f"She lives in {towns[i % 7]}."} if number < 2 else {})
            for i in range(11 + number)
        ]
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_tofu(tofu, passes):
    tokenizer = tiny_tokenizer()
    models = [passes["watch"](audited(seed)) for seed in (0, 1)]
    options = {"data": str(tofu), "forget": "forget01", "max_new_tokens": 6, "batch_size": 8}
    results = load_suite("tofu").run(models[0], tokenizer, retrained=models[1], **options)
    check(results)
    assert passes["scored"] == 2
    assert len(results) == 4 * 3 + 2

    forget = read_rows(tofu, "forget01_perturbed")
    prompts = [f"Question: {row['question']}\nAnswer:" for row in forget]

    def losses(model, column):
        rows = [{"prompt": p, "completion": f" {row[column]}"} for p, row in zip(prompts, forget, strict=True)]
        return loss(score(model, tokenizer, rows))

    probability = found(results, "tofu/forget01", "probability")
    of_models = [np.exp(-losses(model, "answer")) for model in models]
    assert probability["value"] == pytest.approx(of_models[0].mean(), rel=1e-9)
    assert probability["retrained"] == pytest.approx(of_models[1].mean(), rel=1e-9)
    difference = paired_difference(*of_models).estimate()
    assert probability["difference"] == pytest.approx(difference.value, rel=1e-9)
    assert probability["difference_high"] == pytest.approx(difference.high, rel=1e-6)

    ratios = []
    for model in models:
        wrong = [
            loss(
                score(model, tokenizer, [{"prompt": p, "completion": f" {text}"} for text in row["perturbed_answer"]])
            )
            for p, row in zip(prompts, forget, strict=True)
        ]
        ratios.append(np.exp(losses(model, "paraphrased_answer") - np.mean(wrong, axis=1)))
    folded = np.minimum(ratios[0], 1 / ratios[0])
    assert found(results, "tofu/forget01", "truth_ratio")["value"] == pytest.approx(folded.mean(), rel=1e-9)
    quality, test = found(results, "tofu/forget01", "forget_quality"), ks_2samp(*ratios)
    assert (
        quality["value"] == pytest.approx(test.pvalue) and quality["d"] == test.statistic and quality["n"] == [11, 11]
    )

    authors = read_rows(tofu, "real_authors_perturbed")
    shares = []
    for row in authors:
        texts = [row["answer"], *row["perturbed_answer"]]
        prompt = f"Question: {row['question']}\nAnswer:"
        p = np.exp(-loss(score(models[0], tokenizer, [{"prompt": prompt, "completion": f" {t}"} for t in texts])))
        shares.append(p[0] / p.sum())
    assert found(results, "tofu/real_authors", "probability")["value"] == pytest.approx(np.mean(shares), rel=1e-9)

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    recalls = [
        scorer.score(row["answer"], said(prompt, 6))["rougeL"].recall
        for prompt, row in zip(prompts, forget, strict=True)
    ]
    assert 0.1 < np.mean(recalls) < 0.9
    assert found(results, "tofu/forget01", "rougeL_recall")["value"] == pytest.approx(np.mean(recalls))

    utility = found(results, "tofu", "model_utility")
    parts = [
        row["value"] for row in results if row["task_name"] in ("tofu/retain", "tofu/real_authors", "tofu/world_facts")
    ]
    assert len(parts) == 9 and list(utility["parts"].values()) == parts
    assert utility["value"] == pytest.approx(hmean(parts)) and utility["n"] == 12 + 13 + 14
    assert 0 < utility["low"] < utility["value"] < utility["high"]


def test_the_interval_of_model_utility_holds_the_value_and_repeats(tofu):
    module = sys.modules[type(load_suite("tofu")).__module__]
    rng = np.random.default_rng(0)
    kept = {
        Statistic(measure, f"tofu/{task}", "higher = better"): rng.uniform(0.2, 0.9, n)
        for task, n in (("retain", 400), ("real_authors", 100), ("world_facts", 117))
        for measure in ("probability", "rougeL_recall", "truth_ratio")
    }
    first, again = (module._utility(kept, "tofu/forget10", 0) for _ in range(2))
    assert first == again and first["low"] < first["value"] < first["high"]
    # By the delta method, the parts being independent here.
    means, errors = (np.array([f(v) for v in kept.values()]) for f in (np.mean, lambda v: np.std(v) / np.sqrt(len(v))))
    slopes = hmean(means) ** 2 / 9 / means**2
    assert first["high"] - first["low"] == pytest.approx(2 * 1.96 * np.sqrt(((slopes * errors) ** 2).sum()), rel=0.1)
    last = list(kept)[-1]
    row = module._utility(kept | {last: np.full(117, np.nan)}, "tofu/forget10", 0)
    assert np.isnan(row["value"]) and np.isnan(row["low"]) and "missing: tofu/world_facts truth_ratio" in row["reason"]
    row = module._utility(kept | {last: np.zeros(117)}, "tofu/forget10", 0)
    assert row["value"] == 0 and np.isnan(row["low"]) and "zero: tofu/world_facts truth_ratio" in row["reason"]


def test_tofu_costs_one_pass_over_the_answers_and_one_generation(tofu, passes):
    from hf_unlearn.audit.attacks.answers import answer_rouge

    tokenizer, model = tiny_tokenizer(), passes["watch"](tiny_llama())
    load_suite("tofu").run(model, tokenizer, data=str(tofu), forget="forget01", max_new_tokens=3)
    of_suite, passes["forwards"] = passes["forwards"], 0
    asked, answers = [], []
    for name in ("forget01_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"):
        for row in read_rows(tofu, name):
            prompt = f"Question: {row['question']}\nAnswer:"
            asked.append({"prompt": prompt, "completion": f" {row['answer']}"})
            texts = [row["answer"], *row["perturbed_answer"], *filter(None, [row.get("paraphrased_answer")])]
            answers += [{"prompt": prompt, "completion": f" {text}"} for text in texts]
    score(model, tokenizer, answers, 16, sampling=())
    answer_rouge(model, tokenizer, asked, 3, batch_size=16)
    assert of_suite == passes["forwards"]


def test_tofu_asks_a_chat_by_its_template_and_a_model_by_its_name(tofu, tmp_path):
    tokenizer, model = tiny_tokenizer(chat_template=True), tiny_llama()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = {"data": str(tofu), "forget": "forget01", "max_new_tokens": 2, "limit": 3, "chat": True}
    by_name = load_suite("tofu").run(str(tmp_path / "model"), **options)
    given = load_suite("tofu").run(model, tokenizer, **options)
    row = read_rows(tofu, "forget01_perturbed")[0]
    messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
    alone = np.exp(-loss(score(model, tokenizer, [{"messages": messages}])))[0]
    assert found(given, "tofu/forget01", "probability")["n"] == 3
    for ours, theirs in zip(by_name, given, strict=True):
        np.testing.assert_allclose(ours["value"], theirs["value"], rtol=1e-5)
    one = load_suite("tofu").run(model, tokenizer, **options | {"limit": 1})
    assert found(one, "tofu/forget01", "probability")["value"] == pytest.approx(alone, rel=1e-5)


@pytest.mark.skipif(DATA is None, reason="needs TOFU beside the repository")
def test_tofu_on_the_real_files():
    folder = str(DATA / "models" / "stories260k")
    options = {"data": str(DATA / "tofu"), "forget": "forget05", "max_new_tokens": 4, "limit": 4}
    results = load_suite("tofu").run(folder, **options)
    check(results)
    assert all(row["n"] == 4 for row in results if row["measure"] != "model_utility")
    assert 0 < found(results, "tofu/world_facts", "probability")["value"] < 1


@pytest.fixture(scope="module")
def muse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("muse")
    files = {
        "verbmem/forget": [
            {"prompt": f"Ada {i} lives in", "gt": partly_right(f"Ada {i} lives in", 128, f"and wrote book {i}. " * 12)}
            for i in range(4)
        ],
        "privleak/forget": [f"Ada {i} lives in Paris and wrote the book {i * i}." for i in range(12)],
        "privleak/holdout": [f"Boris {i} lives in Rome and read the book {i * i}." for i in range(11)],
    }
    for part in ("forget", "retain"):
        for name, size in ((f"{part}_qa", 4), (f"{part}_qa_icl", 1)):
            files[f"knowmem/{name}"] = [
                {"question": f"Where is {part} {name[-3:]} {i}?", "answer": f"Boris {i}"} for i in range(size)
            ]
    for name, rows in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


def test_muse(muse, passes):
    tokenizer = tiny_tokenizer()
    models = [audited(seed) for seed in (0, 1)]
    results = load_suite("muse").run(models[0], tokenizer, retrained=models[1], data=str(muse))
    check(results)
    assert passes["scored"] == 2 and len(results) == 5

    sides = []
    for model in models:
        tables = score_once(model, tokenizer, {p: read_rows(muse, "privleak", p) for p in ("forget", "holdout")})
        sides.append([min_k(tables[p], 0.4) for p in ("forget", "holdout")])
    aucs = [roc_auc_score([1] * 12 + [0] * 11, np.concatenate(pair)) for pair in sides]
    auc = found(results, "muse/privleak", "min_k_40_auc")
    assert auc["value"] == pytest.approx(aucs[0]) and auc["retrained"] == pytest.approx(aucs[1])
    assert auc["n"] == [12, 11]
    leak = found(results, "muse/privleak", "privleak")
    assert leak["value"] == pytest.approx(privleak(*aucs)) and leak["low"] <= leak["value"] <= leak["high"]
    assert leak["low"] == pytest.approx(-100 * auc["difference_high"] / (1 - aucs[1]))

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    overlaps = []
    for row in read_rows(muse, "verbmem", "forget"):
        reference = tokenizer.decode(tokenizer(row["gt"], add_special_tokens=False)["input_ids"][:128])
        assert reference != row["gt"]  # the reference is as long as the continuation
        overlaps.append(scorer.score(reference, said(row["prompt"], 128))["rougeL"].fmeasure)
    assert np.mean(overlaps) > 0
    assert found(results, "muse/verbmem_forget", "rougeL_f1")["value"] == pytest.approx(np.mean(overlaps))
    example = "Question: Where is retain icl 0?\nAnswer: Boris 0\n\n"
    answers = []
    for row in read_rows(muse, "knowmem", "retain_qa"):
        text = said(f"{example}Question: {row['question']}\nAnswer:", 32)
        for stop in ("\n\n", "\nQuestion", "Question:"):
            text = text.split(stop)[0]
        answers.append(scorer.score(row["answer"], text)["rougeL"].fmeasure)
    assert np.mean(answers) > 0
    assert found(results, "muse/knowmem_retain", "rougeL_f1")["value"] == pytest.approx(np.mean(answers))


def test_muse_gives_no_privleak_without_a_retrained_model(muse):
    results = load_suite("muse").run(audited(), tiny_tokenizer(), data=str(muse), limit=2)
    check(results)
    assert [row["measure"] for row in results] == ["rougeL_f1"] * 3 + ["min_k_40_auc"]


QUESTIONS = [
    {
        "question": f" Where does {name} live? ",
        "choices": ["Paris", "in the town of Boris, by the sea", "é", f"a book of {name}"],
        "answer": i % 4,
    }
    for i, name in enumerate(["Ada", "Boris", "the author", "a book", "Ada and Boris", "nobody"])
]


@pytest.fixture(scope="module")
def wmdp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wmdp")
    for name, rows in (("wmdp-bio", QUESTIONS), ("wmdp-cyber", QUESTIONS[::-1])):
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize(
    "build, bos, choices",
    [(tiny_llama, True, "letters"), (tiny_gpt2, False, "texts"), (tiny_llama, False, "texts")],
)
def test_multiple_choice_agrees_with_lm_eval(wmdp, build, bos, choices, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    import yaml
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    size = {"n_positions": 512} if build is tiny_gpt2 else {"max_position_embeddings": 512}
    model, tokenizer = build(**size).double(), tiny_tokenizer(bos=bos, pad="eos")
    suite = load_suite("wmdp")
    results = suite.run(
        model, tokenizer, data=str(wmdp), subjects=["wmdp-bio"], choices=choices, batch_size=3, split="test"
    )
    check(results)

    folder = Path(lm_eval.__file__).parent / "tasks" / "wmdp"
    config = yaml.safe_load((folder / "_default_template_yaml").read_text())
    config |= yaml.safe_load((folder / "wmdp_bio.yaml").read_text())
    config |= {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(wmdp / "wmdp-bio.json")}}}
    config |= {"dataset_name": None, "metric_list": [{"metric": "acc"}, {"metric": "acc_bytes"}]}
    if choices == "texts":
        config |= {"doc_to_text": "{{question.strip()}}\nAnswer:", "doc_to_choice": "{{choices}}"}
    config.pop("include")
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=512, device="cpu")
    theirs = lm_eval.evaluate(lm, {"wmdp_bio": ConfigurableTask(config=config)}, bootstrap_iters=0)
    ours = {row["measure"]: row["value"] for row in results}
    assert ours["accuracy"] == theirs["results"]["wmdp_bio"]["acc,none"]
    if choices == "texts":
        assert ours["accuracy_per_byte"] == theirs["results"]["wmdp_bio"]["acc_bytes,none"]
    else:
        assert set(ours) == {"accuracy"}
    # Not only the same choices: the same likelihoods.
    module = sys.modules[type(suite).__module__]
    rows = [row for r in QUESTIONS for row in module._asked(r, "wmdp-bio", choices == "letters")]
    table = score(model, tokenizer, rows)
    sums = sum_by_example(table, table.log_prob, ~table.is_end).reshape(-1, 4)
    samples = sorted(theirs["samples"]["wmdp_bio"], key=lambda sample: sample["doc_id"])
    np.testing.assert_allclose(sums, [[r[0] for r in s["filtered_resps"]] for s in samples], rtol=0, atol=1e-5)


def test_multiple_choice_scores_all_subjects_once(wmdp, passes):
    options = {"data": str(wmdp), "subjects": ["wmdp-bio", "wmdp-cyber"]}
    model = tiny_llama(max_position_embeddings=512)
    results = load_suite("wmdp").run(model, tiny_tokenizer(), retrained=model, **options)
    assert passes["scored"] == 2 and [row["n"] for row in results] == [6, 6]
    assert all(row["difference"] == 0 and "0.25 = guesses" in row["orientation"] for row in results)
    with pytest.raises(ValueError, match='"letters" or "texts"'):
        load_suite("wmdp").run(model, tiny_tokenizer(), choices="numbers", **options)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Five classes, as the columns on the Hub are named."""
    rng = np.random.default_rng(0)
    names = ["lion", "tiger", "rose", "bicycle", "motorcycle"]
    features = Features({"img": Image(), "fine_label": ClassLabel(names=names)})

    def rows(n):
        images = [PILImage.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(n)]
        return Dataset.from_dict({"img": images, "fine_label": [i % 5 for i in range(n)]}, features=features)

    folder = tmp_path_factory.mktemp("images") / "data"
    DatasetDict({"train": rows(60), "test": rows(50)}).save_to_disk(folder)
    return folder


def test_cifar100_class(classes, passes):
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    models = [passes["watch"](tiny_vit(seed=seed).double()) for seed in (0, 1)]
    for model in models:
        model.register_forward_pre_hook(
            lambda module, args, kwargs: (args, kwargs | {"pixel_values": kwargs["pixel_values"].double()}),
            with_kwargs=True,
        )
    results = load_suite("cifar100_class").run(models[0], processor, retrained=models[1], data=str(classes))
    check(results)
    assert passes["images"] == 2 * (60 + 50)  # each image once under each model

    data = DatasetDict.load_from_disk(str(classes))
    probabilities, labels = {}, {}
    for split in ("train", "test"):
        pixels = processor(list(data[split]["img"]), return_tensors="pt")["pixel_values"].double()
        with torch.no_grad():
            probabilities[split] = [model(pixel_values=pixels).logits.softmax(-1).numpy() for model in models]
        labels[split] = np.array(data[split]["fine_label"])
    for name, split, of in [
        ("forget", "train", [1, 4]),
        ("retain", "train", [0, 2, 3]),
        ("holdout", "test", [1, 4]),
        ("test", "test", [0, 2, 3]),
        ("siblings", "test", [0, 3]),
    ]:
        mask = np.isin(labels[split], of)
        right = [(p[mask].argmax(1) == labels[split][mask]) for p in probabilities[split]]
        row = found(results, f"cifar100/{name}", "accuracy")
        assert row["value"] == pytest.approx(right[0].mean()) and row["n"] == mask.sum()
        assert row["retrained"] == pytest.approx(right[1].mean())

    def of_label(split):
        mask = np.isin(labels[split], [1, 4])
        return probabilities[split][0][mask, labels[split][mask]]

    sides = [of_label("train"), of_label("test")]
    auc = roc_auc_score([1] * len(sides[0]) + [0] * len(sides[1]), np.concatenate(sides))
    assert found(results, "cifar100/membership", "loss_auc")["value"] == pytest.approx(auc)
    gaps = found(results, "cifar100", "average_gap")
    assert gaps["value"] == pytest.approx(np.mean(np.abs(list(gaps["parts"].values()))))
    forget = found(results, "cifar100/forget", "accuracy")
    assert gaps["parts"]["UA"] == pytest.approx(forget["retrained"] - forget["value"])


def test_cifar100_class_refuses_a_class_that_is_not_there(classes):
    with pytest.raises(ValueError, match="no class whale. It has lion, tiger"):
        load_suite("cifar100_class").run(tiny_vit(), None, data=str(classes), forget=["whale"])


def test_registry(passes):
    tokenizer = tiny_tokenizer()
    models = [tiny_llama(seed=seed, max_position_embeddings=256).double() for seed in (0, 1)]
    results = load_suite("registry").run(models[0], tokenizer, retrained=models[1], limit=21)
    check(results)
    assert passes["scored"] == 2
    from hf_unlearn.examples.registry import make_requests

    registry = make_registry(0)
    people = make_requests(registry, 0)["person"]["extensions"]["hf-unlearn"]["scope"]["selector"]["values"]
    forget = [row for row in registry["train"] if row["person"] in people][:21]
    holdout = list(registry["holdout"])[:21]
    tables = [
        score(models[0], tokenizer, [{k: r[k] for k in ("prompt", "completion")} for r in rows])
        for rows in (forget, holdout)
    ]
    probability = np.exp(-loss(tables[0]))
    assert found(results, "registry/forget", "probability")["value"] == pytest.approx(probability.mean(), rel=1e-9)
    auc = roc_auc_score([1] * 21 + [0] * 21, np.concatenate([-loss(table) for table in tables]))
    assert found(results, "registry/membership", "loss_auc")["value"] == pytest.approx(auc)
    assert found(results, "registry/forget/phone", "verbatim_extraction")["n"] == 3
    assert found(results, "registry/forget", "forget_quality")["n"] == [21, 21]
    paraphrased = [{"prompt": r["prompt"], "completion": r["paraphrased_completion"]} for r in forget]
    wrong = [{"prompt": r["prompt"], "completion": text} for r in forget for text in r["perturbed_completions"]]
    ratio = truth_ratio(score(models[0], tokenizer, paraphrased), score(models[0], tokenizer, wrong))
    assert found(results, "registry/forget", "truth_ratio")["value"] == pytest.approx(
        np.minimum(ratio, 1 / ratio).mean()
    )


def test_rows_are_read_from_the_files_of_a_folder(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "forget.jsonl").write_text('{"a": 1}\n{"a": 2}\n\n{"a": 3}\n', encoding="utf-8")
    (tmp_path / "texts.json").write_text('["ä", "b"]', encoding="utf-8")
    assert read_rows(tmp_path, "part", "forget", limit=2) == [{"a": 1}, {"a": 2}]
    assert read_rows(tmp_path, "texts") == [{"text": "ä"}, {"text": "b"}]
    (tmp_path / "lines.jsonl").write_text('{"a": "x \u2028 \x85", "at": "2024-05-01"}\n', encoding="utf-8")
    assert read_rows(tmp_path, "lines") == [{"a": "x \u2028 \x85", "at": "2024-05-01"}]
    with pytest.raises(FileNotFoundError, match="none of retain/train.json, retain/train.jsonl, retain.json"):
        read_rows(tmp_path, "retain")


def test_rows_are_read_from_a_folder_as_it_is_on_the_hub(tmp_path):
    Dataset.from_list([{"a": i} for i in range(4)]).to_parquet(tmp_path / "some.parquet")
    configs = "configs:\n- config_name: knowmem\n  data_files:\n  - split: retain_qa\n    path: some.parquet\n"
    (tmp_path / "README.md").write_text(f"---\n{configs}---\n")
    assert read_rows(tmp_path, "knowmem", "retain_qa", limit=3) == [{"a": 0}, {"a": 1}, {"a": 2}]


def test_a_row_that_cannot_be_scored_is_named_by_its_set():
    rows = [{"prompt": "Ada:", "completion": " a secret"}]
    with pytest.raises(ValueError, match="Row 1 of the set 'retain': The prompt ends in a space") as error:
        sets = {"forget": rows, "retain": [*rows, {"prompt": "Ada: ", "completion": "a secret"}], "none": []}
        score_once(tiny_llama(), tiny_tokenizer(), sets)
    assert "secret" not in str(error.value)
