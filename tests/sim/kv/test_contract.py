"""One suite for all caches: every file of conf/cache/, and what can be set about it, served by the real engine.

After every iteration the cache's books are opened (`audit`), and each time room is asked for, what a refusal left
behind is looked at (`watch`).
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sim.batching import Chunked, Continuous, Fcfs
from sim.clock import Clock
from sim.engine import Replica
from sim.kv.cache import KVCache, Parcel
from sim.kv.sessions import shared_tokens
from sim.ledger import DecodeLedger
from sim.record import Recorder
from sim.request import Finished, Request, Segment
from sim.samples import sampled
from sim.sequence import Sequence
from tests.sim.kv.audit import audit
from tests.sim.kv.variants import COST, MAX_LEN, VARIANTS, made, names_of_files
from tests.sim.serving import Listed, asked, serve

SCHEDULERS = {
    "chunked": partial(Chunked, 24, 6),
    "planned ahead": partial(Chunked, 24, 6, True),
    "in small pieces": partial(Chunked, 4, 3),
    "continuous": partial(Continuous, 60, 6),
}


class Stage:
    """A replica whose requests are sent by hand, iteration by iteration, and whose cache is watched."""

    def __init__(self, variant: str, scheduler: str = "chunked") -> None:
        self.variant = variant
        self.env, self.recorder = Clock(), Recorder()
        self.kv = watch(made(variant, self.env, self.recorder))
        self.n_ended = 0
        self.n_sent = 0
        self.speaking: set[int | None] = set()
        self.said: dict[int, tuple[Segment, ...]] = {}  # by session, what its next turn begins with
        self.replica = Replica(
            self.env,
            0,
            SCHEDULERS[scheduler](),
            Fcfs(),
            self.kv,
            COST,
            self.recorder,
            self.hear,
            MAX_LEN,
            max_steps=1,
        )

    def send(self, head: int, tail: int, output: int, session: int | None, is_private: bool, n_samples: int) -> None:
        """A request that begins as others do, or goes on with a conversation whose last turn has been answered."""
        self.n_sent += 1
        number = self.n_sent
        begin = self.said.pop(session, ()) if session is not None else ((1, head),) if head else ()
        content = (*begin, (100 + number, tail))
        n_tokens = sum(length for _, length in content)
        if n_tokens + output > MAX_LEN:
            content, n_tokens = ((100 + number, tail),), tail
        request = Request(
            number,
            self.env.now_ns,
            n_tokens,
            output,
            output,
            None if is_private else content,
            None if is_private else -number,
            session,
            n_samples=n_samples,
        )
        self.speaking.add(session)
        self.replica.submit(Sequence(request) if request.n_samples == 1 else sampled(request))

    def hear(self, finished: Finished) -> None:
        """An answer: the conversation can go on."""
        request = finished.request
        self.n_ended += 1
        self.speaking.discard(request.session_id)
        if request.session_id is not None and request.content is not None and not finished.is_refused:
            self.said[request.session_id] = (*request.content, (request.output_id, request.output_tokens))

    def is_speaking(self, session: int) -> bool:
        """Whether a conversation's turn has not been answered yet."""
        return session in self.speaking

    def run(self, n_events: int | None = None) -> None:
        """Let so many events happen, or all, and open the books after each."""
        while self.env.peek() != float("inf") and n_events != 0:
            self.env.step()
            audit(self.replica)
            n_events = None if n_events is None else n_events - 1

    def close(self) -> None:
        """Everybody is served; what was held has come back, and there is as much room as in a new cache."""
        self.run()
        assert self.n_ended == self.n_sent
        assert (self.kv.held_tokens, self.kv.shared_tokens, self.replica.n_outstanding) == (0, 0, 0)
        assert len(self.replica.ledger) == len(self.replica.batch.partial) == len(self.replica.batch.waiting) == 0
        fresh = made(self.variant, Clock(), Recorder())
        assert room(self.kv) == room(fresh), "a used cache has the room of a new one"


