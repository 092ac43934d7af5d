"""What a model says: greedy and sampled continuations, in batches.

Likelihood audits need no generation: the table of [`~hf_unlearn.audit.score`] tells whether greedy decoding reproduces an
answer, and the chance of drawing it. Text is generated where what comes *after* the first error counts (ROUGE, F1, spans of
personal data), or where samples are compared with more than one string.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_unlearn.data.rows import IGNORE_INDEX
from hf_unlearn.data.text import EmptyTargetError, context_length, encode, with_special_tokens
from hf_unlearn.models.decoding import continued
from hf_unlearn.models.likelihood import warped
from hf_unlearn.models.sampling import Sampling


#: A text, to which the tokenizer adds BOS where it does so; token ids; or a row whose answer is to be generated.
Prompt = str | Sequence[int] | Mapping[str, Any]


def greedy(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    max_new_tokens: int | Sequence[int],
    batch_size: int = 16,
    ends: Iterable[int] | None = None,
) -> list[list[int] | None]:
    """Continue every prompt with the most likely token, again and again.

    The same tokens as `model.generate(do_sample=False)` with a generation config that leaves the logits alone. The first
    of equal logits wins, as in the `hit` column of [`Scores`].

    Args:
        model (`PreTrainedModel` or `PeftModel`): a causal language model; it is run where it is, in evaluation mode, and
            left in the mode it was in.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): not needed for prompts that are token ids.
        prompts (sequence of `n`): strings, token ids, or rows of `{"prompt", "completion"}`, `{"messages"}` or
            `{"input_ids", "labels"}`, of which all before the answer is the prompt. The answer saves time and changes
            nothing: it is read along, and where the model repeats it, many tokens take one step.
        max_new_tokens (`int` or sequence of `n`): most tokens to generate, for all prompts or for each.
        batch_size (`int`, *optional*, defaults to `16`): prompts of similar length to read at a time. More are continued
            together, as many as have room for their keys and values in 64 MB on the CPU and 512 MB elsewhere.
        ends (iterable of `int`, *optional*): tokens that end a continuation. Defaults to [`end_tokens`] and the end
            tokens of the rows (in a chat, the one that ends a turn).

    Returns:
        `list` of `n` lists of new token ids, with the end token where there is one. `None` for a row with an empty answer
        and after NaN logits; metrics of text turn it into NaN.

    Raises:
        ValueError: a prompt that is empty, can't be encoded or leaves no room in the context of the model; the message
            has its index, and no text.
    """
    ids, stops, limits, answers = _prepare(model, tokenizer, prompts, max_new_tokens, ends)
    # Equal prompts have equal continuations.
    keys = [(tuple(prompt), limit) for prompt, limit in zip(ids, limits, strict=True)]
    drafts = dict(zip(keys, answers, strict=True))
    distinct = list(drafts)
    if not distinct:
        return []
    expected = list(drafts.values()) if any(answers) else None
    found = continued(model, *zip(*distinct, strict=True), _most_likely, batch_size, stops, drafts=expected)
    new = dict(zip(distinct, found, strict=True))
    if broken := [key for key in distinct if new[key] is None and key[1] and drafts[key]]:
        # A token of the answer may have broken weights, and the model might not have said it.
        found = continued(model, *zip(*broken, strict=True), _most_likely, batch_size, stops)
        new |= zip(broken, found, strict=True)
    return [None if new[key] is None else list(new[key]) for key in keys]


def sample(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    n: int,
    max_new_tokens: int | Sequence[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
    ends: Iterable[int] | None = None,
) -> list[list[list[int] | None]]:
    """Draw `n` continuations of every prompt.

    The random numbers of a sample depend on the seed, the ids of the prompt and the number of the sample alone, not on the
    batch size or the other prompts. So equal prompts get equal samples, and two models are compared under the same luck.

    Args:
        model, tokenizer, prompts, max_new_tokens, ends: as for [`greedy`].
        n (`int`): samples of each prompt.
        temperature, top_k, top_p (*optional*): the scheme, see [`Sampling`]; the warpers are those of transformers.
        seed (`int`, *optional*, defaults to `0`).
        batch_size (`int`, *optional*, defaults to `32`): samples whose prompts are read at a time; see [`greedy`].

    Returns:
        For each prompt a list of `n` lists of new token ids, or of `None`, as for [`greedy`].
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}: the number of samples of each prompt.")
    scheme = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    ids, stops, limits, _ = _prepare(model, tokenizer, prompts, max_new_tokens, ends)
    repeated = [prompt for prompt in ids for _ in range(n)]
    most = max(limits, default=0)
    drawn: dict[int, np.ndarray] = {}

    def draw(logits: Tensor, batch: list[int], step: int) -> Tensor:
        if step == 0:  # a new batch
            drawn.clear()
            drawn.update({i: np.random.default_rng([seed, i % n, *repeated[i]]).random(most) for i in batch})
        uniform = torch.tensor([[drawn[i][step]] for i in batch], dtype=torch.float64, device=logits.device)
        cumulated = warped(logits, scheme).double().softmax(-1).cumsum(-1)
        # Divided by its end, the last token that can be drawn has exactly 1, which no random number reaches.
        return torch.searchsorted(cumulated / cumulated[:, -1:], uniform, right=True)[:, 0]

    found = continued(model, repeated, [limit for limit in limits for _ in range(n)], draw, batch_size, stops)
    return [found[i : i + n] for i in range(0, len(found), n)]


