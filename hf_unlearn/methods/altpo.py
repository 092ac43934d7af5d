"""AltPO: the model's own other answers preferred to the one that must go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import GenerationConfig

from hf_unlearn.data.text import context_length
from hf_unlearn.methods.idk import IdkDPOTrainer
from hf_unlearn.methods.other_answers import (
    OtherLabels,
    answer_positions,
    normalised,
    other_classes,
    own_answer,
    with_answer,
)
from hf_unlearn.models.likelihood import target_logits
from hf_unlearn.models.modes import evaluating
from hf_unlearn.training import UnlearningConfig


#: How often a row is asked, each time a quarter hotter: a model that knows an answer by heart says little else.
TURNS = 8
HOTTER = 1.25


def sample_answers(
    model: nn.Module,
    tokenizer,
    prompts: list[list[int]],
    n: int,
    temperature: float,
    max_new_tokens: int,
    ends: set[int],
    seed: int,
) -> list[list[str]]:
    """Sample `n` answers to each prompt, as one batch, without a trace on the mode of the model or the random state.

    Args:
        prompts (`list[list[int]]`): token ids.
        ends (`set[int]`): tokens that end an answer.

    Returns:
        `list[list[str]]`: the text up to the first of `ends`, without special tokens and the space around.
    """
    device = next(model.parameters()).device
    length = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    # On the left, so that every answer begins right after its prompt.
    ids = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts], device=device)
    lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
    mask = (torch.arange(length, device=device) >= length - lengths).long()
    config = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        num_return_sequences=n,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
    )
    with torch.random.fork_rng([device] if device.type == "cuda" else []), evaluating(model), torch.no_grad():
        torch.manual_seed(seed)
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    texts = []
    for answer in out[:, length:].tolist():
        end = next((position for position, token in enumerate(answer) if token in ends), len(answer))
        texts.append(tokenizer.decode(answer[:end], skip_special_tokens=True).strip())
    return [texts[i : i + n] for i in range(0, len(texts), n)]


@dataclass
class AltPOConfig(UnlearningConfig):
    """Options of [`AltPOTrainer`].

    Parameters:
        beta (`float`, *optional*, defaults to `0.1`): inverse temperature of the loss; the paper (arXiv 2409.13474)
            searches 0.05, 0.1 and 0.5.
        n_alternates (`int`, *optional*, defaults to `5`): different other answers a row, as in the paper. An image has
            one other class.
        temperature (`float`, *optional*, defaults to `1.0`): of the sampling. It rises by a quarter each time that a row
            has to be asked again.
        max_new_tokens (`int`, *optional*): longest answer that is sampled. Defaults to the longest forget answer.
        instruction (`str`, *optional*): asked after the true answer, for a chat model that can make up another one, as
            in the paper: "Now answer again, with all facts changed to others that are plausible." Needs
            `{"messages"}` rows. Defaults to sampling the answer to the question itself.
    """

    beta: float = field(default=0.1, metadata={"help": "Inverse temperature of the loss."})
    n_alternates: int = field(default=5, metadata={"help": "Different other answers a row."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the sampling."})
    max_new_tokens: int | None = field(default=None, metadata={"help": "Longest answer that is sampled, in tokens."})
    instruction: str | None = field(default=None, metadata={"help": "Asks a chat model for another answer."})

    def __post_init__(self):
        for name in ("beta", "n_alternates", "temperature", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"You set {name}={value}, but it must be positive.")
        super().__post_init__()


class AltPOTrainer(IdkDPOTrainer):
    """Prefer answers that the model makes up itself to the one that must go: direct preference optimization with these as
    the winners.

    `L_f = -(2 / beta) mean ln sigmoid(beta [r(alternate) - r(answer)])`, `r(y) = ln(p(y|x) / p_ref(y|x))` summed over
    tokens, where ref is the model at its start. That model is sampled before the training, by the seed; an answer is
    dropped if it holds the true one or came already. They are kept in memory only. For an image the alternate is the
    most likely class of the start but its own and those that are to be forgotten whole.

    Source: Mekala et al., Alternate Preference Optimization, arXiv 2409.13474.
    """

    config_class = AltPOConfig
    n_alternates = 5

    def alternates(self, forget_rows, retain_rows) -> Sequence[Sequence[dict]]:
        if self.is_classifier:
            return self._likeliest_other_classes()
        n, true = self.args.n_alternates, [normalised(own_answer(row)) for row in forget_rows]
        prompts = self._prompts(forget_rows)
        found: list[dict[str, dict]] = [{} for _ in true]
        for turn in range(TURNS):
            lacking = [i for i, answers in enumerate(found) if len(answers) < n]
            for i, text in self._sample(prompts, lacking, turn):
                name = normalised(text)
                if len(found[i]) == n or name in found[i] or f" {true[i]} " in f" {name} ":
                    continue
                try:
                    (found[i][name],) = self.encode([with_answer(forget_rows[i], text)], name="other answers")
                except ValueError:
                    continue  # empty, or too long for the context
        for i, answers in enumerate(found):
            if len(answers) < n:
                raise ValueError(
                    f"n_alternates={n} different other answers a row are needed, but the model gave {len(answers)} to row "
                    f"{i} of the forget set, asked {TURNS} times for {n}. Either raise temperature or max_new_tokens, "
                    "lower n_alternates, or choose idk_dpo, which prefers refusals."
                )
        return [list(answers.values()) for answers in found]

    def _prompts(self, forget_rows) -> list[list[int]]:
        """Token ids after which an answer to each row is sampled."""
        if self.args.instruction is None:
            return [list(row["input_ids"][: answer_positions(row)[0]]) for row in self.train_dataset.forget]
        if not all(row.get("messages") for row in forget_rows):
            raise ValueError(
                'You set instruction, which is asked in a chat, but the forget rows are no chat. Either give {"messages"} '
                "rows, or leave instruction out."
            )
        question = {"role": "user", "content": self.args.instruction}
        chats = [[*row["messages"], question] for row in forget_rows]
        template = partial(self.processing_class.apply_chat_template, add_generation_prompt=True, return_dict=False)
        return [list(template(chat)) for chat in chats]

    def _sample(self, prompts, indices, turn: int) -> list[tuple[int, str]]:
        """`(index, answer)` for the prompts of these indices; every process samples a share of the batches."""
        forget, size, accelerator = self.train_dataset.forget, self.args.per_device_eval_batch_size, self.accelerator
        longest = self.args.max_new_tokens or max(len(answer_positions(row)) for row in forget)
        context = self.args.max_length or context_length(self.model) or 2**30
        # The token that ends an answer in these rows need not be EOS: chats end a turn with another one.
        ends = {row["labels"][-1] for row in forget if row.get("n_end")}
        if self.processing_class.eos_token_id is not None:
            ends.add(self.processing_class.eos_token_id)
        indices = sorted(indices, key=lambda i: (len(prompts[i]), i))  # similar lengths together: little padding
        batches = [indices[i : i + size] for i in range(0, len(indices), size)]
        sampled = []
        for number in range(accelerator.process_index, len(batches), accelerator.num_processes):
            chosen = [prompts[i] for i in batches[number]]
            room = context - max(map(len, chosen))
            if room < 1:
                raise ValueError(
                    f"A prompt leaves no room for an answer in the context of {context} tokens. Shorten it."
                )
            # A function of the batch alone, so that it does not matter which process has it.
            seed = int(np.random.default_rng([self.train_dataset.seed, turn, number]).integers(2**31))
            with accelerator.autocast():
                answers = sample_answers(
                    self.model,
                    self.processing_class,
                    chosen,
                    n=self.args.n_alternates,
                    temperature=self.args.temperature * HOTTER**turn,
                    max_new_tokens=min(longest, room),
                    ends=ends,
                    seed=seed,
                )
            sampled += [(number, i, text) for i, texts in zip(batches[number], answers, strict=True) for text in texts]
        return [(i, text) for _, i, text in sorted(gather_object(sampled), key=lambda item: item[0])]

    def _likeliest_other_classes(self) -> OtherLabels:
        data = self.train_dataset
        choices = other_classes(data, self.model.config.num_labels)
        logits: list[list[float]] = []
        with torch.no_grad(), evaluating(self.model), self.accelerator.autocast():
            for batch in self.batches(data.forget):
                logits += target_logits(self.model, batch).logits.tolist()
        return OtherLabels(data.forget, [[max(c, key=z.__getitem__)] for z, c in zip(logits, choices, strict=True)])
