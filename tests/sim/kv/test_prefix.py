"""Runs of blocks find, share and give up the very blocks that blocks one by one would."""

from functools import partial

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sim.kv.eviction import Divider, Lru
from sim.kv.paged import PagedCache
from sim.kv.prefix import BlockTable, PrefixIndex
from sim.ledger import DecodeLedger
from sim.request import Request, block_keys, block_ranges
from sim.sequence import Sequence
from tests.sim.serving import Listed, serve


class BlockwiseLru:
    """The same order without `claim_part`: every block is a unit of its own."""

    def __init__(self, capacity_blocks: int) -> None:
        self._lru = Lru(capacity_blocks)
        self.park, self.park_blank = self._lru.park, self._lru.park_blank
        self.claim, self.victims = self._lru.claim, self._lru.victims

    def __len__(self) -> int:
        return len(self._lru)


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

    def __init__(self, eviction: type) -> None:
        self.kv = PagedCache(64, eviction, block_tokens=4)
        self.ledger = DecodeLedger(4)
        self.running: list[Sequence] = []

    def do(self, step: tuple[str, object, int]) -> object:
        kind, what, n_tokens = step
        if kind == "admit":
            pieces = tuple((identity, min(length, 16)) for identity, length in what)  # type: ignore[attr-defined]
            n_prompt = sum(length for _, length in pieces)
            sequence = Sequence(Request(0, 0, n_prompt, 1, 1, content=pieces))
            found = self.kv.match(sequence)
            if not self.kv.extend(sequence, min(n_tokens, n_prompt - found), self.ledger):
                return found, False
            self.running.append(sequence)
            sequence.computed_tokens += min(n_tokens, n_prompt - found)
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
        return has_room

    def state(self) -> tuple[object, ...]:
        return self.kv.held_tokens, self.kv.idle_tokens, self.kv.counts()


@settings(max_examples=100, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(STEPS)
def test_runs_and_single_blocks_are_the_same_cache(steps: list[tuple[str, object, int]]) -> None:
    runs, blocks = House(Lru), House(BlockwiseLru)
    assert isinstance(Lru(1), Divider)
    assert not isinstance(BlockwiseLru(1), Divider)

    for step in steps:
        assert runs.do(step) == blocks.do(step)
        assert runs.state() == blocks.state()


@given(PIECES, st.integers(1, 60), st.sampled_from([1, 4, 16]))
def test_ranges_cover_the_full_blocks_of_a_text_once(pieces: tuple[tuple[int, int], ...], n: int, size: int) -> None:
    ranges = block_ranges(pieces, n, size)

    ends = [end + i * size for _, end, n_blocks in ranges for i in range(n_blocks)]
    n_text = min(n, sum(length for _, length in pieces))
    assert ends == list(range(size, n_text + 1, size))
    assert len(set(block_keys(pieces, n, size))) == len(ends)


def test_a_run_is_cut_where_a_second_text_departs() -> None:
    index = PrefixIndex(4, is_divisible=True)
    first, second = BlockTable(), BlockTable()
    index.name(first, block_ranges(((1, 16),), 16, 4), 4)

    ((run, offset, n_blocks),) = index.match(block_ranges(((1, 9),), 9, 4), 2)
    index.hold(second, run, offset, n_blocks)

    assert [run.n_blocks for run in first.runs] == [2, 2]
    assert second.runs == first.runs[:1]


def test_who_was_preempted_finds_what_has_not_been_taken_of_its_own_text():
    """Two prompts of 8 and answers of 9 in 6 blocks of 4: at 12 tokens each, both need a fourth block and none is free.

    The later one gives way with 3 full blocks. The first takes one of them, its last; so 2 are found, 8 of its 13
    tokens, and 5 are computed. Without prefix caching it is all 13, as without an identity.
    """
    listed = [Request(0, 0, 8, 9, 9), Request(1, 0, 8, 9, 9)]
    for caching, n_computed in ((True, 5), (False, 13)):
        house = serve(Listed(listed), kv=partial(PagedCache, 24, Lru, 4, caching))
        assert [row["n_preemptions"] for row in sorted(house.requests(), key=lambda row: row["id"])] == [0, 1]
        assert [row["prefill_tokens"] for row in house.iterations() if row["prefill_tokens"]] == [16, n_computed]
