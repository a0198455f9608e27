"""Where sequences' keys and values lie in the engine's one row of token slots: every cache that makes sense here.

A cache does what `sim.kv` counts: it places tokens, copies them, finds prefixes, and gives way. How long extents are,
and where free ones lie, is asked of the simulator's own reservations and allocators, so that a policy has one rule.
All take whole or change nothing.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Row
from dataclasses import dataclass
from typing import Any

import torch

from calibration.engine.decoder import Pool
from sim.errors import ConfigError
from sim.kv.reservation import Reservation
from sim.kv.retention import Share, Window
from sim.request import Request


@dataclass(slots=True, eq=False)
class Sequence:
    """What the engine knows of a request. ``resident`` of its ``computed`` tokens are still held."""

    request: Request
    tokens: list[int]  # prompt, then what has been generated
    forced: list[int] | None = None  # answers said beforehand, token by token
    n_generated: int = 0
    computed_tokens: int = 0
    resident_tokens: int = 0
    cached_tokens: int = 0
    holding: Any = None
    room_tokens: int | None = None  # resident tokens at which the cache wants to be asked
    queued_ns: int | None = None
    scheduled_ns: int | None = None
    first_token_ns: int | None = None
    last_token_ns: int | None = None

    @property
    def target_tokens(self) -> int:
        """Tokens whose KV is needed before the next one can be generated."""
        return len(self.tokens)

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete."""
        return self.n_generated >= self.request.output_tokens


