import json

import numpy as np
import pytest
import torch
from data_dir import DATA
from rouge_score import rouge_scorer
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer

from hf_unlearn.audit.attacks.answers import answer_rouge, knowledge_memorization, verbatim_memorization
from hf_unlearn.audit.measures.text_overlap import rouge_l
from hf_unlearn.models.generate import greedy, texts_of


needs_data = pytest.mark.skipif(DATA is None, reason="needs the data beside the repository")
TOKENIZER = tiny_tokenizer()
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
    # The tokenizer merges across the border; that is no obstacle, also where the row is asked as a whole.
    with pytest.warns(UserWarning, match="encoded apart"):
        assert greedy(model, TOKENIZER, rows, 16) == greedy(model, TOKENIZER, [rows[0]["prompt"]], 16)
    expected = scorer.score(TOKENIZER.decode(ids), said)["rougeL"].fmeasure
    assert verbatim_memorization(model, TOKENIZER, rows, 16).tolist() == [expected]


class Answers:
    """Stands for a model whose greedy continuations are known."""

    def __init__(self, monkeypatch, texts):
        self.prompts, self.limit = [], None

        def fake(model, tokenizer, prompts, max_new_tokens, batch_size):
            self.prompts, self.limit = list(prompts), max_new_tokens
            return [TOKENIZER(text, add_special_tokens=False)["input_ids"][:max_new_tokens] for text in texts]

        monkeypatch.setattr("hf_unlearn.audit.attacks.answers.greedy", fake)


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


def test_chats_are_asked_in_every_form():
    tokenizer, model = tiny_tokenizer(chat_template=True), tiny_llama()
    turns = [
        [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
        for q, a in (("Who?", "Ada"), ("W?", "B"))
    ]
    chats = [{"messages": turn} for turn in turns]
    pairs = [{"prompt": turn[:1], "completion": turn[1:]} for turn in turns]
    for measure in (verbatim_memorization, lambda *args, **kw: knowledge_memorization(*args, pairs[:1], **kw)):
        found = [measure(model, tokenizer, rows[1:], max_new_tokens=8) for rows in (chats, pairs)]
        assert found[0].tolist() == found[1].tolist() and not np.isnan(found[0]).any()
    with pytest.raises(ValueError, match="are among the questions"):
        knowledge_memorization(model, tokenizer, pairs, chats[:1])
