"""Prompts in one pool, answers in another: laws that no run may break, and hand-overs short enough to time by hand."""

from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.batching import Chunked
from sim.engine import Replica
from sim.errors import ConfigError
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from sim.kv.pruned import PrunedCache
from sim.kv.retention import Share
from sim.router import LeastLoaded
from sim.spec import LinkSpec
from tests.laws.houses import NS_PS, houses, run, slow_and_thorough
from tests.sim.kv.audit import audit
from tests.sim.kv.sites import cache_on
from tests.sim.serving import House, LinearCost, Listed, Split, asked, serve

TEN_NS = partial(LinearCost, 10 * NS_PS)
PAGED = partial(cache_on, PagedCache, 64, Lru, 4, kv_bytes_per_token=10.0)

split_houses = st.builds(
    lambda house, split: {**house, "split": split},
    houses.filter(lambda house: not house["scheduler"]().returns_together),
    st.builds(
        Split,
        replicas=st.integers(1, 2),
        link=st.sampled_from([LinkSpec(1e12), LinkSpec(3e9, 5e-9), LinkSpec(2e8, 1e-8, is_per_accelerator=False)]),
        local_tokens=st.sampled_from([0, 0, 6]),
        ranks=st.sampled_from([(1, 1), (2, 1)]),
    ),
)


def handed(house: House) -> list[dict[str, int]]:
    table = house.recorder.handovers
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows().tolist()]


def keeps_the_ledger(house: House) -> None:
    """Whatever has arrived is served once or refused, and nobody holds anything."""
    ids = [row["id"] for row in house.requests()] + house.recorder.refused.column("id").tolist()
    assert len(ids) == len(set(ids)) == house.traffic.n_arrived
    for replica in house.replicas:
        kv, batch = replica.kv, replica.batch
        assert (kv.held_tokens, kv.shared_tokens, len(replica.ledger), replica.n_outstanding) == (0,) * 4
        assert (len(batch.partial), len(batch.waiting), len(replica.handed_over)) == (0,) * 3
        assert replica.ledger.resident_tokens == replica.ledger.n_growing == replica.ledger.n_emitting == 0


@slow_and_thorough
@given(split_houses)
def test_every_request_is_served_or_refused_once_and_all_memory_comes_back(house):
    keeps_the_ledger(run(house))


@slow_and_thorough
@given(split_houses)
def test_jumping_equals_one_timeout_per_iteration_to_the_nanosecond(house):
    assert run(house).facts() == run(house, max_steps=1).facts()


@slow_and_thorough
@given(split_houses)
def test_after_every_commit_each_slot_has_one_owner_or_several_who_share_it_or_is_free(house):
    commit = Replica._commit

    def audited(replica: Replica, *what: object) -> None:
        commit(replica, *what)
        audit(replica)

    with patch.object(Replica, "_commit", audited):
        run(house)


@slow_and_thorough
@given(split_houses)
def test_a_hand_over_goes_from_a_prompt_to_memory_to_its_end_and_to_the_next_token(house):
    split = run(house)
    prefilling = {replica.index for replica in split.fleet.members}
    requests = {row["id"]: row for row in split.requests()}
    for row in handed(split):
        assert row["source"] in prefilling
        assert row["replica"] not in prefilling
        assert row["ready_ns"] in split.ends_ns(row["source"])
        assert requests[row["request_id"]]["first_token_ns"] <= row["ready_ns"] <= row["admitted_ns"] <= row["come_ns"]
        assert row["next_token_ns"] == -1 or row["come_ns"] < row["next_token_ns"]
        assert row["found_tokens"] >= 0
        assert row["n_bytes"] == 0 or row["n_tokens"] > 0
    for row in split.requests():
        is_local = row["id"] not in {one["request_id"] for one in handed(split)}
        n_tokens = row["output_tokens"] // row["n_samples"]
        assert is_local or n_tokens > 1, "who has its answer after one token goes nowhere"
        assert (row["replica"] in prefilling) <= (n_tokens == 1)


@slow_and_thorough
@given(split_houses)
def test_every_prompt_token_is_computed_once_and_one_more_where_a_sequence_goes_on(house):
    split = run(house)
    n_computed = sum(row["prefill_tokens"] for row in split.iterations())
    n_asked = sum(row["prompt_tokens"] - row["cached_tokens"] for row in split.requests())
    assert sum(row["n_preemptions"] for row in split.requests()) == len(split.recorder.preemptions)
    is_shared = house["scheduler"]().forks_samples or all(row["n_samples"] == 1 for row in split.requests())
    if is_shared and not len(split.recorder.preemptions):  # else each answer computes the prompt for itself
        assert n_computed == n_asked + len(handed(split))


