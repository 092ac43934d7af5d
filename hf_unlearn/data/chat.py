"""From a chat to token ids: what the template writes before the answer is prompt, what it writes after are end tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

from hf_unlearn.data.rows import IGNORE_INDEX


# Roles that an error may name; any other one could be the text of a row.
_ROLES = {"system", "developer", "user", "assistant", "tool", "function", "ipython", "model"}
# The text is encoded behind one of these where a tokenizer would begin it with a space of its own.
_ANCHORS = ("\n", ":", "a", "1")


class Encoded(NamedTuple):
    """Ids, of which the first `n_prompt` are not scored and the last `n_end` (0 or 1) are an end token.

    `apart` says that prompt and answer were encoded apart, since the tokenizer merges them across the border.
    """

    ids: list[int]
    n_prompt: int
    n_end: int
    apart: bool = False


class Rendered(NamedTuple):
    """What a template makes of a chat: the prompt, the answer (with white space that may precede it), and what follows."""

    head: str
    answer: str
    tail: str


def encode_chat(messages: Sequence[Mapping[str, Any]], tokenizer) -> Encoded:
    """Encode a chat, whose last message is scored up to and including its end-of-turn token.

    The chat is encoded once, as a whole. The prompt ends where the answer begins in the rendered text, so that what a
    template writes there, as an empty thinking block, is a part of the prompt. White space before the answer belongs to it
    where the tokenizer merges the two, or where a generation prompt ends before it; some special tokens take it in. Where
    other text would be merged, the two are encoded apart, as a model is asked.

    A model is thus asked with what the template writes before an answer, which is what a training with this template has
    shown it, and not with the generation prompt, which may lack an empty thinking block, or open a block that the answer
    does not have.

    Args:
        messages (sequence of `{"role", "content"}`): with texts, and the assistant's last.
        tokenizer (`PreTrainedTokenizerBase`): with a chat template.

    Raises:
        ValueError: the template refuses the messages, or does not write the last one as the record holds it. Messages hold
            no text of the row.
    """
    head, answer, tail = rendered(messages, tokenizer)
    apart = False
    if tokenizer.is_fast:
        ids, offsets = _with_offsets(head + answer + tail, tokenizer)
        n_prompt = next((i for i, (_, end) in enumerate(offsets) if end > len(head)), len(ids))
        start, end = offsets[n_prompt] if n_prompt < len(ids) else (len(head), len(head))
        if head[start:].strip():  # more than white space of the template is in one token with the answer
            apart = bool(answer[: end - len(head)].strip())
            n_prompt += 1  # a token that takes in no more of the answer than white space is prompt
    if apart or not tokenizer.is_fast:  # a slow one has no offsets
        before = _ids(head, tokenizer)
        after = _ids(answer + tail, tokenizer)
        ids = before + (apart and continuation(before, answer + tail, ids, tokenizer) or after)
        n_prompt = len(before)
    end = _end_of_turn(ids, n_prompt, answer, tokenizer)
    return Encoded(ids[:end], n_prompt, int(end is not None), apart)


def asked_by_generation_prompt(messages: Sequence[Mapping[str, Any]], tokenizer) -> dict[str, list[int]] | None:
    """The chat, encoded, behind the prompt that a model is asked with; `None` where the template writes just that.

    Some templates write more before an answer than their generation prompt, such as an empty thinking block. A model that
    was trained without it may know the answer behind the one and not behind the other.
    """
    try:
        asked = _render(messages[:-1], tokenizer, add_generation_prompt=True)
        if rendered(messages, tokenizer).head == asked:
            return None
        whole = encode_chat(messages, tokenizer)
    except ValueError:  # it is missing where the chat itself is scored
        return None
    before, answer = _ids(asked, tokenizer), whole.ids[whole.n_prompt :]
    return {
        "input_ids": before + answer,
        "labels": [IGNORE_INDEX] * len(before) + answer,
        "n_end": whole.n_end,
    }


def _end_of_turn(ids: list[int], n_prompt: int, answer: str, tokenizer) -> int | None:
    """Where the end-of-turn token ends: the first special token after those of the answer itself, or `None`.

    It need not be EOS, nor one of the special tokens that the tokenizer names. A line break or EOS may follow it.
    """
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(tokenizer.all_special_ids)
    places = [i for i in range(n_prompt, len(ids)) if ids[i] in special]
    if any(token in answer for token in tokenizer.convert_ids_to_tokens([ids[i] for i in places])):
        places = places[sum(token in special for token in _ids(answer, tokenizer)) :]
    return places[0] + 1 if places else None


def rendered(messages: Sequence[Mapping[str, Any]], tokenizer) -> Rendered:
    """Render a chat and find the last message in it.

    The template is rendered with another content, too, and what follows it there is the tail. The text before it may differ,
    as some templates take thinking blocks out of the content.

    Raises:
        ValueError: see [`encode_chat`].
    """
    content = messages[-1]["content"]
    text = _render(messages, tokenizer)
    sentinel = next(mark for mark in (f"answer{i}here" for i in count()) if mark not in text and mark not in content)
    parts = _render([*messages[:-1], {**messages[-1], "content": sentinel}], tokenizer).split(sentinel)
    # A template may strip white space around the content.
    forms = dict.fromkeys((content, content.rstrip(), content.lstrip(), content.strip()))
    if len(parts) == 2 and text.endswith(parts[1]):
        body = text[: len(text) - len(parts[1])]
        heads = [body[: len(body) - len(form)] for form in forms if body.endswith(form)]
        if heads:
            # A line break of the template is none of the content, where the template strips that of the content.
            head = parts[0] if parts[0] in heads else heads[0]
            n_asked = _length_asked(head, messages, tokenizer)
            return Rendered(body[:n_asked], body[n_asked:], parts[1])
    times = "" if len(parts) == 2 else f" (it writes it {len(parts) - 1} times)"
    raise ValueError(
        f"The chat template does not write the last message as the record holds it{times}, so that something else would be "
        "scored. Write the message in the form of the template (reasoning in a key of its own, as reasoning_content), or "
        "set another tokenizer.chat_template."
    )


def _length_asked(head: str, messages: Sequence[Mapping[str, Any]], tokenizer) -> int:
    """Length of the prompt: a generation prompt may end before white space that the template writes before an answer."""
    try:
        asked = _render(messages[:-1], tokenizer, add_generation_prompt=True)
    except ValueError:  # it is known to take the whole chat
        return len(head)
    return len(asked) if head.startswith(asked) and not head[len(asked) :].strip() else len(head)


def _render(messages: Sequence[Mapping[str, Any]], tokenizer, **options) -> str:
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except Exception as error:
        # What a template says by itself is written in it; any other error may quote the row.
        said = str(error)
        reason = f'"{said}"' if said and said in str(tokenizer.chat_template) else type(error).__name__
    roles = ", ".join(message["role"] if message["role"] in _ROLES else "another" for message in messages)
    raise ValueError(
        f"The chat template refuses messages of the roles {roles} ({reason}). Give the roles that it takes, as by moving the "
        "system message into the first one of the user, or set another tokenizer.chat_template."
    )


def _ids(text: str, tokenizer) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []


def _with_offsets(text: str, tokenizer) -> tuple[list[int], list[tuple[int, int]]]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(encoded["input_ids"]), encoded["offset_mapping"]


def continuation(before: list[int], text: str, whole: list[int], tokenizer) -> list[int] | None:
    """Ids of a text such that, after `before`, they decode to what `whole` decodes to; `None` if there are none.

    Some tokenizers begin every text with a space, so that the text is encoded behind another one as well.
    """

    def decoded(ids: list[int]) -> str:
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    wanted = decoded(whole)
    found = [_ids(text, tokenizer)]
    for anchor in _ANCHORS:
        anchored, alone = _ids(anchor + text, tokenizer), _ids(anchor, tokenizer)
        if anchored[: len(alone)] == alone:
            found.append(anchored[len(alone) :])
    return next((ids for ids in found if decoded(before + ids) == wanted), None)
