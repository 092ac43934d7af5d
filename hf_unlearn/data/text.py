"""From rows of text to token ids and labels."""

from __future__ import annotations

import os.path
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from hf_unlearn.data.images import ImageRows, encode_image, has_images
from hf_unlearn.data.rows import IGNORE_INDEX, READABLE, format_of, naming_row


class EmptyTargetError(ValueError):
    """A row has nothing to score."""


def encode(
    row: Mapping[str, Any] | str,
    tokenizer=None,
    max_length: int | None = None,
    truncate: bool = False,
    n_classes: int | None = None,
) -> dict:
    """Tokenize one row into `{"input_ids": [...], "labels": [...], "n_end": int}`.

    * `{"prompt", "completion"}`: the completion and one end token are scored.
    * `{"messages"}`: the chat template is applied; the last message, which must be the assistant's, is scored up to
      and including its end-of-turn token.
    * `{"text"}` or a string: every token but the first is scored (the first is BOS if the tokenizer adds one). No end
      token is appended.
    * `{"image", "label"}`: becomes pixels and a class, see [`~hf_unlearn.data.images.encode_image`].
    * `{"input_ids", "labels"}` or `{"pixel_values", "labels"}`: is encoded already; it is checked and stays as it is.

    `n_end` (0 or 1) says whether the last scored token is the end token.

    Args:
        tokenizer (`PreTrainedTokenizerBase` or `BaseImageProcessor`, *optional*): needed for text and for images. BOS
            is added by the tokenizer, or not at all.
        max_length (`int`, *optional*): longest sequence allowed, in tokens.
        truncate (`bool`, *optional*, defaults to `False`): cut longer rows at the end instead of raising.
        n_classes (`int`, *optional*): size of the head of an image classifier; a label must be below it.

    Raises:
        EmptyTargetError: empty text or answer.
        ValueError: unknown format, prompt whose ids are not a prefix of the whole, prompt that ends in a space, text
            longer than `max_length`. Messages hold no text of the row.
    """
    row = {"text": row} if isinstance(row, str) else row
    row = {name: value for name, value in row.items() if value is not None}  # tables fill absent columns with None
    kind = format_of(row)
    if kind == "pixels":
        if "labels" not in row:
            raise ValueError(f"An image row needs its class in the column labels. It has {', '.join(sorted(row))}.")
        return row
    if kind == "image":
        return encode_image(row, tokenizer, n_classes)
    if kind == "ids":
        return _check_encoded(row, max_length)
    if not hasattr(tokenizer, "bos_token_id"):  # its own error would quote the text
        held = f"the processing_class is a {type(tokenizer).__name__}"
        raise ValueError(
            f"It is text, but {'no tokenizer was given' if tokenizer is None else held}. Give a tokenizer as "
            "processing_class, or encoded rows (input_ids and labels), or for an image classifier rows of image and label."
        )
    for column in ("prompt", "completion", "text"):
        if column in row and not isinstance(row[column], str):
            raise ValueError(f"The column {column} holds {type(row[column]).__name__}, not text. Convert it.")
    if kind == "messages":
        ids, n_prompt, n_end = _encode_messages(row["messages"], tokenizer)
    elif kind == "prompt":
        ids, n_prompt, n_end = _encode_completion(row["prompt"], row["completion"], tokenizer)
    elif kind == "text":
        ids, n_prompt, n_end = with_special_tokens(row["text"], tokenizer), 1, 0
        if len(ids) < 2:
            raise EmptyTargetError("Empty text: no token follows another, so nothing can be scored. Remove the row.")
    else:
        raise ValueError(f"A row with the columns {sorted(row)} has no known format. Give {READABLE}.")

    if max_length is not None and len(ids) > max_length:
        if not truncate:
            raise ValueError(
                f"A text has {len(ids)} tokens, but at most {max_length} fit. Set truncate=True to cut it at the end, or "
                "split or remove the row, or use a model with a longer context."
            )
        if n_prompt >= max_length:
            raise ValueError(
                f"A prompt has {n_prompt} tokens, so that cutting at {max_length} leaves no answer. Shorten the prompt "
                "or remove the row."
            )
        ids, n_end = ids[:max_length], 0
    return {"input_ids": ids, "labels": [IGNORE_INDEX] * n_prompt + ids[n_prompt:], "n_end": n_end}


def encode_dataset(
    dataset,
    tokenizer,
    max_length: int | None = None,
    truncate: bool = False,
    name: str = "dataset",
    n_classes: int | None = None,
) -> Sequence[dict]:
    """Encode every row with [`encode`], in memory: a forget text must not end up in a cache on disk.

    Images are encoded one by one when they are read ([`~hf_unlearn.data.images.ImageRows`]). Errors give the `name` of the
    data set and the index of the row, never its content.
    """
    if isinstance(dataset, ImageRows):
        return dataset
    if has_images(dataset):
        return ImageRows(dataset, tokenizer, n_classes, name)
    encoded = []
    for index, row in enumerate(tqdm(dataset, desc=f"Encoding the {name}", disable=len(dataset) < 5000)):
        with naming_row(index, name):
            encoded.append(encode(row, tokenizer, max_length, truncate))
    return encoded


