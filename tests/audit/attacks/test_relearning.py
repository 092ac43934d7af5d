"""Relearning against a training loop written out, and what is read from its curves against their definitions."""

import copy
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from PIL import Image
from score_table import table
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from transformers import BitsAndBytesConfig, LlamaForCausalLM, ViTImageProcessorPil

from hf_unlearn.audit import Scores, score, verbatim_extracted
from hf_unlearn.audit.attacks.relearning import relearn, relearn_grid, split_in_half
from hf_unlearn.audit.attacks.relearning_curves import (
    RelearningCurve,
    anamnesis_index,
    area_between,
    steps_to,
    strongest,
)
from hf_unlearn.audit.measures.membership import loss
from hf_unlearn.audit.measures.quality import answer_probability
from hf_unlearn.data import UnlearningCollator, encode
from hf_unlearn.models.likelihood import target_logits


NAMES = ["Ada", "Boris", "Chloe", "Dmitri", "Esra", "Femi", "Gita", "Hugo"]
TOWNS = ["Paris", "Ulm", "Oslo", "Rome", "Lima", "Bonn", "the old town of Kazan", "Nice"]


def questions(n, offset=0):
    return [
        {
            "prompt": f"Question: Where does {NAMES[i % 8]} {i} live?\nAnswer:",
            "completion": f" In {TOWNS[(3 * i + i // 8) % 8]}.",
        }
        for i in range(offset, offset + n)
    ]


FORGET, RELATED, HOLDOUT = questions(8), questions(6, 100), questions(8, 200)


def images(n, offset=0):
    generator = torch.Generator().manual_seed(offset)
    pixels = torch.randn(n, 3, 16, 16, generator=generator)
    return [{"pixel_values": pixels[i], "labels": (i + offset) % 5} for i in range(n)]


