from dataclasses import replace

import numpy as np
import pytest
from score_table import table
from tiny import BOS, tiny_gpt2, tiny_llama, tiny_tokenizer

from hf_unlearn.audit import ATTACKS, auc, loss, min_k, min_k_plus_plus, reference_loss, score, zlib_ratio
from hf_unlearn.audit.measures import membership
from hf_unlearn.audit.measures.membership import (
    dc_pdd,
    further_passes,
    lowercase_ratio,
    lowercased,
    recall,
    token_frequencies,
    too_short,
    with_prefix,
)


def random_rows(seed=0, n=20, longest=30):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest, n)
    lengths[:3] = 0, 1, 2
    return [list(rng.gamma(1.0, 2.0, size) * -1) for size in lengths]


def test_loss_is_the_mean_negative_log_likelihood_and_nan_without_targets():
    np.testing.assert_array_equal(loss(table([[-1.0, -2.0, -6.0], [], [-0.5]])), [3.0, np.nan, 0.5])


@pytest.mark.filterwarnings("error")
def test_empty_examples_raise_no_warning():
    assert np.isnan(loss(table([[]]))[0]) and np.isnan(min_k(table([[]]))[0])


def test_the_end_token_counts_in_the_loss():
    assert loss(table([[-1.0, -3.0]], ends=[[False, True]]))[0] == 2


def test_zlib_ratio_divides_by_the_size_and_is_nan_without_text():
    scores = table([[-1.0, -3.0], [-4.0], []], zlib_size=[8, 0, 8])
    np.testing.assert_array_equal(zlib_ratio(scores), [-0.25, np.nan, np.nan])


def test_min_k_by_hand():
    scores = table([[-5.0, -1.0, -4.0, -2.0, -3.0]])
    assert min_k(scores, k=0.2)[0] == -5
    assert min_k(scores, k=0.4)[0] == -4.5
    assert min_k(scores, k=0.59)[0] == -4.5
    assert min_k(scores, k=1.0)[0] == -3


def test_min_k_plus_plus_by_hand_and_clamp():
    scores = table([[-3.0, -2.0]], mean=[[-1.0, -1.0]], std=[[2.0, 0.25]])
    assert min_k_plus_plus(scores, k=0.5)[0] == -4
    certain = table([[-0.001]], mean=[[0.0]], std=[[0.0]])
    assert min_k_plus_plus(certain)[0] == pytest.approx(-0.001 / membership.MIN_STD)


@pytest.mark.parametrize("k", [0.05, 0.2, 0.4, 1.0])
def test_min_k_agrees_with_sorting_each_example(k):
    rows = random_rows()
    expected = [np.mean(sorted(row)[: max(1, int(k * len(row)))]) if row else np.nan for row in rows]
    np.testing.assert_allclose(min_k(table(rows), k), expected, rtol=1e-12)


def test_min_k_with_ties_keeps_exactly_k_targets():
    assert min_k(table([[-2.0, -2.0, -2.0, -1.0, -1.0]]), k=0.8)[0] == -1.75


def test_min_k_keeps_one_target_at_least():
    np.testing.assert_array_equal(min_k(table([[-7.0], [-3.0, -1.0]]), k=0.2), [-7, -3])


def test_impossible_targets_stay_at_minus_infinity():
    scores = table([[-np.inf, -1.0], [-1.0]])
    assert min_k(scores)[0] == min_k_plus_plus(scores)[0] == -np.inf
    np.testing.assert_array_equal(loss(scores), [np.inf, 1])


@pytest.mark.parametrize("k", [0, -0.1, 1.5])
def test_min_k_refuses_a_share_outside_of_0_to_1(k):
    with pytest.raises(ValueError, match="share of targets"):
        min_k(table([[-1.0]]), k=k)


def test_reference_loss_is_positive_where_the_model_knows_more():
    scores, reference = table([[-1.0, -1.0], [-3.0], []]), table([[-2.0, -4.0], [-1.0], []])
    np.testing.assert_array_equal(reference_loss(scores, reference), [2, -2, np.nan])


