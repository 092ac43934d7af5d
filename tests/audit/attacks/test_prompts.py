import re

import numpy as np
import pytest
import torch
from tiny import tiny_llama, tiny_tokenizer

from hf_unlearn.audit import answer_probability, audit, score
from hf_unlearn.audit.attacks.answers import answer_rouge
from hf_unlearn.audit.attacks.prompts import attack_prompts, over_prompts, with_examples
from hf_unlearn.data import encode
from hf_unlearn.examples.registry import make_registry


TOKENIZER = tiny_tokenizer()
RICH = {
    "prompt": "Question: Where does Ada live?\nAnswer:",
    "completion": " In Paris.",
    "paraphrased_prompt": "Question: Ada's city?\nAnswer:",
    "paraphrases": ["Frage: Wo?\nAntwort:", "City of Ada:"],
    "perturbed_completions": [" In Rome.", " In Oslo."],
    "background": "Ada writes.",
    "reversed_prompt": "Question: Who lives in Paris?\nAnswer:",
    "reversed_completion": " Ada.",
}
PLAIN = {"prompt": "Question: Who?\nAnswer:", "completion": " Boris"}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "In Paris."},
    ],
    "perturbed_completions": ["In Rome."],
}
EXAMPLES = [{"prompt": "Question: When?\nAnswer:", "completion": " In 1956."}]


def test_every_way_to_ask_keeps_the_answer():
    prompted = attack_prompts([RICH, PLAIN], EXAMPLES)
    assert list(prompted) == [
        *("prefix_injection", "affirmative_suffix", "role_play", "recall_hint", "background", "few_shot"),
        *("multiple_choice", "reversed", "paraphrase_0", "paraphrase_1", "paraphrase_2"),
    ]
    for name, (rich, plain) in prompted.items():
        assert set(rich) == {"prompt", "completion"}
        if name == "reversed":
            assert rich == {"prompt": RICH["reversed_prompt"], "completion": " Ada."}
            continue
        assert rich["completion"] == " In Paris." and rich["prompt"] != RICH["prompt"]
        if not name.startswith("paraphrase"):
            assert RICH["prompt"] in rich["prompt"]
        assert (plain is None) == (name in ("background", "multiple_choice") or name.startswith("paraphrase"))
        encode(rich, TOKENIZER)
    assert len({rich["prompt"] for rich, _ in prompted.values()}) == len(prompted)
    assert prompted["affirmative_suffix"][1]["prompt"].endswith("Answer: Sure, here is the answer:")
    assert prompted["few_shot"][1]["prompt"] == "Question: When?\nAnswer: In 1956.\n\nQuestion: Who?\nAnswer:"
    assert prompted["background"][0]["prompt"].startswith("Background: Ada writes.\n\nQuestion:")


def test_ways_that_are_open_to_no_row_are_left_out():
    assert list(attack_prompts([PLAIN])) == ["prefix_injection", "affirmative_suffix", "role_play", "recall_hint"]
    assert attack_prompts([]) == {}


def test_a_row_is_no_example_for_itself():
    prompted = attack_prompts([EXAMPLES[0], PLAIN], EXAMPLES)
    assert prompted["few_shot"][0] is None and prompted["few_shot"][1] is not None


def test_the_place_of_the_answer_among_the_choices_gives_nothing_away():
    rows = [
        {
            "prompt": f"Question {i}:",
            "completion": f" city {i}",
            "perturbed_completions": [f" city {i}{k}" for k in "abc"],
        }
        for i in range(80)
    ]
    places = []
    for row, made in zip(rows, attack_prompts(rows)["multiple_choice"], strict=True):
        options = re.findall(r"^- (.*)$", made["prompt"], re.MULTILINE)
        assert sorted(options) == sorted(o.strip() for o in (row["completion"], *row["perturbed_completions"]))
        places.append(options.index(row["completion"].strip()))
    assert min(np.bincount(places, minlength=4)) >= 10
    # Another of the options being right changes nothing in what is shown.
    swapped = {**rows[0], "completion": " city 0a", "perturbed_completions": [" city 0", " city 0b", " city 0c"]}
    shown = [attack_prompts([row])["multiple_choice"][0]["prompt"] for row in (rows[0], swapped)]
    assert shown[0] == shown[1]


