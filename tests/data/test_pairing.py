import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, RandomSampler

from hf_unlearn.data import PairedDataset, UnlearningCollator
from hf_unlearn.data.pairing import batches


def rows(n, first=0):
    """Encoded rows that can be told apart by their first id."""
    return [{"input_ids": [first + i, 1, 2], "labels": [-100, 1, 2], "n_end": 0} for i in range(n)]


def paired(n_forget=4, n_retain=10, seed=0, alternates=False):
    candidates = [rows(3, first=1000 + 10 * i) for i in range(n_forget)] if alternates else None
    return PairedDataset(rows(n_forget), rows(n_retain, first=100), candidates, seed=seed)


def who(example, name):
    return example[name]["input_ids"][0]


# --- partners ---


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 9), st.integers(0, 2**31 - 1))
def test_every_retain_row_is_visited_equally_often_up_to_one_visit(n_forget, n_retain, epochs, seed):
    data = paired(n_forget, n_retain, seed)
    visits = Counter({i: 0 for i in range(n_retain)})
    for epoch in range(epochs):
        visits.update(data.partner(epoch, index) for index in range(n_forget))
        assert max(visits.values()) - min(visits.values()) <= 1
    assert sum(visits.values()) == n_forget * epochs


def test_a_partner_depends_on_seed_epoch_and_index_alone():
    table = {(e, i): paired(50, 70).partner(e, i) for e in range(6) for i in range(50)}
    data = paired(50, 70)
    shuffled = list(table)
    np.random.default_rng(0).shuffle(shuffled)
    torch.manual_seed(1)
    assert all(data.partner(e, i) == table[e, i] for e, i in map(tuple, shuffled))
    assert {paired(50, 70, seed=1).partner(0, i) == table[0, i] for i in range(50)} == {True, False}


def test_pairs_change_from_epoch_to_epoch():
    data = paired(20, 20)
    assert [data.partner(0, i) for i in range(20)] != [data.partner(1, i) for i in range(20)]


def test_set_epoch_chooses_the_partner():
    data = paired()
    for epoch in (0, 3, 1):
        data.set_epoch(epoch)
        assert [who(data[i], "retain") for i in range(4)] == [100 + data.partner(epoch, i) for i in range(4)]
        assert [who(data[i], "forget") for i in range(4)] == [0, 1, 2, 3]


def test_an_epoch_is_the_forget_set():
    assert len(paired(n_forget=4, n_retain=10)) == 4
    assert list(PairedDataset(rows(2))[0]) == ["forget"]


def load(data, epochs, workers, persistent=False, batch_size=3):
    loader = DataLoader(
        data,
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=persistent,
        collate_fn=lambda examples: [(who(e, "forget"), who(e, "retain"), who(e, "alternate")) for e in examples],
        multiprocessing_context="fork" if workers else None,
    )
    seen = []
    for epoch in range(epochs):
        data.set_epoch(epoch)
        seen.append([pair for batch in loader for pair in batch])
    return seen


@pytest.mark.parametrize(("workers", "persistent", "batch_size"), [(2, True, 3), (1, False, 2), (0, False, 7)])
def test_workers_change_nothing_even_those_that_outlive_an_epoch(workers, persistent, batch_size):
    data = paired(8, 5, alternates=True)
    expected = [
        [(i, 100 + data.partner(e, i), 1000 + 10 * i + data.alternate(e, i)) for i in range(8)] for e in range(3)
    ]
    assert load(data, 3, workers, persistent, batch_size) == expected
    assert expected[0] != expected[1] != expected[2]


def test_a_shuffled_epoch_has_the_same_pairs():
    data = paired(9, 4)
    data.set_epoch(2)
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(5))
    pairs = {who(data[i], "forget"): who(data[i], "retain") for i in sampler}
    assert pairs == {i: 100 + data.partner(2, i) for i in range(9)}


def test_a_copy_in_another_process_has_the_epoch():
    data = paired()
    data.set_epoch(3)
    copy = pickle.loads(pickle.dumps(data))
    assert [who(copy[i], "retain") for i in range(4)] == [who(data[i], "retain") for i in range(4)]


# --- alternates and reference log-probabilities ---


def test_alternates_are_drawn_evenly_and_again_each_epoch():
    data = paired(6, 5, alternates=True)
    drawn = Counter(data.alternate(epoch, i) for epoch in range(200) for i in range(6))
    assert sorted(drawn) == [0, 1, 2]
    assert all(abs(n - 400) < 4 * np.sqrt(1200 * 2 / 9) for n in drawn.values())
    data.set_epoch(7)
    assert [who(data[i], "alternate") for i in range(6)] == [1000 + 10 * i + data.alternate(7, i) for i in range(6)]


