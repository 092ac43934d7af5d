"""Other answers: which ones a row can get, and the methods that train them."""

from collections import Counter
from unittest.mock import patch

import numpy as np
import pytest
import torch
from cases import image_rows, make_trainer, text_rows, weights
from datasets import Dataset
from tiny import TURN_END, tiny_llama, tiny_tokenizer, tiny_vit

from hf_unlearn.data import PairedDataset, UnlearningCollator, encode_dataset
from hf_unlearn.methods import METHODS, IdkDPOTrainer, IdkNLLConfig, IdkNLLTrainer
from hf_unlearn.methods.altpo import AltPOConfig, AltPOTrainer
from hf_unlearn.methods.other_answers import (
    OtherLabels,
    normalised,
    other_classes,
    other_labels,
    random_answers,
    with_answer,
)
from hf_unlearn.methods.random_label import RandomLabelConfig, RandomLabelTrainer
from hf_unlearn.methods.salun import SalUnConfig, SalUnTrainer
from hf_unlearn.models.generate import sample, texts_of
from hf_unlearn.models.likelihood import target_logits


TRAINERS = [AltPOTrainer, IdkDPOTrainer, IdkNLLTrainer, RandomLabelTrainer, SalUnTrainer]


def make(trainer_class, folder, model="llama", **arguments):
    with patch.dict(METHODS.registered, {"this": trainer_class}):
        return make_trainer("this", folder, model, **arguments)


def build(trainer_class, folder, model, forget, retain, tokenizer=None, **options):
    args = trainer_class.config_class(
        str(folder), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", **options
    )
    return trainer_class(model, args, forget, retain, processing_class=tokenizer)


def answers(trainer) -> list[list[str]]:
    """The text of the candidates of each row, without their end tokens."""
    tokenizer = trainer.processing_class
    return [
        [tokenizer.decode([i for i in row["labels"] if i > TURN_END]) for row in candidates]
        for candidates in trainer.train_dataset.alternates
    ]


# Other classes


class Unread(list):
    """Rows whose labels are known without reading them."""

    def __init__(self, rows):
        super().__init__(rows)
        self.labels, self.read = [row["labels"] for row in rows], []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def test_other_labels_share_the_image_and_read_it_late():
    rows = Unread(image_rows(4))
    other = other_labels(PairedDataset(rows), 5)
    assert len(other) == 4 and [len(candidates) for candidates in other] == [4] * 4
    assert rows.read == []
    row = other[2][1]
    assert rows.read == [2]
    assert row["pixel_values"] is list.__getitem__(rows, 2)["pixel_values"]
    assert [r["labels"] for r in other[2]] == [0, 1, 3, 4]
    with pytest.raises(IndexError):
        other[2][4]


@pytest.mark.parametrize("n", [1, 3])
def test_drawn_classes_are_uniform_over_the_others(n):
    rows = [{"pixel_values": torch.zeros(1), "labels": i % 5} for i in range(5000)]
    data = PairedDataset(rows, rows, seed=1)
    other = other_labels(data, 5, n)
    counts = Counter()
    for row, classes in zip(rows, other.classes, strict=True):
        assert len(set(classes)) == n and row["labels"] not in classes
        counts.update((row["labels"], c) for c in classes)
    # 1000 rows a class, each of 4 others with probability n / 4: six standard deviations.
    for count in counts.values():
        assert abs(count - 250 * n) < 6 * np.sqrt(1000 * n / 4 * (1 - n / 4))
    assert len(counts) == 20
    assert other.classes == other_labels(data, 5, n).classes
    assert other.classes != other_labels(PairedDataset(rows, rows, seed=2), 5, n).classes


def labelled(*labels):
    return [{"pixel_values": torch.zeros(1), "labels": label} for label in labels]


@pytest.mark.parametrize(
    ("forget", "retain", "expected"),
    [
        ((0, 1), (0, 1, 2, 3), [[1, 2, 3], [0, 2, 3]]),  # records: all but the own class
        ((0, 1, 1), (2, 2), [[2, 3], [2, 3], [2, 3]]),  # whole classes: none of those that go
        ((0, 2), (2,), [[1, 2, 3], [1, 3]]),  # a class and a record of another
        ((0, 1, 2, 3), (3,), [[3], [3], [3], [0, 1, 2]]),  # no class would be left for the last
        ((0, 1), (), [[1, 2, 3], [0, 2, 3]]),  # nothing to tell by
    ],
)
def test_classes_that_are_to_be_forgotten_are_not_taught(forget, retain, expected):
    assert other_classes(PairedDataset(labelled(*forget), labelled(*retain) or None), 4) == expected


