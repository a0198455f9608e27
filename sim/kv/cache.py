"""The contract every KV cache keeps with the engine."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mypy_extensions import mypyc_attr

from sim.ledger import DecodeLedger
from sim.request import Request
from sim.sequence import Sequence


@dataclass(slots=True, eq=False)
class Copies:
    """What a cache has copied since the engine last took note, which the next iteration waits for [B]."""

    moved_bytes: float = 0.0  # inside device memory (growth, compaction, quantising)
    host_bytes: float = 0.0  # over the host link, where that does not overlap


class Parcel(NamedTuple):
    """KV of a text's first tokens that goes to another cache. Its source keeps it until it is there."""

    n_tokens: int  # of the text, that it stands for
    dropped_tokens: int  # of these, those whose KV its source has given up (window, compression)
    copied_tokens: int  # of these, those copied within the device's memory; the others come over a link, later
    bytes_per_token: float  # as wide as its source stores it, on each accelerator [B]


class Transit(ABC):
    """A parcel on its way from one replica to another: it stays in the memory of its source until it has come."""

    parcel: Parcel

    @abstractmethod
    def begin(self, sequence: Sequence, replica: int) -> None:
        """A replica has taken room for it: send what is not there yet, for which the sequence is ``loading``."""
        ...

    @abstractmethod
    def end(self, next_token_ns: int | None) -> None:
        """The sequence goes on, or will not: write down what became of it, and free its source.

        Parameters
        ----------
        next_token_ns : int or None
            When it got its next token; None: it lost, or did not wait for, what was sent.
        """
        ...

    @property
    @abstractmethod
    def has_come(self) -> bool:
        """Whether all of it is where the sequence goes on."""
        ...


@mypyc_attr(allow_interpreted_subclasses=True)
class KVCache(ABC):
    """Where keys and values live: who holds how much of the device's memory, and what of it can be used again.

    Token slots are the currency: ``held_tokens`` are taken by admitted sequences, ``idle_tokens`` hold reusable KV
    that nobody references.
    """

    capacity_tokens: int
    block_tokens: int  # granularity of the ledger's growth count; 1 where memory is not taken block by block
    window_tokens: int | None  # resident tokens a sequence never exceeds while decoding
    is_endless: bool  # sequences may outgrow the model's maximum, for each is kept within a bound
    copies: Copies
    bytes_per_token: float = 0.0  # as wide as it stores elements, on each accelerator [B]

    @classmethod
    def capacity_block_tokens(cls, settings: Mapping[str, Any]) -> int:
        """In which its memory is counted (``hardware.kv_blocks``), with these settings of its YAML [tokens]."""
        size: int = settings.get("block_tokens", 16)  # vLLM's
        return size

    @classmethod
    def swapping(cls, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:  # noqa: ARG003
        """The settings, of another class if need be, with which what is preempted can go down; None: it cannot."""
        return None

    @property
    @abstractmethod
    def held_tokens(self) -> int:
        """Slots held by sequences whose prompt is not complete or that decode."""
        ...

    @property
    @abstractmethod
    def idle_tokens(self) -> int:
        """Slots holding KV that a later request may use, free to be taken back."""
        ...

    @property
    def rounding_tokens(self) -> int | None:
        """Held slots that belong to no token and never will; None: all that no token is meant for (ends of blocks)."""
        return None

    @property
    def external_tokens(self) -> int:
        """Slots that are free, but not in one piece where one piece is needed."""
        return 0

    @property
    def shared_tokens(self) -> int:
        """Slots read by one more sequence than hold them: each further reader of a slot counts."""
        return 0

    @abstractmethod
    def match(self, request: Request, generated_tokens: int | None = None) -> int:
        """Leading tokens of a request that are resident, at most all but the last. Leaves no trace: anybody may ask.

        Parameters
        ----------
        request : Request
        generated_tokens : int or None
            How much of its answer there was when it was preempted; None: it was not [tokens].
        """
        ...

    @abstractmethod
    def admit(self, sequence: Sequence, n_tokens: int, ledger: DecodeLedger, parcel: Parcel | None = None) -> bool:
        """Take room for what `match` finds of a waiting sequence and for the next ``n_tokens``, all or nothing.

        Its ``computed_tokens`` start at what was found. Room for one more token of every decoding sequence is left.
        Where KV must come over a link first, the sequence is ``loading`` until then: it holds its memory, and others
        run.

        With a parcel that it `accepts` they start at what that stands for, and room is taken for what it brings:
        ``coming_tokens``, all but what is here already. Whoever brings it sees to the copies and transfers.
        """
        ...

    def accepts(self, request: Request, parcel: Parcel) -> bool:  # noqa: ARG002
        """Whether a request can go on here from a parcel."""
        return True

    def export(self, sequence: Sequence) -> Parcel:
        """All that a running sequence holds, to go on elsewhere over a link; it is kept here until `release`."""
        return Parcel(sequence.computed_tokens, sequence.dropped_tokens, 0, self.bytes_per_token)

    @abstractmethod
    def extend(self, sequence: Sequence, n_tokens: int, ledger: DecodeLedger) -> bool:
        """Take room for the next ``n_tokens`` of an admitted sequence's prompt, all or nothing; as `admit` does."""
        ...

    @abstractmethod
    def attend(self, sequence: Sequence, ledger: DecodeLedger) -> bool:
        """A decoding sequence has reached its ``room_tokens``: see to its next token, or change nothing.

        Sets new ``room_tokens``, None where it need not ask again.
        """
        ...

    @abstractmethod
    def steps_within(self, ledger: DecodeLedger, n_steps: int) -> int:
        """How many of the next ``n_steps`` decode iterations the memory suffices for."""
        ...

    @abstractmethod
    def advance(self, ledger: DecodeLedger, n_steps: int) -> None:
        """Iterations have run, ``n_steps`` of decoding: take their memory, before the ledger advances."""
        ...

    @abstractmethod
    def trim(self, sequence: Sequence, ledger: DecodeLedger) -> None:
        """A piece of a sequence's prompt is computed: give up what need not stay (window, compression)."""
        ...

    @abstractmethod
    def fork(self, sequence: Sequence, others: list[Sequence], ledger: DecodeLedger) -> int:
        """A sequence whose prompt is complete becomes several, each of which reads all of the prompt's KV.

        Returns how many of the others, from the first on, hold it now; the rest hold nothing. Where they cannot share,
        room for all of them is taken when the sequence is admitted (``n_samples``), or nothing is.
        """
        ...

    @abstractmethod
    def release(self, sequence: Sequence, now_ns: int) -> None:
        """Take back what a sequence holds, finished or preempted; what others may use stays findable."""
        ...

    @abstractmethod
    def refuses(self, request: Request) -> str | None:
        """Why a request could never be served even alone, all its samples at once, or None."""
        ...

    @abstractmethod
    def counts(self) -> Mapping[str, int | float]:
        """Facts of the run: evictions, copies, resizes, ..."""
        ...
