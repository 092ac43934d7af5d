import json

import numpy as np
import pytest
import sacrebleu
from data_dir import DATA
from rouge_score import rouge_scorer

from hf_unlearn.audit.measures.text_overlap import (
    rouge_l,
    sentence_bleu,
    squad_normalized,
    token_f1,
)


needs_data = pytest.mark.skipif(DATA is None, reason="needs the data beside the repository")
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
