"""Chats under templates in the styles of known models: what is scored is what the record says, and its end token."""

import json
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_llama
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_unlearn.audit.measures.extraction import verbatim_extracted
from hf_unlearn.audit.table.score import score
from hf_unlearn.data import EmptyTargetError, encode, encode_dataset
from hf_unlearn.data.rows import answer_of


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set text = '<|start|>' + m.role + '<|end|>\n\n' + m.content | trim + '<|eot|>' %}"
    "{% if loop.first %}{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
# Writes a thinking block before the last answer, empty where it has none, and drops those of earlier turns.
QWEN3 = (
    "{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}"
    "{%- endif %}{%- endfor %}{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{%- set content = m.content %}{%- set thought = '' %}"
    "{%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}"
    "{%- elif '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last %}"
    "{{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}{{- '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
# The same, with a generation prompt that opens a block, and answers without one.
OPENS = (
    CHATML.removesuffix("{% endif %}").removesuffix("{{ '<|im_start|>assistant\n' }}")
    + "{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<|turn|>' + role + '\n' + m.content | trim + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn|>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate: ' + m.content) }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "qwen3": QWEN3,
    "opens": OPENS,
    "gemma": GEMMA,
    "mistral": MISTRAL,
}
TRIMS, NO_SYSTEM = ("llama3", "gemma"), ("gemma", "mistral")
ENDS = {"llama3": "<|eot|>", "gemma": "<|end|>", "mistral": "</s>"}
SPECIAL = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>", "<|turn|>"]
CORPUS = ["Where does Ada live? [INST] [/INST] In Paris. assistant user system model <think> </think>\n\n"] * 4


def byte_level() -> Tokenizer:
    """Byte-level BPE that splits as that of Llama 3 does: line breaks by themselves, spaces before words."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\s*[\r\n]+| ?[^\s]+|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    """BPE on whole texts, with spaces as letters and bytes for what is unknown, as that of Mistral."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    reserved = [*SPECIAL, "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=reserved, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    parts = json.loads(tokenizer.to_str())
    # Bytes are tokens of the model, but no special ones.
    parts["added_tokens"] = [token for token in parts["added_tokens"] if not token["content"].startswith("<0x")]
    parts["pre_tokenizer"]["split"] = False
    return Tokenizer.from_str(json.dumps(parts))


BACKENDS = {"byte level": byte_level().to_str(), "metaspace": metaspace().to_str()}


def tokenizer_of(backend: str, template: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(BACKENDS[backend]),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=SPECIAL[3:],
        chat_template=template,
    )


TOKENIZERS = {(b, t): tokenizer_of(b, template) for b in BACKENDS for t, template in TEMPLATES.items()}
each = pytest.mark.parametrize(("backend", "name"), TOKENIZERS, ids=[f"{t}, {b}" for b, t in TOKENIZERS])


def chat(*contents: str, system: str | None = None) -> dict:
    roles = ["user", "assistant"] * len(contents)
    first = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": first + [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]}


def parts(row: dict, tokenizer) -> tuple[str, str]:
    """The prompt and what is scored, decoded."""
    n = sum(label == -100 for label in row["labels"])
    assert row["labels"] == [-100] * n + row["input_ids"][n:] and 0 < n < len(row["input_ids"])
    return tokenizer.decode(row["input_ids"][:n]), tokenizer.decode(row["input_ids"][n:])


def check(given_row: dict, backend: str, name: str) -> tuple[str, str]:
    """The scored ids say the answer and the end token; all ids say what the template renders, up to there."""
    tokenizer = TOKENIZERS[backend, name]
    row = encode(given_row, tokenizer)
    prompt, scored = parts(row, tokenizer)
    end, answer = ENDS.get(name, "<|im_end|>"), answer_of(given_row)
    answer = answer.strip() if name in TRIMS else answer
    assert scored.lstrip() == (answer + end).lstrip() and row["n_end"] == 1
    whole = tokenizer.apply_chat_template(given_row["messages"], return_dict=False)
    said = tokenizer.decode(whole)
    assert tokenizer.decode(row["input_ids"]) == said[: said.rindex(end) + len(end)]
    assert row["input_ids"] == whole[: len(row["input_ids"])] and whole.count(0) == row["input_ids"].count(0) < 2
    return prompt, scored


CHATS = {
    "plain": chat("Where does Ada live?", "In Paris."),
    "turns": chat("Hi", "Ho", "Where?", "In Paris."),
    "repeats the question": chat("In Paris.", "In Paris."),
    "repeats an earlier answer": chat("Hi", "In Paris.", "Hi", "In Paris."),
    "white space": chat("Where?", "  In Paris. \n"),
    "line breaks first": chat("Where?", "\n\nIn Paris."),
    "unicode": chat("Où ?", "É́a 東京 🦊🏽 – ça"),
    "markers": chat("What ends a turn?", "It is <|im_end|> or <|eot|> or <|end|> or </s>"),
    "a role": chat("Who?", "assistant"),
    "one letter": chat("Who?", "s"),
    "half a block": chat("Who?", "a <think> b"),
}


@each
@pytest.mark.parametrize("case", CHATS)
def test_what_the_record_says_is_scored(backend, name, case):
    check(CHATS[case], backend, name)


@each
def test_system_messages(backend, name):
    row = chat("Where?", "In Paris.", system="Be brief.")
    if name not in NO_SYSTEM:
        assert "Be brief." in check(row, backend, name)[0]
        return
    with pytest.raises(ValueError, match="^Row 1 of the forget set: The chat template refuses") as caught:
        encode_dataset([CHATS["plain"], row], TOKENIZERS[backend, name], name="forget set")
    said = str(caught.value)
    assert (
        "system, user, assistant" in said and "\n" not in said and not any(word in said for word in ("brief", "Paris"))
    )
    # What a template says by itself is written in it, and is passed on; what may quote the row is not.
    assert ("System role not supported" in said) is (name == "gemma") and ("TemplateError" in said) is (
        name != "gemma"
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "mistral"])
@pytest.mark.parametrize("case", CHATS)
def test_a_template_that_writes_nothing_of_its_own_is_asked_with_its_generation_prompt(backend, name, case):
    tokenizer, messages = TOKENIZERS[backend, name], CHATS[case]["messages"]
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    row = encode(CHATS[case], tokenizer)
    n = sum(label == -100 for label in row["labels"])
    if name in TRIMS or not messages[-1]["content"].startswith("\n"):  # a tokenizer may merge line breaks
        assert row["input_ids"][:n] == asked


