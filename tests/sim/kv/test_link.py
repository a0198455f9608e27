from fractions import Fraction

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import ConfigError, InvariantError
from sim.kv.link import Link
from sim.record import Recorder

GB = 10**9


def ends_ns(sends: list[tuple], bytes_per_s=GB, latency_s=0.0, piece_s=0.0) -> list[int]:
    """When each of some transfers (start_ns, n_bytes[, n_pieces]) ends, at 1 byte a nanosecond if not told."""
    env = simpy.Environment()
    link = Link(env, bytes_per_s, latency_s, piece_s, Recorder(), "host")
    seen: dict[int, int] = {}

    def transfer(number, start_ns, *what):
        yield env.timeout(start_ns)
        yield link.send(*what)
        seen[number] = env.now

    for number, send in enumerate(sends):
        env.process(transfer(number, *send))
    env.run()
    assert env.now == max(seen.values()), "the clock must stop with the last transfer"
    return [seen[number] for number in range(len(sends))]


def exact_ends(sends: list[tuple[int, int]]) -> list[Fraction]:
    """Processor sharing in exact fractions at 1 byte a nanosecond, from event to event."""
    ends: list[Fraction] = [Fraction(0)] * len(sends)
    left: dict[int, Fraction] = {}
    now = Fraction(0)
    coming = sorted((start_ns, number) for number, (start_ns, _) in enumerate(sends))
    while coming or left:
        departs = now + min(left.values()) * len(left) if left else None
        if coming and (departs is None or coming[0][0] <= departs):
            until, number = coming.pop(0)
            left = {n: need - (until - now) / Fraction(len(left)) for n, need in left.items()}
            left[number] = Fraction(sends[number][1])
        else:
            until = departs
            left = {n: need - (until - now) / len(left) for n, need in left.items()}
        now = Fraction(until)
        for number in [n for n, need in left.items() if need == 0]:
            ends[number] = now
            del left[number]
    return ends


def test_a_transfer_alone_takes_latency_pieces_and_bytes():
    assert ends_ns([(50, 1000, 4)], bytes_per_s=2 * GB, latency_s=7e-9, piece_s=10e-9) == [50 + 500 + 40 + 7]


def test_two_equal_transfers_take_twice_as_long():
    assert ends_ns([(0, 1000), (0, 1000)]) == [2000, 2000]


def test_a_late_comer_slows_the_first_down_from_then_on():
    """600 bytes alone, then both at half speed until the first leaves at 600 + 2 x 400, then the second alone."""
    assert ends_ns([(0, 1000), (600, 1000)]) == [1400, 2000]


def test_a_short_transfer_passes_a_long_one():
    assert ends_ns([(0, 10_000), (100, 50)]) == [10_050, 200]


def test_a_departure_between_two_nanoseconds_is_seen_at_the_next():
    assert ends_ns([(0, 10)], bytes_per_s=3 * GB) == [4]


def test_three_share_from_the_exact_time_the_first_leaves():
    """At 3 bytes a nanosecond: 1 byte is through after 1 ns, 11 bytes after 1 + 2 x 10 / 3, the last after 24 / 3."""
    assert ends_ns([(0, 1), (0, 11), (0, 12)], bytes_per_s=3 * GB) == [1, 8, 8]


def test_latency_does_not_occupy_the_link():
    assert ends_ns([(0, 1000), (0, 1000)], latency_s=500e-9) == [2500, 2500]


transfers = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 300)), min_size=1, max_size=24)


@given(sends=transfers)
@settings(max_examples=150, deadline=None)
def test_transfers_end_when_exact_processor_sharing_says(sends):
    for ours, exact in zip(ends_ns(sends), exact_ends(sends), strict=True):
        assert 0 <= ours - exact <= Fraction(1_001, 1_000)  # seen at the next tick; rests are below a thousandth


@given(sends=transfers)
@settings(max_examples=60, deadline=None)
def test_a_link_never_rests_while_bytes_wait(sends):
    """Work conservation: the last of a busy period ends when a queue of the same bytes would, whatever the sharing."""
    free_ns = 0
    for start_ns, n_bytes in sorted(sends):
        free_ns = max(free_ns, start_ns) + n_bytes
    assert 0 <= max(ends_ns(sends)) - free_ns <= 1


@given(sends=transfers, n_bytes=st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_a_quote_holds_if_nobody_follows(sends, n_bytes):
    env = simpy.Environment()
    link = Link(env, GB, 5e-9, 0.0, Recorder(), "host")
    answers = []

    def first():
        for start_ns, size in sorted(sends):
            yield env.timeout(start_ns - env.now)
            link.send(size)
        yield env.timeout(10)
        start_ns, quoted_ns = env.now, link.quote_ns(n_bytes)
        assert link.quote_ns(n_bytes) == quoted_ns
        yield link.send(n_bytes)
        answers.append((quoted_ns, env.now - start_ns))

    env.process(first())
    env.run()
    ((quoted_ns, took_ns),) = answers
    assert 0 <= took_ns - quoted_ns <= 1


def test_transfers_are_written_down_under_their_link():
    env = simpy.Environment()
    recorder = Recorder()
    up = Link(env, GB, 0.0, 0.0, recorder, "host up", replica=3)
    down = Link(env, GB, 0.0, 0.0, recorder, "host down", replica=3)
    down.send(20, 2)
    up.send(10)
    env.run()
    assert recorder.transfers.rows().tolist() == [[3, 0, 0, 10, 10, 1], [3, 1, 0, 20, 20, 2]]
    assert recorder.links == {"host up": 0, "host down": 1}


def test_a_crowd_costs_few_events():
    """Each transfer is at most its own event and two wake-ups, however many share."""
    env = simpy.Environment()
    link = Link(env, GB, 0.0, 0.0, Recorder(), "host")
    for size in range(1000, 1, -1):
        link.send(size)
    n_events = 0
    while env.peek() != float("inf"):
        env.step()
        n_events += 1
    assert link.quote_ns(1000) == 1000, "nothing is under way any more"
    assert n_events <= 3 * 999


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0.0, 0.0, 0.0), r"link host: bytes_per_s must be finite and >= 1 \[B/s\], got 0"),
        ((1e9, -1.0, 0.0), r"link host: latency_s must be finite and >= 0 \[s\], got -1"),
        ((1e9, 0.0, float("nan")), r"link host: piece_s must be finite and >= 0 \[s\], got nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Link(simpy.Environment(), *settings, Recorder(), "host")


def test_a_transfer_of_nothing_is_a_bug():
    with pytest.raises(InvariantError, match="0 bytes in 1 pieces"):
        Link(simpy.Environment(), GB, 0.0, 0.0, Recorder(), "host").send(0)