def context_length(model) -> int | None:
    """Longest sequence that the model takes, in tokens, or `None` if its config does not say."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return getattr(config, "max_position_embeddings", None)


def _check_encoded(row: dict, max_length: int | None) -> dict:
    if "labels" not in row or len(row["labels"]) != len(row["input_ids"]):
        raise ValueError("An encoded row needs labels as long as its input_ids, with -100 where nothing is scored.")
    if all(label == IGNORE_INDEX for label in row["labels"][1:]):
        raise EmptyTargetError("No label of the encoded row is scored: all are -100. Give labels, or remove the row.")
    if max_length is not None and len(row["input_ids"]) > max_length:
        raise ValueError(f"An encoded row has {len(row['input_ids'])} tokens, but at most {max_length} fit. Cut it.")
    return row


def with_special_tokens(text: str, tokenizer) -> list[int]:
    """Ids of a text with the BOS token that the tokenizer adds, if it does, and without an EOS token that it adds."""
    ids = list(tokenizer(text, verbose=False)["input_ids"])  # a text that is too long is an error here, not a warning
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise ValueError("The text begins with a BOS token and the tokenizer adds another. Remove it from the text.")
    # Some tokenizers end every sequence with EOS; whether an end token belongs there is decided here.
    if eos is not None and eos != bos and ids[-1:] == [eos]:
        if ids[-2:] == [eos, eos] or not text.endswith(tokenizer.eos_token):
            ids = ids[:-1]
    return ids


def _encode_completion(prompt: str, completion: str, tokenizer) -> tuple[list[int], int, int]:
    if not completion.strip():
        raise EmptyTargetError("Empty answer: nothing can be scored. Remove the row, or give its completion.")
    if prompt.endswith((" ", "\t")):
        raise ValueError(
            "The prompt ends in a space, which most tokenizers merge into the first word of the answer. Move it to the "
            'start of the completion: "...Answer:" and " Paris".'
        )
    ids = with_special_tokens(prompt + completion, tokenizer)
    prompt_ids = with_special_tokens(prompt, tokenizer)
    _check_prefix(prompt_ids, ids)
    if not prompt_ids:
        raise ValueError(
            "The prompt is empty and the tokenizer adds no BOS token, so nothing predicts the first answer token. "
            'Give a prompt, or the row as {"text"}.'
        )
    eos = tokenizer.eos_token_id
    if eos is not None and ids[-1] != eos:
        ids = [*ids, eos]
    return ids, len(prompt_ids), int(eos is not None)


def _encode_messages(messages: Sequence[Mapping[str, str]], tokenizer) -> tuple[list[int], int, int]:
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("The last message is not the assistant's, so there is no answer to score. Add the answer.")
    if len(messages) < 2:
        raise ValueError("There is no message before the assistant's, so there is no prompt. Add the user's message.")
    if not messages[-1]["content"].strip():
        raise EmptyTargetError("Empty answer: nothing can be scored. Remove the row, or give its last message.")
    if not tokenizer.chat_template:
        raise ValueError(
            'The rows are {"messages"}, but the tokenizer has no chat template. Set tokenizer.chat_template, or give '
            '{"prompt", "completion"} rows.'
        )
    ids = list(tokenizer.apply_chat_template(messages, return_dict=False))
    prompt_ids = list(tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False))
    _check_prefix(prompt_ids, ids)
    # An end-of-turn token follows the answer, and a line break or EOS may follow that token. It need not be EOS, nor one
    # of the special tokens that the tokenizer names: it is the first special token of those that end the text.
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(tokenizer.all_special_ids)
    length, n_end = len(ids), 0
    for position in reversed(range(len(prompt_ids), len(ids))):
        if ids[position] in special:
            length, n_end = position + 1, 1
        elif tokenizer.decode(ids[position]).strip():
            break
    return ids[:length], len(prompt_ids), n_end


def _check_prefix(prompt_ids: list[int], ids: list[int]) -> None:
    n = len(prompt_ids)
    if ids[:n] != prompt_ids or len(ids) <= n:
        n_same = len(os.path.commonprefix([prompt_ids, ids]))  # the ids themselves would spell a part of the text
        raise ValueError(
            f"The {n} ids of the prompt are not a prefix of the {len(ids)} ids of prompt and answer (only the first "
            f"{n_same} agree): the tokenizer merges across the border. End the prompt where it does not, as at a colon or "
            "a line break, and begin the completion with a space."
        )