def test_reference_log_probs_travel_with_their_row():
    data = paired(3, 5, alternates=True)
    data.reference_log_probs = {"forget": np.array([-1.0, -2.0, -3.0]), "alternate": -np.arange(9.0).reshape(3, 3)}
    for epoch in range(4):
        data.set_epoch(epoch)
        batch = UnlearningCollator()([data[i] for i in (2, 0)])
        assert batch["reference_log_probs"].keys() == {"forget", "alternate"}
        assert batch["reference_log_probs"]["forget"].tolist() == [-3.0, -1.0]
        expected = [-3.0 * i - data.alternate(epoch, i) for i in (2, 0)]
        assert batch["reference_log_probs"]["alternate"].tolist() == expected
        assert batch["reference_log_probs"]["forget"].dtype == torch.float32
    assert "reference_log_prob" not in data.forget[0] and "reference_log_prob" not in data.alternates[0][0]


# --- batches ---


def test_rows_are_padded_on_the_right_and_masked_by_their_length():
    examples = [
        {"input_ids": [7, 9, 7], "labels": [-100, 9, 7]},
        {"input_ids": [7], "labels": [-100]},
        {"input_ids": [7, 7], "labels": [7, 7]},
    ]
    batch = UnlearningCollator(pad_token_id=7)(examples)
    assert batch["input_ids"].tolist() == [[7, 9, 7], [7, 7, 7], [7, 7, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 9, 7], [-100, -100, -100], [7, 7, -100]]
    assert {values.dtype for values in batch.values()} == {torch.int64}
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_no_pad_token_is_needed():
    batch = UnlearningCollator(None)([{"input_ids": [5], "labels": [5]}, {"input_ids": [5, 6], "labels": [5, 6]}])
    assert batch["input_ids"].tolist() == [[5, 0], [5, 6]]


def test_tensors_are_collated_too():
    row = {"input_ids": torch.tensor([5, 6]), "labels": torch.tensor([-100, 6])}
    assert UnlearningCollator()([row])["labels"].tolist() == [[-100, 6]]


def test_paired_rows_become_one_batch_part_after_part():
    data = paired(3, 5, alternates=True)
    batch = UnlearningCollator()([data[i] for i in (0, 2)])
    assert batch["parts"] == {"forget": 2, "alternate": 2, "retain": 2}
    assert list(batch["parts"]) == ["forget", "alternate", "retain"]
    examples = [data[0], data[2]]
    assert batch["input_ids"][:, 0].tolist() == [who(e, name) for name in batch["parts"] for e in examples]
    assert batch["reference_log_probs"] == {}


def test_images():
    images = torch.randn(3, 3, 16, 16)
    batch = UnlearningCollator()([{"pixel_values": image, "labels": i} for i, image in enumerate(images)])
    assert set(batch) == {"pixel_values", "labels"}
    assert torch.equal(batch["pixel_values"], images)
    assert batch["labels"].tolist() == [0, 1, 2]
    lists = UnlearningCollator()([{"pixel_values": image.tolist(), "labels": 0} for image in images])
    torch.testing.assert_close(lists["pixel_values"], images)


def test_paired_images():
    forget = [{"pixel_values": torch.full((3, 16, 16), 1.0), "labels": 1}]
    retain = [{"pixel_values": torch.full((3, 16, 16), 2.0), "labels": 2}]
    batch = UnlearningCollator()([PairedDataset(forget, retain)[0]])
    assert batch["labels"].tolist() == [1, 2]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [1.0, 2.0]


def test_batches_hold_all_rows_in_their_order_or_some_evenly_spread():
    rows = [{"input_ids": [i, i], "labels": [i, i]} for i in range(1, 8)]

    def firsts(**options):
        return [
            batch["input_ids"][:, 0].tolist() for batch in batches(rows, UnlearningCollator(), 3, "cpu", **options)
        ]

    assert firsts() == firsts(limit=7) == firsts(limit=100) == [[1, 2, 3], [4, 5, 6], [7]]
    assert firsts(limit=4) == [[1, 2, 4], [6]] and firsts(limit=1) == [[1]]
    assert {
        str(value.device) for batch in batches(rows, UnlearningCollator(), 3, "meta") for value in batch.values()
    } == {"meta"}
