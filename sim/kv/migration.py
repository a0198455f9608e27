"""Migrations that go on in another cache than the one they are in: what moves, and what that costs.

    first turn   [ KV in a cache for chats ] ──copied on the device──▶ [ KV in one for documents ]   second turn
                 [ in memory below         ] ──loaded over the link──▶

What moves is what the last turn left in another cache, if it reaches further than what the new one finds. It is copied
in the iteration that takes the sequence up, read at the width of one cache and written at that of the other, and given
up where it was, but for blocks that others may share. From memory below it is loaded into a cache that keeps
conversations apart. Caches with prefix reuse hold whole texts: KV that lacks some of its text (compressed, or slid out
of the model's window) is computed anew there.
"""

from collections.abc import Mapping
from typing import NamedTuple

from sim.kv.below import Below
from sim.kv.hierarchical import HierarchicalCache
from sim.kv.paged import PagedCache
from sim.kv.partition import Partition
from sim.kv.pruned import PrunedCache
from sim.request import Request
from sim.sequence import Sequence


class Left(NamedTuple):
    """What a conversation left behind when its last turn ended."""

    kind: str
    dropped_tokens: int  # of its text, those that its KV lacks


class Migration(NamedTuple):
    """KV of a conversation whose class has changed."""

    source: Partition
    n_tokens: int  # of its text that it stands for
    n_device_tokens: int  # of these, in device memory
    n_dropped_tokens: int  # of these, dropped


class Migrations:
    """Where conversations have left their KV, among caches each of which serves one class of requests.

    Parameters
    ----------
    parts : dict of str to Partition
        By class.
    """

    def __init__(self, parts: Mapping[str, Partition]) -> None:
        self._partitions = parts
        self._left: dict[int, Left] = {}  # by session
        self._fetching: dict[Sequence, Below] = {}  # who waits for KV from another cache's tiers
        self.counts: dict[str, int | float] = dict.fromkeys(
            ("class_changes", "class_moves", "class_moved_tokens", "class_moved_bytes", "class_loaded_tokens"), 0
        )

    def migration(self, request: Request, generated_tokens: int | None) -> Migration | None:
        """What a request's conversation brings from another cache, if that is more than what it finds."""
        left = self._elsewhere(request)
        if left is None:
            return None
        source, part = self._partitions[left.kind], self._partitions[request.kind]
        keeps_whole_text = isinstance(part.cache, PagedCache)
        if left.dropped_tokens and keeps_whole_text:
            return None
        n_tokens = n_device = source.cache.match(request, generated_tokens)
        if isinstance(source.cache, HierarchicalCache):
            n_device = source.cache.n_here(request, generated_tokens) * source.cache.block_tokens
            if keeps_whole_text:
                n_tokens = n_device
        n_dropped, window = left.dropped_tokens, part.ledger.window_tokens
        if window is not None and n_tokens > window:
            if keeps_whole_text:
                return None
            n_dropped = max(n_dropped, n_tokens - window)
        return (
            Migration(source, n_tokens, n_device, n_dropped)
            if n_tokens > part.cache.match(request, generated_tokens)
            else None
        )

    def take(self, sequence: Sequence, n_tokens: int, migration: Migration) -> bool:
        """Admit a sequence with the next ``n_tokens`` of its prompt, and with the KV that moves."""
        cache, part, bytes_per_token = self._partitions[sequence.request.kind]
        source, n_moved, n_device, n_dropped = migration
        cache.forget(sequence)  # what an earlier turn of its class left does not reach so far
        n_found = cache.match(sequence.request, sequence.preempted_at_tokens)
        if not cache.admit(sequence, n_moved - n_dropped - n_found + n_tokens, part):
            return False
        sequence.computed_tokens, sequence.dropped_tokens = n_moved, max(n_dropped, sequence.dropped_tokens)
        if isinstance(cache, PrunedCache):
            cache.note_quantised(sequence, n_device)
        n_copied = max(0, n_device - n_dropped - n_found)
        n_bytes = n_copied * (source.bytes_per_token + bytes_per_token) / 2.0
        cache.copies.moved_bytes += n_bytes
        counts = self.counts
        counts["class_moves"] += 1
        counts["class_moved_tokens"] += n_copied
        counts["class_moved_bytes"] += n_bytes
        if n_moved > n_device and isinstance(source.cache, HierarchicalCache):
            n_here = source.cache.n_here(sequence.request, sequence.preempted_at_tokens)
            counts["class_loaded_tokens"] += source.cache.tiers.fetch(sequence, n_here, self._lose)
            self._fetching[sequence] = source.cache.tiers
        return True

    def arrive(self, sequence: Sequence) -> None:
        """A sequence is admitted: its conversation is in its class's cache now, and nowhere else."""
        left = self._elsewhere(sequence.request)
        if left is not None:
            self._partitions[left.kind].cache.forget(sequence)
            self.counts["class_changes"] += 1

    def abandon(self, sequence: Sequence) -> None:
        """A sequence gives its memory back, and waits for nothing any more."""
        tiers = self._fetching.pop(sequence, None)
        if tiers is not None:
            tiers.abandon(sequence)

    def leave(self, sequence: Sequence) -> None:
        """A sequence has given its memory back; its class's cache may have kept the conversation."""
        request = sequence.request
        if request.session_id is not None and request.content is not None:
            keeps_whole_text = isinstance(self._partitions[request.kind].cache, PagedCache)
            self._left[request.session_id] = Left(request.kind, 0 if keeps_whole_text else sequence.dropped_tokens)

    def _lose(self, n_tokens: int) -> None:
        """So many tokens that were being loaded are lost."""
        self.counts["class_loaded_tokens"] -= n_tokens

    def _elsewhere(self, request: Request) -> Left | None:
        """What a request's conversation left in another class's cache."""
        left = self._left.get(request.session_id) if request.session_id is not None else None
        return None if left is None or left.kind == request.kind or request.content is None else left
