"""What a scheduler decides, and the contract of schedulers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

from mypy_extensions import mypyc_attr

from sim.batching.queue import Queue
from sim.kv.abilities import Divided, Reusing
from sim.kv.cache import KVCache, Transit
from sim.ledger import DecodeLedger
from sim.sequence import Sequence

Preempt = Callable[[Sequence], None]
"""Takes a running sequence's memory back and puts it at the head of the queue, unless it has ended already."""
Loaded = Callable[[Any], None]
"""Called when a sequence's KV has come over a link."""


@dataclass(slots=True)
class Batch:
    """Everything that runs or waits in one replica: what schedulers look at and change."""

    waiting: Queue
    kv: KVCache
    ledger: DecodeLedger
    preempt: Preempt
    loaded: Loaded
    replica: int
    partial: list[Sequence] = field(default_factory=list)  # admitted, prompt incomplete, in order of admission
    leaving: list[Sequence] = field(default_factory=list)  # ended after the next plan was made: places still taken
    held_back: list[Sequence] = field(default_factory=list)  # they decode, but get no token from the next iteration
    n_admitted: int = 0
    n_unforked: int = 0  # sequences that admitted prompts will become, beyond one each
    is_provisional: bool = False  # the plan may hold for one iteration only, though nobody comes and nobody ends
    has_emptied: bool = False  # all gave way: they come back one by one in the next plan, which is made at once
    last_served: int | None = None  # one that asked for room gave way itself: who was admitted later is not served
    took_ahead: bool = False  # the plan popped what its iteration's decoding takes
    reusing: Reusing | None = field(init=False)  # the cache, if what decoding takes is to be popped first

    def __post_init__(self) -> None:
        self.reusing = self.kv if isinstance(self.kv, Reusing) else None

    def match(self, sequence: Sequence) -> int:
        """Leading tokens of a waiting sequence that the cache would find."""
        return self.kv.match(sequence.request, sequence.preempted_at_tokens)

    def n_running(self) -> int:
        """Sequences admitted, those that have ended since the last plan included."""
        n_left = sum([sequence.order not in self.ledger.members for sequence in self.leaving])
        return len(self.ledger.members) + len(self.partial) + n_left + self.n_unforked

    def loading(self) -> list[Sequence]:
        """Sequences that wait for KV from below."""
        return [sequence for sequence in self.partial if sequence.loading is not None]

    def admit(self, most_tokens: int | None, now_ns: int, most_seqs: int) -> tuple[Sequence, int] | None:
        """Admit the head of the queue with at most so many tokens of its prompt, or nobody if memory is short.

        One that waits for KV from below is admitted with none. One that will become several sequences is admitted
        when ``most_seqs`` allows all of them: their places are theirs from the start, so none ever waits for one.
        """
        sequence = self.waiting.head()
        n_samples = sequence.n_samples
        if n_samples > most_seqs:
            return None
        transit: Transit | None = sequence.transit
        parcel = None if transit is None else transit.parcel
        matched = self.match(sequence) if parcel is None else parcel.n_tokens
        n_tokens = sequence.target_tokens - matched
        if most_tokens is not None and n_tokens > most_tokens:
            n_tokens = most_tokens
        if not self.kv.admit(sequence, n_tokens, self.ledger, parcel):
            if parcel is None and self.match(sequence) < matched:
                return self.admit(most_tokens, now_ns, most_seqs)  # what was found had to give way: try without
            if matched and most_tokens is not None and most_tokens < sequence.target_tokens:
                # A piece that follows a cached prefix needs less once some of that prefix has been evicted.
                self.is_provisional = True
            return None
        if transit is not None:
            transit.begin(sequence, self.replica)
        if sequence.loading is not None:
            n_tokens = 0  # its turn comes when its KV has
            sequence.loading.callbacks.append(self.loaded)
        self.waiting.take()
        self.partial.append(sequence)
        if n_samples > 1:
            self.n_unforked += n_samples - 1
        self.n_admitted += 1
        sequence.order = self.n_admitted
        if sequence.scheduled_ns is None:
            sequence.scheduled_ns = now_ns
            sequence.cached_tokens = matched
        else:
            sequence.found_tokens = matched
        return sequence, n_tokens

    def make_room(self, in_turn: bool = False) -> int:
        """Preempt until every decoding sequence can take one more token. Returns how many gave way.

        Where a token needs more than a block, a longer extent or a copy of a shared block, only those who ask for that
        now give way to one another: an extent lies in one piece, which others' leaving need not make.

        Where sequences ask ``in_turn``, in the order of their admission, one that gives way itself ends the plan: those
        behind it keep what they have and are held back for an iteration (``Scheduler.schedule`` in
        v1/core/sched/scheduler.py). Others than the last do where not the last is the victim, under priorities.
        """
        kv, ledger = self.kv, self.ledger
        self.last_served = None
        n_preempted = 0
        while ledger.members:
            due = ledger.due() if ledger.alarms else []
            if due:  # what they hold changes, and so may what fits
                self.is_provisional = True
            while due:
                if kv.attend(due[0], ledger):
                    ledger.rearm(due.pop(0))
                else:
                    victim = self._victim(reversed(due), due[0])
                    due.remove(victim)
                    self.preempt(victim)
                    n_preempted += 1
            if kv.steps_within(ledger, 1):
                break
            victim = self._victim(self._running(), None)
            if in_turn and self.reusing is not None:
                self.reusing.take_ahead(ledger)
            if in_turn and victim.order in ledger.members and not isinstance(kv, Divided):
                behind = [one for one in ledger.members.values() if one.order > victim.order]
                if self._fit_but_for(behind):
                    if self.reusing is not None:
                        self.reusing.take_token(victim, ledger)
                elif self._fit_but_for([victim, *behind]):
                    self.last_served = victim.order
                    self.held_back = behind
            self.preempt(victim)
            n_preempted += 1
            if self.last_served is not None:
                break
        return n_preempted

    def _take_ahead_of(self, sequence: Sequence) -> None:
        """Those who were admitted before have their next token's room already when a prompt asks for more."""
        ledger = self.ledger
        behind = [one for one in ledger.members.values() if one.order > sequence.order]
        for one in behind:
            ledger.count(one, -1)
        self.reusing.take_ahead(ledger)  # type: ignore[union-attr]
        for one in behind:
            ledger.count(one, 1)

    def _fit_but_for(self, those: list[Sequence]) -> bool:
        """Whether all other decoding sequences find room for their next token."""
        for sequence in those:
            self.ledger.count(sequence, -1)
        fit = self.kv.steps_within(self.ledger, 1) > 0
        for sequence in those:
            self.ledger.count(sequence, 1)
        return fit

    def extend(self, sequence: Sequence, n_tokens: int) -> int:
        """Take room for a prompt's next tokens; others give way, in the end itself. Returns how many did."""
        n_preempted = 0
        while not self.kv.extend(sequence, n_tokens, self.ledger):
            if self.reusing is not None:
                self._take_ahead_of(sequence)
            victim = self._victim(self._running(), sequence)
            if self.reusing is not None and victim.order < sequence.order and victim.order in self.ledger.members:
                self.reusing.take_token(victim, self.ledger)
            self.preempt(victim)
            n_preempted += 1
            if victim is sequence:
                break
        return n_preempted

    def _running(self) -> Iterator[Sequence]:
        """The end of vLLM v1's running list first: who was admitted last, and who has ended since the last plan too."""
        members = self.ledger.members
        left = [sequence for sequence in self.leaving if sequence.order not in members]
        return iter(sorted(chain(self.partial, members.values(), left), key=_order, reverse=True))

    def _victim(self, running: Iterator[Sequence], asking: Sequence | None) -> Sequence:
        """Who of these gives way to one that asks for room, or to the next iteration as a whole."""
        kv = self.kv
        if isinstance(kv, Divided):
            running = (sequence for sequence in running if kv.gives_way(sequence, asking))
        return self.waiting.victim(running)


