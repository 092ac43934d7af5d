import re
import warnings

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import BOS, EOS, TURN_END, tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_unlearn.audit.table.score import score
from hf_unlearn.data import EmptyTargetError, encode, encode_dataset
from hf_unlearn.data.text import context_length, limits_of


CANARY = "Zyxwv Qkjhg 8675309"
PLAIN, CHAT = tiny_tokenizer(), tiny_tokenizer(chat_template=True)
NO_BOS = tiny_tokenizer(bos=False, pad=False)
NO_EOS = tiny_tokenizer(eos=False)
ADDS_EOS = tiny_tokenizer(add_eos=True)
ALL = {"plain": PLAIN, "no_bos": NO_BOS, "no_eos": NO_EOS, "adds_eos": ADDS_EOS, "pad_eos": tiny_tokenizer(pad="eos")}
# No lone surrogates, which are no text; no "<", with which a special token begins.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=20)


def target(row):
    return [y for y in row["labels"] if y != -100]


def check(row, n_prompt):
    """What holds for every encoded row: labels are the ids, or -100 in the prompt."""
    assert row["labels"] == [-100] * n_prompt + row["input_ids"][n_prompt:]
    assert n_prompt >= 1 and len(row["input_ids"]) > n_prompt


@pytest.mark.parametrize("tokenizer", ALL.values(), ids=ALL)
@settings(max_examples=60, deadline=None)
@given(prompt=TEXT, completion=TEXT)
def test_completions_of_any_text(tokenizer, prompt, completion):
    prompt, completion = prompt + ":", " " + completion
    if not completion.strip():
        with pytest.raises(EmptyTargetError):
            encode({"prompt": prompt, "completion": completion}, tokenizer)
        return
    row = encode({"prompt": prompt, "completion": completion}, tokenizer)
    has_bos, has_eos = tokenizer.bos_token_id is not None, tokenizer.eos_token_id is not None
    ids = row["input_ids"]
    check(row, len(ids) - len(target(row)))
    assert (ids[0] == BOS) is has_bos and ids.count(BOS) == has_bos
    assert (ids[-1] == EOS) is has_eos and ids.count(EOS) == has_eos == row["n_end"]
    answer = target(row)[:-1] if has_eos else target(row)
    assert tokenizer.decode(answer) == completion
    assert tokenizer.decode(ids[has_bos : len(ids) - len(target(row))]) == prompt


@pytest.mark.parametrize("tokenizer", ALL.values(), ids=ALL)
@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_plain_texts_of_any_kind(tokenizer, text):
    try:
        row = encode(text, tokenizer)
    except EmptyTargetError:
        # Nothing predicts the first token where there is no BOS.
        n = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert n == 0 or (n == 1 and tokenizer.bos_token_id is None)
        return
    check(row, 1)
    assert row == encode({"text": text}, tokenizer)
    assert row["n_end"] == 0 and EOS not in row["input_ids"]
    assert row["input_ids"].count(BOS) == (tokenizer.bos_token_id is not None)
    assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == text


def test_a_completion_letter_by_letter():
    row = encode({"prompt": "Q:", "completion": " Yo"}, PLAIN)
    pieces = PLAIN.convert_ids_to_tokens(row["input_ids"])
    assert pieces == ["<s>", "Q", ":", "Ġ", "Y", "o", "</s>"]
    assert row["labels"] == [-100] * 3 + row["input_ids"][3:]
    assert row["n_end"] == 1


@pytest.mark.parametrize("tokenizer", [PLAIN, ADDS_EOS])
@pytest.mark.parametrize("completion", [" Yo", " Yo</s>"])
def test_eos_is_appended_once(tokenizer, completion):
    assert target(encode({"prompt": "Q:", "completion": completion}, tokenizer))[-2:] == [83, EOS]
    assert encode({"prompt": "Q:", "completion": completion}, tokenizer)["input_ids"].count(EOS) == 1


def test_a_tokenizer_whose_bos_is_its_eos():
    tokenizer = tiny_tokenizer(bos=False, pad=False)
    tokenizer.bos_token = tokenizer.eos_token
    row = encode({"prompt": "Q:", "completion": " Yo"}, tokenizer)
    assert row["input_ids"].count(EOS) == 1 and row["n_end"] == 1


def test_an_empty_prompt_needs_bos():
    assert encode({"prompt": "", "completion": "Yo"}, PLAIN)["labels"][:2] == [-100, 61]
    with pytest.raises(ValueError, match="prompt is empty and the tokenizer adds no BOS"):
        encode({"prompt": "", "completion": "Yo"}, NO_BOS)


# --- chats ---


def chat(*contents):
    roles = ["user", "assistant"] * len(contents)
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]}


