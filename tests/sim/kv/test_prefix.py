"""Runs of blocks find, share and give up the very blocks that blocks one by one would."""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Keys
from functools import partial

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sim.kv.eviction import Divider, Evictor, Lru, Unit
from sim.kv.paged import PagedCache
from sim.kv.prefix import BlockTable, PrefixIndex, Run
from sim.ledger import DecodeLedger
from sim.request import Request, block_keys, block_ranges
from sim.sequence import Sequence
from tests.sim.kv.policies import EVICTORS
from tests.sim.kv.sites import cache_on
from tests.sim.serving import Listed, serve


class Blockwise:
    """The same order without `claim_part` and `divide`: every block is a unit of its own."""

    def __init__(self, evictor: Evictor) -> None:
        self._evictor = evictor
        self.n_units = 0  # parked and claimed

    def park(self, units: Iterable[Unit]) -> None:
        units = list(units)
        self.n_units += len(units)
        self._evictor.park(units)

    def claim(self, units: Iterable[Unit]) -> None:
        units = list(units)
        self.n_units += len(units)
        self._evictor.claim(units)

    def forget(self, units: Iterable[Unit]) -> None:
        self._evictor.forget(units)

    def park_blank(self, n_blocks: int, is_hashed: bool = False) -> None:
        self._evictor.park_blank(n_blocks)

    def victims(self, n_blocks: int, wanted: Keys = ()) -> list[Unit]:
        return self._evictor.victims(n_blocks, wanted)

    def __len__(self) -> int:
        return len(self._evictor)


class Runwise(Blockwise):
    """The order as it is."""

    def __init__(self, evictor: Evictor) -> None:
        super().__init__(evictor)
        assert isinstance(evictor, Divider)
        self._divider = evictor

    def claim_part(self, unit: Unit, part: Unit) -> None:
        self.n_units += 1
        self._divider.claim_part(unit, part)

    def divide(self, unit: Unit, rest: Unit) -> None:
        self.n_units += 1
        self._divider.divide(unit, rest)


PIECES = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 24)), min_size=1, max_size=3).map(tuple)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), PIECES, st.integers(1, 20)),
        st.tuples(st.just("extend"), st.integers(0, 9), st.integers(1, 20)),
        st.tuples(st.just("release"), st.integers(0, 9), st.just(0)),
    ),
    min_size=30,
    max_size=120,
)


class House:
    """A paged cache and the sequences in it."""

    def __init__(self, eviction: Callable[[int], Evictor], window_tokens: int | None) -> None:
        self.kv = cache_on(PagedCache, 96, eviction, block_tokens=4, window_tokens=window_tokens)
        self.kv.pool.on_evict = self.note
        self.given_up: list[int] = []  # keys of blocks, in order
        self.ledger = DecodeLedger(4)
        self.running: list[Sequence] = []

    def do(self, step: tuple[str, object, int]) -> object:
        kind, what, n_tokens = step
        if kind == "admit":
            pieces = tuple((identity, min(length, 16)) for identity, length in what)  # type: ignore[attr-defined]
            n_prompt = sum(length for _, length in pieces)
            sequence = Sequence(Request(0, 0, n_prompt, 1, 1, content=pieces))
            found = self.kv.match(sequence.request, sequence.preempted_at_tokens)
            if not self.kv.admit(sequence, min(n_tokens, n_prompt - found), self.ledger):
                return found, False
            self.running.append(sequence)
            sequence.computed_tokens += min(n_tokens, n_prompt - found)
            self.kv.trim(sequence, self.ledger)
            return found, True
        if not self.running:
            return None
        sequence = self.running[int(what) % len(self.running)]  # type: ignore[call-overload]
        if kind == "release":
            self.running.remove(sequence)
            return self.kv.release(sequence, 0)
        n_more = min(n_tokens, sequence.prefill_left_tokens)
        has_room = self.kv.extend(sequence, n_more, self.ledger) if n_more else True
        sequence.computed_tokens += n_more if has_room else 0
        self.kv.trim(sequence, self.ledger)
        return has_room

    def note(self, unit: Unit) -> None:
        assert isinstance(unit, Run)
        assert unit.n_tokens == unit.n_blocks * self.kv.block_tokens
        self.given_up += unit.block_keys()

    def state(self) -> tuple[object, ...]:
        return self.kv.held_tokens, self.kv.idle_tokens, self.kv.counts(), tuple(self.given_up)


