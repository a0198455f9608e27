"""Scalers: what each says, and what becomes of it. Times are in nanoseconds, and every one can be added up by hand."""

from dataclasses import dataclass, field, fields
from functools import partial

import numpy as np
import pytest

from sim import simulate
from sim.batching import Chunked
from sim.errors import ConfigError
from sim.metrics.fleet import lives, steps
from sim.record import FLEET_EVENTS, Result
from sim.scaler import QueueLength, Schedule, StartUp, TargetUtilisation
from sim.scaler.scaling import least_busy
from tests.sim.chosen import each_of
from tests.sim.serving import House, LinearCost, Listed, asked, serve

NS = 1e-9
TEN_NS = partial(LinearCost, 10_000)
AT_ONCE = StartUp(float("inf"), 0.0)
SCALERS = each_of("scaler")


@dataclass
class Waiting:
    """All that a scaler looks at in a replica."""

    n_waiting: int = 0
    n_outstanding: int = 0
    most_seqs: int = 10
    held_tokens: int = 0
    capacity_tokens: int = 100

    @property
    def scheduler(self):
        return self

    @property
    def kv(self):
        return self

    def settle(self, now_ns):
        pass


@dataclass
class Standing:
    open: list = field(default_factory=list)
    starting: list = field(default_factory=list)


def fleet(*replicas: Waiting, starting: int = 0) -> Standing:
    return Standing(list(replicas), [Waiting()] * starting)


def events(house: House) -> list[tuple[int, int, str]]:
    """(when, replica, what), but for what was there at the beginning."""
    rows = house.recorder.fleet.rows().tolist()
    return [(at_ns, replica, FLEET_EVENTS[event]) for at_ns, replica, event in rows if at_ns > 0]


@pytest.mark.parametrize(
    ("waiting", "starting", "wanted"),
    [
        ([0], 0, 1),  # nobody waits: the least
        ([5], 0, 1),
        ([6], 0, 2),
        ([20], 0, 4),
        ([20], 2, 4),  # those that start count as there: one more
        ([20], 3, 4),
        ([21], 3, 4),  # 5 % over the target is within the tolerance
        ([23], 3, 5),
        ([10, 0, 0], 0, 3),  # two would do, but there were three a moment ago: see below
        ([100], 0, 6),  # the most
    ],
)
def test_a_replica_for_every_so_many_that_wait(waiting, starting, wanted):
    scaler = QueueLength(5.0, most=6)
    standing = fleet(*map(Waiting, waiting), starting=starting)
    n = len(waiting) + starting
    scaler._spoken_for.append((0, n))  # as many as there are, a moment ago
    assert scaler.decide(standing, 1) == (max(wanted, n) if wanted < n else wanted, 1 + 15_000_000_000)


def test_fewer_only_when_nothing_in_the_cool_down_has_spoken_for_more():
    """Looks 10 ns apart, a cool-down of 25: the look at 20 spoke for three, so they stay until 45, and go at 50."""
    scaler = QueueLength(1.0, cool_down_s=25 * NS, every_s=10 * NS)
    said = []
    n_now = 1
    for at_ns, n_waiting in enumerate([0, 0, 3, 2, 0, 0, 0, 0]):
        n_now, next_ns = scaler.decide(fleet(Waiting(n_waiting), *[Waiting()] * (n_now - 1)), 10 * at_ns)
        assert next_ns == 10 * at_ns + 10
        said.append(n_now)
    assert said == [1, 1, 3, 3, 3, 2, 1, 1]


@pytest.mark.parametrize(
    ("of", "wanted"),
    [("seats", 4), ("kv", 2)],  # (9 + 15) / 10 seats = 2.4, over .7; (40 + 80) / 100 slots = 1.2, over .7
)
def test_utilisation_over_its_target(of, wanted):
    replicas = Waiting(n_outstanding=9, held_tokens=40), Waiting(n_outstanding=15, held_tokens=80)
    assert TargetUtilisation(0.7, of).decide(fleet(*replicas), 0)[0] == wanted