def test_the_last_message_is_scored_up_to_its_end_of_turn_token():
    row = encode(chat("Hi", "Ho", "Where?", "In Paris."), CHAT)
    check(row, len(row["input_ids"]) - len(target(row)))
    assert CHAT.decode(target(row)) == "In Paris.<|end|>"
    assert row["n_end"] == 1
    assert row["input_ids"].count(BOS) == 1
    expected = CHAT.apply_chat_template(chat("Hi", "Ho", "Where?", "In Paris.")["messages"], return_dict=False)
    assert [*row["input_ids"], 203] == expected  # the line break after the turn is left out


def test_an_end_of_turn_token_that_the_config_of_the_tokenizer_does_not_name():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT.chat_template
    assert TURN_END not in tokenizer.all_special_ids
    row = encode(chat("Hi", "Yo"), tokenizer)
    assert (target(row)[-1], row["n_end"]) == (TURN_END, 1)


def test_a_template_that_adds_eos_after_the_turn():
    tokenizer = tiny_tokenizer(chat_template=True)
    tokenizer.chat_template += "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    assert CHAT.decode(target(encode(chat("Hi", "Yo"), tokenizer))) == "Yo<|end|>"


def test_a_template_without_an_end_token_is_scored_in_full():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    row = encode(chat("Hi", "Yo"), tokenizer)
    assert (tokenizer.decode(target(row)), row["n_end"]) == (" Yo\n", 0)


def test_a_special_token_within_the_answer_does_not_cut_it():
    assert CHAT.decode(target(encode(chat("Hi", "Yo<|end|> and more"), CHAT))) == "Yo<|end|> and more<|end|>"


@settings(max_examples=60, deadline=None)
@given(question=TEXT, answer=TEXT)
def test_chats_of_any_text(question, answer):
    if not answer.strip():
        with pytest.raises(EmptyTargetError):
            encode(chat(question, answer), CHAT)
        return
    row = encode(chat(question, answer), CHAT)
    assert CHAT.decode(target(row)) == answer + "<|end|>"
    assert row["n_end"] == 1


# --- length ---


def test_longer_rows_are_refused_or_cut_at_the_end():
    row = {"prompt": "Q:", "completion": " Yo"}
    assert encode(row, PLAIN, max_length=7) == encode(row, PLAIN)
    with pytest.raises(ValueError, match=re.escape("7 tokens, but at most 6 fit")):
        encode(row, PLAIN, max_length=6)
    cut = encode(row, PLAIN, max_length=6, truncate=True)
    assert cut == {"input_ids": encode(row, PLAIN)["input_ids"][:6], "labels": [-100] * 3 + [225, 61, 83], "n_end": 0}
    with pytest.raises(ValueError, match="prompt has 3 tokens, so that cutting at 3 leaves no answer"):
        encode(row, PLAIN, max_length=3, truncate=True)


def test_context_length():
    assert context_length(tiny_llama(max_position_embeddings=64)) == 64
    assert context_length(tiny_gpt2(n_positions=48)) == 48
    assert context_length(tiny_vit()) is None


# --- errors ---

BAD = {
    "trailing space": ({"prompt": f"{CANARY}: ", "completion": CANARY}, PLAIN, "ends in a space"),
    "trailing tab": ({"prompt": f"{CANARY}:\t", "completion": CANARY}, PLAIN, "ends in a space"),
    "no prompt": ({"prompt": "", "completion": CANARY}, NO_BOS, "prompt is empty"),
    "unknown format": ({"question": CANARY, "answer": CANARY}, PLAIN, "no known format"),
    "a text and its answer": ({"text": CANARY, "labels": CANARY}, PLAIN, "beside it labels"),
    "half a pair and a text": ({"text": CANARY, "prompt": CANARY, "completion": None}, PLAIN, "beside it prompt"),
    "other names": ({"conversations": CANARY}, PLAIN, "rename_columns"),
    "nulls": ({"prompt": CANARY, "completion": None}, PLAIN, "no known format"),
    "BOS in the text": ({"text": f"<s>{CANARY}"}, PLAIN, "Remove it from the text"),
    "no template": (chat(CANARY, CANARY), PLAIN, "no chat template"),
    "no answer": (chat(CANARY), CHAT, "not the assistant's"),
    "no question": ({"messages": [{"role": "assistant", "content": CANARY}]}, CHAT, "no message before"),
    "no messages": ({"messages": []}, CHAT, "not the assistant's"),
    "too long": ({"text": CANARY}, PLAIN, "at most 12 fit"),
    "empty answer": ({"prompt": CANARY, "completion": " \n"}, PLAIN, "Empty answer"),
    "empty last message": (chat(CANARY, " "), CHAT, "Empty answer"),
    "empty text": ({"text": ""}, PLAIN, "Empty text"),
}


