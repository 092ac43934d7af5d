import numpy as np
import pytest
from scipy.stats import beta, binom, norm

from hf_unlearn.statistics.intervals import rate
from hf_unlearn.statistics.sampling import distribution_band, leakage_bounds


# Scores in [0, 1] as a model might give them: sampler, true mean and standard deviation, distribution function.
def mixture(rng, size):
    return np.where(rng.random(size) < 0.05, 1.0, 0.1)  # leaks all, now and then


SHAPES = {
    "smooth": (lambda rng, size: rng.beta(2, 5, size), beta(2, 5).mean(), beta(2, 5).std(), beta(2, 5).cdf),
    "now and then": (
        mixture,
        0.145,
        0.9 * np.sqrt(0.05 * 0.95),
        lambda x: np.where(x < 0.1, 0.0, np.where(x < 1, 0.95, 1.0)),
    ),
    "coin": (lambda rng, size: (rng.random(size) < 0.5) * 1.0, 0.5, 0.5, lambda x: np.where(x < 1, 0.5, 1.0)),
    "constant": (lambda rng, size: np.full(size, 0.3), 0.3, 0.0, lambda x: np.where(x < 0.3, 0.0, 1.0)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("m", [16, 200])
def test_bounds_cover_the_truth_as_often_as_they_say(shape, m):
    draw, mean, std, cdf = SHAPES[shape]
    n, level = 1000, 0.9
    values = draw(np.random.default_rng(0), (n, m))
    bounds = leakage_bounds(values, 0.25, level)
    truth = {"share": 1 - float(cdf(0.25)), "mean": mean, "std": std}
    # Below this a level of 90 % would be refuted.
    enough = binom.ppf(0.001, n, level) / n
    for name, value in truth.items():
        low, high = getattr(bounds, f"{name}_low"), getattr(bounds, f"{name}_high")
        covered = (low - 1e-12 <= value) & (value <= high + 1e-12)
        assert covered.mean() >= enough, name
        assert ((low <= getattr(bounds, name) + 1e-12) & (getattr(bounds, name) <= high + 1e-12)).all(), name
    inside = 0
    for row in values[:400]:
        x, lower, upper = distribution_band(row, level)
        # A step of the true distribution may fall between two borders: its value to the left of the next one counts.
        at = np.concatenate([x[:-1], np.nextafter(x[1:], 0)])
        truth = cdf(at)
        inside += bool((np.tile(lower, 2) <= truth + 1e-12).all() and (truth <= np.tile(upper, 2) + 1e-12).all())
    assert inside / 400 >= binom.ppf(0.001, 400, level) / 400


def test_bounds_close_in_on_the_truth():
    draw, mean, std, _ = SHAPES["now and then"]
    widths = []
    for m in (100, 400, 6400):
        bounds = leakage_bounds(draw(np.random.default_rng(1), (1, m)), 0.5)
        widths.append([bounds.share_high - bounds.share_low, bounds.mean_high - bounds.mean_low])
        assert bounds.mean[0] == pytest.approx(mean, abs=0.08) and bounds.std[0] == pytest.approx(std, abs=0.08)
    widths = np.array(widths)[:, :, 0]
    assert (np.diff(widths, axis=0) < 0).all() and (widths[-1] < 0.04).all()
    assert bounds.std_low[0] > 0.1 and bounds.std_high[0] < 0.24


def test_the_share_has_the_interval_of_a_rate():
    values = np.array([[0.0] * 100, [1.0] * 3 + [0.5] * 97, [1.0] * 100])
    bounds = leakage_bounds(values, 0.5)
    for i, hits in enumerate((0, 3, 100)):
        expected = rate(hits, 100)
        assert (bounds.share[i], bounds.share_low[i], bounds.share_high[i]) == (
            expected.value,
            expected.low,
            expected.high,
        )
    assert bounds.share_high[0] == pytest.approx(0.03, abs=5e-4)  # none in 100 is at most 3 %, not 0


def test_the_band_by_hand():
    x, lower, upper = distribution_band([0.5, 0.5, 0.2, 1.0], level=0.9)
    half = np.sqrt(np.log(20) / 8)
    np.testing.assert_allclose(x, [0, 0.2, 0.5, 1])
    np.testing.assert_allclose(lower, np.maximum(np.array([0, 0.25, 0.75]) - half, 0))
    np.testing.assert_allclose(upper, np.minimum(np.array([0, 0.25, 0.75]) + half, 1))


@pytest.mark.parametrize("seed", range(4))
def test_the_bounds_are_those_of_the_extreme_distributions_in_the_band(seed):
    """By brute force: no distribution inside the band has a mean or a spread beyond the bounds, and some come close."""
    rng = np.random.default_rng(seed)
    values = rng.choice(np.linspace(0, 1, 9), 30)
    bounds = leakage_bounds(values[None], 0.5)
    x, lower, upper = distribution_band(values)
    grid = np.linspace(0, 1, 801)  # holds all borders
    place = np.clip(np.searchsorted(x, grid, side="right") - 1, 0, len(lower) - 1)
    low, high = lower[place], upper[place]
    found = []
    for c in np.linspace(0, 1, 201):
        any_other = np.clip(np.sort(rng.random(len(grid)) ** rng.uniform(0.3, 3)), low, high)
        for inside in (np.clip(c, low, high), np.where(grid < c, low, high), low, high, any_other):
            assert (np.diff(inside) >= 0).all()
            mass = np.diff(np.concatenate([[0], inside]))
            mass[-1] += 1 - mass.sum()
            mean = mass @ grid
            found.append((mean, np.sqrt(mass @ (grid - mean) ** 2)))
    means, spreads = np.array(found).T
    for of, low, high in ((means, bounds.mean_low, bounds.mean_high), (spreads, bounds.std_low, bounds.std_high)):
        assert low[0] - 2e-3 <= of.min() <= low[0] + 5e-3
        assert high[0] - 5e-3 <= of.max() <= high[0] + 2e-3


def test_samples_that_cannot_be_judged_are_left_out_and_counted():
    values = np.array([[0.2, np.nan, 0.4, np.nan], [np.nan] * 4])
    bounds = leakage_bounds(values, 0.3)
    known = leakage_bounds(np.array([[0.2, 0.4]]), 0.3)
    assert bounds.n_samples.tolist() == [2, 0] and bounds.threshold == 0.3 and bounds.level == 0.95
    for name in ("share", "share_high", "mean", "mean_low", "std", "std_high"):
        assert getattr(bounds, name)[0] == getattr(known, name)[0] and np.isnan(getattr(bounds, name)[1])


def test_scores_must_be_in_the_unit_interval():
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        leakage_bounds(norm.rvs(size=(2, 5), random_state=0), 0.5)
    with pytest.raises(ValueError, match="two dimensions"):
        leakage_bounds(np.zeros(5), 0.5)
