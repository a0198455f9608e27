"""Blocks on their way between device memory and the tiers below it.

device ──down──▶ dram ──down──▶ nvme        what comes to a full tier pushes others further down
       ◀──up───       ◀──up───              what comes up passes every tier on its way, and stays in it

What is on its way from a tier when that fails is lost, which shows when it should have arrived; what is on its way to
it finds no place there.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from sim.kv.link import Link
from sim.kv.tiers import Tier, after, first, merged
from sim.request import BlockRange

if TYPE_CHECKING:
    import simpy


class TierStack:
    """The tiers of one replica, and what moves between them.

    Parameters
    ----------
    tiers : sequence of Tier
        Fastest first.
    block_tokens, block_bytes : int
        Size of a block.
    piece_blocks : int
        Blocks copied in one piece.
    """

    def __init__(self, tiers: Sequence[Tier], block_tokens: int, block_bytes: int, piece_blocks: int) -> None:
        self.tiers = tiers
        self._size = block_tokens
        self._block_bytes = block_bytes
        self._piece_blocks = piece_blocks

    def found(self, text: list[BlockRange]) -> list[int]:
        """Blocks from a text's start that are below, by tier, each going on where the one above ends."""
        found = []
        for tier in self.tiers:
            n_found = tier.match(text)
            found.append(n_found)
            text = after(text, n_found, self._size)
        return found

    def load_ns(self, found: Sequence[int]) -> int:
        """How long bringing up so many blocks of each tier would take, with what is on the links already [ns]."""
        load_ns = n_blocks = 0
        for tier, n_more in zip(self.tiers[::-1], found[::-1], strict=True):
            n_blocks += n_more
            if n_blocks:
                load_ns += self._quote_ns(tier.up, n_blocks)
        return load_ns

    def save_ns(self, n_blocks: int) -> int:
        """How long copying so many blocks down to the first tier would take [ns]."""
        return self._quote_ns(self.tiers[0].down, n_blocks)

    def bring_up(self, level: int, blocks: list[BlockRange], arrived: Callable[[bool], None]) -> None:
        """Send blocks from a tier to the one above it, and on, until they are in device memory (True) or lost."""

        def up(is_whole: bool) -> None:
            if is_whole and level:
                self._arrive(level - 1, blocks)
                self.bring_up(level - 1, blocks, arrived)
            else:
                arrived(is_whole)

        self._send(self.tiers[level].up, blocks, self.tiers[level], up)

    def bring_nearer(self, text: list[BlockRange], level: int) -> "tuple[int, simpy.Event] | None":
        """Send what a tier has of a text, after what the first has, to the first: how much, and when it has come."""
        rest = after(text, self.tiers[0].match(text), self._size)
        n_found = self.tiers[level].match(rest)
        if not n_found:
            return None
        blocks = first(rest, n_found)
        tier = self.tiers[level]
        return n_found, self._send(tier.up, blocks, tier, partial(self._arrive, 0, blocks))

    def save(self, blocks: list[BlockRange], n_sent: int) -> int:
        """Send blocks down, those that the first tier does not have and that are not on their way.

        Returns how long that takes [ns].
        """
        tier = self.tiers[0]
        missing = after(blocks, max(n_sent, tier.match(blocks)), self._size)
        if not missing or tier.is_gone:
            tier.put(blocks)  # used again
            return 0
        save_ns = self.save_ns(sum(n for _, _, n in missing))
        self._send(tier.down, missing, None, partial(self._arrive, 0, blocks))
        return save_ns

    def spill(self, level: int, evicted: list[BlockRange]) -> int:
        """Send what was evicted together down to a tier in one transfer, as far as it is not there.

        Returns how long that takes [ns].
        """
        tier = self.tiers[level]
        if tier.is_gone:
            return 0
        missing: list[BlockRange] = []
        for blocks in merged(evicted, self._size):
            rest = after([blocks], tier.match([blocks]), self._size)
            missing += rest
            if not rest:
                tier.put([blocks])  # used again
        if not missing:
            return 0
        spill_ns = self._quote_ns(tier.down, sum(n for _, _, n in missing))
        above = self.tiers[level - 1] if level else None
        self._send(tier.down, missing, above, partial(self._arrive_each, level, missing))
        return spill_ns

    def _arrive(self, level: int, blocks: list[BlockRange], is_whole: bool = True) -> None:
        """Blocks have come to a tier, unless they were lost; what gives way goes further down."""
        evicted = self.tiers[level].put(blocks) if is_whole else []
        if level + 1 == len(self.tiers):
            return
        if is_whole and self.tiers[level + 1].spec.writes_through:
            self.spill(level + 1, blocks)
        elif evicted:
            self.spill(level + 1, evicted)

    def _arrive_each(self, level: int, ranges: list[BlockRange], is_whole: bool) -> None:
        """Blocks that do not follow one another have come to a tier, or were lost."""
        for blocks in ranges:
            self._arrive(level, [blocks], is_whole)

    def _quote_ns(self, link: Link, n_blocks: int) -> int:
        return link.quote_ns(n_blocks * self._block_bytes, -(-n_blocks // self._piece_blocks))

    def _send(
        self, link: Link, blocks: list[BlockRange], source: Tier | None, then: Callable[[bool], None]
    ) -> "simpy.Event":
        """Send blocks from a tier, None is the device; whoever waits is told whether they have come."""
        n_blocks = sum(n for _, _, n in blocks)
        done = link.send(n_blocks * self._block_bytes, -(-n_blocks // self._piece_blocks))
        may_fail = source is not None and not source.is_gone  # else they only pass what is left of it
        done.callbacks.append(lambda _: then(source is None or not (may_fail and source.is_gone)))
        return done
