"""Memory below a cache of blocks: what goes down, what comes back up, and who waits for it.

    waiting ──admit──▶ blocks reserved ──┬─ all found in device memory ──▶ prompt
                                         └─ some found below: a transfer over the link, others run meanwhile ──▶ prompt

The cache tells what happens to its blocks: looked for, taken, computed, shared, released, evicted. Going down there are
three ways. `write="through"` copies full blocks beside the computation: a prompt's as soon as they are computed, an
answer's when its sequence lets go of them, so that neither eviction nor preemption has to wait (Dynamo KVBM, LMCache).
`write="back"` copies what is evicted and not below yet (SGLang's HiCache calls it so), and `write="preempted"` what a
preempted sequence holds (vLLM v0's swap space): there the next iteration waits for the copy, because it is to use the
memory that is being read. Coming up, a sequence waits for its own transfer alone.

Text that nobody shares (`Request.content` is None) is kept and copied only when its sequence is preempted: nobody else
will ask for it. A real engine does not know that, so such traffic understates what goes down.

Preemption frees blocks as everywhere; where they are below, coming back can load them instead of computing them again:
`Preemption` says whether, each time. Full blocks alone go down, so the last tokens are always computed, as by vLLM v1's
connectors. A tier that fails costs recomputation and nothing else, also of what was on its way from it; only where
transfers do not overlap has the iteration that waits for a copy read it as it began. Below, a text is kept from its
start: of a sequence longer than the model's window no more goes down.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from sim.errors import ConfigError
from sim.kv.eviction import Unit
from sim.kv.pool import PrefixPool
from sim.kv.preemption import Cheaper, Estimator, Times
from sim.kv.site import Site
from sim.kv.tier_stack import TierStack
from sim.kv.tiers import Tiers, after, first
from sim.ledger import DecodeLedger
from sim.request import BlockRange, Request, block_ranges, whole_text
from sim.sequence import Sequence
from sim.units import NS_PER_S, PS_PER_NS

if TYPE_CHECKING:
    import simpy

LOADS = ("always", "cheaper", "never")
WRITES = ("through", "back", "preempted")
CHEAPER = Cheaper()


@dataclass(slots=True, eq=False)
class Load:
    """Blocks that a sequence waits for, one transfer from each tier that has some."""

    sequence: Sequence
    event: "simpy.Event | None"  # it waits for; None: the iteration does
    found: list[int]  # blocks, by tier
    come: list[int]  # of these, not lost so far
    lost: Callable[[list[int]], None]  # told what has come in the end, if that is less
    n_pending: int = 0  # transfers


class Below:
    """Tiers that listen to a cache of blocks.

    Parameters
    ----------
    site : Site
    tiers : Tiers
        Fastest first.
    pool : PrefixPool
        The blocks above.
    overlap, write, load, chunk_tokens
        As of `HierarchicalCache`.
    """

    def __init__(
        self,
        site: Site,
        tiers: Tiers,
        pool: PrefixPool,
        overlap: bool,
        write: str,
        load: str,
        chunk_tokens: int,
    ) -> None:
        if write not in WRITES:
            raise ConfigError(f"cache.write must be one of {', '.join(WRITES)}, got {write!r}")
        if load not in LOADS:
            raise ConfigError(f"cache.load must be one of {', '.join(LOADS)}, got {load!r}")
        if chunk_tokens < 1:
            raise ConfigError(f"cache.chunk_tokens must be >= 1 [tokens], got {chunk_tokens}")
        self.pool = pool
        self.block_tokens = block_tokens = pool.block_tokens
        self._copies = site.copies
        self._env = site.env
        self._estimator = Estimator(site.cost, site.max_batched_tokens)
        n_ranks = site.hardware.n_devices  # tiers hold, and links carry, what is on all of them
        block_bytes = max(1, round(site.bytes_per_token * n_ranks * block_tokens))
        found = [site.tier(spec, i, block_tokens, block_bytes) for i, spec in enumerate(tiers.levels)]
        self.tiers = [tier for tier, _ in found]
        self._counted = [tier for tier, is_new in found if is_new]  # one that is shared is counted once
        self._stack = TierStack(self.tiers, block_tokens, block_bytes, max(1, chunk_tokens // block_tokens))
        self._overlap = overlap
        self._write = write
        self._load_if = load
        self._preemption = site.preemption
        self._host_bytes_per_s = site.hardware.device.host_link_bytes_per_s  # at which the cost model reads `Copies`
        self.ledger: DecodeLedger | None = None  # who decodes beside; known once somebody has been admitted
        self._n_sent: dict[Sequence, int] = {}  # blocks of running sequences that have been sent down
        self._prefetched: set[Sequence] = set()  # of those that wait
        self._coming: dict[tuple[Sequence, int], tuple[int, simpy.Event]] = {}  # prefetched blocks, by their tier
        self._staged: list[BlockRange] = []  # evicted, to be written back
        if write == "back":
            pool.on_evict = self._stage
        self._hit_tokens = [0] * (len(self.tiers) + 1)
        self._counts = dict.fromkeys(
            ("swapped_out", "swapped_in", "recomputed", "reloaded_tokens", "prefetched_blocks"), 0
        )

    def found(self, request: Request, generated_tokens: int | None, n_here: int) -> list[int]:
        """Blocks that continue what is in device memory, per tier; none if they are not to be loaded."""
        n_generated = generated_tokens or 0
        asked = asked_for(request, n_generated, self.block_tokens)
        found = self._stack.found(after(asked, n_here, self.block_tokens))
        if not sum(found):
            return found
        estimate = partial(self._times, n_here, found, request.prompt_tokens + n_generated)
        if generated_tokens is not None:
            loads = self._preemption.loads(estimate)
        else:
            loads = self._load_if == "always" or (self._load_if == "cheaper" and CHEAPER.loads(estimate))
        return found if loads else [0] * len(found)

    def admitted(self, sequence: Sequence, n_here: int, found: list[int] | None) -> None:
        """A sequence has room for what it found here and below: start to load that. None: it looked for nothing."""
        if found is not None:
            self._prefetched.discard(sequence)
            self._count(sequence, n_here, found)
            if sum(found):
                self._load(sequence, n_here, found, partial(self._count_anew, sequence, n_here, found))
        self._write_back()

    def computed(self, sequence: Sequence) -> None:
        """A piece of a prompt is computed; with write-through it goes down."""
        if self._write == "through" and sequence.request.content is not None and not sequence.dropped_tokens:
            blocks = self._computed(sequence)
            self._save(blocks, self._n_sent.get(sequence, 0))
            self._n_sent[sequence] = sum(n for _, _, n in blocks)

    def forked(self, sequence: Sequence, others: list[Sequence]) -> None:
        """What has been sent down of a prompt is not sent again for each of its answers."""
        if sequence in self._n_sent:
            self._n_sent |= dict.fromkeys(others, self._n_sent[sequence])

    def released(self, sequence: Sequence) -> None:
        """Blocks are free again: with write-through the rest goes down, with ``preempted`` all that would be lost."""
        if sequence.is_finished and sequence.request.content is None:
            return
        n_sent = self._n_sent.pop(sequence, 0)
        if self._write != "back" and not sequence.dropped_tokens:
            blocks = self._computed(sequence)
            if blocks and self._goes_down(sequence, blocks):
                self._save(blocks, n_sent)
                self._counts["swapped_out"] += not sequence.is_finished
        self._write_back()

    def fetch(self, sequence: Sequence, n_here: int, lost: Callable[[int], None]) -> int:
        """Load what another cache, which has room for it, takes over from below. Returns its tokens.

        Of tokens lost on the way ``lost`` is told.
        """
        found = self.found(sequence.request, sequence.preempted_at_tokens, n_here)
        self._load(sequence, n_here, found, lambda come: lost((sum(found) - sum(come)) * self.block_tokens))
        return sum(found) * self.block_tokens

    def prefetch(self, sequence: Sequence) -> None:
        """Bring what a waiting sequence will load from lower tiers up to the first."""
        if (
            not self._overlap
            or sequence in self._prefetched
            or sequence.transit is not None
            or (sequence.request.content is None and not sequence.n_preemptions)
        ):
            return
        self._prefetched.add(sequence)
        text = self._ranges(sequence)
        for level in range(1, len(self.tiers)):
            coming = self._stack.bring_nearer(text, level)
            if coming is not None:
                self._counts["prefetched_blocks"] += coming[0]
                self._coming[sequence, level] = coming
                coming[1].callbacks.append(partial(self._has_come, (sequence, level)))

    def counts(self) -> Mapping[str, int | float]:
        """Facts of the run.

        ``hit_tokens_*`` are of requests' first admission: they sum up to what the requests table calls cached.
        ``reloaded_tokens`` are of preempted sequences that came back.
        """
        size = self.block_tokens
        counts: dict[str, int | float] = {"hit_tokens_device": self._hit_tokens[0]}
        for tier, hit_tokens in zip(self.tiers, self._hit_tokens[1:], strict=True):
            name, is_counted = tier.spec.name, tier in self._counted
            counts |= {
                f"hit_tokens_{name}": hit_tokens,
                f"evicted_blocks_{name}": tier.n_evicted * is_counted,
                f"kept_tokens_{name}": 0 if tier.is_gone else tier.n_held * size * is_counted,
                f"room_tokens_{name}": tier.n_blocks * size * is_counted,
            }
        return counts | self._counts

    def _count(self, sequence: Sequence, n_here: int, found: list[int], sign: int = 1) -> None:
        """Who was admitted found so many blocks in device memory, and so many in each tier.

        A ``sign`` of -1 takes back what was counted.
        """
        counts, size, n_below = self._counts, self.block_tokens, sum(found)
        if not sequence.n_preemptions:
            for level, n_blocks in enumerate((n_here, *found)):
                self._hit_tokens[level] += sign * n_blocks * size
            return
        sequence.is_swapped_in = n_below > 0
        counts["swapped_in" if n_below else "recomputed"] += sign
        counts["reloaded_tokens"] += sign * n_below * size

    def _count_anew(self, sequence: Sequence, n_here: int, found: list[int], come: list[int]) -> None:
        """Of the blocks that were found in each tier, so many have come."""
        self._count(sequence, n_here, found, -1)
        self._count(sequence, n_here, come)

    def _ranges(self, sequence: Sequence) -> list[BlockRange]:
        """Full blocks of a waiting sequence's text, all but the one with its last token."""
        return asked_for(sequence.request, sequence.generated_tokens, self.block_tokens)

    def _computed(self, sequence: Sequence) -> list[BlockRange]:
        """Full blocks of what has been computed of a sequence's text."""
        text = whole_text(sequence.request, sequence.generated_tokens)
        return block_ranges(text, sequence.computed_tokens, self.block_tokens)

    def _goes_down(self, sequence: Sequence, blocks: list[BlockRange]) -> bool:
        """Whether what a sequence lets go of is copied now."""
        if self._write == "through":
            return True
        if sequence.is_finished:
            return False
        found = [sum(n for _, _, n in blocks)] + [0] * (len(self.tiers) - 1)
        n_tokens = sequence.request.prompt_tokens + sequence.generated_tokens
        return self._preemption.saves(partial(self._times, 0, found, n_tokens))

    def _times(self, n_here: int, found: list[int], target_tokens: int) -> Times:
        """Of a sequence with so many blocks in device memory, and so many in each tier.

        A load is quoted by each link on its way, and its sequence joins the iteration after; without overlap
        everyone waits for it. What is not below is computed either way.
        """
        size, estimator, ledger = self.block_tokens, self._estimator, self.ledger
        n_blocks = sum(found)
        load_ps, save_ps = self._stack.load_ns(found) * PS_PER_NS, self._stack.save_ns(n_blocks) * PS_PER_NS
        if self._overlap:
            load_ps = estimator.loading_ps(load_ps, ledger)
        else:
            load_ps += estimator.waiting_ps(load_ps, ledger)
        start = (n_here + n_blocks) * size
        return Times(
            estimator.waiting_ps(save_ps, ledger),
            load_ps + estimator.computing_ps(start, target_tokens, ledger),
            estimator.computing_ps(n_here * size, target_tokens, ledger),
        )

    def _load(self, sequence: Sequence, n_here: int, found: list[int], lost: Callable[[list[int]], None]) -> None:
        """Start the transfers a sequence waits for, from the lowest tier through those above it."""
        size = self.block_tokens
        event = sequence.loading = self._env.event() if self._overlap else None
        sequence.coming_tokens = sum(found) * size
        load = Load(sequence, event, found, list(found), lost)
        rest = after(self._ranges(sequence), n_here, size)
        for level, n_blocks in enumerate(found):
            if not n_blocks:
                continue
            blocks = first(rest, n_blocks)
            rest = after(rest, n_blocks, size)
            self.tiers[level].put(blocks)  # used again
            if not self._overlap:
                self._stall(self._stack.load_ns([0] * level + [n_blocks] + [0] * (len(found) - level - 1)))
            load.n_pending += 1
            arrived = partial(self._arrived, load, level)
            n_coming, done = self._coming.get((sequence, level), (0, None))
            if done is not None and n_coming >= n_blocks:  # prefetched, and on its way to the first tier
                done.callbacks.append(partial(self._go_on, level, blocks, arrived))
            else:
                self._stack.bring_up(level, blocks, arrived)

    def _arrived(self, load: Load, level: int, is_whole: bool) -> None:
        """What came from one tier is here, or lost; with the last of them the sequence can go on."""
        load.n_pending -= 1
        if not is_whole:
            load.come[level:] = [0] * (len(load.come) - level)  # what follows a gap is of no use
        sequence, event = load.sequence, load.event
        if load.n_pending or event is None or sequence.loading is not event:  # it was preempted meanwhile
            return
        sequence.loading = None
        if load.come != load.found:
            sequence.lose((sum(load.found) - sum(load.come)) * self.block_tokens)
            load.lost(load.come)
        event.succeed()

    def _has_come(self, key: tuple[Sequence, int], done: object) -> None:
        if self._coming.get(key, (0, None))[1] is done:  # and not a later prefetch of the same
            del self._coming[key]

    def _go_on(self, level: int, blocks: list[BlockRange], arrived: Callable[[bool], None], _: object) -> None:
        """Blocks that were prefetched from a tier to the first go on to the device, unless that tier has failed."""
        if self.tiers[level].is_gone:
            arrived(False)
        else:
            self._stack.bring_up(0, blocks, arrived)

    def _save(self, blocks: list[BlockRange], n_sent: int) -> None:
        """Send blocks down of which some were sent before; wait if the memory they are read from is to be used now."""
        save_ns = self._stack.save(blocks, n_sent)
        if not (self._overlap and self._write == "through"):
            self._stall(save_ns)

    def _stall(self, wait_ns: int) -> None:
        """The next iteration waits for a copy: as many bytes as would take so long on the host link."""
        self._copies.host_bytes += wait_ns * self._host_bytes_per_s / NS_PER_S

    def _write_back(self) -> None:
        """Blocks evicted since a sequence last joined or left go down."""
        if self._staged:
            staged, self._staged = self._staged, []
            self._stall(self._stack.spill(0, staged))

    def _stage(self, unit: Unit) -> None:
        """What is evicted is to be written back."""
        self._staged += self.pool.index.ranges(unit)


def asked_for(request: Request, generated_tokens: int, block_tokens: int) -> list[BlockRange]:
    """Full blocks of a request's text and of its answer so far, all but the one with the last token."""
    n_tokens = request.prompt_tokens + generated_tokens - 1
    return block_ranges(whole_text(request, generated_tokens), n_tokens, block_tokens)
