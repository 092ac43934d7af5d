import numpy as np
import pytest
import torch
from scipy.stats import norm, skewnorm
from score_table import table
from tiny import tiny_llama, tiny_tokenizer

from hf_unlearn.audit import score
from hf_unlearn.audit.measures.exposure import exposure, fitted_exposure, make_canaries


CANDIDATES = np.arange(1.0, 8)  # with the canary, 8 fillings


def test_exposure_of_known_ranks_in_the_order_of_the_canaries():
    canaries = [3.5, 0.5, 99.0, 6.5, np.nan]
    np.testing.assert_allclose(exposure(canaries, CANDIDATES), [1, 3, 0, 3 - np.log2(7), np.nan])


def test_a_tie_counts_against_exposure():
    assert exposure([1.0], CANDIDATES)[0] == 3 - np.log2(2)
    assert exposure([1.0], np.ones(7))[0] == 0


def test_each_canary_may_have_its_own_candidates_and_missing_ones_are_not_counted():
    own = np.array([[1.0, 2.0, 3.0, np.nan], [5.0, 6.0, 7.0, 8.0], [np.nan] * 4])
    np.testing.assert_allclose(exposure([0.0, 5.5, 1.0], own), [2, np.log2(5) - 1, np.nan])


def test_tables_are_compared_by_the_likelihood_of_the_whole_text():
    # A longer filling is less likely as a whole, however likely its tokens are on average.
    canaries = table([[-1.0, -1.0], [-3.0], []])
    candidates = table([[-1.0] * 3, [-0.5] * 5, []])
    np.testing.assert_allclose(exposure(canaries, candidates), exposure([2.0, 3.0, np.nan], [3.0, 2.5]))
    np.testing.assert_allclose(exposure(canaries, candidates), [np.log2(3), 0, np.nan])


def test_exposure_without_training_has_the_distribution_it_must_have():
    rng = np.random.default_rng(0)
    values = exposure(rng.normal(size=20_000), rng.normal(size=(20_000, 255)))
    # Uniform ranks: the mean of log2(256 / rank) over the ranks 1 to 256.
    assert values.mean() == pytest.approx(np.log2(256 / np.arange(1, 257)).mean(), abs=0.03)
    assert np.median(values) == pytest.approx(1, abs=0.03)
    for bits in (1, 2, 4):
        assert (values >= bits).mean() == pytest.approx(2.0**-bits, abs=4 * np.sqrt(2.0**-bits / 20_000))


def test_fitted_exposure_agrees_with_the_distribution_the_candidates_come_from():
    truth = skewnorm(3, loc=40, scale=5)
    candidates = truth.rvs(20_000, random_state=np.random.default_rng(1))
    canaries = truth.ppf([0.5, 0.1, 0.01, 0.001])
    np.testing.assert_allclose(fitted_exposure(canaries, candidates), -np.log2([0.5, 0.1, 0.01, 0.001]), atol=0.25)
    by_hand = skewnorm(*skewnorm.fit(candidates))
    np.testing.assert_allclose(fitted_exposure(canaries, candidates), -by_hand.logcdf(canaries) / np.log(2), rtol=0.02)


def test_fitted_exposure_goes_beyond_the_number_of_candidates_and_stays_finite():
    candidates = np.random.default_rng(2).normal(50, 3, 500)
    values = fitted_exposure([50.0, 35.0, -1000.0, 80.0, np.nan], candidates)
    assert values[0] == pytest.approx(1, abs=0.2) and values[3] == pytest.approx(0, abs=1e-6) and np.isnan(values[4])
    assert values[1] > 15 > np.log2(501) and np.isfinite(values[2]) and values[2] > values[1]
    assert np.all(exposure([50.0, 35.0, -1000.0, 80.0], candidates) <= np.log2(501))


def test_far_out_the_tail_of_a_normal_fit_is_that_of_a_normal_distribution():
    from hf_unlearn.audit.measures.exposure import _skewnorm_log_cdf

    z = np.array([-50.0, -40.0, -30.0, -5.0, 0.0, 3.0])
    np.testing.assert_allclose(_skewnorm_log_cdf(z, 0.0), norm.logcdf(z), rtol=1e-6, atol=1e-12)
    # With skew the left tail falls faster; from 40 digits of its integral.
    np.testing.assert_allclose(_skewnorm_log_cdf(np.array([-5.0, -3.0]), 8.0), [-823.117, -302.0993], rtol=1e-4)