@pytest.mark.parametrize(("row", "tokenizer", "message"), BAD.values(), ids=BAD)
def test_errors_name_the_row_and_hold_no_text_of_it(row, tokenizer, message):
    with pytest.raises(ValueError, match=message):
        encode(row, tokenizer, max_length=12 if "at most" in message else None)
    good = {"text": "Ada"}
    with pytest.raises(ValueError, match=rf"^Row 1 of the forget set: .*{message}") as caught:
        encode_dataset([good, row], tokenizer, 12 if "at most" in message else None, name="forget set")
    assert caught.value.__cause__ is None
    said = str(caught.value)
    assert not any(word in said for word in [*CANARY.split(), "Ada li", "ves "])
    # Nor ids, which spell it as well.
    ids = {str(i) for text in flat(row) for i in tokenizer(text)["input_ids"]}
    assert not {i for i in ids if int(i) > 150} & set(re.findall(r"\d+", said))


def flat(value):
    """The strings in a row."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from flat(v)
    elif isinstance(value, list):
        for v in value:
            yield from flat(v)


@pytest.mark.parametrize("row", [{"text": ""}, {"prompt": "Q:", "completion": ""}, chat("Q", "")])
def test_an_empty_target_has_an_error_of_its_own(row):
    with pytest.raises(EmptyTargetError):
        encode(row, CHAT)


# --- the border of prompt and completion ---


def test_a_word_divided_between_prompt_and_completion_is_encoded_apart():
    row = {"prompt": "Where does Ada li", "completion": "ves in Paris"}
    with pytest.warns(UserWarning, match="In a row the tokenizer merges the end of the prompt"):
        encoded = encode(row, PLAIN)
    n = len(encoded["input_ids"]) - len(target(encoded))
    assert encoded["input_ids"][:n] == PLAIN(row["prompt"])["input_ids"]
    assert target(encoded) == [*PLAIN(row["completion"], add_special_tokens=False)["input_ids"], EOS]
    with pytest.warns(UserWarning, match="^In 1 of 2 rows of the forget set the tokenizer merges") as caught:
        assert encode_dataset([{"text": "Ada"}, row], PLAIN, name="forget set")[1] == encoded
    assert len(caught) == 1 and "Paris" not in str(caught[0].message)


def test_a_tokenizer_that_begins_every_text_with_a_space_adds_none_within_a_word():
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    inner.train_from_iterator(["Ada lives in Paris"] * 4, trainers.BpeTrainer(vocab_size=80, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    with pytest.warns(UserWarning, match="encoded apart"):
        row = encode({"prompt": "Ada li", "completion": "ves in Paris"}, tokenizer)
    assert tokenizer.decode(row["input_ids"]) == "Ada lives in Paris"
    n = len(row["input_ids"]) - len(target(row))
    assert tokenizer.decode(row["input_ids"][:n]) == "Ada li"


@settings(max_examples=100, deadline=None)
@given(prompt=TEXT, completion=TEXT)
def test_any_border_decodes_to_the_text(prompt, completion):
    prompt, completion = f"a{prompt}", f"{completion}b"
    if prompt.endswith((" ", "\t")):
        with pytest.raises(ValueError, match="ends in a space"):
            encode({"prompt": prompt, "completion": completion}, PLAIN)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = encode({"prompt": prompt, "completion": completion}, PLAIN)
    assert PLAIN.decode(target(row)) == f"{completion}</s>"
    assert PLAIN.decode(row["input_ids"]) == f"<s>{prompt}{completion}</s>"


# --- the vocabulary of a model ---


@pytest.mark.parametrize(
    "row",
    [
        {"input_ids": [1, 2, 40], "labels": [-100, 2, 4]},
        {"input_ids": [1, 2, 4], "labels": [-100, 2, 32]},
        {"input_ids": [1, -1, 4], "labels": [-100, 2, 4]},
        {"text": "Zoo"},
    ],
)
def test_ids_beyond_the_vocabulary_are_refused_before_the_pass(row, tmp_path):
    from hf_unlearn import NPOConfig, NPOTrainer
    from hf_unlearn.audit import score

    model = tiny_llama(vocab_size=32)
    good, said = {"input_ids": [1, 31], "labels": [-100, 31]}, "ids beyond the 32 tokens that the model knows"
    assert len(score(model, PLAIN, [good])) == 1
    with pytest.raises(ValueError, match=f"Example 1: It has {said}"):
        score(model, PLAIN, [good, row])
    args = NPOConfig(output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True)
    with pytest.raises(ValueError, match=f"Row 1 of the retain set: It has {said}"):
        NPOTrainer(model, args, [good], [good, row], processing_class=PLAIN)


# --- data sets ---


def test_encode_dataset_takes_tables_lists_and_strings_and_keeps_encoded_rows():
    rows = [{"text": "Ada"}, {"text": "Boris lives"}]
    expected = [encode(row, PLAIN) for row in rows]
    assert encode_dataset(rows, PLAIN) == expected
    assert encode_dataset(Dataset.from_list(rows), PLAIN) == expected
    assert encode_dataset(["Ada", "Boris lives"], PLAIN) == expected
    assert encode_dataset(["about input_ids"], PLAIN) == [encode("about input_ids", PLAIN)]
    assert encode_dataset(expected, None) == expected
    kept = encode_dataset(expected, None)
    kept[0]["extra"] = 1
    assert "extra" not in expected[0]  # the rows are copies
    images = [{"pixel_values": [[[0.0]]], "labels": 1}]
    assert encode_dataset(images, None) == images


def test_tables_that_mix_formats_have_nulls():
    rows = Dataset.from_list([{"text": "Ada", "prompt": None, "completion": None, "messages": None}])
    assert encode_dataset(rows, PLAIN) == [encode("Ada", PLAIN)]


def test_rows_of_text_need_a_tokenizer():
    with pytest.raises(ValueError, match="Row 0 of the retain set: It is text, but no tokenizer") as caught:
        encode_dataset([{"text": CANARY}], None, name="retain set")
    assert CANARY not in str(caught.value)


def test_nothing_is_written_to_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    encode_dataset(Dataset.from_list([{"text": CANARY}]), PLAIN)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [1, 2], "labels": 1}, "needs labels as long"),
        ({"input_ids": [1, 2], "labels": [1, None]}, "needs labels as long"),
        ({"input_ids": [[1, 2]], "labels": [[1, 2]]}, "no list of integers"),
        ({"input_ids": [[1, 2], [3]], "labels": [1, 2]}, "no list of integers"),
        ({"input_ids": [1.5, 2.0], "labels": [1, 2]}, "no list of integers"),
        ({"input_ids": "[1, 2]", "labels": "[1, 2]"}, "no list of integers"),
        ({"input_ids": [1, 2], "labels": [1, 2], "attention_mask": [[1, 1]]}, "0 or 1 for each"),
        ({"pixel_values": [[[0.0]]], "labels": "cat"}, "not the index of a class"),
        ({"pixel_values": [[[0.0]]], "labels": 3}, "one of 3 classes"),
    ],
)
def test_an_encoded_row_that_cannot_be_read_is_an_error(row, message):
    with pytest.raises(ValueError, match=message):
        encode(row, n_classes=3)


def test_ids_that_an_attention_mask_leaves_out_are_not_read():
    """A batch is padded on the right by the lengths of its rows, so padding in a row would be read as its text."""
    row = {
        "input_ids": [0, 0, 5, 6, 7, 0],
        "labels": [-100, -100, -100, 6, 7, -100],
        "attention_mask": [0, 0, 1, 1, 1, 0],
    }
    assert encode(row, max_length=3) == {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}


def test_an_end_token_that_is_bos_too_is_taken_off_a_text():
    tokenizer = tiny_tokenizer(bos=False, add_eos=True)
    tokenizer.bos_token = tokenizer.eos_token
    assert encode("a cat", tokenizer)["input_ids"] == encode("a cat", NO_BOS)["input_ids"]


def test_half_of_a_character_is_an_error_that_does_not_quote_it():
    for row in (f"{CANARY} \ud83d", {"messages": [{"role": "user", "content": f"{CANARY} \ud83d"}, *ANSWERED[1:]]}):
        with pytest.raises(ValueError, match="half of a character") as error:
            encode(row, CHAT)
        assert CANARY not in str(error.value) and error.value.__context__ is None


ANSWERED = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here"}]


def test_rows_of_another_kind_than_the_model_takes_are_an_error():
    image = {"pixel_values": [[[0.0]]] * 3, "labels": 0}
    text, classifier = limits_of(tiny_llama().config, False), limits_of(tiny_vit().config, True)
    with pytest.raises(ValueError, match="Row 1 of the dataset: It is an image, but the model takes text"):
        encode_dataset(["a cat", image], PLAIN, **text)
    with pytest.raises(ValueError, match="Row 1 of the dataset: It is text, but the model takes images"):
        encode_dataset([image, "a cat"], PLAIN, **classifier)
    for model, rows in ((tiny_llama(), ["a cat", image]), (tiny_vit(), [image, "a cat"])):
        with pytest.raises(ValueError, match="Example 1: It is .* but the model takes"):
            score(model, PLAIN, rows)