@pytest.mark.parametrize("name", EVICTORS)
@settings(max_examples=100, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(steps=STEPS, window_tokens=st.sampled_from([None, None, 12]))
def test_runs_and_single_blocks_are_the_same_cache(
    name: str, steps: list[tuple[str, object, int]], window_tokens: int | None
) -> None:
    runs = House(lambda n_blocks: Runwise(EVICTORS[name](n_blocks)), window_tokens)
    blocks = House(lambda n_blocks: Blockwise(EVICTORS[name](n_blocks)), window_tokens)
    assert isinstance(runs.kv.pool.free_queue, Divider)
    assert not isinstance(blocks.kv.pool.free_queue, Divider)

    for step in steps:
        assert runs.do(step) == blocks.do(step)
        assert runs.state() == blocks.state()


@pytest.mark.parametrize("name", EVICTORS)
def test_an_order_handles_pieces_of_text_where_blocks_are_found_one_by_one(name: str) -> None:
    """Four conversations of 30 turns behind one prompt, 100 blocks each time, in a cache that holds three of them."""
    units, rows = [], []
    for form in (Runwise, Blockwise):
        made: list[Blockwise] = []

        def eviction(n_blocks: int, form: type[Blockwise] = form, made: list[Blockwise] = made) -> Evictor:
            made.append(form(EVICTORS[name](n_blocks)))
            return made[-1]

        listed = []
        for i in range(120):
            turn, user = divmod(i, 4)
            content = ((1, 400), *((100 * user + 10 + said, 400) for said in range(turn)), (10_000 + i, 2))
            n_tokens = sum(length for _, length in content)
            listed.append(Request(i, i * 10_000_000, n_tokens, 1, 1, content=content))
        house = serve(Listed(listed), kv=partial(cache_on, PagedCache, 3 * 30 * 400, eviction, 4))
        units.append(made[0].n_units)
        rows.append([(row["cached_tokens"], row["finish_ns"]) for row in house.requests()])

    assert rows[0] == rows[1]
    assert sum(cached for cached, _ in rows[0]) > 0
    assert units[0] * 20 < units[1]


def given_up(form: type[Blockwise], name: str, first: int, n_blocks: int) -> list[int]:
    """What goes, block by block, of two parked pieces of 6 blocks of which one is hit in part and parked again."""
    evictor = form(EVICTORS[name](12))
    index, table, part = PrefixIndex(4, evictor), BlockTable(), BlockTable()
    evictor.victims(12)
    text = block_ranges(((1, 24), (2, 24)), 48, 4)
    index.name(table, text, 12)
    for run in table.runs:
        del run.tables[table]
    evictor.park(table.runs[::-1])
    for match in reversed(index.match([(text[1][0], text[1][1] + 4 * first, n_blocks)], n_blocks)):
        index.claim(part, *match)
    gone = evictor.victims(5)
    for run in part.runs:
        del run.tables[part]
    evictor.park(part.runs)
    gone += evictor.victims(7)
    return [key for unit in gone for key in unit.block_keys()]


@pytest.mark.parametrize("name", EVICTORS)
@pytest.mark.parametrize(("first", "n_blocks"), [(0, 6), (0, 2), (2, 2), (3, 3)])
def test_each_part_of_a_parked_run_goes_when_its_blocks_would(name: str, first: int, n_blocks: int) -> None:
    keys = given_up(Runwise, name, first, n_blocks)
    assert len(keys) == 12
    assert keys == given_up(Blockwise, name, first, n_blocks)


@given(PIECES, st.integers(1, 60), st.sampled_from([1, 4, 16]))
def test_ranges_cover_the_full_blocks_of_a_text_once(pieces: tuple[tuple[int, int], ...], n: int, size: int) -> None:
    ranges = block_ranges(pieces, n, size)

    ends = [end + i * size for _, end, n_blocks in ranges for i in range(n_blocks)]
    n_text = min(n, sum(length for _, length in pieces))
    assert ends == list(range(size, n_text + 1, size))
    assert len(set(block_keys(pieces, n, size))) == len(ends)


def test_a_run_is_cut_where_a_second_text_departs() -> None:
    index = PrefixIndex(4, Lru(4))
    first, second = BlockTable(), BlockTable()
    index.name(first, block_ranges(((1, 16),), 16, 4), 4)

    ((run, offset, n_blocks),) = index.match(block_ranges(((1, 9),), 9, 4), 2)
    index.claim(second, run, offset, n_blocks)

    assert [run.n_blocks for run in first.runs] == [2, 2]
    assert second.runs == first.runs[:1]


class Counted(list):
    """Runs, and how many of them were looked at."""

    n_seen = 0

    def __iter__(self) -> Iterator[Run]:
        for run in super().__iter__():
            self.n_seen += 1
            yield run


def test_looking_for_a_prompt_that_hundreds_have_asked_takes_no_longer_than_for_one_that_two_have() -> None:
    """Of a prompt that fills its blocks everybody computes the last one anew, and leaves another twin of it."""
    index = PrefixIndex(4, Lru(4_000))
    text = block_ranges(((1, 16),), 16, 4)
    for _ in range(500):
        table = BlockTable()
        for match in reversed(index.match(text, 3)):
            index.claim(table, *match)
        table.n_named = sum(run.n_blocks for run in table.runs)
        index.name(table, text, 4)
    (piece,) = index._runs
    twins = index._runs[piece] = Counted(index._runs[piece])

    matched = index.match(text, 4)

    assert len(twins) == 501, "the first was cut at its last block"
    assert [(run.born, n_blocks) for run, _, n_blocks in matched] == [(1, 3), (1, 1)], "the oldest"
    assert twins.n_seen == 3


def test_who_was_preempted_finds_what_has_not_been_taken_of_its_own_text():
    """Two prompts of 8 and answers of 9 in 6 blocks of 4: at 12 tokens each, both need a fourth block and none is free.

    The later one gives way with 3 full blocks. The first takes one of them, its last; so 2 are found, 8 of its 13
    tokens, and 5 are computed. Without prefix caching it is all 13, as without an identity.
    """
    listed = [Request(0, 0, 8, 9, 9), Request(1, 0, 8, 9, 9)]
    for caching, n_computed in ((True, 5), (False, 13)):
        house = serve(Listed(listed), kv=partial(cache_on, PagedCache, 24, Lru, 4, caching))
        assert [row["n_preemptions"] for row in sorted(house.requests(), key=lambda row: row["id"])] == [0, 1]
        assert [row["prefill_tokens"] for row in house.iterations() if row["prefill_tokens"]] == [16, n_computed]