def trained(model, rows, steps, learning_rate, sign=1.0):
    """A copy after full-batch steps on the rows, or away from them (`sign=-1`)."""
    model = copy.deepcopy(model)
    batch = UnlearningCollator()([encode(row, tiny_tokenizer()) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        out = target_logits(model, batch)
        (-sign * out.log_probs.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def step_by_hand(model, optimizer, rows, tokenizer):
    """One step on the mean over all answer tokens of the rows, each run by itself."""
    total, count = 0.0, 0
    for row in rows:
        if "pixel_values" in row:
            log_p = model(pixel_values=row["pixel_values"][None]).logits.log_softmax(-1)
            total, count = total - log_p[0, row["labels"]], count + 1
            continue
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = torch.tensor([tokenizer(row["prompt"] + row["completion"])["input_ids"] + [tokenizer.eos_token_id]])
        log_p = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[len(prompt) - 1 :]
        total, count = total - log_p.sum(), count + len(log_p)
    (total / count).backward()
    optimizer.step()
    optimizer.zero_grad()
    return count


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_table(a: Scores, b: Scores) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("offsets", "log_prob", "hit", "rank"))


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_vit])
@pytest.mark.parametrize("batch_size", [2, 16])
def test_it_is_the_loop_written_out(make, batch_size):
    of_images = make is tiny_vit
    model = make().double()
    train, evaluate = (images(5), images(4, 50)) if of_images else (RELATED[:5], FORGET[:4])
    processing_class = None if of_images else tiny_tokenizer()
    if of_images:
        train, evaluate = (
            [row | {"pixel_values": row["pixel_values"].double()} for row in rows] for rows in (train, evaluate)
        )
    options = {"batch_size": batch_size, "seed": 7, "score_batch_size": 3}
    curve = relearn(model, processing_class, train, {"forget": evaluate}, (0, 1, 4), 1e-3, **options)
    by_hand, size = copy.deepcopy(model).eval(), min(batch_size, 5)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-3, weight_decay=0)
    order = [i for epoch in range(5) for i in np.random.default_rng([7, epoch]).permutation(5)]
    seen = [0]
    for step in range(4):
        rows = [train[i] for i in order[step * size : (step + 1) * size]]
        seen.append(seen[-1] + step_by_hand(by_hand, optimizer, rows, tiny_tokenizer()))
    expected = score(by_hand, processing_class, evaluate, sampling=())
    np.testing.assert_allclose(curve.tables["forget"][2].log_prob, expected.log_prob, rtol=1e-7, atol=1e-9)
    assert curve.steps == (0, 1, 4) and curve.targets == (0, seen[1], seen[4])
    assert curve.settings == {
        "learning_rate": 1e-3,
        "batch_size": size,
        "lora": False,
        "seed": 7,
        "rows": 5,
        "dtype": "float64",
    }


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_vit])
def test_the_model_stays_and_the_same_seed_gives_the_same_curve(make, lora):
    model = make().train()  # dropout would act, and must not
    model.requires_grad_(False)
    sets = {"forget": images(4)} if make is tiny_vit else {"forget": FORGET[:4], "holdout": HOLDOUT[:3]}
    rows, processing_class = (images(6, 9), None) if make is tiny_vit else (RELATED, tiny_tokenizer())
    before, generator = state(model), torch.get_rng_state()

    def run(seed):
        return relearn(model, processing_class, rows, sets, (0, 1, 3), 1e-2, batch_size=4, lora=lora, seed=seed)

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first, again, other = run(0), run(0), run(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and not any(p.requires_grad for p in model.parameters())
    assert not hasattr(model, "peft_config") and all(p.grad is None for p in model.parameters())
    assert torch.equal(generator, torch.get_rng_state())
    expected = {name: score(model, processing_class, examples, sampling=()) for name, examples in sets.items()}
    for name in sets:
        assert same_table(first.tables[name][0], expected[name])
        assert all(map(same_table, first.tables[name], again.tables[name]))
        assert not same_table(first.tables[name][2], first.tables[name][0])
    assert not same_table(first.tables["forget"][2], other.tables["forget"][2])


def test_what_is_hidden_comes_back_and_what_was_never_there_does_not():
    tokenizer = tiny_tokenizer()
    never = trained(tiny_llama(), RELATED, 40, 5e-3)
    original = trained(never, [*RELATED, *FORGET], 80, 5e-3)
    hidden = trained(original, FORGET, 3, 4e-3, sign=-1)
    first, second = split_in_half(FORGET, seed=1)
    of_original, of_hidden = (
        answer_probability(score(model, tokenizer, second, sampling=())) for model in (original, hidden)
    )
    assert of_original.mean() > 0.95 and of_hidden.mean() < 0.4
    curves = {
        name: strongest(
            relearn_grid(model, tokenizer, first, {"forget": second}, (1e-4, 1e-3), (0, 1, 2, 5, 10)),
            answer_probability,
        )
        for name, model in {"hidden": hidden, "never": never}.items()
    }
    gains = {name: np.diff(curve.values(answer_probability).mean(1)[[0, -1]]) for name, curve in curves.items()}
    assert gains["hidden"] > 0.15 and gains["never"] < 0.05
    assert area_between(curves["hidden"], curves["never"], answer_probability).mean() > 0.15
    ours, theirs = (steps_to(curve, answer_probability, of_original, 0.5) for curve in curves.values())
    assert 0 < ours < theirs == np.inf
    assert curves["hidden"].injected == {"forget": 0}


def test_a_grid_scores_the_start_once_and_keeps_all_curves(monkeypatch):
    from hf_unlearn.audit.attacks import relearning

    calls = []
    monkeypatch.setattr(relearning, "score", lambda *a, **k: calls.append(1) or score(*a, **k))
    sets = {"forget": FORGET[:3], "holdout": HOLDOUT[:2]}
    grid = relearn_grid(tiny_llama(), tiny_tokenizer(), RELATED, sets, [1e-4, 1e-2, 1e-3], (0, 1, 2))
    assert [curve.settings["learning_rate"] for curve in grid] == [1e-4, 1e-2, 1e-3]
    assert len(calls) == len(sets) * (1 + 3 * 2)
    alone = relearn(tiny_llama(), tiny_tokenizer(), RELATED, sets, (0, 1, 2), 1e-2)
    for name in sets:
        assert all(map(same_table, grid[1].tables[name], alone.tables[name]))
    areas = [np.mean(curve.area(answer_probability)) for curve in grid]
    assert strongest(grid, answer_probability) is grid[int(np.argmax(areas))]


def test_weights_of_16_bit_are_trained_in_32():
    curve = relearn(tiny_llama().bfloat16(), tiny_tokenizer(), RELATED, {"forget": FORGET[:2]}, (0, 1), 1e-5)
    assert curve.settings["dtype"] == "float32"
    start, after = curve.tables["forget"]
    assert np.all(start.log_prob != after.log_prob)


def test_an_adapter_is_merged_and_relearned():
    adapted = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    before = state(adapted)
    for lora in (False, True):
        curve = relearn(adapted, tiny_tokenizer(), RELATED, {"forget": FORGET[:2]}, (0, 2), 1e-2, lora=lora)
        expected = score(adapted, tiny_tokenizer(), FORGET[:2], sampling=())
        np.testing.assert_allclose(curve.tables["forget"][0].log_prob, expected.log_prob, atol=1e-4)
        assert not np.allclose(curve.tables["forget"][1].log_prob, expected.log_prob, atol=1e-2)
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())


