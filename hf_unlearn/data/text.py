"""From rows of text to token ids and labels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from hf_unlearn.data.chat import Encoded, continuation, encode_chat
from hf_unlearn.data.images import ImageRows, check_channels, check_label, encode_image, has_images
from hf_unlearn.data.rows import (
    IGNORE_INDEX,
    TEXTS,
    canonical,
    format_of,
    naming_row,
    require_rows,
    text_of,
    why_no_format,
)


_APART = "the tokenizer merges the end of the prompt with the start of the answer. The two are encoded apart, as a model is asked."


class EmptyTargetError(ValueError):
    """A row has nothing to score."""


def encode(
    row: Mapping[str, Any] | str,
    tokenizer=None,
    max_length: int | None = None,
    truncate: bool = False,
    n_classes: int | None = None,
    vocab_size: int | None = None,
) -> dict:
    """Tokenize one row into `{"input_ids": [...], "labels": [...], "n_end": int}`.

    * `{"prompt", "completion"}`: the completion and one end token are scored. Where the tokenizer would merge the end of
      the prompt with the start of the completion, the two are encoded apart, as a model is asked, with a warning.
    * `{"messages"}`: the chat template is applied; the last message, which must be the assistant's, is scored up to
      and including its end-of-turn token. What the template writes before it, as an empty thinking block, is prompt, see
      [`~hf_unlearn.data.chat.encode_chat`].
    * `{"text"}` or a string: every token but the first is scored (the first is BOS if the tokenizer adds one). No end
      token is appended.
    * `{"image", "label"}`: becomes pixels and a class, see [`~hf_unlearn.data.images.encode_image`].
    * `{"input_ids", "labels"}` or `{"pixel_values", "labels"}`: is encoded already; it is checked and stays as it is, but for
      ids that its `attention_mask` leaves out.

    Other forms of these rows are read as well, see [`~hf_unlearn.data.rows.canonical`].

    `n_end` (0 or 1) says whether the last scored token is the end token.

    Args:
        tokenizer (`PreTrainedTokenizerBase` or `BaseImageProcessor`, *optional*): needed for text and for images. BOS
            is added by the tokenizer, or not at all.
        max_length (`int`, *optional*): longest sequence allowed, in tokens.
        truncate (`bool`, *optional*, defaults to `False`): cut longer rows at the end instead of raising.
        n_classes (`int`, *optional*): size of the head of an image classifier; a label must be below it.
        vocab_size (`int`, *optional*): number of tokens that the model knows; every id must be below it.

    Raises:
        EmptyTargetError: empty text or answer.
        ValueError: unknown format, messages that the chat template refuses or writes in another form, prompt that ends in
            a space, text longer than `max_length`, id beyond the vocabulary. Messages hold no text of the row.
    """
    encoded, apart = _encode(row, tokenizer, max_length, truncate, n_classes, vocab_size)
    if apart:
        warnings.warn(f"In a row {_APART}", stacklevel=2)
    return encoded


def _encode(row, tokenizer, max_length, truncate, n_classes, vocab_size) -> tuple[dict, bool]:
    """What [`encode`] returns, and whether prompt and answer were encoded apart."""
    kind = format_of(row)
    if kind not in TEXTS:
        row = {name: value for name, value in row.items() if value is not None}
    if kind == "pixels":
        if "labels" not in row:
            raise ValueError(f"An image row needs its class in the column labels. It has {', '.join(sorted(row))}.")
        check_label(np.asarray(row["labels"])[()], n_classes)
        return row, False
    if kind == "image":
        return encode_image(row, tokenizer, n_classes), False
    if kind == "ids":
        return _check_encoded(row, max_length, vocab_size), False
    if kind is None:
        raise ValueError(why_no_format(row))
    if not hasattr(tokenizer, "bos_token_id"):  # its own error would quote the text
        held = f"the processing_class is a {type(tokenizer).__name__}"
        raise ValueError(
            f"It is text, but {'no tokenizer was given' if tokenizer is None else held}. Give a tokenizer as "
            "processing_class, or encoded rows (input_ids and labels), or for an image classifier rows of image and label."
        )
    row = canonical(row)
    try:
        text_of(row).encode()
        is_whole = True
    except UnicodeEncodeError:
        is_whole = False
    if not is_whole:  # raised out here because the original error carries the text
        raise ValueError("The text has half of a character (a surrogate such as \\ud83d). Write whole characters.")
    if kind == "messages":
        ids, n_prompt, n_end, apart = _encode_messages(row["messages"], tokenizer)
    elif kind == "prompt":
        ids, n_prompt, n_end, apart = _encode_completion(row["prompt"], row["completion"], tokenizer)
    else:
        ids, n_prompt, n_end, apart = with_special_tokens(row["text"], tokenizer), 1, 0, False
        if len(ids) < 2:
            raise EmptyTargetError("Empty text: no token follows another, so nothing can be scored. Remove the row.")
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
    _check_vocabulary(ids, vocab_size)
    return {"input_ids": ids, "labels": [IGNORE_INDEX] * n_prompt + ids[n_prompt:], "n_end": n_end}, apart


def encode_dataset(
    dataset,
    tokenizer,
    max_length: int | None = None,
    truncate: bool = False,
    name: str = "dataset",
    n_classes: int | None = None,
    vocab_size: int | None = None,
    n_channels: int | None = None,
) -> Sequence[dict]:
    """Encode every row with [`encode`], in memory: a forget text must not end up in a cache on disk.

    Images are encoded one by one when they are read ([`~hf_unlearn.data.images.ImageRows`]). Errors give the `name` of the
    data set and the index of the row, never its content. The sizes of a model are those of [`limits_of`].
    """
    if isinstance(dataset, ImageRows):
        return dataset
    require_rows(dataset, name)
    # A model for text has a vocabulary and no channels, and one for images the other way round.
    knows_model = (vocab_size is None) != (n_channels is None)
    if has_images(dataset):
        if knows_model:
            with naming_row(0, name):
                check_modality(True, takes_images=vocab_size is None)
        return ImageRows(dataset, tokenizer, n_classes, name, n_channels=n_channels)
    encoded, n_apart = [], 0
    for index, row in enumerate(tqdm(dataset, desc=f"Encoding the {name}", disable=len(dataset) < 5000)):
        with naming_row(index, name):
            new, apart = _encode(row, tokenizer, max_length, truncate, n_classes, vocab_size)
            if knows_model:
                check_modality("pixel_values" in new, takes_images=vocab_size is None)
        if "pixel_values" in new:
            check_channels(len(new["pixel_values"]), n_channels, name)
        encoded.append(new)
        n_apart += apart
    if n_apart:
        warnings.warn(f"In {n_apart} of {len(encoded)} rows of the {name} {_APART}", stacklevel=2)
    return encoded


def limits_of(config, takes_images: bool) -> dict[str, int | None]:
    """The sizes that the inputs of a model must fit, from its config, as arguments of [`encode_dataset`]."""
    if takes_images:  # the config of a tower of CLIP has that of the other tower too
        channels = getattr(getattr(config, "vision_config", config), "num_channels", None)
        return {"n_classes": getattr(config, "num_labels", None), "n_channels": channels, "vocab_size": None}
    return {"n_classes": None, "n_channels": None, "vocab_size": getattr(_of_text(config), "vocab_size", None)}


def context_length(model) -> int | None:
    """Longest sequence that the model takes, in tokens, or `None` if its config does not say."""
    return getattr(_of_text(model.config), "max_position_embeddings", None)


def _of_text(config):
    """The part of a config that is about text; a config that is not of transformers has no parts."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def check_modality(is_image: bool, takes_images: bool) -> None:
    """Raise a `ValueError` unless a row is of what the model takes."""
    if is_image != takes_images:
        held, taken = ("an image", "text") if is_image else ("text", "images")
        raise ValueError(
            f"It is {held}, but the model takes {taken}. Give a model for such rows, or take the row out."
        )