@slow_and_thorough
@given(split_houses)
def test_in_each_pool_littles_law_is_exact(house):
    """L = lambda W, in the prefill pool from arrival to first token, in the decode pool from there to the end."""
    split = run(house)
    ready = {row["request_id"]: row["ready_ns"] for row in handed(split)}
    single = [row for row in split.requests() if row["id"] in ready and row["n_samples"] == 1]
    for begin, end in (("arrival_ns", "first_token_ns"), ("first_token_ns", "finish_ns")):
        changes = sorted([(row[begin], 1) for row in single] + [(row[end], -1) for row in single])
        if changes:
            times, steps = np.array(changes).T
            integral = int((np.cumsum(steps)[:-1] * np.diff(times)).sum())
            assert integral == sum(row[end] - row[begin] for row in single)
    assert all(row["first_token_ns"] == ready[row["id"]] for row in single if not row["n_preemptions"])


def crash(pool: str, index: int, house: House) -> None:
    """A replica is lost and another takes its place; what it had goes back to where requests arrive."""
    fleet = house.fleet if pool == "prefill" else house.pool
    lost = fleet.fail(fleet.members[index % len(fleet.members)].index, house.env.now_ns)
    fleet.add()
    for sequence in lost:
        house.traffic.place(sequence)


@slow_and_thorough
@given(split_houses, st.sampled_from(["prefill", "decode"]), st.integers(0, 600))
def test_a_crash_in_either_pool_loses_nobody(house, pool, at_ns):
    keeps_the_ledger(run(house, meanwhile={at_ns: partial(crash, pool, 0)}))


@pytest.mark.parametrize("pool", ["prefill", "decode"])
def test_a_crash_at_every_instant_of_a_small_run_loses_nobody(pool):
    listed = [asked(i, 13 * i, 6, 9, content=((1, 4), (i, 2)), output_id=-i) for i in range(6)]
    how = {"cost": TEN_NS, "kv": PAGED, "split": Split(), "scheduler": partial(Chunked, 16, 4)}
    whole = serve(Listed(listed), **how)
    lost = 0
    for at_ns in range(max(row["finish_ns"] for row in whole.requests()) + 2):
        house = serve(Listed(listed), **how, meanwhile={at_ns: partial(crash, pool, 0)})
        keeps_the_ledger(house)
        lost += sum(row["come_ns"] < 0 for row in handed(house))
    assert lost > 0, "some crashes catch KV on its way"


def test_over_an_idle_link_a_hand_over_takes_its_bytes_and_the_latency():
    """20 tokens of 10 B at 1 B/ns and 7 ns of latency: 207 ns; the iteration after it gives the second token."""
    house = serve(
        Listed([asked(0, 0, 20, 4)]), cost=TEN_NS, kv=PAGED, split=Split(link=LinkSpec(1e9, 7e-9)), replicas=2
    )
    (row,) = handed(house)
    assert (row["ready_ns"], row["admitted_ns"], row["come_ns"], row["next_token_ns"]) == (10, 10, 217, 227)
    assert (row["n_tokens"], row["found_tokens"], row["n_bytes"]) == (20, 0, 200)
    (request,) = house.requests()
    assert (request["first_token_ns"], request["finish_ns"], request["replica"]) == (10, 247, row["replica"])
    names = list(house.recorder.links)
    moved = {
        (names[link], where, end - start) for where, link, start, end, *_ in house.recorder.transfers.rows().tolist()
    }
    assert moved == {("hand-over, out", row["source"], 207), ("hand-over, in", row["replica"], 207)}


def test_two_at_once_share_the_link_and_the_slower_side_tells():
    """From one replica to two: the way out is shared, 200 B at 1 B/ns each take 400 ns."""
    listed = [asked(i, 0, 20, 2) for i in (0, 1)]
    house = serve(Listed(listed), cost=TEN_NS, kv=PAGED, split=Split(), replicas=2)
    assert [row["come_ns"] - row["admitted_ns"] for row in handed(house)] == [400, 400]
    assert {row["replica"] for row in handed(house)} == {1, 2}


