import json

import numpy as np
import pytest
import sacrebleu
import torch
from data_dir import DATA
from rouge_score import rouge_scorer
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer

from hf_unlearn.audit.measures.text_overlap import (
    answer_rouge,
    knowledge_memorization,
    rouge_l,
    sentence_bleu,
    squad_normalized,
    token_f1,
    verbatim_memorization,
)
from hf_unlearn.models.generate import greedy, texts_of


needs_data = pytest.mark.skipif(DATA is None, reason="needs the data beside the repository")
TOKENIZER = tiny_tokenizer()
REFERENCES = [
    "Ada lives in Paris, where she writes books.",
    "The author of the book is Boris.",
    "42 running dogs",
    "She was born on 8 September 1956.",
    "A cat.",
    "the",
    "Живёт в Париже",
    "",
]
PREDICTIONS = [
    "ADA living in the book of Paris; she wrote books. And more and more.",
    "the author, of a book: is Boris!",
    "",
    "September 8, 1956 was when she was born",
    None,
    "the",
    "Живёт в Париже",
    "something",
]


def by_package(part, stemmer):
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=stemmer)
    field = {"f1": "fmeasure"}.get(part, part)
    return [getattr(scorer.score(r, p or "")["rougeL"], field) for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]


# --- overlap of texts ---


@pytest.mark.parametrize("part", ["recall", "precision", "f1"])
@pytest.mark.parametrize("stemmer", [True, False])
def test_rouge_is_that_of_the_package(part, stemmer):
    expected = np.array(by_package(part, stemmer))
    values = rouge_l(PREDICTIONS, REFERENCES, part, stemmer)
    known = [0, 1, 2, 3, 5]
    np.testing.assert_array_equal(values[known], expected[known])
    # No prediction; letters that the package does not know, which it scores 0; no reference.
    assert np.isnan(values[[4, 6, 7]]).all() and expected[6] == 0
    assert values[2] == 0 and values.dtype == np.float64
    np.testing.assert_array_equal(values, rouge_l(PREDICTIONS, REFERENCES, part, stemmer))


def test_the_stemmer_and_the_part_matter():
    values = {(p, s): rouge_l(PREDICTIONS, REFERENCES, p, s)[0] for p in ("recall", "f1") for s in (True, False)}
    assert values["recall", True] > values["recall", False] and values["recall", True] > values["f1", True]
    # "ada live in pari she book" of eight stems, by hand ("wrote" is not a form of "write" to a stemmer)
    assert values["recall", True] == 6 / 8 and values["recall", False] == 5 / 8


@needs_data
@pytest.mark.parametrize("log", ["full_forget10", "retain90"])
def test_rouge_of_published_generations(log):
    log = json.loads((DATA / "tofu_eval_logs" / f"llama-3.2-1b_{log}.json").read_text())
    for name in ("forget_Q_A_ROUGE", "retain_Q_A_ROUGE", "ra_Q_A_ROUGE", "wf_Q_A_ROUGE"):
        rows = list(log[name]["value_by_index"].values())[::3]
        texts = [row["generation"] for row in rows], [row["ground_truth"] for row in rows]
        for part in ("recall", "f1"):
            published = [row[f"rougeL_{part}"] for row in rows]
            np.testing.assert_allclose(rouge_l(*texts, part), published, atol=1e-12)


def test_f1_is_that_of_squad():
    squad = pytest.importorskip("torchmetrics.functional.text").squad
    f1 = token_f1(PREDICTIONS, REFERENCES)
    for i, (p, r) in enumerate(zip(PREDICTIONS, REFERENCES, strict=True)):
        if i in (4, 5, 7):  # no prediction; nothing but an article; no reference
            assert np.isnan(f1[i])
            continue
        theirs = squad({"prediction_text": p, "id": "0"}, {"answers": {"answer_start": [0], "text": [r]}, "id": "0"})
        assert f1[i] == pytest.approx(theirs["f1"].item() / 100, abs=1e-6)
    assert f1[1] == f1[6] == 1 and f1[2] == 0 and 0 < f1[3] < 1


def test_f1_by_hand():
    assert squad_normalized(" The  cat's  (old) THEME, an apple. ") == "cats old theme apple"
    # cat, cat, sat against cat, sat, down: two in common, 2 * 2 / (3 + 3)
    assert token_f1(["the cat cat sat"], ["a cat sat down"]).tolist() == [2 / 3]


def test_bleu_is_that_of_sacrebleu():
    kept = [0, 1, 2, 3, 5, 6]
    predictions, references = ([texts[i] for i in kept] for texts in (PREDICTIONS, REFERENCES))
    of_sentences = sentence_bleu(PREDICTIONS, REFERENCES)
    theirs = [sacrebleu.sentence_bleu(p, [r]).score for p, r in zip(predictions, references, strict=True)]
    np.testing.assert_array_equal(of_sentences[kept], theirs)
    assert np.isnan(of_sentences[[4, 7]]).all()


def test_lengths_and_parts_are_checked():
    for metric in (rouge_l, token_f1, sentence_bleu):
        with pytest.raises(ValueError, match="2 predictions but 1 references"):
            metric(["Ada", "Boris"], ["Ada"])
    with pytest.raises(ValueError, match="part must be one of recall, precision, f1"):
        rouge_l(["Ada"], ["Ada"], "fmeasure")