def test_a_schedule_counts_from_the_first_arrival_and_repeats():
    scaler = Schedule([[10 * NS, 3], [30 * NS, 1]], 40 * NS)
    now_ns, said = 1000, []
    for _ in range(5):
        n, next_ns = scaler.decide(fleet(Waiting(), Waiting()), now_ns)
        said.append((now_ns, n))
        now_ns = next_ns
    assert said == [(1000, 2), (1010, 3), (1030, 1), (1050, 3), (1070, 1)]
    assert Schedule([[0.0, 2]]).decide(fleet(Waiting()), 7) == (2, None)


def test_a_replica_opens_when_it_has_started_and_serves_what_arrives_then():
    """Asked for at 20 with a start-up of 30: who arrives up to 50 goes to the first, then each in turn."""
    listed = [asked(i, at_ns, 4, 9) for i, at_ns in enumerate((10, 40, 49, 50, 51, 60))]
    scaler = partial(Schedule, [[10 * NS, 2]], None, StartUp(float("inf"), 30 * NS))
    house = serve(Listed(listed), scaler=scaler, cost=TEN_NS)
    assert events(house) == [(20, 1, "started"), (50, 1, "opened")]
    served = {row["id"]: row["replica"] for row in house.requests()}
    assert served == {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 0}


def test_weights_come_over_a_link_and_the_rest_is_a_constant():
    """16 GB over 6.5 GB/s and 58 s."""
    assert StartUp().seconds(16e9) == pytest.approx(16e9 / 6.5e9 + 58.0)


def test_a_start_up_takes_the_time_of_all_accelerators_weights():
    """Two accelerators share 16.06 GB of Llama-3.1-8B; over 1 GB/s they take 16.06 s, and nothing else does."""
    result = simulate(
        "scaler=schedule",
        "scaler.steps=[[0,2]]",
        "scaler.start_up.weights_bytes_per_s=1e9",
        "scaler.start_up.engine_s=0",
        "hardware.tensor_parallel=2",
        "scenario=synthetic",
        "scenario.n_requests=200",
        "scenario.rate=8",
    )
    (started, opened) = [row for row in result.fleet.rows().tolist() if row[1] == 1]
    assert (opened[0] - started[0]) / 1e9 == pytest.approx(2 * -result.memory["weights"] / 1e9, rel=1e-6)
    assert 16.0 < (opened[0] - started[0]) / 1e9 < 16.2


def test_starting_replicas_go_before_open_ones_and_then_the_least_busy():
    """Two at the beginning. 10: four asked for, open at 40. 20: three, so the last one asked for is dropped.

    40: number 2 opens. 50: a request goes to 1. 60: two; 0 and 1 have two requests each and 2 has none, so it goes.
    """
    listed = [asked(i, at_ns, 4, 40) for i, at_ns in enumerate((10, 11, 12, 50))]
    schedule = partial(Schedule, [[0.0, 4], [10 * NS, 3], [50 * NS, 2]], None, StartUp(float("inf"), 30 * NS))
    house = serve(Listed(listed), scaler=schedule, cost=TEN_NS, replicas=2)
    assert events(house) == [
        (10, 2, "started"),
        (10, 3, "started"),
        (20, 3, "cancelled"),
        (40, 2, "opened"),
        (60, 2, "drained"),
    ]
    assert len(house.requests()) == 4
    ends = lives_of(house)
    assert ends == [(10, 451), (10, 451), (10, 60), (10, 20)], "both that stay until the run ends"


FACTS = ("requests", "iterations", "fleet", "n_replicas", "end_ns")


def lives_of(house: House) -> list[tuple[int, int]]:
    """From when to when each replica costs."""
    requests = house.recorder.requests
    result = Result(
        requests=requests,
        iterations=house.recorder.iterations,
        fleet=house.recorder.fleet,
        n_replicas=len(house.replicas),
        end_ns=int(requests.column("finish_ns").max()),
        **{one.name: None for one in fields(Result) if one.name not in FACTS},
    )
    there = lives(result)
    return list(zip(there.begin_ns.tolist(), there.end_ns.tolist(), strict=True))


def test_the_newest_of_the_least_busy_goes():
    replicas = [Waiting(n_outstanding=n) for n in (2, 1, 3, 1)]
    assert least_busy(replicas) is replicas[3]


