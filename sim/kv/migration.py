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

from sim.kv.cache import Parcel
from sim.kv.partition import Partition
from sim.request import Request
from sim.sequence import Sequence


class Migrations:
    """Where conversations have left their KV, among caches each of which serves one class of requests.

    Parameters
    ----------
    parts : dict of str to Partition
        By class.
    """

    def __init__(self, parts: Mapping[str, Partition]) -> None:
        self._partitions = parts
        self._left: dict[int, str] = {}  # class of a session's last turn
        self.counts: dict[str, int | float] = dict.fromkeys(
            ("class_changes", "class_moves", "class_moved_tokens", "class_moved_bytes", "class_loaded_tokens"), 0
        )

    def parcel(self, request: Request, generated_tokens: int | None) -> Parcel | None:
        """What a request's conversation brings from another cache, if that is more than what it finds."""
        left = self._elsewhere(request)
        if left is None:
            return None
        cache = self._partitions[request.kind].cache
        parcel = self._partitions[left].cache.left(request, generated_tokens)
        is_more = parcel.n_tokens > cache.match(request, generated_tokens)
        return parcel if is_more and cache.accepts(request, parcel) else None

    def take(self, sequence: Sequence, n_tokens: int, parcel: Parcel) -> bool:
        """Admit a sequence with the next ``n_tokens`` of its prompt, and with the KV that moves."""
        cache, part = self._partitions[sequence.request.kind]
        source = self._partitions[self._left[sequence.request.session_id]].cache  # type: ignore[index]
        if not cache.admit(sequence, n_tokens, part, parcel):
            return False
        n_copied = max(0, sequence.coming_tokens - (parcel.n_tokens - parcel.copied_tokens))
        n_bytes = n_copied * (parcel.bytes_per_token + cache.bytes_per_token) / 2.0
        cache.copies.moved_bytes += n_bytes
        counts = self.counts
        counts["class_moves"] += 1
        counts["class_moved_tokens"] += n_copied
        counts["class_moved_bytes"] += n_bytes
        if parcel.n_tokens > parcel.copied_tokens:
            counts["class_loaded_tokens"] += source.load(sequence, parcel, self._lose)
        return True

    def arrive(self, sequence: Sequence) -> None:
        """A sequence is admitted: its conversation is in its class's cache now, and nowhere else."""
        left = self._elsewhere(sequence.request)
        if left is not None:
            self._partitions[left].cache.forget(sequence)
            self.counts["class_changes"] += 1

    def leave(self, sequence: Sequence) -> None:
        """A sequence has given its memory back; its class's cache may have kept the conversation."""
        request = sequence.request
        if request.session_id is not None and request.content is not None:
            self._left[request.session_id] = request.kind

    def _lose(self, n_tokens: int) -> None:
        """So many tokens that were being loaded are lost."""
        self.counts["class_loaded_tokens"] -= n_tokens

    def _elsewhere(self, request: Request) -> str | None:
        """The other class in whose cache a request's conversation left its KV."""
        left = self._left.get(request.session_id) if request.session_id is not None else None
        return None if left == request.kind or request.content is None else left