class Memory(ABC):
    """One cache. ``window`` and ``n_sinks`` say what attention sees, ``ring_blocks`` how block tables wrap."""

    window: int | None = None
    n_sinks = 0
    ring_blocks: int | None = None
    copied_bytes = 0.0  # inside the pool
    moved_bytes = 0.0  # to and from host memory

    def __init__(self, pool: Pool, copy: Callable[..., Any]) -> None:
        self.pool, self._copy = pool, copy

    @abstractmethod
    def admit(self, sequence: Sequence, n_tokens: int) -> bool:
        """Take room for the first tokens of a waiting sequence, behind what is found; `match` says how much that is."""
        ...

    def match(self, sequence: Sequence) -> int:  # noqa: ARG002
        """Leading tokens of a waiting sequence that are here, at most all but the last."""
        return 0

    @abstractmethod
    def extend(self, sequence: Sequence, n_tokens: int) -> bool:
        """Take room for the next tokens of an admitted sequence."""
        ...

    @abstractmethod
    def slot(self, sequence: Sequence, index: int) -> int:
        """Where the ``index``-th resident token of a sequence lies."""
        ...

    @abstractmethod
    def table(self, sequence: Sequence) -> Row[int]:
        """A sequence's row of the block table."""
        ...

    def settled(self, sequence: Sequence) -> None:  # noqa: B027 most have nothing to do
        """New tokens of a sequence have their KV: give up what need not stay."""

    @abstractmethod
    def release(self, sequence: Sequence) -> None:
        """Take back what a sequence holds, ended or preempted."""
        ...

    def _move(self, from_slots: list[int], to_slots: list[int]) -> None:
        """Copy tokens of all layers, through a buffer where both overlap."""
        device = self.pool.rows.device
        here, there = (torch.tensor(x, device=device) for x in (from_slots, to_slots))
        lane = torch.arange(len(from_slots), device=device)
        overlaps = not set(from_slots).isdisjoint(to_slots)
        for rows in self.pool.rows.flatten(0, 1):
            if overlaps:
                staging = torch.empty((len(from_slots), *rows.shape[1:]), device=device, dtype=rows.dtype)
                self._copy(rows, staging, here, lane, check_ids=False)
                self._copy(staging, rows, lane, there, check_ids=False)
            else:
                self._copy(rows, rows, here, there, check_ids=False)
        self.copied_bytes += len(from_slots) * self.token_bytes

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token in all layers [B]."""
        rows = self.pool.rows
        return int(rows.shape[0] * 2 * rows[0, 0, 0].numel() * rows.element_size())


@dataclass(slots=True, eq=False)
class Block:
    """A block of the pool: who holds it, and the text up to its end where it is known."""

    index: int
    n_holders: int = 0
    key: int | None = None


class Paged(Memory):
    """Blocks on demand, found again by their text; the least recently freed is taken first (vLLM v1's block pool)."""

    def __init__(self, pool: Pool, copy: Callable[..., Any], has_prefixes: bool = True) -> None:
        super().__init__(pool, copy)
        self.size = pool.block_tokens
        self._blocks = [Block(i) for i in range(pool.n_slots // self.size)]
        self._free: OrderedDict[int, Block] = OrderedDict((block.index, block) for block in self._blocks)
        self._found: dict[int, Block] = {}
        self._has_prefixes = has_prefixes

    def match(self, sequence: Sequence) -> int:
        """The longest run of known blocks from the start."""
        n = 0
        for key in self._keys(sequence, (sequence.target_tokens - 1) // self.size):
            if key not in self._found:
                break
            n += 1
        return n * self.size

    def admit(self, sequence: Sequence, n_tokens: int) -> bool:
        """Hold the blocks that match, and take the rest."""
        n_found = self.match(sequence) // self.size
        found = [self._found[key] for key in self._keys(sequence, n_found)]
        n_idle = sum(not block.n_holders for block in found)
        n_new = -(-(n_found * self.size + n_tokens) // self.size) - n_found
        if n_new > len(self._free) - n_idle:
            return False
        for block in found:
            self._hold(block)
        sequence.holding = found + self._take(n_new)
        sequence.computed_tokens = sequence.resident_tokens = n_found * self.size
        return True

    def extend(self, sequence: Sequence, n_tokens: int) -> bool:
        """Blocks for the next tokens."""
        n_new = -(-(sequence.resident_tokens + n_tokens) // self.size) - len(sequence.holding)
        if n_new > len(self._free):
            return False
        sequence.holding += self._take(n_new)
        return True

    def slot(self, sequence: Sequence, index: int) -> int:
        """Within the block that holds it."""
        return int(sequence.holding[index // self.size].index) * self.size + index % self.size

    def table(self, sequence: Sequence) -> Row[int]:
        """Its blocks in order."""
        return [block.index for block in sequence.holding]

    def settled(self, sequence: Sequence) -> None:
        """Full blocks can be found from now on."""
        if not self._has_prefixes:
            return
        n_full = min(sequence.computed_tokens // self.size, len(sequence.holding))
        for block, key in zip(sequence.holding[:n_full], self._keys(sequence, n_full), strict=True):
            if block.key is None and key not in self._found:
                block.key = key
                self._found[key] = block

    def release(self, sequence: Sequence) -> None:
        """The last block is free first, so that a prefix outlives what followed it."""
        for block in reversed(sequence.holding):
            block.n_holders -= 1
            if not block.n_holders:
                self._free[block.index] = block
                if block.key is None:  # of no use to anyone: taken before what has content
                    self._free.move_to_end(block.index, last=False)
        sequence.holding = None

    def _hold(self, block: Block) -> None:
        block.n_holders += 1
        self._free.pop(block.index, None)

    def _take(self, n_blocks: int) -> list[Block]:
        taken = [self._free.popitem(last=False)[1] for _ in range(n_blocks)]
        self._evict([block for block in taken if block.key is not None])
        for block in taken:
            block.n_holders, block.key = 1, None
        return taken

    def _evict(self, blocks: list[Block]) -> None:
        """Their content is lost."""
        for block in blocks:
            assert block.key is not None, "blocks without content are not evicted"
            del self._found[block.key]

    def _keys(self, sequence: Sequence, n_blocks: int) -> list[int]:
        """Chained hashes of the text up to the end of each of the first blocks."""
        keys: list[int] = []
        chain = 0
        if not self._has_prefixes:
            return keys
        for i in range(n_blocks):
            chain = hash((chain, *sequence.tokens[i * self.size : (i + 1) * self.size]))
            keys.append(chain)
        return keys


class Hierarchical(Paged):
    """Paged, with host memory below: what is evicted goes down, and is copied back when a prompt asks for it."""

    def __init__(self, pool: Pool, copy: Callable[..., Any], n_host_blocks: int) -> None:
        super().__init__(pool, copy)
        rows = pool.rows
        shape = (n_host_blocks, *rows.shape[:2], self.size, *rows.shape[3:])
        try:
            self._host = torch.zeros(shape, dtype=rows.dtype, pin_memory=rows.is_cuda)
        except RuntimeError:
            raise ConfigError(f"tiers: {n_host_blocks} blocks do not fit into this host's memory") from None
        self._host_free = list(range(n_host_blocks))
        self._below: OrderedDict[int, int] = OrderedDict()  # key -> place, least recently used first

    def match(self, sequence: Sequence) -> int:
        """Blocks here or below."""
        n = 0
        for key in self._keys(sequence, (sequence.target_tokens - 1) // self.size):
            if key not in self._found and key not in self._below:
                break
            n += 1
        return n * self.size

    def admit(self, sequence: Sequence, n_tokens: int) -> bool:
        """Bring up what is below, hold what is here, and take the rest."""
        n_found = self.match(sequence) // self.size
        keys = self._keys(sequence, n_found)
        here = [self._found.get(key) for key in keys]
        n_idle = sum(block is not None and not block.n_holders for block in here)
        n_new = -(-(n_found * self.size + n_tokens) // self.size) - n_found + here.count(None)
        if n_new > len(self._free) - n_idle:
            return False
        for block in here:
            if block is not None:
                self._hold(block)
        places = {key: self._below[key] for key, block in zip(keys, here, strict=True) if block is None}
        brought = {key: self._host[place].clone() for key, place in places.items()}  # before others take its place
        taken = self._take(n_new)
        held = []
        for key, block in zip(keys, here, strict=True):
            if block is None:
                block = taken.pop(0)
                self._slots(block).copy_(brought[key].to(self.pool.rows.device))
                self.moved_bytes += self.size * self.token_bytes
                block.key = key
                self._found[key] = block
                if key in self._below:
                    self._below.move_to_end(key)
            held.append(block)
        sequence.holding = held + taken
        sequence.computed_tokens = sequence.resident_tokens = n_found * self.size
        return True

    def _evict(self, blocks: list[Block]) -> None:
        for block in blocks:
            key = block.key
            assert key is not None, "blocks without content are not evicted"
            del self._found[key]
            if key in self._below:
                continue
            if not self._host_free:
                self._host_free.append(self._below.popitem(last=False)[1])
            place = self._below[key] = self._host_free.pop()
            self._host[place].copy_(self._slots(block))
            self.moved_bytes += self.size * self.token_bytes

    def _slots(self, block: Block) -> torch.Tensor:
        return self.pool.rows[:, :, block.index * self.size : (block.index + 1) * self.size]


class Ring(Paged):
    """Attention sinks and the latest tokens in a ring of blocks: a sequence's memory stops growing (StreamingLLM)."""

    def __init__(self, pool: Pool, copy: Callable[..., Any], retention: Window, most_new_tokens: int) -> None:
        super().__init__(pool, copy, has_prefixes=False)
        if retention.overlap is not None:
            raise ConfigError("cache.retention.overlap must be null: the engine slides")
        self.window, self.n_sinks = retention.window, retention.sinks
        self._sink_blocks = -(-retention.sinks // self.size)
        # A chunk's queries see a window behind each of them, so chunk and window must lie side by side.
        self.ring_blocks = -(-(retention.window + most_new_tokens) // self.size) + 1

    def admit(self, sequence: Sequence, n_tokens: int) -> bool:
        """Blocks of the first tokens."""
        sequence.holding = []
        sequence.computed_tokens = sequence.resident_tokens = 0
        if self.extend(sequence, n_tokens):
            return True
        sequence.holding = None
        return False

    def extend(self, sequence: Sequence, n_tokens: int) -> bool:
        """Blocks for the next tokens, until the ring is whole."""
        wanted = min(self._columns, -(-(sequence.computed_tokens + n_tokens) // self.size))
        n_new = wanted - len(sequence.holding)
        if n_new > len(self._free):
            return False
        sequence.holding += self._take(n_new)
        return True

    def slot(self, sequence: Sequence, index: int) -> int:
        """In the ring's block for that position."""
        column = index // self.size
        if column >= self._sink_blocks:
            assert self.ring_blocks is not None, "a ring has blocks"
            column = self._sink_blocks + (column - self._sink_blocks) % self.ring_blocks
        return int(sequence.holding[column].index) * self.size + index % self.size

    def table(self, sequence: Sequence) -> Row[int]:
        """Its blocks, and any for those it has not come to."""
        own = [block.index for block in sequence.holding]
        return own + [own[0]] * (self._columns - len(own))

    @property
    def _columns(self) -> int:
        assert self.ring_blocks is not None, "a ring has blocks"
        return self._sink_blocks + self.ring_blocks


class Pruned(Paged):
    """The important share of each sequence's tokens, those of the smallest key norms, moved together in its blocks."""

    def __init__(self, pool: Pool, copy: Callable[..., Any], retention: Share, norms: Callable[..., Any]) -> None:
        super().__init__(pool, copy, has_prefixes=False)
        if retention.bits != 16:
            raise ConfigError(f"cache.retention.bits must be 16: the engine serves no codes, got {retention.bits}")
        self._retention, self._norms = retention, norms

    def settled(self, sequence: Sequence) -> None:
        """Prune when the prompt is complete, and whenever the room that was named then is full."""
        if sequence.computed_tokens < len(sequence.tokens) - (sequence.n_generated > 0):
            return
        if sequence.room_tokens is not None and sequence.resident_tokens < sequence.room_tokens:
            return
        kept = self._retention.kept(sequence.computed_tokens, sequence.resident_tokens, sequence.room_tokens, 0.0)
        sequence.room_tokens = kept.room_tokens
        if kept.n_tokens == sequence.resident_tokens:
            return
        device = self.pool.rows.device
        table = torch.tensor([self.table(sequence)], dtype=torch.int32, device=device)
        lens = torch.tensor([sequence.resident_tokens], dtype=torch.int32, device=device)
        norms = sum(self._norms(self.pool.written(layer)[0], table, lens) for layer in range(len(self.pool.rows)))
        keep = norms[0].topk(kept.n_tokens, largest=False).indices.sort().values.tolist()
        moved = [(i, at) for i, at in enumerate(keep) if i != at]
        if moved:
            self._move([self.slot(sequence, at) for _, at in moved], [self.slot(sequence, i) for i, _ in moved])
        n_blocks = -(-kept.n_tokens // self.size)
        for block in sequence.holding[n_blocks:]:
            block.n_holders = 0
            self._free[block.index] = block
        sequence.holding = sequence.holding[:n_blocks]
        sequence.resident_tokens = kept.n_tokens

    def release(self, sequence: Sequence) -> None:
        """Whoever comes back is computed anew, and pruned anew."""
        super().release(sequence)
        sequence.room_tokens = None


@dataclass(slots=True, eq=False)
class Extent:
    """Slots side by side that a sequence holds."""

    offset: int
    n_tokens: int


class Extents(Memory):
    """One extent a sequence, as long as a `Reservation` says; a full one that may grow is copied into a longer one."""

    def __init__(
        self, pool: Pool, copy: Callable[..., Any], allocator: Callable[[int], Any], reservation: Reservation
    ) -> None:
        super().__init__(pool, copy)
        self._allocator, self._reservation = allocator(pool.n_slots), reservation
        self.n_grown = 0

    def admit(self, sequence: Sequence, n_tokens: int) -> bool:  # noqa: ARG002 an extent is for all
        """An extent for the whole sequence, as far as the reservation sees it."""
        wanted = min(self._reservation.tokens(sequence.request, sequence.target_tokens), self.pool.extent_tokens)
        offset = self._allocator.take(wanted)
        if offset is None:
            return False
        sequence.holding = Extent(offset, self._allocator.size_of(offset))
        sequence.computed_tokens = sequence.resident_tokens = 0
        return True

    def extend(self, sequence: Sequence, n_tokens: int) -> bool:
        """Nothing, until the extent is full: then a longer one, into which the old one is copied."""
        held: Extent = sequence.holding
        need = sequence.resident_tokens + n_tokens
        if need <= held.n_tokens:
            return True
        wanted = self._reservation.grown_tokens(sequence, held.n_tokens, need)  # type: ignore[arg-type]
        offset = self._allocator.take(min(wanted, self.pool.extent_tokens))
        if offset is None:
            return False
        n = sequence.resident_tokens
        self._move(list(range(held.offset, held.offset + n)), list(range(offset, offset + n)))
        self._allocator.give(held.offset)
        sequence.holding = Extent(offset, self._allocator.size_of(offset))
        self.n_grown += 1
        return True

    def slot(self, sequence: Sequence, index: int) -> int:
        """So far from the extent's start."""
        return int(sequence.holding.offset) + index

    def table(self, sequence: Sequence) -> Row[int]:
        """One column: where the extent starts."""
        return [sequence.holding.offset]

    def release(self, sequence: Sequence) -> None:
        """Free the extent; a reservation that learns looks at how long it became."""
        self._allocator.give(sequence.holding.offset)
        sequence.holding = None
        if sequence.is_finished:
            self._reservation.ended(sequence)  # type: ignore[arg-type]