def test_a_drained_replica_costs_until_it_has_served_what_it_has():
    """Two from 10 on; at 20 the second, whose request ends at 110, is drained; the first serves until 200."""
    listed = [asked(0, 10, 4, 19), asked(1, 10, 4, 10)]
    house = serve(Listed(listed), scaler=partial(Schedule, [[10 * NS, 1]]), cost=TEN_NS, replicas=2)
    assert events(house) == [(20, 1, "drained")]
    assert lives_of(house) == [(10, 200), (10, 110)]


def test_a_queue_that_cannot_be_served_calls_for_help():
    """One place, 10 ns a token, answers of 10 tokens: at 0 five come. At 0 four wait, for two a replica: two.

    They open at once; the four stay where they are. At 50 still three or four wait: two are right.
    """
    listed = [asked(i, 0, 4, 10) for i in range(5)] + [asked(5, 60, 4, 10)]
    scaler = partial(QueueLength, 2.0, every_s=50 * NS, start_up=AT_ONCE)
    house = serve(Listed(listed), scaler=scaler, cost=TEN_NS, scheduler=partial(Chunked, 64, 1))
    served = {row["id"]: (row["replica"], row["scheduled_ns"]) for row in house.requests()}
    assert served[5] == (1, 60), "the new one had nobody waiting"
    assert [served[i] for i in range(5)] == [(0, 100 * i) for i in range(5)], "who waits stays where it is"


def test_nobody_is_asked_when_all_is_served():
    """Every 10 ns, and one request of 25 ns that is followed by another 200 ns later."""
    asked_at = []

    class Noting(QueueLength):
        def decide(self, fleet, now_ns):
            asked_at.append(now_ns)
            return super().decide(fleet, now_ns)

    listed = [asked(0, 5, 4, 2, content=((1, 4),), output_id=-1, session_id=7)]
    serve(Listed(listed, {7: [(200, 5, 2)]}), scaler=partial(Noting, every_s=10 * NS), cost=TEN_NS)
    assert asked_at[:3] == [5, 15, 25]
    assert asked_at[-1] <= 25 + 200 + 20 + 10


@pytest.mark.parametrize("name", SCALERS)
def test_every_choice_serves_everybody_and_stays_within_its_bounds(name):
    result = simulate(f"scaler={name}", "scenario=synthetic", "scenario.n_requests=300", "scenario.rate=20")
    assert len(result.requests) == 300
    _, n_there = lives(result).there_over_time()
    assert 1 <= n_there.max() <= 8


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: QueueLength(0.0), r"scaler\.target must be > 0"),
        (lambda: QueueLength(least=0), r"scaler\.least must be from 1"),
        (lambda: QueueLength(least=3, most=2), r"scaler\.most must be from scaler\.least \(3\)"),
        (lambda: QueueLength(every_s=0.0), r"scaler\.every_s must be > 0"),
        (lambda: QueueLength(tolerance=1.0), r"scaler\.tolerance must be in"),
        (lambda: QueueLength(cool_down_s=-1.0), r"scaler\.cool_down_s must be >= 0"),
        (lambda: TargetUtilisation(of="gpu"), r"scaler\.of must be seats or kv, got 'gpu'"),
        (lambda: Schedule([]), r"scaler\.steps must hold at least one"),
        (lambda: Schedule([[0.0, 1], [0.0, 2]]), r"scaler\.steps\.1 must be \[seconds"),
        (lambda: Schedule([[0.0, 0]]), r"scaler\.steps\.0 must be"),
        (lambda: Schedule([[5.0, 1]], 5.0), r"scaler\.period_s must be later"),
        (lambda: StartUp(0.0), r"scaler\.start_up\.weights_bytes_per_s must be > 0"),
        (lambda: StartUp(engine_s=-1.0), r"scaler\.start_up\.engine_s must be >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, expected):
    with pytest.raises(ConfigError, match=expected):
        make()


def test_spans_over_time():
    times, n = steps(np.array([0, 5, 5, 9]), np.array([20, 9, 20, 9]))
    assert (times.tolist(), n.tolist()) == ([0, 5, 9, 20], [1, 3, 2, 0])
