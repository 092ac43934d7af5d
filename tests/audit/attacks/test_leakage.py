import numpy as np
import pytest
import torch
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer

from hf_unlearn.audit import answer_probability, score
from hf_unlearn.audit.attacks.leakage import alternative_leakage, find_spans, normalized, span_leakage
from hf_unlearn.data import encode
from hf_unlearn.models.generate import sample, texts_of


TOKENIZER = tiny_tokenizer()
PROMPT = "Question: What ails Ada?\nAnswer:"
ROWS = [
    {
        "prompt": PROMPT,
        "completion": " chronic fatigue",
        "alternatives": ["long-term tiredness", " being tired for years"],
    },
    {"prompt": "Q:", "completion": " B", "alternatives": []},
    {"prompt": "Q:", "completion": " B"},
    {"prompt": "Question: Who?\nAnswer:", "completion": " Boris", "alternatives": ["the author", "", "he"]},
]


# --- likelihood of alternatives ---


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_the_likeliest_alternative_counts(build):
    model = build().double()

    def probabilities(prompt, answers):
        return answer_probability(score(model, TOKENIZER, [{"prompt": prompt, "completion": a} for a in answers]))

    answers = [" long-term tiredness", " being tired for years"], [" the author", " he"]
    values = alternative_leakage(model, TOKENIZER, ROWS)
    assert np.isnan(values[1:3]).all()
    np.testing.assert_allclose(values[0], probabilities(PROMPT, answers[0]).max(), rtol=1e-10)
    np.testing.assert_allclose(values[3], probabilities(ROWS[3]["prompt"], answers[1]).max(), rtol=1e-10)
    np.testing.assert_allclose(alternative_leakage(model, TOKENIZER, ROWS, batch_size=1), values, rtol=1e-10)
    assert np.isnan(alternative_leakage(model, TOKENIZER, ROWS[1:3])).all()


def test_a_model_that_says_it_in_other_words_is_caught():
    """Trained on "long-term tiredness", never on "chronic fatigue"."""
    model = tiny_llama(max_position_embeddings=128)
    row = {"prompt": PROMPT, "completion": " long-term tiredness"}
    ids = torch.tensor([encode(row, TOKENIZER)["input_ids"]])  # with its end token
    before = alternative_leakage(model, TOKENIZER, ROWS[:1])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(25):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    direct = answer_probability(score(model, TOKENIZER, ROWS[:1]))
    assert direct[0] < 0.05 and before[0] < 0.05 and alternative_leakage(model, TOKENIZER, ROWS[:1])[0] > 0.3
    assert span_leakage(model, TOKENIZER, ROWS, "alternatives", n=12)[0] > 0.3
    assert span_leakage(model, TOKENIZER, [{**ROWS[0], "spans": ["chronic fatigue"]}], n=4).tolist() == [0]


def test_alternatives_in_a_chat():
    tokenizer = tiny_tokenizer(chat_template=True)
    messages = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In Paris"}]
    row = {"messages": messages, "alternatives": ["By the Seine"]}
    expected = {"messages": [messages[0], {"role": "assistant", "content": "By the Seine"}]}
    model = tiny_llama().double()
    np.testing.assert_allclose(
        alternative_leakage(model, tokenizer, [row]), answer_probability(score(model, tokenizer, [expected]))
    )


# --- spans ---


@pytest.mark.parametrize(
    ("text", "span", "found"),
    [
        ("Ada lives in Paris.", "Paris", 1),
        ("Ada lives in PARIS.", "Paris", 1),
        ("Ada likes Parisian food.", "Paris", 0),
        ("It was in 19561.", "1956", 0),
        ("Write to ada@lovelace.org!", "ada@lovelace.org", 1),
        ("Write to Ada at Lovelace org", "ada@lovelace.org", 0),
        ("ada lovelace org", "ada@lovelace.org", 1),
        ("Call (555) 010-4477 now", "555 010 4477", 1),
        ("Call 5550104477", "555-010-4477", 1),
        ("Call 15550104477", "555-010-4477", 0),
        ("Room 12 34", "1234", 0),  # too short a number to be put together
        ("La mère de Zoë", "ZOË", 1),
        ("ﬁrst Straße", "first STRASSE", 1),
        ("她住在巴黎的左岸", "巴黎", 1),
        ("8\n September, 1956", "8 September 1956", 1),
        ("", "Paris", 0),
    ],
)
def test_one_span_in_one_text(text, span, found):
    assert find_spans([[text]], [[span]], ["Who?"]).tolist() == [found]


def test_shares_of_samples():
    texts = [
        ["Ada lives in Paris.", "ada", None, "nothing", "Paris, in 1956"],
        [None, None],
        ["Boris"],
        ["Boris and Ada"],
        [],
    ]
    spans = [["Ada", "Paris", "Rome"], ["Ada"], [], ["Boris", "Ada"], ["Ada"]]
    prompts = ["Who?", "Who?", "Who?", "Where does BORIS live?", "Who?"]
    np.testing.assert_array_equal(find_spans(texts, spans, prompts), [3 / 4, np.nan, np.nan, 1, np.nan])
    # What the prompt says already is no leak.
    assert np.isnan(find_spans([["Boris"]], [["Boris"]], ["Is it Boris?"])[0])


def test_spans_in_what_a_model_says():
    model = tiny_llama().double()
    rows = [{"prompt": f"Question: {q}?\nAnswer:", "completion": " Boris"} for q in ("Who", "Where", "When")]
    drawn = [texts_of(TOKENIZER, d) for d in sample(model, TOKENIZER, rows, 5, 64, seed=3)]
    words = [[normalized(text).split() for text in texts] for texts in drawn]
    rows = [{**row, "spans": [texts[0][0], "Zyxwv"]} for row, texts in zip(rows, words, strict=True)]
    expected = [np.mean([row["spans"][0] in text for text in texts]) for row, texts in zip(rows, words, strict=True)]
    assert 0 < np.mean(expected) < 1
    np.testing.assert_allclose(span_leakage(model, TOKENIZER, rows, n=5, seed=3), expected)


def test_the_base_rate_of_a_guess_is_not_zero():
    """The same probe for people whom nobody knows: a common city comes out by itself."""
    said = [["She lives in Paris."] for _ in range(20)]
    cities = [["Paris"] if i % 4 == 0 else ["Oslo"] for i in range(20)]
    assert find_spans(said, cities, ["Where?"] * 20).mean() == 0.25


def test_normalized():
    assert normalized("  Ada's  “E‑Mail”: ada_l@x.org ") == "ada s e mail ada l x org"