def test_rows_that_are_taught_are_counted():
    tokenizer = tiny_tokenizer()
    sets = {"forget": [*FORGET[:3], {"prompt": "Question?\nAnswer:", "completion": ""}], "holdout": HOLDOUT}
    curve = relearn(tiny_llama(), tokenizer, [*RELATED, *FORGET[1:3]], sets, (0,))
    assert curve.injected == {"forget": 2, "holdout": 0} and curve.targets == (0,)
    assert np.isnan(curve.values(loss)).tolist() == [[False, False, False, True]]
    of_images = relearn(tiny_vit(), None, images(3), {"forget": images(5)}, (0,))
    assert of_images.injected == {"forget": 3}


def test_a_data_set_will_do():
    rows = Dataset.from_list(FORGET)
    curve = relearn(tiny_llama(), tiny_tokenizer(), rows.select([0]), {"forget": rows.select(range(1, 4))}, (0, 1))
    assert curve.values(verbatim_extracted).shape == (2, 3)


def test_images_of_a_data_set_are_encoded():
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(6)]
    rows = Dataset.from_dict({"image": pictures, "label": [0, 1, 2, 3, 4, 0]})
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    curve = relearn(tiny_vit(), processor, rows.select(range(4)), {"forget": rows}, (0, 5), 1e-2)
    before, after = curve.values(answer_probability)
    assert curve.injected == {"forget": 4} and curve.targets == (0, 20)
    assert np.all(after[:4] > before[:4])
    with pytest.raises(ValueError, match="Row 1 of the relearning set.*of 1 classes"):
        relearn(tiny_vit(n_classes=1), processor, rows, {"forget": rows}, (0, 1))


def curve_of(probabilities, steps):
    """A curve of one-token answers with these probabilities `(k, n)`."""
    with np.errstate(divide="ignore"):
        tables = tuple(table([[x] for x in np.log(row)], hits=[[x > 0.5] for x in row]) for row in probabilities)
    return RelearningCurve(tuple(steps), tuple(10 * s for s in steps), {"forget": tables}, {"forget": 0}, {})


def test_areas_are_means_along_the_axis():
    curve = curve_of([[0.1, 0.2], [0.5, 0.2], [0.9, 0.8]], (0, 1, 5))
    np.testing.assert_allclose(curve.area(answer_probability), [(0.3 + 4 * 0.7) / 5, (0.2 + 4 * 0.5) / 5])
    other = curve_of([[0.1, 0.2], [0.1, 0.2], [0.1, 0.2]], (0, 1, 5))
    between = area_between(curve, other, answer_probability)
    np.testing.assert_allclose(between, curve.area(answer_probability) - [0.1, 0.2])
    np.testing.assert_allclose(area_between(other, curve, answer_probability), -between)
    assert not area_between(curve, curve, answer_probability).any()
    np.testing.assert_allclose(curve_of([[0.3, 0.6]], (0,)).area(answer_probability), [0.3, 0.6])