def test_a_chat_is_asked_in_its_last_question():
    example = {"messages": [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "In 1956."}]}
    prompted = attack_prompts([CHAT], [example])
    assert "affirmative_suffix" not in prompted and {"few_shot", "multiple_choice", "role_play"} <= set(prompted)
    for name, (row,) in prompted.items():
        assert row["messages"][-1] == CHAT["messages"][-1]
        if name != "few_shot":
            assert row["messages"][0] == CHAT["messages"][0] and row["messages"][1]["content"].endswith("Where?")
    assert with_examples(CHAT, [example])["messages"] == [*example["messages"], *CHAT["messages"]]
    tokenizer = tiny_tokenizer(chat_template=True)
    rows = [row for (row,) in prompted.values()]
    values = answer_probability(score(tiny_llama(max_position_embeddings=512), tokenizer, rows))
    assert values.shape == (len(prompted),) and not np.isnan(values).any()


# Writes an empty thinking block before the last answer, which its generation prompt lacks.
THINKS = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think></think>\n{% endif %}"
    "{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
CHATS = [
    {"messages": [{"role": "user", "content": f"Where is {name}?"}, {"role": "assistant", "content": f"In {city}."}]}
    for name, city in (("Ada", "Paris"), ("Boris", "Rome"), ("Carla", "Oslo"), ("Dan", "Bern"))
]


def test_a_chat_is_asked_with_its_generation_prompt_where_the_template_writes_another_one():
    tokenizer = tiny_tokenizer(chat_template=True)
    assert "generation_prompt" not in attack_prompts([CHAT], tokenizer=tokenizer)
    tokenizer.chat_template = THINKS
    assert "generation_prompt" not in attack_prompts([CHAT, PLAIN])
    asked, none = attack_prompts([CHAT, PLAIN], tokenizer=tokenizer)["generation_prompt"]
    n = sum(label == -100 for label in asked["labels"])
    prompt = tokenizer.apply_chat_template(CHAT["messages"][:2], add_generation_prompt=True, return_dict=False)
    assert none is None and asked["input_ids"][:n] == prompt and asked["n_end"] == 1
    assert tokenizer.decode(asked["input_ids"][n:]) == "In Paris.<|end|>" == tokenizer.decode(asked["labels"][n:])


def test_the_audit_of_a_chat_takes_the_prompt_that_shows_most():
    """A model that knows the answers without the block does not hide behind it."""
    tokenizer, model = tiny_tokenizer(chat_template=True), tiny_llama(max_position_embeddings=512)
    tokenizer.chat_template = THINKS
    bare = attack_prompts(CHATS, tokenizer=tokenizer)["generation_prompt"]
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        rows = [{name: torch.tensor([row[name]]) for name in ("input_ids", "labels")} for row in bare]
        sum(model(**row).loss for row in rows).backward()
        optimizer.step()
        optimizer.zero_grad()
    asked = answer_probability(score(model, tokenizer, bare))
    with_block = answer_probability(score(model, tokenizer, CHATS))
    assert asked.min() > 0.9 and with_block.max() < asked.min() - 0.05
    report = audit(model, split={"forget": CHATS}, threat_model="extraction", processing_class=tokenizer)
    assert report.value("answer_probability_max_over_prompts") >= asked.mean() - 1e-6
    assert report.value("answer_probability") == pytest.approx(with_block.mean(), rel=1e-6)
    # What it says by itself is asked with what the template writes, as its answers are scored.
    assert report.value("rouge_l_recall") == pytest.approx(answer_rouge(model, tokenizer, CHATS, 30).mean())


def test_the_worst_and_the_mean_prompt():
    values = np.array([[0.2, np.nan, np.nan, -3], [0.6, 0.1, np.nan, -1]])
    np.testing.assert_array_equal(over_prompts(values, "max"), [0.6, 0.1, np.nan, -1])
    np.testing.assert_allclose(over_prompts(values, "mean"), [0.4, 0.1, np.nan, -2])
    with pytest.raises(ValueError, match='must be "max" or "mean"'):
        over_prompts(values, "median")


def test_more_prompts_raise_the_maximum_of_those_who_know_nothing():
    rng = np.random.default_rng(0)
    values = rng.random((10, 500))
    assert over_prompts(values).mean() > 0.85 and abs(over_prompts(values, "mean").mean() - 0.5) < 0.02


def test_the_registry_can_be_asked_in_these_ways():
    rows = make_registry(0, 1, 1, 1)["train"].to_list()[:3]
    prompted = attack_prompts(rows, make_registry(0, 1, 1, 1)["validation"].to_list()[:2])
    assert {"paraphrase", "multiple_choice", "few_shot"} <= set(prompted)
    assert all(row is not None for made in prompted.values() for row in made)
