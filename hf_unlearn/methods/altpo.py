"""AltPO: the model's own other answers preferred to the one that must go."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from accelerate.utils import gather_object

from hf_unlearn.data.rows import canonical, is_chat
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
from hf_unlearn.models.generate import sample, texts_of
from hf_unlearn.models.likelihood import target_logits
from hf_unlearn.models.modes import evaluating
from hf_unlearn.training import UnlearningConfig


#: How often a row is asked, each time a quarter hotter: a model that knows an answer by heart gives few others.
TURNS = 8
HOTTER = 1.25


@dataclass
class AltPOConfig(UnlearningConfig):
    """Options of [`AltPOTrainer`].

    Parameters:
        beta (`float`, *optional*, defaults to `0.1`): inverse temperature of the loss; the paper (arXiv 2409.13474)
            searches 0.05, 0.1 and 0.5.
        n_alternates (`int`, *optional*, defaults to `5`): different other answers per row, as in the paper. An image has
            one other class.
        temperature (`float`, *optional*, defaults to `1.0`): temperature of the sampling. It rises by a quarter each time
            that a row is asked again.
        max_new_tokens (`int`, *optional*): longest answer that is sampled. Defaults to the longest forget answer.
        instruction (`str`, *optional*): asked after the true answer, for a chat model that can make up another one, as
            in the paper: "Now answer again, with all facts changed to others that are plausible." Needs
            `{"messages"}` rows. By default the question itself is asked again.
    """

    beta: float = field(default=0.1, metadata={"help": "Inverse temperature of the loss."})
    n_alternates: int = field(default=5, metadata={"help": "Different other answers per row."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the sampling."})
    max_new_tokens: int | None = field(default=None, metadata={"help": "Longest answer that is sampled, in tokens."})
    instruction: str | None = field(default=None, metadata={"help": "Asks a chat model for another answer."})

    positive = ("beta", "temperature")
    at_least_one = ("n_alternates", "max_new_tokens")


class AltPOTrainer(IdkDPOTrainer):
    """Prefer answers that the model makes up itself to the one that must go: direct preference optimization with these as
    the winners.

    `L_f = -(2 / beta) mean ln sigmoid(beta [r(alternate) - r(answer)])`, `r(y) = ln(p(y|x) / p_ref(y|x))` summed over
    tokens, where ref is the model at its start. That model is sampled before the training, by the seed; an answer that
    contains the true one or came already is dropped. They are kept in memory only. For an image the alternate is the most
    likely class of the model at its start, except its own and classes that are to be forgotten whole.

    Source: Mekala et al., Alternate Preference Optimization, arXiv 2409.13474.

    Example:
        >>> from hf_unlearn import AltPOConfig, AltPOTrainer
        >>> trainer = AltPOTrainer("my-model", AltPOConfig("unlearned", n_alternates=5), forget, retain)
        >>> trainer.train()
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
                with suppress(ValueError):  # empty, or too long for the context
                    (found[i][name],) = self.encode([with_answer(forget_rows[i], text)], name="other answers")
        for i, answers in enumerate(found):
            if len(answers) < n:
                raise ValueError(
                    f"You set n_alternates={n}, but the model gave {len(answers)} to row {i} of the forget set, asked "
                    f"{TURNS} times for {n}. Either raise temperature or max_new_tokens, lower n_alternates, or choose "
                    "idk_dpo, which prefers refusals."
                )
        return [list(answers.values()) for answers in found]

    def _prompts(self, forget_rows) -> list[list[int]]:
        """Token ids after which an answer to each row is sampled."""
        if self.args.instruction is None:
            return [list(row["input_ids"][: answer_positions(row)[0]]) for row in self.train_dataset.forget]
        if not all(map(is_chat, forget_rows)):
            raise ValueError(
                'You set instruction, but the forget rows are no chat. Either give {"messages"} rows, or leave it out.'
            )
        question = {"role": "user", "content": self.args.instruction}
        chats = [[*canonical(row)["messages"], question] for row in forget_rows]
        template = partial(self.processing_class.apply_chat_template, add_generation_prompt=True, return_dict=False)
        return [list(template(chat)) for chat in chats]

    def _sample(self, prompts, indices, turn: int) -> list[tuple[int, str]]:
        """`(index, answer)` pairs for the prompts of these indices; every process samples a share of them."""
        forget, accelerator = self.train_dataset.forget, self.accelerator
        longest = self.args.max_new_tokens or max(len(answer_positions(row)) for row in forget)
        context = self.args.max_length or context_length(self.model) or 2**30
        # The token that ends an answer need not be EOS: chats may end a turn with another one.
        ends = {row["labels"][-1] for row in forget if row.get("n_end")} | {self.processing_class.eos_token_id} - {
            None
        }
        mine = indices[accelerator.process_index :: accelerator.num_processes]
        limits = [min(longest, context - len(prompts[i])) for i in mine]
        if min(limits, default=1) < 1:
            raise ValueError(f"A prompt leaves no room for an answer in the context of {context} tokens. Shorten it.")
        with accelerator.autocast():
            drawn = sample(
                self.model,
                self.processing_class,
                [prompts[i] for i in mine],
                n=self.args.n_alternates,
                max_new_tokens=limits,
                temperature=self.args.temperature * HOTTER**turn,
                seed=int(np.random.default_rng([self.train_dataset.seed, turn]).integers(2**31)),
                batch_size=self.args.per_device_eval_batch_size,
                ends=ends,
            )
        sampled = []
        for i, answers in zip(mine, drawn, strict=True):
            # Without the end token, which decoding may keep. An answer is `None` where logits were NaN.
            answers = [ids[:-1] if ids[-1] in ends else ids for ids in answers if ids]
            sampled += [(i, text.strip()) for text in texts_of(self.processing_class, answers)]
        return gather_object(sampled)

    def _likeliest_other_classes(self) -> OtherLabels:
        data = self.train_dataset
        choices = other_classes(data, self.model.config.num_labels)
        logits: list[list[float]] = []
        with torch.no_grad(), evaluating(self.model), self.accelerator.autocast():
            for batch in self.batches(data.forget):
                logits += target_logits(self.model, batch).logits.tolist()
        return OtherLabels(data.forget, [[max(c, key=z.__getitem__)] for z, c in zip(logits, choices, strict=True)])