def texts_of(tokenizer, generated: Sequence[Sequence[int] | None], stop: Sequence[str] = ()) -> list[str | None]:
    """Decode new ids, and nothing else, and cut every text before the first of the stop strings in it.

    Returns:
        `list` of `n` texts; `None` stays `None`.
    """

    def text_of(new: Sequence[int]) -> str:
        text = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text[: min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))]

    return [None if new is None else text_of(new) for new in generated]


def end_tokens(model, tokenizer=None) -> set[int]:
    """Tokens that end a text: those in the model's generation config, or in its config, and the EOS of the tokenizer."""
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if end is None:
        end = getattr(model.config, "eos_token_id", None)
    ends = set() if end is None else {end} if isinstance(end, int) else set(end)
    return ends | ({getattr(tokenizer, "eos_token_id", None)} - {None})


def split_answer(prompt: Prompt, tokenizer, index: int) -> tuple[list[int], list[int], set[int]]:
    """Ids of the prompt, ids of the answer without its end token, and that end token.

    The last two are empty for a bare prompt, and all three for an empty answer. Errors have the `index`, and no text.
    """
    try:
        if isinstance(prompt, str):
            if prompt.endswith((" ", "\t")):
                raise ValueError(
                    "It ends in a space, which most tokenizers merge into the first word of the answer. Remove the space."
                )
            return with_special_tokens(prompt, tokenizer), [], set()
        if not isinstance(prompt, Mapping):
            return list(prompt), [], set()
        row = encode(prompt, tokenizer)
    except EmptyTargetError:
        return [], [], set()
    except ValueError as error:
        raise ValueError(f"Prompt {index}: {error}") from None
    ids, labels = list(row["input_ids"]), row["labels"]
    first = next(place for place, label in enumerate(labels) if label != IGNORE_INDEX)
    n_end = row.get("n_end", 0)
    return ids[:first], ids[first : len(ids) - n_end], set(ids[len(ids) - n_end :])


def _most_likely(logits: Tensor, *_) -> Tensor:
    return logits.max(-1).indices  # of equal ones the first


def _prepare(
    model, tokenizer, prompts, max_new_tokens, ends
) -> tuple[list[list[int]], set[int], list[int], list[list[int]]]:
    """Ids of the prompts, end tokens, limits of new tokens (0 for an empty answer), and ids of the answers."""
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(limits) != len(prompts):
        raise ValueError(f"You gave max_new_tokens for {len(limits)} prompts, but there are {len(prompts)}.")
    if min(limits, default=1) < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {min(limits)}.")
    context = context_length(model)
    ids, stops, answers = [], end_tokens(model, tokenizer), []
    for index, prompt in enumerate(prompts):
        before, answer, end = split_answer(prompt, tokenizer, index)
        if not before and not isinstance(prompt, Mapping):
            raise ValueError(f"Prompt {index} is empty and the tokenizer adds no BOS token. Give at least one token.")
        limits[index] = limits[index] if before else 0
        if context is not None and len(before) + limits[index] > context:
            raise ValueError(
                f"Prompt {index} has {len(before)} tokens and max_new_tokens is {limits[index]}, but the context of the "
                f"model has {context}. Either lower max_new_tokens, or shorten the prompt."
            )
        ids.append(before)
        answers.append([*answer, *end])
        stops |= end
    return ids, stops if ends is None else set(ends), limits, answers