def watch(kv: KVCache) -> KVCache:
    """The same cache; each time it is asked for room, what it says before and does then is compared."""
    admit, extend, attend, known = kv.admit, kv.extend, kv.attend, list[tuple[Segment, ...]]()

    def asked_for(sequence: Sequence, ask: Callable[[], bool]) -> bool:
        """Of one that holds something already."""
        assert sequence.holding is not None
        held_tokens, holding = kv.held_tokens, sequence.holding
        is_taken = ask()
        assert is_taken or (kv.held_tokens, sequence.holding) == (held_tokens, holding), "a refusal took something"
        return is_taken

    def extended(sequence: Sequence, n_tokens: int, ledger: DecodeLedger) -> bool:
        assert sequence.order not in ledger.members
        return asked_for(sequence, lambda: extend(sequence, n_tokens, ledger))

    def attended(sequence: Sequence, ledger: DecodeLedger) -> bool:
        assert sequence.order in ledger.members
        return asked_for(sequence, lambda: attend(sequence, ledger))

    def admitted(sequence: Sequence, n_tokens: int, ledger: DecodeLedger, parcel: Parcel | None = None) -> bool:
        held_tokens = kv.held_tokens
        computed, resident = sequence.computed_tokens, sequence.resident_tokens
        matched = kv.match(sequence.request, sequence.preempted_at_tokens)
        assert 0 <= matched < sequence.target_tokens
        text = sequence.text()
        if text and not sequence.n_preemptions:
            assert matched <= max((shared_tokens(one, text) for one in known), default=0), "found what nobody had said"
        is_taken = admit(sequence, n_tokens, ledger, parcel)
        if is_taken:
            assert sequence.holding is not None
            assert sequence.computed_tokens == matched, "what was found is what it starts from"
            assert kv.held_tokens >= held_tokens
            output_id, n_output = sequence.request.output_id, sequence.request.output_tokens
            known.append(text if output_id is None else (*(sequence.request.content or ()), (output_id, n_output)))
        else:
            assert sequence.holding is None
            assert (sequence.computed_tokens, sequence.resident_tokens) == (computed, resident)
            assert kv.held_tokens == held_tokens, "a refusal took something"
        return is_taken

    kv.admit, kv.extend, kv.attend = admitted, extended, attended  # type: ignore[method-assign]
    return kv


def room(kv: KVCache) -> int:
    """How many sequences of a size fit at once when nothing is held, and nothing idle lies between them."""

    def filled(number: int) -> list[Sequence]:
        ledger, admitted = DecodeLedger(kv.block_tokens, kv.window_tokens), []
        while kv.admit(sequence := Sequence(Request(-number - len(admitted), 0, 30, 1, 1)), 30, ledger):
            admitted.append(sequence)
        return admitted

    for sequence in filled(1):  # all that was idle has given way
        kv.release(sequence, 0)
    return len(filled(1_000))


COMPOSED = {"by_class"}  # of these caches, and tested as such


def test_every_cache_there_is_takes_part():
    chosen = {choices[0].removeprefix("cache=") for choices, _ in VARIANTS.values()}
    assert chosen >= {"static", "dynamic", "predictive", "paged", "streaming", "compressed", "hierarchical"}
    assert names_of_files() - COMPOSED == chosen, "give it a variant in tests/sim/kv/variants.py"


@pytest.mark.parametrize(
    ("variant", "scheduler"),
    [
        *product(VARIANTS, ["planned ahead", "continuous"]),
        *product([name for name in VARIANTS if "windowed" in name], ["in small pieces"]),
    ],
)
def test_a_crowd_that_does_not_fit_is_served_and_every_slot_comes_back(variant, scheduler):
    stage = Stage(variant, scheduler)
    for i in range(8):
        stage.send(
            head=8 * (i % 3), tail=5 + i, output=20 + 3 * i, session=i if i % 2 else None, is_private=False, n_samples=1
        )
        stage.run(2)
    stage.send(head=0, tail=30, output=12, session=None, is_private=True, n_samples=1)
    stage.send(head=16, tail=9, output=14, session=None, is_private=False, n_samples=2)
    stage.run()
    for i in (1, 3, 5):
        stage.send(head=0, tail=4, output=6, session=i, is_private=False, n_samples=1)
    stage.close()
    assert not len(stage.recorder.refused)
    assert stage.recorder.iterations.column("waiting_seqs").max() > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_jumps_equal_single_steps(variant):
    listed = [
        asked(
            i,
            97_000 * i,
            9 + 5 * (i % 4),
            16 + 3 * i,
            content=((i % 2, 8), (50 + i, 1 + 5 * (i % 4))),
            output_id=-i - 1,
        )
        for i in range(12)
    ]
    listed = [one._replace(session_id=i if i % 3 else None, n_samples=1 + (i == 5)) for i, one in enumerate(listed)]
    turns = {i: [(50_000, 4, 6 + i)] for i in range(12)}
    how = {"kv": partial(made, variant), "scheduler": SCHEDULERS["chunked"], "cost": lambda: COST, "max_len": MAX_LEN}
    fast, slow = serve(Listed(listed, turns), **how), serve(Listed(listed, turns), **how, max_steps=1)
    assert fast.facts() == slow.facts()
    assert len(fast.recorder.iterations) < len(slow.recorder.iterations)


EXACT = ("static pow2", "static oracle first_fit")  # an extent of one turn's length has no room for the next
REUSES = [name for name in VARIANTS if "forgetful" not in name and name not in EXACT]