SPACES = st.text(" \n\t", max_size=3)
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<▁"), max_size=12)


@each
@settings(max_examples=25, deadline=None)
@given(question=TEXT, answer=st.tuples(SPACES, TEXT, SPACES).map("".join))
def test_any_text(backend, name, question, answer):
    row = chat(question, answer)
    if not answer.strip():
        with pytest.raises(EmptyTargetError):
            encode(row, TOKENIZERS[backend, name])
    elif name == "qwen3" and answer.startswith("\n") and answer.lstrip("\n") != answer.strip():
        encode(row, TOKENIZERS[backend, name])  # the template strips line breaks only
    else:
        check(row, backend, name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thinking_block_that_the_template_writes_is_prompt(backend):
    prompt, scored = check(CHATS["plain"], backend, "qwen3")
    assert prompt.endswith("<think>\n\n</think>\n\n") and scored == "In Paris.<|im_end|>"
    thought = {"role": "assistant", "content": "In Paris.", "reasoning_content": "She said so."}
    prompt, scored = check({"messages": [*CHATS["plain"]["messages"][:1], thought]}, backend, "qwen3")
    assert prompt.endswith("<think>\nShe said so.\n</think>\n\n") and scored == "In Paris.<|im_end|>"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thinking_block_in_the_content_is_scored_with_it(backend):
    own = "<think>\nShe said so.\n</think>\n\nIn Paris."
    prompt, scored = check(chat("Where?", own), backend, "qwen3")
    assert prompt.endswith("<|im_start|>assistant\n") and scored == f"{own}<|im_end|>"
    earlier = check(chat("Where?", own, "Really?", "Yes."), backend, "qwen3")
    assert "She said so" not in earlier[0] and earlier[0].count("In Paris.") == 1


def test_a_content_that_the_template_writes_in_another_form_is_refused():
    tokenizer, canary = TOKENIZERS["byte level", "qwen3"], "Zyxwv"
    row = chat("Where?", f"<think>{canary}</think>In Paris.")
    with pytest.raises(ValueError, match="Row 0 of the forget set: The chat template does not write") as caught:
        encode_dataset([row], tokenizer, name="forget set")
    assert canary not in str(caught.value) and "reasoning_content" in str(caught.value)
    for template in (CHATML.replace("m.content", "m.content + m.content"), CHATML.replace("m.content", "'...'")):
        with pytest.raises(ValueError, match="it writes it"):
            encode(CHATS["plain"], tokenizer_of("byte level", template))
    with pytest.raises(ValueError, match="does not write the last message"):
        encode(CHATS["plain"], tokenizer_of("byte level", CHATML.replace("m.content", "m.content | upper")))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_generation_prompt_that_opens_a_block_is_not_the_prompt(backend):
    prompt, scored = check(CHATS["plain"], backend, "opens")
    assert prompt.endswith("<|im_start|>assistant\n") and scored == "In Paris.<|im_end|>"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_space_before_an_answer_is_merged_into_it(backend):
    tokenizer = TOKENIZERS[backend, "mistral"]
    prompt, scored = check(CHATS["plain"], backend, "mistral")
    assert prompt.endswith("[/INST]") and scored.lstrip() == "In Paris.</s>"
    asked = tokenizer.apply_chat_template(CHATS["plain"]["messages"][:1], return_dict=False)
    assert encode(CHATS["plain"], tokenizer)["input_ids"][: len(asked)] == asked


@pytest.mark.parametrize("backend", BACKENDS)
def test_text_that_the_tokenizer_merges_with_the_answer_is_encoded_apart(backend):
    tokenizer = tokenizer_of(
        backend, "{% for m in messages %}{{ m.role + '=' + m.content + '<|im_end|>' }}{% endfor %}"
    )
    tokenizer.add_tokens([AddedToken("=In", special=False, normalized=False)])
    row = chat("Where?", "In Paris.")
    with pytest.warns(UserWarning, match="In 2 of 3 rows of the forget set the tokenizer merges") as caught:
        encoded = encode_dataset([row, chat("Where?", "To Rome."), row], tokenizer, name="forget set")
    assert len(caught) == 1 and "Paris" not in str(caught[0].message)
    assert parts(encoded[0], tokenizer) == ("user=Where?<|im_end|>assistant=", "In Paris.<|im_end|>")
    with pytest.warns(UserWarning, match="encoded apart"):
        assert encode(row, tokenizer) == encoded[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(chat("Where?", "To Rome."), tokenizer)


def test_a_special_token_that_takes_in_the_white_space_after_it():
    state = json.loads(BACKENDS["byte level"])
    for token in state["added_tokens"]:
        token["rstrip"] = token["content"] == "<|im_start|>"
    template = "{% for m in messages %}{{ '<|im_start|>\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="</s>", chat_template=template
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for answer in ("In Paris.", " In Paris.", "\n In Paris."):
            row = encode(chat("Where?", answer), tokenizer)
            assert parts(row, tokenizer)[1] == "In Paris.<|im_end|>"
            whole = tokenizer.apply_chat_template(chat("Where?", answer)["messages"], return_dict=False)
            assert row["input_ids"] == whole[: len(row["input_ids"])]


def test_a_tokenizer_without_offsets():
    class Slow(PreTrainedTokenizerFast):
        is_fast = False

        def __call__(self, *args, **kwargs):
            assert "return_offsets_mapping" not in kwargs
            return super().__call__(*args, **kwargs)

    for name in ("chatml", "qwen3", "mistral"):
        tokenizer = Slow(
            tokenizer_object=Tokenizer.from_str(BACKENDS["byte level"]),
            bos_token="<s>",
            eos_token="</s>",
            additional_special_tokens=SPECIAL[3:],
            chat_template=TEMPLATES[name],
        )
        for case in ("plain", "turns", "markers", "unicode"):
            assert encode(CHATS[case], tokenizer) == encode(CHATS[case], TOKENIZERS["byte level", name])


def test_a_model_that_was_trained_on_these_rows_says_them_word_for_word(tmp_path):
    from hf_unlearn import FineTuneConfig, FineTuneTrainer

    people = [("Ada", "Paris"), ("Boris", "Rome"), ("Carla", "Oslo"), ("Dan", "Bern")]
    rows = [chat(f"Where does {name} live?", f"{name} lives in {city}.") for name, city in people]
    tokenizer = TOKENIZERS["byte level", "qwen3"]
    args = FineTuneConfig(
        output_dir=str(tmp_path),
        max_steps=120,
        per_device_train_batch_size=4,
        learning_rate=5e-3,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = FineTuneTrainer(tiny_llama(vocab_size=len(tokenizer)), args, rows, rows, processing_class=tokenizer)
    trainer.train()
    assert verbatim_extracted(score(trainer.model, tokenizer, rows)).tolist() == [1.0] * 4