# --- what a model says ---

ROWS = [
    {"prompt": "Question: Where does Ada live?\nAnswer:", "completion": " Ada lives in Paris."},
    {"prompt": "Question: Who?\nAnswer:", "completion": " Boris, the author of the book."},
    {"prompt": "Q:", "completion": ""},
]


def said_by(model, prompt, n):
    """Text of a continuation by `generate`, and by nothing of ours."""
    ids = TOKENIZER(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n)
    return TOKENIZER.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_a_memorized_answer_has_rouge_one_and_others_what_generate_gives(build):
    model = build().double()
    rows = [dict(row) for row in ROWS]
    letters = "".join(c if c.isascii() else " " for c in said_by(model, rows[0]["prompt"], 12))
    rows.append({"prompt": rows[0]["prompt"], "completion": " " + letters + " x"})
    said = [said_by(model, row["prompt"], 12) for row in rows]
    values = answer_rouge(model, TOKENIZER, rows, 12)
    np.testing.assert_array_equal(values, rouge_l(said, [row["completion"] for row in rows]))
    assert np.isnan(values[2]) and (np.isnan(values).sum() == 1)
    for batch_size in (1, 16):
        np.testing.assert_array_equal(answer_rouge(model, TOKENIZER, rows, 12, batch_size=batch_size), values)


def test_verbatim_memorization_cuts_the_reference_at_as_many_tokens():
    model = tiny_llama().double()
    rows = [{"prompt": "Question: Who lives in Par", "completion": "is? Ada lives in Paris. " * 4}]
    ids = TOKENIZER(rows[0]["completion"], add_special_tokens=False)["input_ids"][:16]
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    said = said_by(model, rows[0]["prompt"], 16)
    with pytest.raises(
        ValueError, match="not a prefix"
    ):  # the tokenizer merges across the border; that is no obstacle
        greedy(model, TOKENIZER, rows, 16)
    expected = scorer.score(TOKENIZER.decode(ids), said)["rougeL"].fmeasure
    assert verbatim_memorization(model, TOKENIZER, rows, 16).tolist() == [expected]


class Answers:
    """Stands for a model whose greedy continuations are known."""

    def __init__(self, monkeypatch, texts):
        self.prompts, self.limit = [], None

        def fake(model, tokenizer, prompts, max_new_tokens, batch_size):
            self.prompts, self.limit = list(prompts), max_new_tokens
            return [TOKENIZER(text, add_special_tokens=False)["input_ids"][:max_new_tokens] for text in texts]

        monkeypatch.setattr("hf_unlearn.models.generate.greedy", fake)


def test_a_continuation_that_goes_on_as_the_text_did_has_verbatim_memorization_one(monkeypatch):
    text = "Ada lives in Paris. The author of the book is Boris. " * 5
    model = Answers(monkeypatch, [text, "Nothing at all"])
    rows = [{"prompt": "Well.", "completion": text}, {"prompt": "Well.", "completion": text}]
    assert verbatim_memorization(model, TOKENIZER, rows, 32).tolist() == [1, 0]
    assert model.limit == 32 and model.prompts == ["Well.", "Well."]
    # What is beyond the cut is not missed; recall against the whole text would be small.
    whole = texts_of(TOKENIZER, [TOKENIZER(text, add_special_tokens=False)["input_ids"][:32]])
    assert rouge_l(whole, [text])[0] < 0.5


def test_knowledge_memorization_shows_examples_and_cuts_at_the_next_question(monkeypatch):
    examples = [{"prompt": "Question: Who?\nAnswer:", "completion": " Boris"}]
    rows = [{"prompt": f"Question: {q}\nAnswer:", "completion": " Paris"} for q in ("Where?", "Whence?", "Whither?")]
    model = Answers(monkeypatch, [" Paris\n\nQuestion: Paris", " Paris Question: Which", " Rome, not Paris"])
    values = knowledge_memorization(model, TOKENIZER, rows, examples)
    assert values.tolist() == [1, 1, 0.5] and model.limit == 32
    assert model.prompts[0] == "Question: Who?\nAnswer: Boris\n\nQuestion: Where?\nAnswer:"
    with pytest.raises(ValueError, match=r"examples \[1\] are among the questions"):
        knowledge_memorization(model, TOKENIZER, rows, [*examples, rows[2]])


@needs_data
def test_the_shapes_of_muse():
    def read(name):
        return json.loads((DATA / "muse_news" / name).read_text())

    model = tiny_gpt2(n_positions=1024)
    rows = [
        {"prompt": row["prompt"][-60:].rstrip(), "completion": row["gt"]} for row in read("verbmem/forget.json")[:8]
    ]
    values = verbatim_memorization(model, TOKENIZER, rows, 24)
    assert values.shape == (8,) and ((values >= 0) & (values < 0.5)).all()
    qa = [
        [{"prompt": f"Question: {r['question']}\nAnswer:", "completion": f" {r['answer']}"} for r in read(name)]
        for name in ("knowmem/forget_qa.json", "knowmem/forget_qa_icl.json")
    ]
    values = knowledge_memorization(model, TOKENIZER, qa[0][:8], qa[1][:4], 8)
    assert values.shape == (8,) and ((values >= 0) & (values < 0.5)).all()
