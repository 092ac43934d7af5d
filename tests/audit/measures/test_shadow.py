from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from score_table import table
from sklearn.metrics import roc_auc_score

from hf_unlearn.audit import auc, loss
from hf_unlearn.audit.measures.shadow import lira, logit_confidence, rmia


RNG = np.random.default_rng(0)


def random_tables(n, models, shift=0.0, seed=0):
    """Tables of the same targets under several models; one example has none."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, n)
    lengths[-1] = 0
    return [table([list(-rng.gamma(1.5, 1, size) - shift) for size in lengths]) for _ in range(models)]


def of_labels(scores):
    return replace(scores, meta={"targets": "label"})


@pytest.mark.parametrize(("n_references", "kind", "a"), [(1, of_labels, 0.3), (4, of_labels, 0.3), (2, replace, 1.0)])
def test_rmia_agrees_with_a_loop_over_all_pairs(n_references, kind, a):
    target, *references = map(kind, random_tables(30, 1 + n_references, seed=1))
    population, *population_references = map(kind, random_tables(17, 1 + n_references, seed=2))

    def ratio(scores, refs, i):
        p = np.exp(-loss(scores)[i])
        out = np.mean([np.exp(-loss(ref)[i]) for ref in refs])
        return p / ((1 + a) / 2 * out + (1 - a) / 2)

    others = [ratio(population, population_references, j) for j in range(16)]
    expected = []
    for i in range(29):
        x = ratio(target, references, i)
        expected.append(np.mean([x > z for z in others]))
    found = rmia(target, references, population, population_references)
    np.testing.assert_allclose(found[:29], expected, rtol=1e-12)
    assert np.isnan(found[29]) and found.dtype == np.float64


def test_rmia_of_texts_whose_probability_underflows():
    target, reference, other, other_reference = (table([[-value]]) for value in (2000.0, 2010.0, 2000.0, 2005.0))
    assert rmia(target, [reference], other, [other_reference]) == [1]
    assert rmia(other, [other_reference], target, [reference]) == [0]


def test_rmia_of_a_model_that_is_its_own_reference_finds_nothing():
    # All ratios are 1, none of which exceeds another.
    target, population = random_tables(9, 1, seed=3)[0], random_tables(7, 1, seed=4)[0]
    np.testing.assert_array_equal(rmia(target, [target], population, [population]), [0] * 8 + [np.nan])


def simulated(n=2000, seed=0, n_references=2):
    """Members have a loss lower by 0.5 than each text's own difficulty suggests; difficulties differ by far more."""
    rng = np.random.default_rng(seed)
    difficulty = rng.uniform(1, 5, 2 * n)
    is_member = np.repeat([True, False], n)

    def under(trained_on):
        return table([[-value] for value in difficulty - 0.5 * trained_on + rng.normal(0, 0.2, 2 * n)])

    return is_member, under(is_member), [under(0) for _ in range(n_references)]


def test_rmia_removes_the_difficulty_of_the_texts():
    is_member, target, references = simulated()
    _, population, population_references = simulated(500, seed=1)
    population, population_references = population[500:], [one[500:] for one in population_references]
    found = rmia(target, references, population, population_references)
    # The best test knows the difficulty but for the noise of target and references: a shift of 0.5.
    optimal = norm.cdf(0.5 / np.sqrt(2) / np.hypot(0.2, 0.2 / np.sqrt(2)))
    assert auc(found[is_member], found[~is_member]).value == pytest.approx(optimal, abs=0.02)
    plain = -loss(target)
    assert auc(plain[is_member], plain[~is_member]).value < 0.65


def test_the_constant_for_labels_would_swamp_the_small_probabilities_of_texts():
    is_member, target, references = simulated(500)
    _, population, population_references = simulated(500, seed=1)
    values = []
    for kind in (replace, of_labels):
        found = rmia(kind(target), [*map(kind, references)], kind(population), [*map(kind, population_references)])
        values.append(auc(found[is_member], found[~is_member]).value)
    assert values[0] > 0.9 > 0.75 > values[1]


def test_rmia_refuses_what_does_not_fit():
    target, reference = random_tables(5, 2)
    with pytest.raises(ValueError, match="at least one"):
        rmia(target, [], target, [])
    with pytest.raises(ValueError, match="1 references of the records and 2 of the population"):
        rmia(target, [reference], target, [reference, reference])
    with pytest.raises(ValueError, match="different targets"):
        rmia(target, [random_tables(6, 1)[0]], target, [reference])
    with pytest.raises(ValueError, match="No population record"):
        rmia(target, [reference], table([[]]), [table([[]])])


def test_logit_confidence_of_texts():
    scores = table([[np.log(0.9), np.log(0.4)], [-1e-9], [-800.0], [], [0.0]])
    p = np.sqrt(0.36)
    expected = [np.log(p / (1 - p)), np.log(1 / 1e-9), -800, np.nan, -np.log(np.finfo(float).eps)]
    np.testing.assert_allclose(logit_confidence(scores), expected, rtol=1e-7)
    single = logit_confidence(table([[0.0]], dtype=np.float32))
    np.testing.assert_allclose(single, -np.log(np.finfo(np.float32).eps))


