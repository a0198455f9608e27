"""Arrivals come at the rate they were asked for, with the burstiness they state."""

from itertools import islice
from math import sqrt

import numpy as np
import pytest

from scenarios.arrivals import (
    AllAtOnce,
    Diurnal,
    GammaArrivals,
    Modulated,
    OnOff,
    Poisson,
    Ramp,
    Regular,
    WeibullArrivals,
)
from scenarios.distributions import Weibull, coefficient_of_variation
from scenarios.statistics import dispersion_of
from sim.errors import ConfigError
from sim.units import NS_PER_S

Z99 = 2.576


def first(arrivals, n, rate=8.0, seed=0):
    found = []
    for times in arrivals.times_ns(rate, np.random.default_rng(seed)):
        found.extend(times.tolist())
        if len(found) >= n:
            return np.array(found[:n])
    raise AssertionError("arrivals ended")


RENEWAL = [(Poisson(), 1.0), (GammaArrivals(1.07), 1.07), (GammaArrivals(4.0), 4.0)]
RENEWAL.append((WeibullArrivals(0.6), coefficient_of_variation(Weibull(0.6, 1.0))))


@pytest.mark.parametrize(("arrivals", "cv"), RENEWAL, ids=repr)
def test_gaps_have_the_mean_of_the_rate_and_the_stated_variation(arrivals, cv):
    gaps = np.diff(first(arrivals, 60_000)) / NS_PER_S

    assert abs(gaps.mean() - 1 / 8) < Z99 * gaps.std() / sqrt(len(gaps))
    squares = gaps**2
    expected = (1 + cv**2) / 64
    assert abs(squares.mean() - expected) < Z99 * squares.std() / sqrt(len(gaps))


@pytest.mark.parametrize("arrivals", [Poisson(), OnOff(10.0, 5.0, 20.0), Diurnal(Poisson(), 10.0, 600.0), Regular()])
def test_times_never_go_back_and_start_anew_from_the_same_seed(arrivals):
    times = first(arrivals, 20_000)

    assert (np.diff(times) >= 0).all()
    assert np.array_equal(times, first(arrivals, 20_000))


def test_regular_arrivals_are_exactly_one_period_apart():
    assert first(Regular(), 5000, rate=4.0).tolist() == [250_000_000 * (k + 1) for k in range(5000)]


def test_all_at_once_is_at_time_zero():
    assert first(AllAtOnce(), 10).tolist() == [0] * 10


@pytest.mark.parametrize("burst_factor", [8.0, float("inf")])
def test_on_off_arrivals_have_the_mean_rate_and_the_dispersion_of_theory(burst_factor):
    arrivals = OnOff(burst_factor, burst_s=5.0, calm_s=20.0)
    at_s = first(arrivals, 400_000) / NS_PER_S
    window_s = 500.0  # a hundred times the time in which the states forget each other
    n_windows = int(at_s[-1] // window_s)
    at_s = at_s[at_s < n_windows * window_s]
    per_window = np.bincount((at_s // window_s).astype(np.int64), minlength=n_windows)

    se = per_window.std() / sqrt(len(per_window))
    assert abs(per_window.mean() - 8.0 * window_s) < Z99 * se
    found, stated = dispersion_of(at_s, window_s), arrivals.index_of_dispersion(8.0)
    n = len(per_window) - 1
    assert abs(found / stated - 1) < Z99 * sqrt(2 / n), "variance of counts, by the chi-square interval"


def test_a_day_swings_from_trough_to_peak_as_stated_and_keeps_its_mean():
    at_s = first(Diurnal(Poisson(), swing=10.0, period_s=600.0), 200_000) / NS_PER_S
    whole = at_s < 600.0 * int(at_s[-1] // 600.0)
    phase = at_s[whole] % 600.0

    trough = ((phase < 10) | (phase > 590)).sum()
    peak = (abs(phase - 300) < 10).sum()

    assert abs(whole.sum() / (600.0 * int(at_s[-1] // 600.0)) - 8.0) < 0.1
    assert peak / trough == pytest.approx(10.0, rel=Z99 * sqrt(1 / peak + 1 / trough) + 0.03)


def test_modulated_burstiness_survives_in_the_faster_clock():
    steady = first(GammaArrivals(4.0), 5000)
    modulated = first(Modulated(GammaArrivals(4.0), [1.0, 1.0], 100.0), 5000)

    assert np.abs(steady - modulated).max() <= 1000, "a constant profile changes nothing but rounding"


def test_a_ramp_climbs_linearly_and_then_stays():
    at_s = first(Ramp(Poisson(), start_factor=0.0, ramp_s=1000.0), 40_000, rate=8.0) / NS_PER_S

    in_ramp, second_half = (at_s < 1000).sum(), ((at_s >= 500) & (at_s < 1000)).sum()
    after = ((at_s >= 1000) & (at_s < 2000)).sum()

    assert abs(in_ramp - 8000) < Z99 * sqrt(8000)
    assert abs(second_half - 6000) < Z99 * sqrt(6000) + 40
    assert abs(after - 16_000) < Z99 * sqrt(16_000) + 100


def test_a_longer_run_begins_with_the_arrivals_of_a_shorter_one():
    short = next(Poisson().times_ns(3.0, np.random.default_rng(7)))
    long = np.concatenate(list(islice(Poisson().times_ns(3.0, np.random.default_rng(7)), 3)))

    assert np.array_equal(short, long[: len(short)])


@pytest.mark.parametrize(
    "build",
    [
        lambda: GammaArrivals(0.0),
        lambda: OnOff(0.5, 1.0, 1.0),
        lambda: OnOff(2.0, 0.0, 1.0),
        lambda: Diurnal(Poisson(), 0.5),
        lambda: Ramp(Poisson(), 2.0, 10.0),
        lambda: Modulated(Poisson(), [1.0, 0.0], 10.0, repeats=False),
        lambda: WeibullArrivals(float("inf")),
    ],
)
def test_arrivals_without_sense_are_refused_by_key(build):
    with pytest.raises(ConfigError, match=r"^scenario\.arrivals\.\w+ must be"):
        build()
