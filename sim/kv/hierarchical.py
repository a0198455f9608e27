"""Blocks in device memory, and behind links in host memory and on disk: what is evicted is not lost.

    waiting ──admit──▶ blocks reserved ──┬─ all found in device memory ──▶ prompt
                                         └─ some found below: a transfer over the link, others run meanwhile ──▶ prompt

Going down, `write="through"` copies full blocks when their sequence lets go of them (finished or preempted), so that
eviction costs nothing; `write="back"` copies what is evicted and not below yet, when next a sequence joins or leaves.
Copies going down never hold anyone up. Coming up, a sequence waits for its own transfer alone.

Preemption frees blocks as everywhere; where they have been saved, coming back loads them instead of computing them
again: preemption by swap. `reload` says whether: ``always``, ``never`` (recompute), or ``cheaper``, by the link's quote
against the cost model's time for computing the same tokens. A tier that fails costs recomputation and nothing else.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from sim.errors import ConfigError
from sim.kv.eviction import Evictor, Unit
from sim.kv.link import Link
from sim.kv.paged import PagedCache
from sim.kv.prefix import BlockTable
from sim.kv.tiers import Tier, Tiers, after, first, merged
from sim.ledger import DecodeLedger
from sim.record import Recorder
from sim.request import BlockRange, Segment, block_ranges
from sim.sequence import Sequence
from sim.step import Chunk, CostModel, StepShape
from sim.units import PS_PER_NS

if TYPE_CHECKING:
    import simpy

RELOADS = ("always", "cheaper", "never")
WRITES = ("through", "back")
_PRIVATE = -(1 << 61)  # identities from here downwards name the text of single requests


class HierarchicalCache(PagedCache):
    """A paged cache with tiers below it.

    Parameters
    ----------
    capacity_tokens, eviction, block_tokens, prefix_caching, watermark, window_tokens
        As of `PagedCache`.
    tiers : Tiers
        Fastest first.
    env : simpy.Environment
    cost : CostModel
        What computing tokens again takes, for ``reload="cheaper"``.
    recorder : Recorder
        Where transfers are written down.
    kv_bytes_per_token : float
        [B]
    overlap : bool
        Whether transfers run beside the computation; else what is loaded, and what is saved, delays the iteration.
    write : {"through", "back"}
    reload : {"always", "cheaper", "never"}
        What a preempted sequence does about KV below; others load what they find, or with ``cheaper`` what pays.
    prefetch : int
        Requests that arrive with fewer than so many waiting have their blocks brought up to the first tier; none
        without ``overlap``.
    chunk_tokens : int
        KV that is copied in one piece; LMCache's is 256 [tokens].
    replica : int
    """

    def __init__(
        self,
        capacity_tokens: int,
        eviction: Callable[[int], Evictor],
        tiers: Tiers | None,
        env: "simpy.Environment",
        cost: CostModel,
        recorder: Recorder,
        kv_bytes_per_token: float,
        block_tokens: int = 16,
        prefix_caching: bool = True,
        watermark: float = 0.0,
        window_tokens: int | None = None,
        overlap: bool = True,
        write: str = "through",
        reload: str = "always",
        prefetch: int = 4,
        chunk_tokens: int = 256,
        replica: int = 0,
    ) -> None:
        super().__init__(capacity_tokens, eviction, block_tokens, prefix_caching, watermark, window_tokens)
        if tiers is None:
            raise ConfigError("cache=hierarchical needs tiers: tiers=dram or tiers=dram_nvme, got none")
        if write not in WRITES:
            raise ConfigError(f"cache.write must be one of {', '.join(WRITES)}, got {write!r}")
        if reload not in RELOADS:
            raise ConfigError(f"cache.reload must be one of {', '.join(RELOADS)}, got {reload!r}")
        if prefetch < 0:
            raise ConfigError(f"cache.prefetch must be >= 0 [requests], got {prefetch}")
        if chunk_tokens < 1:
            raise ConfigError(f"cache.chunk_tokens must be >= 1 [tokens], got {chunk_tokens}")
        self._env = env
        self._cost = cost
        self._block_bytes = max(1, round(kv_bytes_per_token * block_tokens))
        self._tiers = [Tier(spec, block_tokens, self._block_bytes, env, recorder, replica) for spec in tiers.levels]
        self._overlap = overlap
        self._write = write
        self._reload = reload
        self.prefetch_requests = prefetch
        self._piece_blocks = max(1, chunk_tokens // block_tokens)
        self._loads: dict[Sequence, int] = {}  # tokens under way
        self._is_naming = True
        self._staged: list[BlockRange] = []  # evicted, to be written back
        self._hit_tokens = [0] * (len(self._tiers) + 1)
        self._n_swapped_in = self._n_recomputed = self._n_prefetched = 0

    _names_private = True

    def match(self, sequence: Sequence) -> int:
        """Leading tokens of a waiting sequence found in device memory, or loaded from below."""
        n_here = super().match(sequence)
        found = self._found_below(sequence, n_here // self.block_tokens)
        return n_here + sum(found) * self.block_tokens

    def extend(self, sequence: Sequence, n_tokens: int, ledger: DecodeLedger) -> bool:
        """As `PagedCache.extend`; who finds blocks below takes room for them too, and waits until they have come."""
        if sequence.holding is not None:
            return super().extend(sequence, n_tokens, ledger)
        n_here = super().match(sequence) // self.block_tokens
        found = self._found_below(sequence, n_here)
        n_below = sum(found)
        self._is_naming = not n_below
        n_loaded_tokens = n_below * self.block_tokens
        is_taken = super().extend(sequence, n_loaded_tokens + n_tokens, ledger)
        self._is_naming = True
        if not is_taken:
            return False
        sequence.computed_tokens += n_loaded_tokens
        self._hit_tokens[0] += n_here * self.block_tokens
        if n_below:
            self._load(sequence, n_here, found)
        if sequence.n_preemptions:
            sequence.is_swapped_in = n_below > 0
            self._n_swapped_in += n_below > 0
            self._n_recomputed += n_below == 0
        self._write_back()
        return True

    def release(self, sequence: Sequence, now_ns: int) -> None:
        """As `PagedCache.release`; with write-through, full blocks go down."""
        n_loading = self._loads.pop(sequence, 0)
        if sequence.loading is not None:
            sequence.computed_tokens -= n_loading
            sequence.loading = None
        text = self._text(sequence)
        n_tokens = 0 if sequence.dropped_tokens else sequence.computed_tokens
        is_worth_it = sequence.request.content is not None or not sequence.is_finished
        super().release(sequence, now_ns)
        if self._write == "through" and is_worth_it:
            blocks = block_ranges(text, n_tokens, self.block_tokens)
            if blocks:
                self._save(0, blocks)
        self._write_back()

    def prefetch(self, sequence: Sequence) -> None:
        """Bring what a waiting sequence will load from lower tiers up to the first."""
        if not self._overlap:
            return  # beside what?
        text = self._ranges(sequence)
        for below in range(1, len(self._tiers)):
            n_above = self._tiers[0].match(text)
            rest = after(text, n_above, self.block_tokens)
            n_found = self._tiers[below].match(rest)
            if n_found:
                self._n_prefetched += n_found
                blocks = first(rest, n_found)
                self._send(self._tiers[below].up, blocks, partial(self._arrive, 0, blocks))

    def counts(self) -> Mapping[str, int | float]:
        """Facts of the run."""
        tiers = self._tiers
        return {
            **super().counts(),
            "hit_tokens_device": self._hit_tokens[0],
            **{f"hit_tokens_{tier.spec.name}": n for tier, n in zip(tiers, self._hit_tokens[1:], strict=True)},
            **{f"evicted_blocks_{tier.spec.name}": tier.n_evicted for tier in tiers},
            "swapped_in": self._n_swapped_in,
            "recomputed": self._n_recomputed,
            "prefetched_blocks": self._n_prefetched,
        }

    def _ranges(self, sequence: Sequence) -> list[BlockRange]:
        """Full blocks of a waiting sequence's text, all but the one with its last token."""
        return block_ranges(self._text(sequence), sequence.target_tokens - 1, self.block_tokens)

    def _text(self, sequence: Sequence) -> tuple[Segment, ...]:
        """Also of text that nobody shares: whoever is preempted finds it again."""
        request = sequence.request
        if request.content is not None:
            return sequence.text()
        return ((_PRIVATE - request.id, request.prompt_tokens + sequence.generated_tokens),)

    def _found_below(self, sequence: Sequence, n_here: int) -> list[int]:
        """Blocks that continue what is in device memory, per tier."""
        found = []
        rest = after(self._ranges(sequence), n_here, self.block_tokens)
        for tier in self._tiers:
            n_found = tier.match(rest)
            found.append(n_found)
            rest = after(rest, n_found, self.block_tokens)
        if sum(found) and not self._pays(sequence, n_here, found):
            return [0] * len(found)
        return found

    def _pays(self, sequence: Sequence, n_here: int, found: list[int]) -> bool:
        """Whether to load rather than compute again."""
        if self._reload == "never":
            return not sequence.n_preemptions
        if self._reload == "always":
            return True
        load_ns = 0
        for tier, n_blocks in zip(self._tiers, found, strict=True):
            if n_blocks:
                load_ns += tier.up.quote_ns(n_blocks * self._block_bytes, -(-n_blocks // self._piece_blocks))
        size = self.block_tokens
        chunk = Chunk(sum(found) * size, n_here * size)
        return load_ns * PS_PER_NS < self._cost.pace(StepShape((chunk,))).first_ps

    def _load(self, sequence: Sequence, n_here: int, found: list[int]) -> None:
        """Start the transfers a sequence waits for, from the lowest tier through those above it."""
        rest = after(self._ranges(sequence), n_here, self.block_tokens)
        n_pending = 0
        token = sequence.loading = self._env.event() if self._overlap else None
        self._loads[sequence] = sum(found) * self.block_tokens

        def arrived() -> None:
            nonlocal n_pending
            n_pending -= 1
            if not n_pending and sequence.loading is token and token is not None:
                sequence.loading = None
                self._loads.pop(sequence, None)
                token.succeed()

        for level, n_blocks in enumerate(found):
            self._hit_tokens[level + 1] += n_blocks * self.block_tokens
            if not n_blocks:
                continue
            blocks = first(rest, n_blocks)
            rest = after(rest, n_blocks, self.block_tokens)
            self._tiers[level].put(blocks)  # used again
            if not self._overlap:
                top, tier = self._tiers[0].spec, self._tiers[level].spec
                slower = 1.0 + top.read_bytes_per_s / tier.read_bytes_per_s if level else 1.0
                self.host_bytes += n_blocks * self._block_bytes * slower
                continue
            n_pending += 1
            self._bring_up(level, blocks, arrived)
        if not self._overlap:
            self._loads.pop(sequence)

    def _bring_up(self, level: int, blocks: list[BlockRange], arrived: Callable[[], None]) -> None:
        """Send blocks from a tier to the one above it, and on, until they are in device memory."""

        def up() -> None:
            if level:
                self._arrive(level - 1, blocks)
                self._bring_up(level - 1, blocks, arrived)
            else:
                arrived()

        self._send(self._tiers[level].up, blocks, up)

    def _save(self, level: int, blocks: list[BlockRange]) -> None:
        """Send blocks that a tier does not have down to it."""
        tier = self._tiers[level]
        missing = after(blocks, tier.match(blocks), self.block_tokens)
        if not missing or tier.is_gone:
            tier.put(blocks)
        elif self._overlap:
            self._send(tier.down, missing, lambda: self._arrive(level, blocks))
        else:
            self.host_bytes += sum(n for _, _, n in missing) * self._block_bytes
            self._arrive(level, blocks)

    def _arrive(self, level: int, blocks: list[BlockRange]) -> None:
        """Blocks have come to a tier; what gives way goes further down."""
        for evicted in self._tiers[level].put(blocks):
            if level + 1 < len(self._tiers):
                self._save(level + 1, [evicted])

    def _send(self, link: Link, blocks: list[BlockRange], then: Callable[[], None]) -> None:
        n_blocks = sum(n for _, _, n in blocks)
        done = link.send(n_blocks * self._block_bytes, -(-n_blocks // self._piece_blocks))
        done.callbacks.append(lambda _: then())

    def _write_back(self) -> None:
        """Blocks evicted since a sequence last joined or left go down."""
        if self._staged:
            staged, self._staged = merged(self._staged, self.block_tokens), []
            for blocks in staged:
                self._save(0, [blocks])

    def _forget(self, unit: Unit) -> None:
        if self._write == "back":
            self._staged += self._index.ranges(unit)
        super()._forget(unit)

    def _name(self, table: BlockTable, text: list[BlockRange], n_tokens: int) -> None:
        if self._is_naming:
            super()._name(table, text, n_tokens)