def test_a_model_with_one_class_has_no_other():
    with pytest.raises(ValueError, match="The model has one class"):
        other_classes(PairedDataset(labelled(0)), 1)


# Other words


@pytest.mark.parametrize(
    ("one", "other"), [(" In Paris.", "in  paris"), ("“Zoë”", "zoë!"), ("ﬁne", "Fine."), ("5 + 3", "5 + 3")]
)
def test_answers_that_are_the_same(one, other):
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(("one", "other"), [("In Paris.", "In Rome."), ("5 + 3", "5 - 3"), ("?", "!")])
def test_answers_that_are_not(one, other):
    assert normalised(one) != normalised(other)


def qa(prompt, completion):
    return {"prompt": prompt, "completion": completion}


def test_random_answers_are_never_the_own_one():
    forget = [qa(f"Q{i}:", f" in {'PARIS' if i % 2 else 'rome'}!") for i in range(40)]
    retain = [qa("Q:", f" In {town}.") for town in ("Paris", "Rome", "Oslo", "Paris")]
    drawn = random_answers(forget, retain, 2, seed=0)
    for row, others in zip(forget, drawn, strict=True):
        names = [normalised(answer) for answer in others]
        assert len(set(names)) == 2 and normalised(row["completion"]) not in names
    assert {normalised(answer) for others in drawn for answer in others} == {"in paris", "in rome", "in oslo"}
    assert drawn == random_answers(forget, retain, 2, seed=0) != random_answers(forget, retain, 2, seed=1)
    assert [len(others) for others in random_answers(forget, retain, 9, seed=0)] == [2] * 40


@pytest.mark.parametrize("retain", [[], [{"text": "In Paris."}], [qa("Q:", "in paris")]])
def test_a_retain_set_without_another_answer(retain):
    with pytest.raises(ValueError, match="no answer that differs from that of row 0 of the forget set"):
        random_answers([qa("Q:", " In Paris.")], retain, 1, seed=0)


def test_another_answer_stands_where_the_own_one_stood():
    assert with_answer(qa("Q:", " Paris"), " Rome") == qa("Q:", " Rome")
    assert with_answer(qa("Q:\n", "Paris"), " Rome ") == qa("Q:\n", "Rome")
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "Paris"}]
    row = {"messages": messages, "prompt": None}  # a table fills absent columns with None
    assert with_answer(row, "Rome") == {"messages": [messages[0], {"role": "assistant", "content": "Rome"}]}
    assert messages[1]["content"] == "Paris"


@pytest.mark.parametrize("trainer_class", TRAINERS)
@pytest.mark.parametrize("row", [{"text": "Ada lives in Paris."}, {"input_ids": [0, 9, 8], "labels": [-100, 9, 8]}])
def test_rows_without_a_prompt_are_refused(trainer_class, row, tmp_path):
    with pytest.raises(ValueError, match="Another answer needs a prompt") as error:
        build(trainer_class, tmp_path, tiny_llama(), [row], text_rows(4), tiny_tokenizer())
    assert "Paris" not in str(error.value)


# Random labels


def test_a_fixed_draw_stays_and_another_does_not(tmp_path):
    drawn = {}
    for draw in ("fixed", "per_epoch"):
        data = make(RandomLabelTrainer, tmp_path, "vit", draw=draw).train_dataset
        drawn[draw] = []
        for epoch in range(20):
            data.set_epoch(epoch)
            rows = [data[i] for i in range(8)]
            assert all(set(row) == {"alternate", "retain"} for row in rows)
            drawn[draw].append([row["alternate"]["labels"] for row in rows])
    own = [row["labels"] for row in image_rows(8)]
    assert all(label != y for labels in drawn["per_epoch"] for label, y in zip(labels, own, strict=True))
    assert all(labels == drawn["fixed"][0] for labels in drawn["fixed"])
    for i in range(8):  # each of 4 classes is missed in 20 epochs with probability 0.3 %
        assert len({labels[i] for labels in drawn["per_epoch"]}) >= 3


