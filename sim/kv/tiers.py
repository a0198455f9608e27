"""Memory below the device's: where blocks go when there is no room for them, and come back from.

A tier keeps blocks by the identity of their text, in an order of eviction of its own, behind a link per direction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.errors import ConfigError
from sim.kv.eviction import Evictor
from sim.kv.link import Link
from sim.kv.prefix import BlockTable, PrefixIndex
from sim.record import NOBODYS, Recorder
from sim.request import BlockRange
from sim.spec import as_given
from sim.units import GIB, ns_from_s

if TYPE_CHECKING:
    import simpy


@dataclass(frozen=True, slots=True)
class TierSpec:
    """Data sheet of a tier: one replica's share of it, or all of one that replicas share. Rates are per direction.

    Where ``is_per_accelerator``, each of a replica's accelerators has a link of its own, of these rates, and sends its
    part of every token over it (host memory behind PCIe); else they all share one (a disk). Where ``is_shared``, there
    is one of it for all replicas, on one link: what one of them has sent there, all can load. Where it
    ``writes_through``, what comes to the tier above it goes on here at once; else what that gives up alone.
    """

    name: str
    capacity_gib: float
    read_bytes_per_s: float  # towards the device
    write_bytes_per_s: float
    latency_s: float
    piece_s: float  # what starting one copy takes of the link
    eviction: Callable[[int], Evictor]
    fails_at_s: float | None = None  # from then on it is gone, and what it held; nothing else is lost
    is_per_accelerator: bool = False
    is_shared: bool = False
    writes_through: bool = False

    def rates_of(self, n_accelerators: int) -> tuple[float, float]:
        """At which a replica of so many accelerators reads and writes, all together [B/s]."""
        n_links = n_accelerators if self.is_per_accelerator else 1
        return n_links * self.read_bytes_per_s, n_links * self.write_bytes_per_s

    def check(self, path: str) -> None:
        """Refuse what cannot work, under the key it was set by.

        Raises
        ------
        ConfigError
        """
        for key, value in (
            ("capacity_gib", self.capacity_gib),
            ("read_bytes_per_s", self.read_bytes_per_s),
            ("write_bytes_per_s", self.write_bytes_per_s),
        ):
            if not 0.0 < value < float("inf"):
                raise ConfigError(f"{path}.{key} must be > 0 and finite, got {as_given(value)}")
        for key, value in (("latency_s", self.latency_s), ("piece_s", self.piece_s)):
            if not 0.0 <= value < float("inf"):
                raise ConfigError(f"{path}.{key} must be >= 0 and finite [s], got {as_given(value)}")
        if self.is_shared and self.is_per_accelerator:
            raise ConfigError(f"{path}.is_per_accelerator must be false where is_shared is true, got true")
        if self.fails_at_s is not None and not 0.0 <= self.fails_at_s < float("inf"):
            raise ConfigError(f"{path}.fails_at_s must be null or >= 0 [s], got {as_given(self.fails_at_s)}")


@dataclass(frozen=True, slots=True)
class Tiers:
    """The tiers below the device, fastest first."""

    levels: Sequence[TierSpec]

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if not self.levels:
            raise ConfigError("tiers.levels must name at least one tier, got none")
        for i, level in enumerate(self.levels):
            level.check(f"tiers.levels.{i}")
        names = [level.name for level in self.levels]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"tiers.levels must have a name each, got {name} twice")
        for above, below in zip(self.levels, self.levels[1:], strict=False):
            if above.is_shared and not below.is_shared:
                raise ConfigError(
                    f"tiers.levels must have what replicas share at the end: {above.name} is shared, "
                    f"{below.name} below it is not"
                )
            if below.read_bytes_per_s > above.read_bytes_per_s:
                raise ConfigError(
                    f"tiers.levels must go from fast to slow: {below.name} reads {below.read_bytes_per_s:g} B/s, "
                    f"{above.name} above it {above.read_bytes_per_s:g} B/s"
                )


class Tier:
    """One tier: blocks by text, an evictor, a link each way. Of a replica, or None: all share it."""

    def __init__(
        self,
        spec: TierSpec,
        block_tokens: int,
        block_bytes: int,
        env: "simpy.Environment",
        recorder: Recorder,
        replica: int | None,
        level: int,
        n_accelerators: int = 1,
    ) -> None:
        self.spec = spec
        self.block = block_tokens, block_bytes
        self.n_blocks = int(spec.capacity_gib * GIB // block_bytes)
        if self.n_blocks < 1:
            raise ConfigError(
                f"tiers.levels.{level}.capacity_gib must hold one block of {block_bytes} bytes, got "
                f"{as_given(spec.capacity_gib)}"
            )
        self._env = env
        self._fails_ns = None if spec.fails_at_s is None else ns_from_s(spec.fails_at_s)
        self._evictor = spec.eviction(self.n_blocks)
        self._index = PrefixIndex(block_tokens, self._evictor)
        read, write = spec.rates_of(n_accelerators)
        of = NOBODYS if replica is None else replica
        self.down = Link(env, write, spec.latency_s, spec.piece_s, recorder, f"to {spec.name}", of)
        self.up = Link(env, read, spec.latency_s, spec.piece_s, recorder, f"from {spec.name}", of)
        self.n_evicted = 0
        self.n_held = 0  # blocks

    @property
    def is_gone(self) -> bool:
        """It has failed."""
        return self._fails_ns is not None and self._env.now >= self._fails_ns

    def match(self, text: list[BlockRange]) -> int:
        """Blocks of a text that are here, from the first asked for on [blocks]."""
        if self.is_gone or not text:
            return 0
        most = sum(n_blocks for _, _, n_blocks in text)
        return sum(n_blocks for _, _, n_blocks in self._index.match(text, most))

    def put(self, text: list[BlockRange]) -> list[BlockRange]:
        """Keep blocks; what is here already counts as used again. Returns what had to give way."""
        if self.is_gone:
            return []
        table = BlockTable()
        matched = self._index.match(text, sum(n_blocks for _, _, n_blocks in text))
        n_found = sum(n_blocks for _, _, n_blocks in matched)
        for run, offset, n_blocks in reversed(matched):
            self._index.claim(table, run, offset, n_blocks)
        table.runs.reverse()
        table.n_named = n_found
        missing = after(text, n_found, self._index.block_tokens)
        n_new = min(sum(n_blocks for _, _, n_blocks in missing), len(self._evictor))
        evicted: list[BlockRange] = []
        for unit in self._evictor.victims(n_new):
            self.n_evicted += unit.n_blocks
            self.n_held -= unit.n_blocks
            evicted += self._index.ranges(unit)
            self._index.forget(unit)
        self._index.name(table, text, n_found + n_new)
        self.n_held += n_new
        for run in reversed(table.runs):
            del run.tables[table]
        self._evictor.park(table.runs[::-1])
        return evicted


def after(text: list[BlockRange], n_blocks: int, block_tokens: int) -> list[BlockRange]:
    """A text without its first blocks.

    Examples
    --------
    >>> after([(7, 16, 2), (8, 48, 3)], 3, 16)
    [(8, 64, 2)]
    """
    rest = []
    for piece, end, n in text:
        n_left_out = min(n, n_blocks)
        n_blocks -= n_left_out
        if n > n_left_out:
            rest.append((piece, end + n_left_out * block_tokens, n - n_left_out))
    return rest


def first(text: list[BlockRange], n_blocks: int) -> list[BlockRange]:
    """The first blocks of a text.

    Examples
    --------
    >>> first([(7, 16, 2), (8, 48, 3)], 3)
    [(7, 16, 2), (8, 48, 1)]
    """
    begin = []
    for piece, end, n in text:
        n = min(n, n_blocks)
        n_blocks -= n
        if n:
            begin.append((piece, end, n))
    return begin


def merged(blocks: list[BlockRange], block_tokens: int) -> list[BlockRange]:
    """The same blocks in as few ranges as hold them, in order of their text.

    Examples
    --------
    >>> merged([(7, 48, 1), (7, 16, 2), (8, 16, 1)], 16)
    [(7, 16, 3), (8, 16, 1)]
    """
    joined: list[BlockRange] = []
    for piece, end, n in sorted(blocks):
        if joined and joined[-1][0] == piece and end <= joined[-1][1] + joined[-1][2] * block_tokens:
            _, start, n_before = joined[-1]
            joined[-1] = (piece, start, max(n_before, (end - start) // block_tokens + n))
        else:
            joined.append((piece, end, n))
    return joined
