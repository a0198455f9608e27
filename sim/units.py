"""The clock's unit and the few conversions at the edges.

Inside the simulator time is integer nanoseconds. Durations of iterations are integer picoseconds, so that a
run of iterations, whose durations form an arithmetic series, is summed exactly. Seconds exist only in
configurations, cost models and metrics.
"""

from typing import Final

from sim.errors import ConfigError

NS_PER_S: Final = 1_000_000_000
LAST_NS: Final = (1 << 62) - 1  # never: facts are 64-bit integers, every event is earlier, and 146 years are enough
PS_PER_NS: Final = 1_000
PS_PER_S: Final = NS_PER_S * PS_PER_NS
MS_PER_S: Final = 1_000
US_PER_S: Final = 1_000_000
GIB: Final = 1 << 30
FAR: Final = 1 << 50  # no bound and no end: beyond any number of tokens or iterations
MOST_ITERATION_S: Final = 1_000.0  # 9,000 such iterations are as many picoseconds as 64 bits hold


def ns_from_s(seconds: float) -> int:
    """Nearest clock tick to a time in seconds [ns].

    Raises
    ------
    ValueError, OverflowError
        If ``seconds`` is NaN or infinite.

    Examples
    --------
    >>> ns_from_s(1.5)
    1500000000
    """
    return round(seconds * NS_PER_S)


def ps_from_s(seconds: float) -> int:
    """Nearest whole picosecond to what an iteration, or a part of it, takes in seconds [ps].

    Raises
    ------
    ConfigError
        If it is beyond measure: a run of iterations must end within what 64 bits count.

    Examples
    --------
    >>> ps_from_s(2e-6)
    2000000
    """
    if not -MOST_ITERATION_S <= seconds <= MOST_ITERATION_S:
        raise ConfigError(
            f"an iteration would take {seconds:g} s, {MOST_ITERATION_S:g} at most can be counted: a number "
            "of the device, the model or the cost model is beyond measure"
        )
    return round(seconds * PS_PER_S)