def _check_encoded(row: dict, max_length: int | None, vocab_size: int | None) -> dict:
    ids, labels = _integers(row["input_ids"]), _integers(row.get("labels"))
    if ids is None:
        raise ValueError(
            "The input_ids of an encoded row are no list of integers. Give one text per row, and no batch."
        )
    if labels is None or len(labels) != len(ids):
        raise ValueError(
            "An encoded row needs labels as long as its input_ids: integers, with -100 where nothing is scored."
        )
    if row.get("attention_mask") is not None:
        mask = _integers(row["attention_mask"])
        if mask is None or len(mask) != len(ids):
            raise ValueError(
                "The attention_mask of an encoded row needs a 0 or 1 for each of its input_ids. Leave it out."
            )
        if not mask.all():  # a batch is padded on the right, and read by the lengths of its rows
            ids, labels = ids[mask != 0], labels[mask != 0]
            row = {name: value for name, value in row.items() if name != "attention_mask"}
            row |= {"input_ids": ids.tolist(), "labels": labels.tolist()}
    if (labels[1:] == IGNORE_INDEX).all():
        raise EmptyTargetError("No label of the encoded row is scored: all are -100. Give labels, or remove the row.")
    if max_length is not None and len(ids) > max_length:
        raise ValueError(f"An encoded row has {len(ids)} tokens, but at most {max_length} fit. Cut it.")
    _check_vocabulary(ids, vocab_size)
    _check_vocabulary(labels[labels != IGNORE_INDEX], vocab_size)
    return row