@pytest.mark.parametrize("variant", REUSES)
def test_the_next_turn_of_a_conversation_finds_what_the_last_one_left(variant):
    stage = Stage(variant)
    stage.send(head=0, tail=12, output=9, session=7, is_private=False, n_samples=1)
    stage.run()
    assert stage.kv.idle_tokens > 0
    stage.send(head=0, tail=6, output=3, session=7, is_private=False, n_samples=1)
    stage.close()
    assert stage.recorder.requests.column("cached_tokens").tolist() == [0, 20], "the last token's KV was not computed"


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "forgetful" in name])
def test_a_cache_told_to_forget_finds_nothing(variant):
    stage = Stage(variant)
    stage.send(head=0, tail=20, output=9, session=7, is_private=False, n_samples=1)
    stage.run()
    assert stage.kv.idle_tokens == 0
    stage.send(head=0, tail=6, output=3, session=7, is_private=False, n_samples=1)
    stage.close()
    assert stage.recorder.requests.column("cached_tokens").tolist() == [0, 0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_who_can_never_be_served_is_refused_and_takes_nothing(variant):
    stage = Stage(variant)
    too_long = Request(1, 0, 2_000, 100, 100)
    reason = stage.kv.refuses(too_long)
    if stage.kv.is_endless or stage.kv.window_tokens is not None:
        assert reason is None or str(stage.kv.capacity_tokens // stage.kv.block_tokens) in reason
    else:
        assert reason is not None
        assert "KV" in reason
    assert stage.kv.held_tokens == stage.kv.idle_tokens == 0
    assert stage.kv.refuses(Request(2, 0, 30, 5, 5)) is None


def contents(thing: object, seen: dict[int, int]) -> object:
    """All that a cache holds, down to the last list, to be compared with what it holds later."""
    if thing is None or isinstance(thing, int | float | str):
        return thing
    if id(thing) in seen:
        return "again", seen[id(thing)]
    seen[id(thing)] = len(seen)
    if isinstance(thing, dict):
        return [(contents(key, seen), contents(value, seen)) for key, value in thing.items()]
    if isinstance(thing, list | tuple | set | frozenset | deque):
        return [contents(one, seen) for one in thing]
    if not type(thing).__module__.startswith("sim.kv."):
        return type(thing).__name__  # sequences, events, the clock
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    names = {*slots, *getattr(thing, "__dict__", ())} - {"_found"}  # the last look-up of a request, one at a time
    return {name: contents(getattr(thing, name), seen) for name in sorted(names) if hasattr(thing, name)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_probe_leaves_no_trace(variant):
    """Who only asks, as a router does, is forgotten: nothing of the cache has changed, and no run is another."""

    def crowd(stage: Stage, probes: int) -> list[list[int]]:
        for i in range(9):
            session = i if i % 2 else None
            stage.send(8 * (i % 3), tail=5 + i, output=20 + 3 * i, session=session, is_private=i == 4, n_samples=1)
            stage.run(3)
            before = contents(stage.kv, {})
            for k in range(probes):
                content = ((1, 8 * (k % 4)), (100 + k % 12, 9)) if k % 3 else None
                stranger = Request(-k, 0, 9 + 8 * (k % 4), 5, 5, content, -k, k % 12)
                stage.kv.match(stranger, None if k % 2 else k % 5)
            assert contents(stage.kv, {}) == before
        stage.close()
        return stage.recorder.requests.rows().tolist()

    assert crowd(Stage(variant), probes=40) == crowd(Stage(variant), probes=0)


class CacheLaws(RuleBasedStateMachine):
    """Whatever is asked of whichever cache, in any order: the books balance after every event."""

    of: Callable[[str], bool]

    @initialize(data=st.data(), scheduler=st.sampled_from(sorted(SCHEDULERS)))
    def open(self, data: st.DataObject, scheduler: str) -> None:
        self.stage = Stage(data.draw(st.sampled_from([name for name in VARIANTS if type(self).of(name)])), scheduler)

    @rule(
        head=st.sampled_from([0, 0, 7, 16, 24]),
        tail=st.integers(1, 30),
        output=st.integers(1, 40),
        session=st.sampled_from([None, None, 1, 2, 3]),
        is_private=st.booleans(),
        n_samples=st.sampled_from([1, 1, 1, 2, 3]),
    )
    def ask(self, head, tail, output, session, is_private, n_samples):
        if session is not None and self.stage.is_speaking(session):
            session = None
        is_private = is_private and session is None
        self.stage.send(head, tail, output, session, is_private, n_samples)

    @rule(n_events=st.integers(1, 30))
    def wait(self, n_events):
        self.stage.run(n_events)

    @rule()
    def rest(self):
        self.stage.run()

    @invariant()
    def the_books_balance(self):
        if hasattr(self, "stage"):
            audit(self.stage.replica)

    def teardown(self):
        if hasattr(self, "stage"):
            self.stage.close()


class ExtentLaws(CacheLaws):
    of = staticmethod(lambda name: name.startswith(("static", "dynamic", "predictive")))


class BlockLaws(CacheLaws):
    of = staticmethod(lambda name: name.startswith("paged"))


class PrunedLaws(CacheLaws):
    of = staticmethod(lambda name: name.startswith(("streaming", "compressed")))


class TierLaws(CacheLaws):
    of = staticmethod(lambda name: name.startswith("hierarchical"))


THOROUGH = settings(max_examples=15, stateful_step_count=30, deadline=None)
TestExtentLaws, TestBlockLaws = ExtentLaws.TestCase, BlockLaws.TestCase
TestPrunedLaws, TestTierLaws = PrunedLaws.TestCase, TierLaws.TestCase
TestExtentLaws.settings = TestBlockLaws.settings = TestPrunedLaws.settings = TestTierLaws.settings = THOROUGH
