"""Answers instead of the forgotten ones: other classes for images, other words for text."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from hf_unlearn.data.pairing import PairedDataset
from hf_unlearn.data.rows import IGNORE_INDEX, answer_of, is_chat, reworded


class OtherLabels(Sequence):
    """For each image the same image with other classes: `other[i][j]` is row `i` with the class `classes[i][j]`.

    Lazy: an encoded row `{"pixel_values", "labels"}` is read only when it is asked for.
    """

    def __init__(self, rows: Sequence[dict], classes: Sequence[Sequence[int]]):
        self.rows, self.classes = rows, classes

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int) -> Sequence[dict]:
        return _Relabelled(self.rows, index, self.classes[index])


class _Relabelled(Sequence):
    def __init__(self, rows, index, classes):
        self.rows, self.index, self.classes = rows, index, classes

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int) -> dict:
        label = self.classes[index]  # first, so that an index out of range reads no image
        return {**self.rows[self.index], "labels": label}


def class_labels(rows: Sequence[dict] | None) -> list[int]:
    """The class of every encoded image, without decoding images that are decoded when they are read."""
    labels = getattr(rows, "labels", None)
    return [int(label) for label in ([row["labels"] for row in rows or ()] if labels is None else labels)]


def other_classes(data: PairedDataset, n_classes: int) -> list[list[int]]:
    """For each forget image the classes it may get: all except its own and those that are to be forgotten whole, which
    are the classes of forget rows that no retain row has. All except its own if that leaves none, or without retain rows.

    Raises:
        ValueError: the model has one class only.
    """
    if n_classes < 2:
        raise ValueError("The model has one class, so an image has no other one. Choose another method.")
    labels, kept = class_labels(data.forget), class_labels(data.retain)
    forgotten = set(labels) - set(kept) if kept else set()
    others = {}
    for label in set(labels):
        rest = [c for c in range(n_classes) if c != label]
        others[label] = [c for c in rest if c not in forgotten] or rest
    return [others[label] for label in labels]


def other_labels(data: PairedDataset, n_classes: int, n: int | None = None) -> OtherLabels:
    """Each forget image with other classes, uniform over those of `other_classes`.

    Args:
        n (`int`, *optional*): how many a row gets, drawn by the seed without replacement; fewer for all rows if one row
            has fewer. Defaults to all.
    """
    classes = other_classes(data, n_classes)
    if n is not None:
        n = min(n, *map(len, classes), n_classes)
        classes = [
            [int(c) for c in np.random.default_rng([data.seed, index]).choice(choices, n, replace=False)]
            for index, choices in enumerate(classes)
        ]
    return OtherLabels(data.forget, classes)


def answer_positions(row: dict) -> list[int]:
    """Positions of the scored tokens of an encoded row of text."""
    return [position for position, label in enumerate(row["labels"]) if position and label != IGNORE_INDEX]


def own_answer(row: dict) -> str:
    """The answer of a forget row.

    Raises:
        ValueError: it has none that another answer could replace.
    """
    answer = answer_of(row)
    if answer is None:
        raise ValueError(
            "Another answer needs a prompt, but the forget rows have none, or are encoded already. Either give "
            '{"prompt", "completion"} or {"messages"} rows, or choose npo, simnpo or graddiff.'
        )
    return answer


def with_answer(row: dict, answer: str) -> dict:
    """A forget row with another answer, after the same white space as its own one."""
    own_answer(row)
    if is_chat(row):
        return reworded(row, answer=lambda own: answer)
    return reworded(row, answer=lambda own: own[: len(own) - len(own.lstrip())] + answer.strip())


def normalised(answer: str) -> str:
    """An answer in the form in which answers are compared: no case, single spaces, no punctuation at its ends."""
    text = " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
    return re.sub(r"^[\W_]+|[\W_]+$", "", text) or text


def random_answers(forget_rows: Iterable[dict], retain_rows: Iterable[dict], n: int, seed: int) -> list[list[str]]:
    """For each forget row `n` different answers of retain rows, none of which equals its own in normalized form.

    Args:
        n (`int`): answers per row; fewer if the retain set has fewer different ones.
        seed (`int`): the answers of a row are a function of the seed and its index.

    Raises:
        ValueError: the retain set has no other answer for some row.
    """
    answers = {normalised(answer): answer for answer in map(answer_of, retain_rows) if answer and answer.strip()}
    names = list(answers)
    drawn = []
    for index, row in enumerate(forget_rows):
        own = normalised(own_answer(row))
        # One more than needed, in case the row's own answer is among them.
        order = np.random.default_rng([seed, index]).choice(len(names), min(n + 1, len(names)), replace=False)
        others = [answers[names[i]] for i in order if names[i] != own][:n]
        if not others:
            raise ValueError(
                f"The retain set has no answer that differs from that of row {index} of the forget set. Give retain rows "
                'with answers: {"prompt", "completion"} or {"messages"}.'
            )
        drawn.append(others)
    return drawn


def encode_answers(encode: Callable, rows: Iterable[dict], answers: Sequence[Sequence[str]]) -> list[list[dict]]:
    """Encode each row with each of its other answers, by the trainer's `encode`."""
    return [
        encode([with_answer(row, answer) for answer in others], name=f"other answers to row {index} of the forget set")
        for index, (row, others) in enumerate(zip(rows, answers, strict=True))
    ]