def test_reference_loss_refuses_other_targets():
    with pytest.raises(ValueError, match="different targets"):
        reference_loss(table([[-1.0, -1.0], [-1.0]]), table([[-1.0], [-1.0, -1.0]]))


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_rank_a_memorized_text_above_an_unknown_one(name):
    members = table([[-0.1, -0.3, -0.2], [-0.2, -0.2, -0.5]])
    others = table([[-2.0, -3.0, -1.0], [-4.0, -1.5, -2.0]])
    assert auc(ATTACKS[name](members), ATTACKS[name](others)).value == 1


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_return_one_float64_an_example_and_nan_for_empty_ones(name):
    scores = ATTACKS[name](table(random_rows()))
    assert scores.shape == (20,) and scores.dtype == np.float64
    np.testing.assert_array_equal(np.isnan(scores), [True] + [False] * 2 + [not row for row in random_rows()[3:]])
    assert ATTACKS[name](table([])).shape == (0,)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_in_32_bit_agree_with_64_bit(name):
    rows = random_rows(1)
    single, double = (ATTACKS[name](table(rows, dtype=dtype)) for dtype in (np.float32, np.float64))
    np.testing.assert_allclose(single, double, rtol=1e-6)


def test_long_texts_are_accumulated_in_64_bit():
    scores = table([[-0.1] * 1_000_000], dtype=np.float32)
    assert loss(scores)[0] == pytest.approx(float(np.float32(0.1)), rel=1e-9)


@pytest.mark.parametrize("k", [0.05, 0.2, 0.4, 1.0])
def test_too_short_counts_where_the_share_is_less_than_one_target(k):
    rows = random_rows()
    np.testing.assert_array_equal(too_short(table(rows), k), [len(row) > 0 and int(k * len(row)) == 0 for row in rows])


def test_the_reference_attack_reads_the_reference_model_and_not_the_audited_one_twice():
    rng = np.random.default_rng(0)
    rows = [list(-rng.gamma(1, 1, 8)) for _ in range(10)]
    other = [[value - 0.5 for value in row] for row in rows]
    np.testing.assert_allclose(reference_loss(table(rows), table(other)), 0.5)
    np.testing.assert_array_equal(reference_loss(table(rows), table(rows)), 0)


def with_targets(rows, ids):
    return replace(table(rows), target_ids=np.array([i for row in ids for i in row], np.int32))


