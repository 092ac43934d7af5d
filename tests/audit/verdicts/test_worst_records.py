import numpy as np
import pytest

from hf_unlearn.audit.verdicts.worst_records import worst_records


def test_the_planted_records_come_first():
    rng = np.random.default_rng(0)
    retrained = rng.normal(size=100)
    unlearned = retrained + rng.normal(0, 0.1, 100)
    unlearned[[7, 42, 3]] += [3, 5, 4]
    found = worst_records(unlearned, retrained, k=3)
    assert found.indices.tolist() == [42, 3, 7]
    np.testing.assert_allclose(found.excess, (unlearned - retrained)[[42, 3, 7]])


def test_about_five_percent_are_above_the_limit_by_chance():
    shares = {1: [], 3: []}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        record = rng.normal(size=200)
        models = [record + rng.normal(0, 0.3, 200) for _ in range(4)]
        shares[1].append(worst_records(models[0], models[1]).share_above.value)
        shares[3].append(worst_records(models[0], models[1], further_retrained=models[2:]).share_above.value)
    assert np.mean(shares[1]) == pytest.approx(0.05, abs=0.01)
    assert np.mean(shares[3]) == pytest.approx(0.05, abs=0.01)


def test_several_seeds_find_what_hides_in_the_spread_of_records():
    rng = np.random.default_rng(1)
    record = rng.normal(0, 5, 200)
    first, second, third = (record + rng.normal(0, 0.1, 200) for _ in range(3))
    leaky = first + np.where(np.arange(200) < 40, 1.0, 0)
    assert worst_records(leaky, first).share_above.value < 0.08
    assert worst_records(leaky, first, further_retrained=[second, third]).share_above.value == pytest.approx(0.2)


def test_missing_records_keep_their_places():
    found = worst_records([1.0, np.nan, 5.0, 2.0], [0.0, 0.0, np.nan, 0.5])
    assert found.indices.tolist() == [3, 0] and found.n_missing == 2
    assert found.share_above.n == (2,)
    with pytest.raises(ValueError, match="same order"):
        worst_records([1.0], [1.0, 2.0])