def _order(sequence: Sequence) -> int:
    return sequence.order


class Plan:
    """The next iteration; where it computes no prompts, those after it too, until somebody comes or ends."""

    __slots__ = ("chunks", "decodes", "pad_to_tokens")

    def __init__(
        self,
        chunks: list[tuple[Sequence, int]] | None = None,
        decodes: bool = True,
        pad_to_tokens: int | None = None,
    ) -> None:
        self.chunks = chunks or []  # prompt tokens to compute, by sequence
        self.decodes = decodes  # every decoding sequence gets a token; else they are held back
        self.pad_to_tokens = pad_to_tokens  # prompts are computed as if so long (request-level batches)


DECODE: Final = Plan()
"""Nothing but decoding."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Scheduler(ABC):
    """Which sequences the next iteration serves."""

    plans_ahead: bool = False  # while the iteration before runs, so without knowing what arrives or ends during it
    returns_together: bool = False  # a batch's answers are returned, and its memory freed, when the longest has ended
    forks_samples: bool = True  # several answers compute their prompt once; else each is a request of its own
    admits_in_order: bool = False  # who waits is admitted from the head as soon as it fits: nobody behind it matters

    @property
    @abstractmethod
    def most_seqs(self) -> int:
        """Sequences that may run at once."""
        ...

    @property
    def most_tokens(self) -> int:
        """Tokens of the largest iteration it plans; where it has no budget, vLLM's for a large device [tokens]."""
        return 8192

    @property
    def chunk_tokens(self) -> int | None:
        """Tokens of one prompt that an iteration computes at most; None: prompts are computed whole [tokens]."""
        return None

    @abstractmethod
    def plan(self, batch: Batch, now_ns: int) -> Plan | int | None:
        """The next iteration; the time at which to ask again if nothing arrives before; or None, on arrival."""
        ...