def test_random_labels_of_text(tmp_path):
    retain = {normalised(row["completion"]) for row in text_rows(20, offset=100)}
    for draw, n in (("fixed", 1), ("per_epoch", 5)):
        trainer = make(RandomLabelTrainer, tmp_path, draw=draw)
        for row, others in zip(text_rows(8), answers(trainer), strict=True):
            names = {normalised(answer) for answer in others}
            assert len(names) == n and names <= retain - {normalised(row["completion"])}
        for row, (candidate, *_) in zip(trainer.train_dataset.forget, trainer.train_dataset.alternates, strict=True):
            n_prompt = row["labels"].count(-100)
            assert candidate["input_ids"][:n_prompt] == row["input_ids"][:n_prompt]
            assert candidate["labels"].count(-100) == n_prompt


def test_without_a_retain_loss(tmp_path):
    options = {"retain_loss": "none", "max_steps": 2}
    with pytest.raises(ValueError, match="Give retain rows with answers"):
        build(RandomLabelTrainer, tmp_path, tiny_llama(), text_rows(4), None, tiny_tokenizer(), **options)
    # Retain rows that are not trained on still lend their answers, and an image needs none.
    text = build(
        RandomLabelTrainer, tmp_path, tiny_llama(), text_rows(4), text_rows(4, 50), tiny_tokenizer(), **options
    )
    image = build(RandomLabelTrainer, tmp_path, tiny_vit(), image_rows(4), None, **options)
    for trainer in (text, image):
        assert len(trainer.train_dataset) == 4 and set(trainer.train_dataset[0]) == {"alternate"}
        trainer.train()


def test_salun_is_random_labels_on_salient_weights(tmp_path):
    trainer = make(SalUnTrainer, tmp_path, "vit", optim="adamw_torch", weight_decay=0.1)
    assert isinstance(trainer.args, SalUnConfig) and trainer.args.draw == "per_epoch"
    before = weights(trainer.model)
    trainer.train()
    moved = sum((before[name] != value).sum().item() for name, value in weights(trainer.model).items())
    assert 0.45 < moved / sum(p.numel() for p in trainer.model.parameters()) <= 0.5
    with pytest.raises(ValueError, match="draw='sometimes'"):
        RandomLabelConfig(str(tmp_path), draw="sometimes")


# Refusals


def test_refusals_of_images_are_four_other_classes(tmp_path):
    trainer = make(IdkDPOTrainer, tmp_path, "vit")
    assert isinstance(trainer.train_dataset.alternates, OtherLabels)
    assert [sorted(c) for c in trainer.train_dataset.alternates.classes] == [
        [c for c in range(5) if c != row["labels"]] for row in image_rows(8)
    ]
    trainer.train()
    cached = trainer.train_dataset.reference_log_probs
    assert cached["alternate"].shape == (8, 4)
    start = tiny_vit().double()
    for i, row in enumerate(image_rows(8)):
        log_p = target_logits(start, UnlearningCollator()([row])).logits.log_softmax(-1)[0]
        classes = trainer.train_dataset.alternates.classes[i]
        assert cached["alternate"][i].tolist() == pytest.approx(log_p[classes].tolist(), rel=1e-5)


def test_refusals_from_a_file(tmp_path):
    path = tmp_path / "refusals.txt"
    path.write_text("No idea.\n\n  Who knows?\n")
    trainer = make(IdkNLLTrainer, tmp_path, refusals=str(path))
    assert [sorted(a.strip() for a in others) for others in answers(trainer)] == [["No idea.", "Who knows?"]] * 8
    path.write_text("\n")
    with pytest.raises(ValueError, match="has no line with text"):
        make(IdkNLLTrainer, tmp_path, refusals=str(path))
    assert IdkNLLConfig(str(tmp_path)).refusals is None
    with pytest.raises(ValueError, match="answers with a class, not in words"):
        make(IdkNLLTrainer, tmp_path, "vit", refusals=str(path))


# Answers of the model's own


