"""Samples have the mean, variance and shape that their distribution states, inside 99 % intervals."""

from math import sqrt

import numpy as np
import pytest

from scenarios.distributions import (
    Constant,
    Empirical,
    Gamma,
    LogNormal,
    LogNormalMixture,
    Turns,
    UniformInteger,
    Weibull,
)
from scenarios.lengths import token_moments, whole_tokens
from scenarios.statistics import ks_distance
from sim.errors import ConfigError

Z99 = 2.576
KS99 = 1.628  # asymptotic 99 % quantile of sqrt(n) times the distance
N = 40_000

ALL = {
    "uniform": UniformInteger(512, 1024),
    "lognormal": LogNormal(123.0, 483.0),
    "mixture": LogNormalMixture([0.296, 0.425, 0.279], [4.729, 4.572, 6.006], [1.010, 0.357, 0.049]),
    "gamma": Gamma(0.93, 2201.0),
    "weibull": Weibull(1.556, 483.0),
    "turns": Turns(0.69, 3.03),
}


def interval_of_mean(x):
    return Z99 * x.std() / sqrt(len(x))


@pytest.mark.parametrize("name", ALL)
def test_samples_have_the_stated_mean_and_variance(name):
    distribution = ALL[name]

    x = distribution.draw(np.random.default_rng(1), N)

    assert x.shape == (N,)
    assert abs(x.mean() - distribution.mean) < interval_of_mean(x)
    squares = (x - distribution.mean) ** 2
    assert abs(squares.mean() - distribution.variance) < interval_of_mean(squares)


@pytest.mark.parametrize("name", ["lognormal", "mixture", "gamma", "weibull"])
def test_samples_follow_the_stated_distribution_function(name):
    distribution = ALL[name]

    x = distribution.draw(np.random.default_rng(2), N)

    assert ks_distance(x, distribution) < KS99 / sqrt(N)


@pytest.mark.parametrize("name", ["uniform", "turns"])
def test_whole_numbers_follow_their_staircase(name):
    distribution = ALL[name]

    x = distribution.draw(np.random.default_rng(3), N)

    assert np.array_equal(x, np.rint(x))
    assert ks_distance(x, distribution, step=1.0) < KS99 / sqrt(N)


@pytest.mark.parametrize(("name", "most"), [("mixture", 1024), ("gamma", 8192), ("weibull", 1024), ("uniform", 800)])
def test_rounded_and_bounded_lengths_have_the_moments_that_are_computed_for_them(name, most):
    mean, variance = token_moments(ALL[name], most)

    x = whole_tokens(ALL[name].draw(np.random.default_rng(4), N), most).astype(float)

    assert x.min() >= 1
    assert x.max() <= most
    assert abs(x.mean() - mean) < interval_of_mean(x)
    squares = (x - mean) ** 2
    assert abs(squares.mean() - variance) < interval_of_mean(squares)


def test_a_lognormal_has_the_median_and_the_90_percent_quantile_it_was_given():
    gap = LogNormal(123.0, 483.0)

    assert gap.cdf(np.array([123.0, 483.0])) == pytest.approx([0.5, 0.9])


def test_a_constant_never_varies():
    assert Constant(3.0).draw(np.random.default_rng(0), 3).tolist() == [3.0, 3.0, 3.0]
    assert (Constant(3.0).mean, Constant(3.0).variance) == (3.0, 0.0)
    assert Constant(3.0).cdf(np.array([2.9, 3.0])).tolist() == [0.0, 1.0]


def test_an_empirical_column_is_drawn_with_its_own_frequencies(tmp_path):
    path = tmp_path / "values.csv"
    path.write_text("name,value\na,1\nb,1\nc,4\n")
    column = Empirical(str(path), "value")

    x = column.draw(np.random.default_rng(5), 30_000)

    assert (column.mean, column.variance) == (2.0, 2.0)
    assert sorted(set(x)) == [1.0, 4.0]
    assert abs(x.mean() - 2.0) < interval_of_mean(x)
    assert column.cdf(np.array([0.0, 1.0, 3.9, 4.0])) == pytest.approx([0, 2 / 3, 2 / 3, 1])


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Gamma(0.0, 1.0), "gamma.shape must be a finite number > 0, got 0.0"),
        (lambda: Weibull(1.0, float("nan")), "weibull.scale must be a finite number > 0, got nan"),
        (lambda: LogNormal(10.0, 5.0), "lognormal.p90 must be above lognormal.median (10.0), got 5.0"),
        (lambda: LogNormalMixture([0.5, 0.2], [1.0, 1.0], [1.0, 1.0]), "mixture.weights must be shares that sum to 1"),
        (lambda: LogNormalMixture([1.0], [1.0, 2.0], [1.0]), "mixture.mus must be 1 numbers"),
        (lambda: UniformInteger(5, 4), "uniform.high must be at least uniform.low (5), got 4"),
        (lambda: Turns(1.2, 3.0), "turns.single_frac must be between 0 and 1, got 1.2"),
        (lambda: Constant(-1.0), "constant.value must be a finite number >= 0, got -1.0"),
    ],
)
def test_a_parameter_out_of_range_is_named(build, said):
    with pytest.raises(ConfigError) as raised:
        build()

    assert said in str(raised.value)
