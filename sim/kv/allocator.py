"""Where a contiguous extent lies in a row of token slots: two allocators with opposite kinds of waste.

`Buddy` rounds up to a power of two (waste inside extents), `FirstFit` fits exactly (waste between them).
"""

from bisect import bisect_left, bisect_right, insort

from sim.errors import ConfigError, InvariantError


class Buddy:
    """Extents of power-of-two size, split in halves and merged with their other half when freed.

    A capacity that is no power of two is a row of them: 15,700 slots are 8192 + 4096 + 2048 + 1024 + 256 + 64 + 16 + 4.

    Parameters
    ----------
    capacity_tokens : int
        Slots [tokens].
    min_tokens : int
        Smallest extent, a power of two; a last rest of the capacity below it is not used [tokens].

    References
    ----------
    Knowlton, "A fast storage allocator", CACM 8(10), 1965. Orca's KV extents come from one in Kwon et al., "Efficient
    Memory Management for LLM Serving with PagedAttention", SOSP 2023, section 6.1.
    """

    def __init__(self, capacity_tokens: int, min_tokens: int = 1) -> None:
        if min_tokens < 1 or min_tokens & (min_tokens - 1):
            raise ConfigError(f"cache.allocator.min_tokens must be a power of two >= 1 [tokens], got {min_tokens!r}")
        if capacity_tokens < min_tokens:
            raise ConfigError(
                f"cache.allocator.capacity_tokens must be >= {min_tokens} [tokens], the smallest extent, "
                f"got {capacity_tokens!r}"
            )
        self.capacity_tokens = capacity_tokens - capacity_tokens % min_tokens
        self._min_tokens = min_tokens
        self.free_tokens = self.capacity_tokens  # slots in no extent [tokens]
        self._free: dict[int, dict[int, None]] = {}  # size -> offsets, the last freed is taken first
        self._sizes = 0  # of the free pieces, or-ed: each is a bit of its own
        self._taken: dict[int, int] = {}  # size by offset
        self._whole: set[tuple[int, int]] = set()  # (offset, size) of the pieces the row is made of: nothing to merge
        offset = 0
        while offset < self.capacity_tokens:
            size = 1 << ((self.capacity_tokens - offset).bit_length() - 1)
            self._whole.add((offset, size))
            self._put(offset, size)
            offset += size

    def take(self, n_tokens: int) -> int | None:
        """Offset of a free extent of at least ``n_tokens`` slots, or None: O(log capacity), None in O(1)."""
        _refuse_empty(n_tokens)
        size = max(self._min_tokens, 1 << (n_tokens - 1).bit_length())
        fitting = self._sizes & -size  # the sizes that suffice
        if not fitting:
            return None
        fitting &= -fitting  # the smallest of them
        offset, _ = self._free[fitting].popitem()
        self._note(fitting)
        while fitting > size:
            fitting //= 2
            self._put(offset + fitting, fitting)
        self._taken[offset] = size
        self.free_tokens -= size
        return offset

    def give(self, offset: int) -> None:
        """Free the extent at ``offset`` and merge it with its other half as long as that is free."""
        size = _taken_at(self._taken, offset)
        del self._taken[offset]
        self.free_tokens += size
        while (offset, size) not in self._whole and offset ^ size in self._free.get(size, ()):
            del self._free[size][offset ^ size]
            self._note(size)
            offset &= ~size
            size *= 2
        self._put(offset, size)

    def size_of(self, offset: int) -> int:
        """Slots of the extent at ``offset``, rounding included [tokens]."""
        return _taken_at(self._taken, offset)

    @property
    def largest_free_tokens(self) -> int:
        """The longest extent that could be taken now [tokens]."""
        return 1 << (self._sizes.bit_length() - 1) if self._sizes else 0

    def _put(self, offset: int, size: int) -> None:
        """A piece is free."""
        self._free.setdefault(size, {})[offset] = None
        self._sizes |= size

    def _note(self, size: int) -> None:
        """A piece of a size is free no more."""
        if not self._free[size]:
            self._sizes &= ~size


class FirstFit:
    """Extents of exactly the size asked for, each in the first hole that is long enough.

    References
    ----------
    Knuth, *The Art of Computer Programming*, volume 1, section 2.5.
    """

    def __init__(self, capacity_tokens: int) -> None:
        if capacity_tokens < 1:
            raise ConfigError(f"cache.allocator.capacity_tokens must be >= 1 [tokens], got {capacity_tokens!r}")
        self.capacity_tokens = self.free_tokens = capacity_tokens
        self._starts = [0]  # holes by offset: start and stop
        self._stops = [capacity_tokens]
        self._lengths = [capacity_tokens]  # of the holes, ascending
        self._taken: dict[int, int] = {}

    def take(self, n_tokens: int) -> int | None:
        """Offset of a free extent of ``n_tokens`` slots, or None: O(holes)."""
        _refuse_empty(n_tokens)
        if n_tokens > self.largest_free_tokens:
            return None
        starts, stops = self._starts, self._stops
        i = 0
        while stops[i] - starts[i] < n_tokens:
            i += 1
        start, left = starts[i], stops[i] - starts[i] - n_tokens
        self._forget(i)
        if left:
            starts[i] += n_tokens
            insort(self._lengths, left)
        else:
            del starts[i], stops[i]
        self._taken[start] = n_tokens
        self.free_tokens -= n_tokens
        return start

    def give(self, offset: int) -> None:
        """Free the extent at ``offset`` and join it with the holes beside it."""
        size = _taken_at(self._taken, offset)
        del self._taken[offset]
        self.free_tokens += size
        stop = offset + size
        first = bisect_left(self._stops, offset)  # the hole that ends here, if any
        last = bisect_right(self._starts, stop)  # one past the hole that starts where we stop
        if first < last:
            offset = min(offset, self._starts[first])
            stop = max(stop, self._stops[last - 1])
            for i in range(first, last):
                self._forget(i)
        self._starts[first:last] = [offset]
        self._stops[first:last] = [stop]
        insort(self._lengths, stop - offset)

    def size_of(self, offset: int) -> int:
        """Slots of the extent at ``offset`` [tokens]."""
        return _taken_at(self._taken, offset)

    @property
    def largest_free_tokens(self) -> int:
        """The longest extent that could be taken now [tokens]."""
        return self._lengths[-1] if self._lengths else 0

    def _forget(self, hole: int) -> None:
        """A hole changes its length."""
        del self._lengths[bisect_left(self._lengths, self._stops[hole] - self._starts[hole])]


def _refuse_empty(n_tokens: int) -> None:
    if n_tokens < 1:
        raise InvariantError(f"an extent of {n_tokens} tokens was asked for")


def _taken_at(taken: dict[int, int], offset: int) -> int:
    if offset not in taken:
        raise InvariantError(f"no extent at offset {offset}: freed twice, or never taken")
    return taken[offset]