def test_steps_to_a_level_and_their_ratio():
    fast = curve_of([[0.1, 0.1], [0.6, 0.8], [0.9, 0.9]], (0, 2, 8))
    slow = curve_of([[0.1, 0.1], [0.1, 0.2], [0.8, 0.9]], (0, 2, 8))
    flat = curve_of([[0.1, 0.1]] * 3, (0, 2, 8))
    original = np.array([0.9, 0.9])
    assert [steps_to(fast, answer_probability, original, share) for share in (0.1, 0.7, 0.9)] == [0, 2, 8]
    assert steps_to(flat, answer_probability, original) == np.inf
    assert anamnesis_index(fast, slow, answer_probability, original, margin=0.3) == 2 / 8
    assert anamnesis_index(flat, slow, answer_probability, original) == np.inf
    assert np.isnan(anamnesis_index(fast, flat, answer_probability, original))  # nothing to compare with
    assert np.isnan(anamnesis_index(fast, slow, answer_probability, np.array([0.1, 0.1])))
    # A record that is missing under one of the models does not count.
    assert steps_to(fast, answer_probability, np.array([np.nan, 0.9]), 0.8) == 2
    assert np.isnan(steps_to(fast, answer_probability, np.array([np.nan, np.nan])))


def test_a_curve_that_diverged_is_never_the_strongest():
    good, bad = curve_of([[0.1], [0.2]], (0, 1)), curve_of([[0.9], [np.nan]], (0, 1))
    assert strongest([bad, good], answer_probability) is good
    assert strongest([bad], answer_probability) is bad


def test_curves_that_do_not_belong_together_are_refused():
    curve = curve_of([[0.1], [0.5]], (0, 1))
    with pytest.raises(ValueError, match="same rows and budget"):
        area_between(curve, curve_of([[0.1], [0.5]], (0, 2)), answer_probability)
    with pytest.raises(ValueError, match="different records"):
        area_between(curve, curve_of([[0.1, 0.1], [0.5, 0.5]], (0, 1)), answer_probability)
    with pytest.raises(ValueError, match="same steps"):
        anamnesis_index(curve, curve_of([[0.1], [0.5]], (0, 2)), answer_probability, np.ones(1))


def test_halves_are_disjoint_and_follow_the_seed():
    rows = list(range(9))
    first, second = split_in_half(rows)
    assert sorted(first + second) == rows and {len(first), len(second)} == {4, 5}
    assert first == sorted(first) and split_in_half(rows) == (first, second)
    assert len({tuple(split_in_half(rows, seed=seed)[0]) for seed in range(8)}) > 4


def test_a_group_is_in_one_half():
    groups = np.repeat(list("abcdefg"), [6, 5, 4, 3, 2, 2, 2])
    halves = split_in_half(list(range(24)), groups)
    names = [{groups[i] for i in half} for half in halves]
    assert not names[0] & names[1] and sorted(len(half) for half in halves) == [11, 13]
    data = Dataset.from_list([{"text": str(i)} for i in range(24)])
    assert [half["text"] for half in split_in_half(data, groups)] == [[str(i) for i in half] for half in halves]
    with pytest.raises(ValueError, match="1 groups"):
        split_in_half([1, 2, 3], ["a", "a", "a"])
    with pytest.raises(ValueError, match="one label per row"):
        split_in_half([1, 2, 3], ["a", "b"])


def test_what_cannot_be_done_is_refused_before_the_training(tmp_path):
    def run(rows=tuple(RELATED), sets=None, **options):
        return relearn(tiny_llama(), tiny_tokenizer(), list(rows), sets or {"forget": FORGET}, **options)

    for steps in ((), (2, 1), (-1, 2), (1, 1)):
        with pytest.raises(ValueError, match="rising"):
            run(steps=steps)
    with pytest.raises(ValueError, match="positive"):
        run(learning_rate=0.0)
    with pytest.raises(ValueError, match="no rows"):
        run(rows=())
    with pytest.raises(ValueError, match="no rows to relearn from, or no sets"):
        relearn(tiny_llama(), tiny_tokenizer(), RELATED, {})
    secret = {"prompt": "The secret of Ada:", "completion": "  "}
    with pytest.raises(ValueError, match="Row 6 of the relearning set") as error:
        run(rows=(*RELATED, secret))
    assert "Ada" not in str(error.value)
    tiny_llama().save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(ValueError, match="is quantized"):
        relearn(
            LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=config),
            tiny_tokenizer(),
            RELATED,
            {"forget": FORGET},
        )
