"""What some caches can do beside what all of them must; asked for with isinstance, so plain Python everywhere."""

from typing import Protocol, runtime_checkable

from sim.kv.prefix import Listener
from sim.ledger import DecodeLedger
from sim.sequence import Sequence


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

    def take_token(self, sequence: Sequence, ledger: DecodeLedger) -> None:
        """A decoding sequence has room for its next token, but is about to be preempted before it computes it."""
        ...


@runtime_checkable
class Divided(Protocol):
    """A cache that divides the device's memory among its sequences: not everybody who gives way helps who is short."""

    def gives_way(self, sequence: Sequence, asking: Sequence | None) -> bool:
        """Whether preempting a running sequence makes room for one that asks, or where the next iteration lacks it."""
        ...


@runtime_checkable
class Publisher(Protocol):
    """A cache that tells what can be found in it, block by block of ``block_tokens``."""

    block_tokens: int

    def publish(self, listener: Listener) -> None:
        """Tell somebody from now on which blocks can be found and which no more."""
        ...
