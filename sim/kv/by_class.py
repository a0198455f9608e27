"""Each class of traffic with the cache that suits it, and conversations that move when their class changes.

    short chat      predictive     |  0.25 of the slots  |
    long document   hierarchical   |  0.30               |──▶ memory below
    code            dynamic        |  0.20               |
    creative        compressed     |  0.25               |

The device's slots are divided in fixed shares. Extents must lie in one piece and blocks in a table of a pool: memory
that changed sides would have to be cleared of extents first, and whoever waits for that waits for another class's
conversations to end. So one class that runs full does not take from the others, and does not get from them either.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sim.errors import ConfigError
from sim.kv.abilities import Prefetcher, Reusing
from sim.kv.cache import KVCache, Parcel
from sim.kv.contiguous import ContiguousCache
from sim.kv.migration import Migrations
from sim.kv.partition import Partition, PartitionCache, PartitionLedger
from sim.kv.site import Site
from sim.ledger import DecodeLedger
from sim.request import Request
from sim.sequence import Sequence
from sim.spec import as_given


@dataclass(frozen=True, slots=True)
class ClassShare:
    """What serves a class of traffic.

    Parameters
    ----------
    share : float
        Of the device's KV slots.
    cache : callable
        Makes the cache, at a site of so many slots.
    """

    share: float
    cache: Callable[..., PartitionCache]

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ConfigError(f"cache.classes: share must be > 0 and <= 1, got {as_given(self.share)}")


class CacheByClass(KVCache):
    """Caches side by side, each for one class of requests (`Request.kind`); what moves is `sim.kv.migration`'s matter.

    Parameters
    ----------
    site : Site
    classes : dict of str to ClassShare
        By class; the shares must not exceed 1 in all.
    """

    def __init__(self, site: Site, classes: dict[str, ClassShare]) -> None:
        window_tokens, kv_bytes_per_token, element_bits = site.model.window, site.bytes_per_token, site.element_bits
        if not classes:
            raise ConfigError("cache.classes must name at least one class, got none")
        total = sum(one.share for one in classes.values())
        if total > 1.0 + 1e-9:
            raise ConfigError(f"cache.classes: the shares must not exceed 1 in all, got {total:g}")
        self._partitions: dict[str, Partition] = {}
        for name, one in classes.items():
            try:
                cache = one.cache(site.part(int(site.capacity_tokens * one.share)))
            except ConfigError as error:
                raise ConfigError(f"cache.classes.{name}: {error}") from None
            if cache.window_tokens != window_tokens:
                raise ConfigError(
                    f"cache.classes.{name}: its cache lets sequences slide over {cache.window_tokens} tokens; all "
                    f"classes decode in one batch, whose window is the model's ({window_tokens})"
                )
            ledger = PartitionLedger(cache.block_tokens, window_tokens)
            self._partitions[name] = Partition(cache, ledger)
        self._caches = [part.cache for part in self._partitions.values()]
        self._prefetchers = [cache for cache in self._caches if isinstance(cache, Prefetcher)]
        self._ledgers = [part.ledger for part in self._partitions.values()]
        self._pairs = [(part.cache, part.ledger) for part in self._partitions.values()]
        self._by_blocks = [pair for pair in self._pairs if not isinstance(pair[0], ContiguousCache)]  # others ring
        self._reusing = [(cache, ledger) for cache, ledger in self._pairs if isinstance(cache, Reusing)]
        self.block_tokens = 1  # the batch's ledger counts no blocks; those of the parts do
        self.window_tokens = window_tokens
        self.capacity_tokens = sum(cache.capacity_tokens for cache in self._caches)
        self.copies = site.copies
        self.is_endless = all(cache.is_endless for cache in self._caches)
        self.prefetch_requests = max(getattr(cache, "prefetch_requests", 0) for cache in self._caches)
        self._migrations = Migrations(self._partitions)
        self._n_requests = dict.fromkeys(self._partitions, 0)
        full = kv_bytes_per_token * self.capacity_tokens  # as many slots, had all of them an element's full width
        narrow = sum(cache.bytes_per_token * cache.capacity_tokens for cache in self._caches)
        self._bits_per_element = element_bits * narrow / full if full else element_bits

    @classmethod
    def swapping(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """As it is: those of its caches that can, do."""
        return settings

    # Loops: sum() over a generator takes more than twice as long, and every run of iterations asks for all of these.

    @property
    def held_tokens(self) -> int:
        """Slots held, of all classes."""
        total = 0
        for cache in self._caches:
            total += cache.held_tokens
        return total

    @property
    def idle_tokens(self) -> int:
        """Slots with KV that a later request may use, of all classes."""
        total = 0
        for cache in self._caches:
            total += cache.idle_tokens
        return total

    @property
    def shared_tokens(self) -> int:
        """Slots read by one more sequence than hold them, of all classes."""
        total = 0
        for cache in self._caches:
            total += cache.shared_tokens
        return total

    @property
    def external_tokens(self) -> int:
        """Slots that are free but not in one piece, of all classes."""
        total = 0
        for cache in self._caches:
            total += cache.external_tokens
        return total

    @property
    def rounding_tokens(self) -> int:
        """Slots held that no token is meant for, of all classes."""
        n_tokens = 0
        for cache, ledger in self._pairs:
            own = cache.rounding_tokens
            if own is None:
                own = cache.held_tokens and max(0, cache.held_tokens - ledger.live_tokens + cache.shared_tokens)
            n_tokens += own
        return n_tokens

    def match(self, request: Request, generated_tokens: int | None = None) -> int:
        """Leading tokens of a request that its class's cache has, or that move there."""
        parcel = self._migrations.parcel(request, generated_tokens)
        if parcel is not None:
            return parcel.n_tokens
        return self._partitions[request.kind].cache.match(request, generated_tokens)

    def accepts(self, request: Request, parcel: Parcel) -> bool:
        """If its class's cache does."""
        return self._partitions[request.kind].cache.accepts(request, parcel)

    def admit(self, sequence: Sequence, n_tokens: int, ledger: DecodeLedger, parcel: Parcel | None = None) -> bool:
        """Take room in the class's cache; a conversation that comes from another class brings its KV."""
        self._follow(ledger)
        cache, part = self._part(sequence)
        moving = self._migrations.parcel(sequence.request, sequence.preempted_at_tokens) if parcel is None else None
        if moving is None:
            is_taken = cache.admit(sequence, n_tokens, part, parcel)
        else:
            is_taken = self._migrations.take(sequence, n_tokens, moving)
        if is_taken:
            self._migrations.arrive(sequence)
            self._n_requests[sequence.request.kind] += not sequence.n_preemptions
            part.planned_tokens[sequence] = sequence.resident_tokens + n_tokens
        return is_taken

    def extend(self, sequence: Sequence, n_tokens: int, ledger: DecodeLedger) -> bool:
        """Take room for the next piece of a prompt in its class's cache."""
        self._follow(ledger)
        cache, part = self._part(sequence)
        is_taken = cache.extend(sequence, n_tokens, part)
        if is_taken:
            part.planned_tokens[sequence] = sequence.resident_tokens + n_tokens
        return is_taken

    def attend(self, sequence: Sequence, ledger: DecodeLedger) -> bool:
        """A decoding sequence has reached its room: its class's cache sees to it."""
        self._follow(ledger)
        cache, part = self._part(sequence)
        return cache.attend(sequence, part)

    def export(self, sequence: Sequence) -> Parcel:
        """What it holds in its class's cache."""
        return self._part(sequence).cache.export(sequence)

    def steps_within(self, ledger: DecodeLedger, n_steps: int) -> int:
        """How many of the next ``n_steps`` decode iterations the memory of every class suffices for."""
        self._follow(ledger)
        for cache, part in self._by_blocks:
            if part.n_growing:
                n_steps = cache.steps_within(part, n_steps)
        return n_steps

    def gives_way(self, sequence: Sequence, asking: Sequence | None) -> bool:
        """Whether it is of the class that asks, or of one whose memory does not suffice for the next iteration."""
        cache, part = self._part(sequence)
        return not cache.steps_within(part, 1) if asking is None else cache is self._part(asking).cache

    def advance(self, ledger: DecodeLedger, n_steps: int) -> None:
        """Iterations have run: every class takes the memory of its own."""
        self._follow(ledger)
        for cache, part in self._pairs:
            if cache.held_tokens:  # else it serves nobody now
                cache.advance(part, n_steps)
                part.advance(n_steps)

    def take_token(self, sequence: Sequence, ledger: DecodeLedger) -> None:
        """A decoding sequence has room for its next token, but is about to be preempted before it computes it."""
        self._follow(ledger)
        cache, part = self._part(sequence)
        if isinstance(cache, Reusing):
            cache.take_token(sequence, part)

    def take_ahead(self, ledger: DecodeLedger) -> None:
        """The next iteration decodes: each class's cache takes what it matters to take first."""
        self._follow(ledger)
        for cache, part in self._reusing:
            cache.take_ahead(part)

    def trim(self, sequence: Sequence, ledger: DecodeLedger) -> None:
        """A piece of a prompt is computed: its class's cache keeps what it keeps."""
        self._follow(ledger)
        cache, part = self._part(sequence)
        cache.trim(sequence, part)
        if sequence.prefill_left_tokens:
            part.planned_tokens[sequence] = sequence.resident_tokens
        else:
            del part.planned_tokens[sequence]
            part.joining.append(sequence)

    def fork(self, sequence: Sequence, others: list[Sequence], ledger: DecodeLedger) -> int:
        """A sequence becomes several, of the same class."""
        self._follow(ledger)
        cache, part = self._part(sequence)
        n_held = cache.fork(sequence, others, part)
        part.joining += others[:n_held]
        return n_held

    def release(self, sequence: Sequence, now_ns: int) -> None:
        """Take back what a sequence holds; its class's cache keeps its conversation, until the class changes."""
        cache, part = self._part(sequence)
        part.remove(sequence)
        cache.release(sequence, now_ns)
        self._migrations.leave(sequence)

    def refuses(self, request: Request) -> str | None:
        """Why a request could never be served even alone, or None.

        Raises
        ------
        ConfigError
            If it is of no class that is served here.
        """
        if request.kind not in self._partitions:
            raise ConfigError(
                f"cache=by_class serves {', '.join(self._partitions)}, got request {request.id} of class "
                f"{request.kind!r}: classify=true tags requests with their class"
            )
        reason = self._partitions[request.kind].cache.refuses(request)
        return None if reason is None else f"{request.kind}: {reason}"

    def prefetch(self, sequence: Sequence) -> None:
        """A request has joined the queue: its class's cache may bring nearer what it will need."""
        cache = self._part(sequence).cache
        if cache in self._prefetchers:
            cache.prefetch(sequence)

    def counts(self) -> Mapping[str, int | float]:
        """Facts of the run: what changed class, and of each class how many requests and what its cache counted.

        ``bits_per_element`` is the mean of all slots: what is held is taken for as wide as what there is.
        """
        counts = {**self._migrations.counts, "bits_per_element": self._bits_per_element}
        for name, part in self._partitions.items():
            counts[f"{name}_requests"] = self._n_requests[name]
            counts |= {f"{name}_{key}": value for key, value in part.cache.counts().items()}
        return counts

    def _part(self, sequence: Sequence) -> Partition:
        return self._partitions[sequence.request.kind]

    def _follow(self, ledger: DecodeLedger) -> None:
        """Let the parts' ledgers know who has joined the batch, and who has left it and not given back its memory."""
        members = ledger.members
        n_decoding = 0
        for part in self._ledgers:
            part.batch, part.members = ledger, members
            if part.joining:
                part.add_joined()
            n_decoding += len(part.offsets)
        if n_decoding != len(members):
            for part in self._ledgers:
                part.set_aside()