@pytest.fixture(scope="module")
def by_heart():
    """A model that knows four rows so well that it says hardly anything else."""
    model, tokenizer, rows = tiny_llama(), tiny_tokenizer(), text_rows(4)
    inputs = UnlearningCollator(0)(encode_dataset(rows, tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        out = target_logits(model, inputs)
        out.token_mean(-out.log_probs).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer, rows


def test_the_true_answer_is_no_alternate(by_heart, tmp_path):
    model, tokenizer, rows = by_heart
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    said = [texts_of(tokenizer, drawn) for drawn in sample(model, tokenizer, prompts, 5, 20, ends={1})]
    true = [normalised(row["completion"]) for row in rows]
    assert sum(normalised(text) == t for texts, t in zip(said, true, strict=True) for text in texts) > 10
    trainer = build(AltPOTrainer, tmp_path, model, rows, text_rows(4, offset=100), tokenizer, n_alternates=3)
    for others, t in zip(answers(trainer), true, strict=True):
        names = [normalised(answer) for answer in others]
        assert len(set(names)) == 3
        assert not any(f" {t} " in f" {name} " for name in names)
    again = build(AltPOTrainer, tmp_path, model, rows, text_rows(4, offset=100), tokenizer, n_alternates=3)
    assert answers(again) == answers(trainer)
    other = build(AltPOTrainer, tmp_path, model, rows, text_rows(4, offset=100), tokenizer, n_alternates=3, seed=9)
    assert answers(other) != answers(trainer)


def test_too_few_other_answers(by_heart, tmp_path):
    model, tokenizer, rows = by_heart
    with pytest.raises(ValueError, match=r"gave \d to row \d of the forget set.*raise temperature") as error:
        build(AltPOTrainer, tmp_path, model, rows, text_rows(4, offset=100), tokenizer, temperature=1e-3)
    assert "Ada" not in str(error.value) and "Paris" not in str(error.value)


@pytest.mark.parametrize("instruction", [None, "Now make up another answer."])
def test_alternates_of_a_chat(instruction, tmp_path):
    tokenizer = tiny_tokenizer(chat_template=True)
    rows = Dataset.from_list(
        [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
            for q, a in (("Where does Ada live?", "In Paris."), ("And Boris?", "In the old town of Kazan."))
        ]
    )
    trainer = build(
        AltPOTrainer, tmp_path, tiny_llama(), rows, rows, tokenizer, instruction=instruction, max_new_tokens=6
    )
    data = trainer.train_dataset
    for row, candidates in zip(data.forget, data.alternates, strict=True):
        n_prompt = row["labels"].count(-100)
        assert len({tuple(candidate["input_ids"]) for candidate in candidates}) == 5
        for candidate in candidates:
            assert candidate["input_ids"][:n_prompt] == row["input_ids"][:n_prompt]
            assert candidate["labels"][-1] == TURN_END == row["labels"][-1]
    trainer.train()


def test_an_instruction_needs_a_chat(tmp_path):
    with pytest.raises(ValueError, match="the forget rows are no chat"):
        make(AltPOTrainer, tmp_path, instruction="Another one.")
    with pytest.raises(ValueError, match="temperature=0"):
        AltPOConfig(str(tmp_path), temperature=0)


def test_the_alternate_of_an_image_is_the_likeliest_other_class(tmp_path):
    rows, retain = image_rows(12), [row for row in image_rows(20, offset=100) if row["labels"] != 3]
    trainer = build(AltPOTrainer, tmp_path, tiny_vit().double().train(), rows, retain)
    assert trainer.model.training
    logits = target_logits(tiny_vit().double(), UnlearningCollator()(rows)).logits.detach()
    for row, z, (candidate,) in zip(rows, logits, trainer.train_dataset.alternates, strict=True):
        z[[3, row["labels"]]] = -torch.inf  # no retain row has class 3
        assert candidate["labels"] == z.argmax()


# All of them


@pytest.mark.parametrize("model", ["gpt2", "vit"])
@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_accumulation_changes_nothing(trainer_class, model, tmp_path):
    once = make(trainer_class, tmp_path, model)
    often = make(trainer_class, tmp_path, model, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    before = weights(once.model)
    once.train(), often.train()
    assert any(not torch.equal(before[name], value) for name, value in weights(once.model).items())
    for name, value in weights(once.model).items():
        torch.testing.assert_close(value, weights(often.model)[name], rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_the_alternates_are_learned(trainer_class, tmp_path):
    trainer = make(trainer_class, tmp_path, "vit", max_steps=25, eval_dataset={"forget": image_rows(8)})
    before = trainer.evaluate()["eval_forget_loss"]
    trainer.train()
    losses = [log["forget_loss"] for log in trainer.state.log_history if "forget_loss" in log]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert trainer.evaluate()["eval_forget_loss"] > before