def test_a_row_of_candidates_for_each_canary_is_fitted_for_each():
    rng = np.random.default_rng(3)
    own = rng.normal([[10.0], [20.0]], 1, (2, 300))
    alone = [fitted_exposure(np.array([canary]), row)[0] for canary, row in zip([9.0, 20.5], own, strict=True)]
    np.testing.assert_allclose(fitted_exposure([9.0, 20.5], own), alone)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="shape"):
        exposure([1.0, 2.0], np.ones((3, 4)))
    with pytest.raises(ValueError, match="20"):
        fitted_exposure([1.0], np.arange(19.0))
    with pytest.raises(ValueError, match="1 different values"):
        fitted_exposure([1.0], np.ones(50))


def test_canaries_differ_and_follow_the_template_and_the_seed():
    made = make_canaries("Locker ##-##.", 40, n_candidates=60, seed=5)
    texts = [row["text"] for row in made.rows + made.candidates]
    assert len(set(texts)) == 100 == len(texts) and len(made.rows) == len(made.included) == 40
    assert all(len(t) == 13 and t[:7] == "Locker " and t[9] == "-" and (t[7:9] + t[10:12]).isdigit() for t in texts)
    assert made.planted == [row for row, included in zip(made.rows, made.included, strict=True) if included]
    again, other = (make_canaries("Locker ##-##.", 40, n_candidates=60, seed=seed) for seed in (5, 6))
    assert again.rows == made.rows and np.array_equal(again.included, made.included)
    assert other.rows != made.rows and not np.array_equal(other.included, made.included)


def test_the_whole_space_may_be_used_and_digits_are_uniform():
    made = make_canaries("#", 4, n_candidates=6)
    assert sorted(row["text"] for row in made.rows + made.candidates) == [str(digit) for digit in range(10)]
    long = make_canaries("#" * 18, 3000, n_candidates=0)
    digits = np.array([[int(digit) for digit in row["text"]] for row in long.rows])
    assert np.all(np.abs((digits[..., None] == np.arange(10)).mean(axis=(0, 1)) - 0.1) < 0.006)
    assert long.included.mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(3000))
    # The coins know nothing of the digits.
    assert abs(np.corrcoef(digits[:, 0], long.included)[0, 1]) < 4 / np.sqrt(3000)


def test_only_the_answer_of_a_question_is_random():
    made = make_canaries({"prompt": "Room #1? Code:", "completion": " ##"}, 3, n_candidates=4)
    assert {row["prompt"] for row in made.rows} == {"Room #1? Code:"}
    assert all(row["completion"][1:].isdigit() for row in made.rows + made.candidates)


def test_templates_without_room_are_refused():
    with pytest.raises(ValueError, match="has 0 '#'"):
        make_canaries("no digits", 1)
    with pytest.raises(ValueError, match="has 19 '#'"):
        make_canaries("#" * 19, 1)
    with pytest.raises(ValueError, match="100 fillings"):
        make_canaries("##", 50, n_candidates=51)


def test_a_model_overfitted_on_a_canary_exposes_it_and_no_other():
    tokenizer, model = tiny_tokenizer(), tiny_llama(seed=1)
    made = make_canaries("The code of the door is #######.", 33, n_candidates=255, seed=0)
    planted = [row["text"] for row in made.rows[:1]]
    before = score(model, tokenizer, [*made.rows, *made.candidates], batch_size=64, sampling=())
    batch = tokenizer(planted, return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(25):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = score(model, tokenizer, [*made.rows, *made.candidates], batch_size=64, sampling=())

    first, untrained = exposure(after[:33], after[33:]), exposure(before[:33], before[33:])
    assert first[0] == 8 == np.log2(256) and untrained[0] < 6
    # Of 32 that were not planted: the mean is 1.44, its standard error a quarter of that.
    for values in (first[1:], untrained):
        assert values.mean() == pytest.approx(1.44, abs=0.8)
    fitted = fitted_exposure(after[:33], after[33:])
    assert fitted[0] > 20 and fitted[0] > 2 * fitted[1:].max()
