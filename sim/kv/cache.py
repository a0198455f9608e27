"""The contract every KV cache keeps with the engine."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from sim.ledger import DecodeLedger
from sim.request import Request
from sim.sequence import Sequence


class KVCache(Protocol):
    """Where keys and values live: who holds how much of the device's memory, and what of it can be used again.

    Token slots are the currency: ``held_tokens`` are taken by admitted sequences, ``idle_tokens`` hold reusable KV
    that nobody references. ``moved_bytes`` is what the cache copied inside device memory since the engine last took
    note (growth, compaction), ``host_bytes`` what it moved over the host link on the critical path. Of the slots held,
    ``rounding_tokens`` belong to no token and never will (None: all that no token is meant for, as at the ends of
    blocks), and ``external_tokens`` are free but not in one piece. ``shared_tokens`` are read by one more sequence than
    hold them: each further reader of a slot counts.
    """

    capacity_tokens: int
    block_tokens: int  # granularity of the ledger's growth count; 1 where memory is not taken block by block
    window_tokens: int | None  # resident tokens a sequence never exceeds while decoding
    moved_bytes: float
    host_bytes: float
    is_endless: bool  # sequences may outgrow the model's maximum, for each is kept within a bound
    rounding_tokens: int | None
    external_tokens: int
    shared_tokens: int

    @property
    def held_tokens(self) -> int:
        """Slots held by sequences whose prompt is not complete or that decode."""
        ...

    @property
    def idle_tokens(self) -> int:
        """Slots holding KV that a later request may use, free to be taken back."""
        ...

    def match(self, sequence: Sequence) -> int:
        """Leading tokens of a waiting sequence that are resident, at most all but the last. Changes nothing."""
        ...

    def extend(self, sequence: Sequence, n_tokens: int, ledger: DecodeLedger) -> bool:
        """Take room for the next ``n_tokens`` of a sequence, all of it or nothing.

        For a sequence that holds nothing this admits it: it references what `match` found, and its
        ``computed_tokens`` start there. Room for one more token of every decoding sequence is left. A decoding
        sequence is asked when its ``room_tokens`` are reached; the cache sets new ones. Where KV must come over a link
        first, the sequence is ``loading`` until then: it holds its memory, and others run.
        """
        ...

    def steps_within(self, ledger: DecodeLedger, n_steps: int) -> int:
        """How many of the next ``n_steps`` decode iterations the memory suffices for."""
        ...

    def advance(self, ledger: DecodeLedger, n_steps: int) -> None:
        """Iterations have run, ``n_steps`` of decoding: take their memory, before the ledger advances."""
        ...

    def trim(self, sequence: Sequence, ledger: DecodeLedger) -> None:
        """A piece of a sequence's prompt is computed: give up what need not stay (window, compression)."""
        ...

    def fork(self, sequence: Sequence, others: list[Sequence], ledger: DecodeLedger) -> int:
        """A sequence whose prompt is complete becomes several, each of which reads all of the prompt's KV.

        Returns how many of the others, from the first on, hold it now; the rest hold nothing. Where they cannot share,
        room for all of them is taken when the sequence is admitted (``n_samples``), or nothing is.
        """
        ...

    def release(self, sequence: Sequence, now_ns: int) -> None:
        """Take back what a sequence holds, finished or preempted; what others may use stays findable."""
        ...

    def refuses(self, request: Request) -> str | None:
        """Why a request could never be served even alone, all its samples at once, or None."""
        ...

    def counts(self) -> Mapping[str, int | float]:
        """Facts of the run: evictions, copies, resizes, ..."""
        ...


@runtime_checkable
class Prefetcher(Protocol):
    """A cache with memory below it, which likes to know who waits: the first ``prefetch_requests`` in the queue."""

    prefetch_requests: int

    def prefetch(self, sequence: Sequence) -> None:
        """A sequence is among the first that wait: bring nearer what it will need. It may be told so again."""
        ...


@runtime_checkable
class Reusing(Protocol):
    """A cache whose free memory may still be found: it matters whether it is taken first, or looked for."""

    def take_ahead(self, ledger: DecodeLedger) -> None:
        """The next iteration decodes: what it takes is not to be found by those who wait."""
        ...


@runtime_checkable
class Divided(Protocol):
    """A cache that divides the device's memory among its sequences: not everybody who gives way helps who is short."""

    def gives_way(self, sequence: Sequence, asking: Sequence | None) -> bool:
        """Whether preempting a running sequence makes room for one that asks, or where the next iteration lacks it."""
        ...