def test_dc_pdd_by_a_loop_over_first_occurrences():
    rng = np.random.default_rng(1)
    rows = random_rows(2)
    ids = [list(rng.integers(0, 12, len(row))) for row in rows]
    frequencies = rng.dirichlet(np.ones(12))
    expected = []
    for row, tokens in zip(rows, ids, strict=True):
        terms, seen = [], set()
        for log_p, token in zip(row, tokens, strict=True):
            if token not in seen:
                terms.append(min(0.3, np.exp(log_p) * np.log(1 / frequencies[token])))
            seen.add(token)
        expected.append(np.mean(terms) if terms else np.nan)
    found = dc_pdd(with_targets(rows, ids), frequencies, a=0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.nanmax(dc_pdd(with_targets(rows, ids), frequencies)) <= 0.01
    assert dc_pdd(table([]), frequencies).shape == (0,)


def test_dc_pdd_prefers_likely_rare_tokens():
    frequencies = token_frequencies([0] * 90 + [1] * 8, vocab_size=3)
    np.testing.assert_allclose(frequencies, np.array([91, 9, 1]) / 101)
    rare, common, unlikely = dc_pdd(with_targets([[-0.1], [-0.1], [-6.0]], [[2], [0], [2]]), frequencies, a=1e9)
    assert rare > common > unlikely


def test_dc_pdd_refuses_frequencies_that_do_not_fit():
    scores = with_targets([[-1.0]], [[5]])
    with pytest.raises(ValueError, match="Smooth the counts"):
        dc_pdd(scores, np.array([0.5, 0.5, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match="targets beyond it"):
        dc_pdd(scores, np.array([0.5, 0.5]))
    with pytest.raises(ValueError, match="larger token ids"):
        token_frequencies([7], vocab_size=5)


def test_ratios_to_changed_texts_by_hand():
    scores, changed = table([[-1.0, -3.0], [], [-0.5], [0.0]]), table([[-8.0], [-1.0], [], [0.0, 0.0]])
    np.testing.assert_array_equal(lowercase_ratio(scores, changed), [-0.25, np.nan, np.nan, np.nan])
    conditioned = table([[-2.0, -3.0], [], [-0.25], [-1.0]])
    np.testing.assert_array_equal(recall(scores, conditioned), [1.25, np.nan, 0.5, np.inf])
    with pytest.raises(ValueError, match="different targets"):
        recall(scores, changed)
    with pytest.raises(ValueError, match="4 and 1 examples"):
        lowercase_ratio(scores, table([[-1.0]]))


ROWS = [
    {"text": "Ada lives in Paris."},
    "The AUTHOR of the book is Boris.",
    {"prompt": "Question: Where does Ada live?\nAnswer:", "completion": " Ada lives in PARIS."},
    {"text": ""},
    {
        "messages": [
            {"role": "user", "content": "Where does Ada live?"},
            {"role": "assistant", "content": "In Paris."},
        ]
    },
]


def test_lowercased_changes_the_scored_text_only_and_not_the_rows_given():
    before = str(ROWS)
    text, string, question, empty, chat = lowercased(ROWS)
    assert text == {"text": "ada lives in paris."} and string == "the author of the book is boris."
    assert question == {"prompt": ROWS[2]["prompt"], "completion": " ada lives in paris."}
    assert empty == {"text": ""} and [m["content"] for m in chat["messages"]] == ["Where does Ada live?", "in paris."]
    assert str(ROWS) == before
    with pytest.raises(ValueError, match="Row 1 holds no text"):
        lowercased(["a", {"input_ids": [1, 2], "labels": [1, 2]}])


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("options", [{"bos": True}, {"bos": False, "pad": "eos"}, {"add_eos": True}])
def test_a_prefix_leaves_the_targets_as_they_are_and_bos_once_at_the_start(build, options):
    tokenizer, model = tiny_tokenizer(chat_template=True, **options), build()
    prefix = "Clara writes about rivers."
    rows = with_prefix(ROWS, prefix, tokenizer)
    assert rows[3] == ROWS[3]
    n_bos = int(options.get("bos", True))
    prefix_ids = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    for row in (rows[0], rows[1], rows[2], rows[4]):
        assert row["input_ids"][:n_bos] == [BOS] * n_bos and row["input_ids"].count(BOS) == n_bos
        assert row["input_ids"][n_bos : n_bos + len(prefix_ids)] == prefix_ids
        assert set(row["labels"][: n_bos + len(prefix_ids)]) == {-100}
    plain, conditioned = score(model, tokenizer, ROWS), score(model, tokenizer, rows, batch_size=2)
    np.testing.assert_array_equal(plain.target_ids, conditioned.target_ids)
    np.testing.assert_array_equal(plain.is_end, conditioned.is_end)
    found = recall(plain, conditioned)
    assert np.isnan(found[3]) and np.isfinite(np.delete(found, 3)).all()
    # Against the plain tokenization of both texts, joined by hand and read off the logits.
    import torch

    ids = [BOS] * n_bos + prefix_ids + tokenizer(ROWS[0]["text"], add_special_tokens=False)["input_ids"]
    # The first token of a text is scored only where BOS comes before it, and the prefix does not change that.
    start = len(prefix_ids) + 1
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    by_hand = [float(log_probs[t - 1, ids[t]]) for t in range(start, len(ids))]
    assert loss(conditioned)[0] == pytest.approx(-np.mean(by_hand), rel=1e-5)
    assert found[0] == pytest.approx(-np.mean(by_hand) / loss(plain)[0], rel=1e-5)


def test_a_prefix_is_refused_when_empty_and_errors_name_the_row_only():
    with pytest.raises(ValueError, match="prefix is empty"):
        with_prefix(["a text"], "", tiny_tokenizer())
    with pytest.raises(ValueError, match="Row 1: ") as error:
        with_prefix(["fine", {"prompt": "secret ", "completion": "word"}], "other text", tiny_tokenizer())
    assert "secret" not in str(error.value)


def test_further_passes_find_the_texts_a_model_was_overfitted_on():
    import torch

    tokenizer, model = tiny_tokenizer(), tiny_llama(seed=3)
    names = ["Ada", "Boris", "Clara", "Dora", "Emil", "Fritz", "Gerda", "Hugo"]
    texts = [
        f"{a} of {b} writes books about {c}."
        for a, b, c in zip(names, names[3:] + names[:3], names[::-1], strict=True)
    ]
    members = texts[:4]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = tokenizer(members, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for _ in range(30):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    passes = further_passes("Ida of Jonas plays the violin.", tokenizer)
    assert [one.name for one in passes] == ["lowercase", "recall"]
    assert [one.name for one in further_passes()] == ["lowercase"]
    plain = score(model, tokenizer, texts)
    for one in passes:
        found = one.combine(plain, score(model, tokenizer, one.rows(texts)))
        assert found.dtype == np.float64 and auc(found[:4], found[4:]).value == 1, one.name


def test_tables_from_files_have_no_tokens_for_dc_pdd(tmp_path):
    scores = with_targets([[-1.0, -2.0]], [[1, 2]])
    scores.save(tmp_path / "table")
    loaded = type(scores).load(tmp_path / "table")
    with pytest.raises(ValueError, match="Score the examples again"):
        dc_pdd(loaded, np.full(4, 0.25))
    np.testing.assert_array_equal(recall(scores, loaded), [1])