def test_logit_confidence_of_labels_is_the_logit_against_all_other_classes():
    logits = RNG.normal(0, 3, (6, 4))
    logits[5] = [200, 0, 0, 0]  # 1 - p is 0 in 64 bit, but its logarithm is not
    labels = np.array([0, 1, 2, 3, 0, 0])
    log_p = logits - np.log(np.exp(logits - 200).sum(1, keepdims=True)) - 200
    scores = table([[value] for value in log_p[np.arange(6), labels]])
    scores = replace(scores, target_ids=labels.astype(np.int32), class_log_probs=log_p)
    others = [np.log(np.exp(np.delete(row, label)).sum()) for row, label in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(logit_confidence(scores), logits[np.arange(6), labels] - others, rtol=1e-12)


def shadow_models(n=40, k_in=5, k_out=7, seed=0):
    rng = np.random.default_rng(seed)
    center = rng.normal(0, 2, n)
    return rng.normal(center, 1), rng.normal(center + 1, 0.7, (k_in, n)), rng.normal(center, 1.2, (k_out, n))


@pytest.mark.parametrize("models", [5, 40])
def test_lira_agrees_with_densities_record_by_record(models):
    phi, phi_in, phi_out = shadow_models(k_in=models, k_out=models + 2)
    phi_in[0, 3], phi_out[2:4, 5] = np.nan, np.nan

    def fit(side, i):
        values = side[~np.isnan(side[:, i]), i]
        if models == 40:
            return values.mean(), values.std(ddof=1)
        columns = [side[~np.isnan(side[:, j]), j] for j in range(len(phi))]
        degrees = sum(len(column) - 1 for column in columns)
        return values.mean(), np.sqrt(sum(((column - column.mean()) ** 2).sum() for column in columns) / degrees)

    expected = [
        np.log(norm(*fit(phi_in, i)).pdf(phi[i]) / norm(*fit(phi_out, i)).pdf(phi[i])) for i in range(len(phi))
    ]
    np.testing.assert_allclose(lira(phi, phi_in, phi_out), expected, rtol=1e-9)
    offline = [(phi[i] - fit(phi_out, i)[0]) / fit(phi_out, i)[1] for i in range(len(phi))]
    np.testing.assert_allclose(lira(phi, None, phi_out), offline, rtol=1e-9)


def test_lira_takes_one_variance_for_all_when_a_single_record_has_few_models():
    phi, phi_in, phi_out = shadow_models(k_in=32, k_out=32)
    by_record = lira(phi, phi_in, phi_out)
    phi_in[0, 7] = np.nan
    # The ratio of the first record changes, though its own models are the same.
    assert abs(lira(phi, phi_in, phi_out)[0] - by_record[0]) > 1e-3


@pytest.mark.parametrize("direction", [1, -1])
def test_lira_comes_near_the_best_test_where_the_truth_is_known(direction):
    rng = np.random.default_rng(1)
    n = 3000
    center, gain, spread_in, spread_out = rng.normal(0, 3, n), 1.5, 0.8, 1.0
    member = np.repeat([True, False], n // 2)
    phi = np.where(member, rng.normal(center + gain, spread_in), rng.normal(center, spread_out))
    phi_in, phi_out = rng.normal(center + gain, spread_in, (64, n)), rng.normal(center, spread_out, (64, n))
    truth = norm.logpdf(phi, center + gain, spread_in) - norm.logpdf(phi, center, spread_out)
    best = roc_auc_score(member, truth)
    # Of a loss, which is lower for members, the two fits give the same scores.
    phi, phi_in, phi_out = direction * phi, direction * phi_in, direction * phi_out
    for models in (64, 31):
        found = lira(phi, phi_in[:models], phi_out[:models])
        assert auc(found[member], found[~member]).value == pytest.approx(best, abs=0.01)
        assert np.corrcoef(found, truth)[0, 1] > 0.95
    few = lira(phi, phi_in[:4], phi_out[:4])
    assert auc(few[member], few[~member]).value == pytest.approx(best, abs=0.03)
    assert roc_auc_score(member, direction * phi) < best - 0.1 or direction < 0


def test_lira_finds_nothing_where_in_and_out_are_the_same():
    rng = np.random.default_rng(2)
    phi, phi_in, phi_out = rng.normal(size=2000), rng.normal(size=(40, 2000)), rng.normal(size=(40, 2000))
    found = lira(phi, phi_in, phi_out)
    result = auc(found[:1000], found[1000:])
    assert result.low < 0.5 < result.high


def test_lira_marks_records_that_cannot_be_scored():
    phi, phi_in, phi_out = shadow_models(n=6)
    phi[0], phi_in[:, 1], phi_out[1:, 2], phi_out[:, 3] = np.inf, np.nan, np.nan, 4.0
    np.testing.assert_array_equal(np.isnan(lira(phi, phi_in, phi_out)), [1, 1, 0, 0, 0, 0])


def test_lira_marks_a_record_whose_models_do_not_differ():
    phi, phi_in, phi_out = shadow_models(n=6, k_in=32, k_out=32)
    phi_out[:, 3] = 4.0
    np.testing.assert_array_equal(np.isnan(lira(phi, phi_in, phi_out)), [0, 0, 0, 1, 0, 0])


def test_lira_refuses_what_does_not_fit():
    phi, phi_in, phi_out = shadow_models()
    with pytest.raises(ValueError, match="two shadow models"):
        lira(phi, phi_in[:1], phi_out)
    with pytest.raises(ValueError, match="shape"):
        lira(phi, phi_in.T, phi_out)
