"""The ledger against one that loops over its sequences for every token."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from sim.ledger import DecodeLedger
from sim.request import Request
from sim.sequence import Sequence
from tests.sim.naive_ledger import NaiveLedger


def decoding(order: int, resident: int, left: int, padding: int = 0, room: int | None = None) -> Sequence:
    """A sequence whose prompt is complete and that has ``left`` tokens to go after its first."""
    sequence = Sequence(Request(order, 0, resident, left + 1, left + 1))
    sequence.order = order
    sequence.computed_tokens = resident
    sequence.generated_tokens = 1
    sequence.padding_tokens = padding
    sequence.room_tokens = None if room is None else resident + room
    return sequence


def test_members_advance_in_lock_step_and_are_brought_up_to_date_when_they_leave():
    ledger = DecodeLedger(block_tokens=4)
    a, b = decoding(1, 30, 9), decoding(2, 10, 9)
    ledger.join(a)
    ledger.advance(2)
    ledger.join(b)
    ledger.advance(2)
    assert (ledger.resident_of(a), ledger.resident_of(b)) == (34, 12)
    assert ledger.resident_tokens == 46
    assert (a.computed_tokens, a.generated_tokens) == (30, 1), "untouched while it decodes"
    ledger.leave(a)
    assert (a.computed_tokens, a.generated_tokens) == (34, 5)
    assert ledger.resident_tokens == 12


def test_a_block_is_taken_when_resident_tokens_are_a_multiple_of_its_size():
    ledger = DecodeLedger(block_tokens=4)
    ledger.join(decoding(1, 8, 99))  # full blocks: the next token needs one
    ledger.join(decoding(2, 6, 99))  # needs one in its third token
    assert [ledger.blocks_needed(n) for n in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3]
    assert [ledger.steps_for_blocks(n) for n in (0, 1, 2, 3)] == [0, 2, 4, 6]


def test_a_window_stops_growth_and_replaces_old_tokens():
    ledger = DecodeLedger(block_tokens=1, window_tokens=12)
    a = decoding(1, 10, 9)
    ledger.join(a)
    assert ledger.steps_to_event() == 2
    ledger.advance(2)
    assert (ledger.n_growing, ledger.context_tokens(), ledger.max_context_tokens()) == (0, 12, 12)
    ledger.advance(4)
    ledger.leave(a)
    assert (a.computed_tokens, a.resident_tokens, a.dropped_tokens) == (16, 12, 4)


def test_those_whose_room_is_full_are_named_in_order_of_admission():
    """B joins later, with less room than it already fills: A, admitted before, is still asked first."""
    ledger = DecodeLedger()
    ledger.join(decoding(1, 5, 9, room=2))
    ledger.advance(2)
    ledger.join(decoding(2, 12, 9, room=-1))
    assert orders(ledger.due()) == [1, 2]


def test_padding_is_attended_and_counts_for_the_longest():
    ledger = DecodeLedger()
    ledger.join(decoding(1, 10, 9, padding=90))
    assert (ledger.context_tokens(), ledger.max_context_tokens()) == (101, 101)


joins = st.tuples(
    st.just("join"),
    st.integers(1, 40),
    st.integers(0, 30),
    st.integers(0, 20),
    st.none() | st.integers(0, 25),
)
moves = st.lists(
    st.one_of(
        joins,
        st.tuples(st.just("advance"), st.integers(1, 20)),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("attend"), st.integers(1, 20)),
        st.tuples(st.just("drop"), st.integers(0, 9), st.integers(1, 20)),
    ),
    max_size=40,
)


@dataclass
class Pair:
    """The two ledgers, each with sequences of its own, driven alike."""

    size: int
    window: int | None
    keeps_ended: bool  # as in a request-level batch

    def __post_init__(self) -> None:
        self.ledgers = (DecodeLedger(self.size, self.window), NaiveLedger(self.size, self.window))
        self.members: list[tuple[Sequence, Sequence]] = []
        self.n_joined = 0

    def join(self, resident: int, left: int, padding: int, room: int | None) -> None:
        self.n_joined += 1
        if self.window is not None:
            padding = 0
        pair = tuple(decoding(self.n_joined, resident, left, padding, room) for _ in self.ledgers)
        for ledger, sequence in zip(self.ledgers, pair, strict=True):
            ledger.join(sequence)
        self.members.append(pair)
        self.end()

    def leave(self, index: int) -> None:
        pair = self.members.pop(index % len(self.members))
        for ledger, sequence in zip(self.ledgers, pair, strict=True):
            ledger.leave(sequence)
        fast, slow = pair
        assert counters(fast) == counters(slow)

    def attend(self, room: int) -> None:
        """The cache gives room to those whose room is full."""
        due = [ledger.due() for ledger in self.ledgers]
        assert orders(due[0]) == orders(due[1])
        for ledger, sequences in zip(self.ledgers, due, strict=True):
            for sequence in sequences:
                sequence.room_tokens += room
                ledger.rearm(sequence)

    def drop(self, index: int, n_tokens: int) -> None:
        """The cache lets one that grows keep less."""
        pair = self.members[index % len(self.members)]
        resident = self.ledgers[1].resident_of(pair[1])
        if self.window is None and pair[0].room_tokens is None:
            for ledger, sequence in zip(self.ledgers, pair, strict=True):
                ledger.drop(sequence, min(n_tokens, resident - 1))

    def advance(self, n_steps: int) -> None:
        most = self.ledgers[0].steps_to_event()
        for ledger in self.ledgers:
            ledger.advance(n_steps if most is None else min(n_steps, most))
        self.end()

    def end(self) -> None:
        fast, slow = (ledger.finished() for ledger in self.ledgers)
        assert orders(fast) == orders(slow)
        if not self.keeps_ended:
            for order in orders(fast):
                self.leave(next(i for i, (one, _) in enumerate(self.members) if one.order == order))


def counters(sequence: Sequence) -> tuple[int, ...]:
    return sequence.computed_tokens, sequence.dropped_tokens, sequence.generated_tokens


def orders(sequences: list[Sequence]) -> list[int]:
    return [sequence.order for sequence in sequences]


def seen(ledger: DecodeLedger | NaiveLedger) -> dict[str, object]:
    """Everything a scheduler, a cache or the engine can ask."""
    size = ledger.block_tokens
    return {
        "members": list(ledger.members),
        "n": len(ledger),
        "order": orders(list(ledger)),
        "growing": ledger.n_growing,
        "emitting": ledger.n_emitting,
        "resident": [ledger.resident_of(sequence) for sequence in ledger],
        "resident_tokens": ledger.resident_tokens,
        "padding_tokens": ledger.padding_tokens,
        "context_tokens": ledger.context_tokens(),
        "max_context_tokens": ledger.max_context_tokens(),
        "steps_to_event": ledger.steps_to_event(),
        "blocks_needed": [ledger.blocks_needed(n) for n in range(min(2 * size, ledger.steps_to_event() or 0) + 1)],
        "steps_for_blocks": [ledger.steps_for_blocks(n) for n in range(6)] if ledger.n_growing else None,
    }


@settings(max_examples=150, deadline=None)
@given(moves, st.sampled_from([1, 2, 4, 8]), st.none() | st.integers(4, 30), st.booleans())
def test_the_ledger_equals_the_naive_one_in_everything_it_can_be_asked(moves, size, window, keeps_ended):
    pair = Pair(size, window, keeps_ended)
    for name, *arguments in moves:
        if name in ("join", "attend") or pair.members:
            getattr(pair, name)(*arguments)
        fast, slow = pair.ledgers
        assert seen(fast) == seen(slow)