def test_what_is_there_already_is_not_sent():
    """The second prompt begins with the first's 20 tokens: 5 blocks of 4 are found, 4 tokens travel."""
    listed = [asked(0, 0, 20, 2, content=((1, 20),)), asked(1, 1000, 24, 2, content=((1, 20), (2, 4)))]
    house = serve(Listed(listed), cost=TEN_NS, kv=PAGED, split=Split())
    assert [(row["n_tokens"], row["found_tokens"]) for row in handed(house)] == [(20, 0), (4, 20)]
    assert [row["come_ns"] - row["admitted_ns"] for row in handed(house)] == [200, 40]


def test_what_is_on_its_way_is_found_by_nobody():
    """Two equal prompts at once: neither finds what the other still waits for, and both bring all of theirs."""
    listed = [asked(i, i, 20, 2, content=((1, 20),)) for i in (0, 1)]
    house = serve(Listed(listed), cost=TEN_NS, kv=PAGED, split=Split())
    assert [row["found_tokens"] for row in handed(house)] == [0, 0]


def test_memory_where_it_goes_is_taken_first_and_a_full_pool_holds_up_the_other():
    """32 slots each. A decodes until its 28 are given back; B waits for them in the prefill pool's memory, and C, for
    whose prompt there is no room beside B's there, waits for B."""
    kv = partial(cache_on, PagedCache, 32, Lru, 4, kv_bytes_per_token=10.0)
    listed = [asked(i, 300 * i, 20, 9) for i in range(3)]
    house = serve(Listed(listed), cost=partial(LinearCost, 100 * NS_PS), kv=kv, split=Split())
    first, _, third = house.requests()
    rows = handed(house)
    assert rows[1]["ready_ns"] < rows[1]["admitted_ns"] == first["finish_ns"]
    assert third["scheduled_ns"] == rows[1]["come_ns"]
    held = [row["held_tokens"] for row in house.iterations() if row["replica"] == 1]
    assert max(held) <= 32


def test_short_prompts_stay_where_they_are_decoded():
    listed = [asked(0, 0, 8, 3), asked(1, 0, 9, 3)]
    house = serve(Listed(listed), cost=TEN_NS, kv=PAGED, split=Split(local_tokens=8))
    assert [row["request_id"] for row in handed(house)] == [1]
    assert house.requests()[0]["replica"] == 1


def test_a_prompt_that_is_mostly_found_where_it_is_decoded_stays_there():
    said = asked(0, 0, 20, 2, content=((1, 20),))
    more = asked(1, 5000, 24, 2, content=((1, 20), (2, 4)))
    house = serve(Listed([said, more]), cost=TEN_NS, kv=PAGED, split=Split(local_tokens=8))
    assert [row["request_id"] for row in handed(house)] == [0]


def test_who_could_never_be_decoded_is_refused_on_arrival():
    kv = partial(cache_on, PagedCache, 16, Lru, 4)
    house = serve(Listed([asked(0, 0, 12, 9)]), kv=kv, split=Split(kv=PAGED))
    assert house.recorder.refusals == {0: "5 KV blocks needed, the device has 4"}
    assert not len(house.recorder.iterations)


def test_a_window_of_kv_goes_over_as_it_is():
    """A window of 8 tokens: of a prompt of 20 the last 8 travel, and the answer slides on over them."""
    kv = partial(cache_on, PagedCache, 64, Lru, 4, window_tokens=8, kv_bytes_per_token=10.0)
    house = serve(Listed([asked(0, 0, 20, 9)]), cost=TEN_NS, kv=kv, split=Split())
    (row,) = handed(house)
    assert (row["n_tokens"], row["n_bytes"]) == (8, 80)
    keeps_the_ledger(house)


def test_compressed_kv_is_not_taken_for_whole_texts():
    pruned = partial(cache_on, PrunedCache, 64, Lru, Share(0.5, every=8), 4)
    with pytest.raises(ConfigError, match="gives up 10 of 20 tokens"):
        serve(Listed([asked(0, 0, 20, 3)]), kv=PAGED, split=Split(kv=pruned))
    house = serve(Listed([asked(0, 0, 20, 3)]), kv=pruned, split=Split())
    assert handed(house)[0]["n_tokens"] == 10


def test_the_router_chooses_who_goes_on():
    """Least loaded: the second goes to the replica that has nothing to do."""
    listed = [asked(i, 30 * i, 8, 20) for i in range(2)]
    house = serve(Listed(listed), cost=TEN_NS, kv=PAGED, split=Split(), replicas=2, router=LeastLoaded)
    assert [row["replica"] for row in handed(house)] == [1, 2]