def _integers(values: Any) -> np.ndarray | None:
    """A list of integers as an array, or `None` if it is none."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of several lengths
        return None
    is_list = array.ndim == 1 and (array.dtype.kind in "iub" or not array.size)
    return array.astype(np.int64) if is_list else None


def _check_vocabulary(ids: Sequence[int], vocab_size: int | None) -> None:
    ids = np.asarray(ids)
    if vocab_size is not None and ids.size and not (0 <= ids.min() and ids.max() < vocab_size):
        raise ValueError(
            f"It has ids beyond the {vocab_size} tokens that the model knows. Encode it with the tokenizer of the model, or "
            "make room for new tokens: model.resize_token_embeddings(len(tokenizer))."
        )


def with_special_tokens(text: str, tokenizer) -> list[int]:
    """Ids of a text with the BOS token that the tokenizer adds, if it does, and without an EOS token that it adds."""
    ids = list(tokenizer(text, verbose=False)["input_ids"])  # a text that is too long is an error here, not a warning
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise ValueError("The text begins with a BOS token and the tokenizer adds another. Remove it from the text.")
    # Some tokenizers end every sequence with EOS; whether an end token belongs there is decided here.
    if eos is not None and (eos != bos or len(ids) > 1) and ids[-1:] == [eos]:
        if ids[-2:] == [eos, eos] or not text.endswith(tokenizer.eos_token):
            ids = ids[:-1]
    return ids


def _encode_completion(prompt: str, completion: str, tokenizer) -> Encoded:
    if not completion.strip():
        raise EmptyTargetError("Empty answer: nothing can be scored. Remove the row, or give its completion.")
    if prompt.endswith((" ", "\t")):
        raise ValueError(
            "The prompt ends in a space, which most tokenizers merge into the first word of the answer. Move it to the "
            'start of the completion: "...Answer:" and " Paris".'
        )
    ids, prompt_ids = with_special_tokens(prompt + completion, tokenizer), with_special_tokens(prompt, tokenizer)
    apart = ids[: len(prompt_ids)] != prompt_ids or len(ids) == len(prompt_ids)
    if apart:
        answer = continuation(prompt_ids, completion, ids, tokenizer)
        if answer is None:
            raise ValueError(
                "The tokenizer merges the end of the prompt with the start of the completion, and cannot encode the two "
                "apart so that the text stays the same. End the prompt where it does not merge, as at a colon, and begin "
                "the completion with a space."
            )
        ids = prompt_ids + answer
    if not prompt_ids:
        raise ValueError(
            "The prompt is empty and the tokenizer adds no BOS token, so nothing predicts the first answer token. "
            'Give a prompt, or the row as {"text"}.'
        )
    eos = tokenizer.eos_token_id
    if eos is not None and ids[-1] != eos:
        ids = [*ids, eos]
    return Encoded(ids, len(prompt_ids), int(eos is not None), apart)


def _encode_messages(messages: Sequence[Mapping[str, Any]], tokenizer) -> Encoded:
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
    return encode_chat(messages, tokenizer)
