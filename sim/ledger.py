"""Decoding sequences advancing in lock-step.

Every decode iteration adds one token to every decoding sequence. So nothing is written per sequence and iteration:
the ledger counts iterations and keeps sums, and a sequence is touched when it joins and when it leaves.

    step                           0    1    2    3    4
    A joins at 0 with 30 tokens   30   31   32   33   34      resident = offset + step, offset(A) = 30
    B joins at 2 with 10 tokens             10   11   12                                offset(B) =  8
"""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from sim.sequence import Sequence


class DecodeLedger:
    """State of the decoding sequences of one replica, O(1) per iteration.

    Parameters
    ----------
    block_tokens : int
        KV block size: how often a growing sequence needs a new block [tokens].
    window_tokens : int or None
        Resident tokens at which a sequence stops growing, each new token replacing an old one [tokens].
    """

    __slots__ = (
        "_fulls",
        "_is_pruned",
        "_keeps_offsets",
        "_longest",
        "_phases",
        "_reach",
        "alarms",
        "block_tokens",
        "ends",
        "members",
        "n_emitting",
        "n_growing",
        "padding_tokens",
        "resident_tokens",
        "step",
        "window_tokens",
    )

    def __init__(self, block_tokens: int = 1, window_tokens: int | None = None) -> None:
        self.block_tokens = block_tokens
        self.window_tokens = window_tokens
        self.step = 0  # decode iterations run so far
        self.members: dict[int, Sequence] = {}  # by admission order; insertion order is the order of joining
        self.n_growing = 0  # members whose KV grows with every token
        self.n_emitting = 0  # members that still generate; the others pad a request-level batch
        self.resident_tokens = 0  # KV entries of all members
        self.padding_tokens = 0  # attended although they are no one's: prompts padded to the batch's longest
        self.ends: list[tuple[int, int]] = []  # (step by which it has its last token, order)
        self._fulls: list[tuple[int, int]] = []  # (step at which its window is full, order)
        self.alarms: list[tuple[int, int]] = []  # (step at which its room is full, order)
        self._longest: list[tuple[int, int]] = []  # (-offset - padding, order) of growing members
        self._is_pruned = False  # the first of _longest is the longest
        self._keeps_offsets = window_tokens is None  # nobody has dropped any: whoever is in _longest is right there
        self._reach = 0  # of the first of _longest, while it keeps its offset
        self._phases = [0] * block_tokens  # growing members by offset modulo block size

    def join(self, sequence: Sequence) -> None:
        """A sequence starts decoding."""
        resident = sequence.computed_tokens - sequence.dropped_tokens
        window = self.window_tokens
        if window is not None and resident > window:
            sequence.dropped_tokens += resident - window
            resident = window
        order, step = sequence.order, self.step
        offset = resident - step
        sequence.joined_step = step
        sequence.joined_tokens = resident
        self.members[order] = sequence
        self.n_emitting += 1
        self.resident_tokens += resident
        self.padding_tokens += sequence.padding_tokens
        heappush(self.ends, (step + sequence.output_tokens - sequence.generated_tokens, order))
        if sequence.room_tokens is not None:
            heappush(self.alarms, (sequence.room_tokens - offset, order))
        if resident == window:
            return
        self.n_growing += 1
        self._phases[offset % self.block_tokens] += 1
        reach = -offset - sequence.padding_tokens
        if reach < self._reach or not self._longest:
            self._reach = reach
        heappush(self._longest, (reach, order))
        if window is not None:
            heappush(self._fulls, (window - offset, order))

    def leave(self, sequence: Sequence) -> None:
        """A sequence stops decoding, its last token or not; its counters are brought up to date."""
        steps = self.step - sequence.joined_step
        del self.members[sequence.order]
        self._is_pruned = False
        longest = self._longest
        if longest and longest[0][1] == sequence.order:
            heappop(longest)
            while longest and longest[0][1] not in self.members:
                heappop(longest)
            if longest:
                self._reach = longest[0][0]
        grown = sequence.joined_tokens + steps
        window = self.window_tokens
        if window is not None and grown >= window:
            resident = window
        else:
            resident = grown
            self.n_growing -= 1
            self._phases[(sequence.joined_tokens - sequence.joined_step) % self.block_tokens] -= 1
        self.resident_tokens -= resident
        self.padding_tokens -= sequence.padding_tokens
        left = sequence.output_tokens - sequence.generated_tokens
        self.n_emitting -= steps < left
        sequence.computed_tokens += steps
        sequence.dropped_tokens += steps - (resident - sequence.joined_tokens)
        sequence.generated_tokens += steps if steps < left else left

    def rejoin(self, sequence: Sequence) -> None:
        """A member that left, and missed iterations, goes on; what was noted of it before is forgotten."""
        order = sequence.order
        for heap in (self.ends, self._fulls, self.alarms, self._longest):
            if heap:
                heap[:] = [one for one in heap if one[1] != order]
                heapify(heap)
        self.join(sequence)

    def count(self, sequence: Sequence, by: int) -> None:
        """Count a member's need of memory out (-1) while a question is asked, and in again (1)."""
        offset = sequence.joined_tokens - sequence.joined_step
        if self.window_tokens is None or offset + self.step < self.window_tokens:
            self.n_growing += by
            self._phases[offset % self.block_tokens] += by

    def advance(self, n_steps: int) -> None:
        """All members decode ``n_steps`` tokens. Must not pass an end or an alarm (`steps_to_event`)."""
        self.step += n_steps
        self.resident_tokens += n_steps * self.n_growing
        if self._fulls:
            for sequence in self._pop(self._fulls):
                offset = sequence.joined_tokens - sequence.joined_step
                if offset + self.step >= self.window_tokens:  # type: ignore[operator]  # else it has dropped some since
                    self._is_pruned = False
                    self.n_growing -= 1
                    self._phases[offset % self.block_tokens] -= 1

    def finished(self) -> list[Sequence]:
        """Members that have just got their last token, in order of admission; each is named once."""
        done = []
        ends = self.ends
        while ends and ends[0][0] <= self.step:
            sequence = self.members.get(heappop(ends)[1])
            if sequence is not None:
                self.n_emitting -= 1
                done.append(sequence)
        return done

    def due(self) -> list[Sequence]:
        """Members whose room is full now, in order of admission; each is named once per alarm."""
        return sorted(self._pop(self.alarms), key=lambda sequence: sequence.order)

    def rearm(self, sequence: Sequence) -> None:
        """The cache gave a member more room: ask again when that is full."""
        if sequence.room_tokens is not None:
            offset = sequence.joined_tokens - sequence.joined_step
            heappush(self.alarms, (sequence.room_tokens - offset, sequence.order))

    def drop(self, sequence: Sequence, n_tokens: int) -> None:
        """A member whose KV grows gives up some of it, and goes on growing from what is left."""
        self._is_pruned = self._keeps_offsets = False
        size = self.block_tokens
        offset = sequence.joined_tokens - sequence.joined_step
        self._phases[offset % size] -= 1
        self._phases[(offset - n_tokens) % size] += 1
        heappush(self._longest, (n_tokens - offset - sequence.padding_tokens, sequence.order))
        self.resident_tokens -= n_tokens
        sequence.joined_tokens -= n_tokens
        sequence.dropped_tokens += n_tokens
        if self.window_tokens is not None:
            heappush(self._fulls, (self.window_tokens - offset + n_tokens, sequence.order))

    def _pop(self, heap: list[tuple[int, int]]) -> list[Sequence]:
        """Members whose step in a heap has come."""
        found = []
        while heap and heap[0][0] <= self.step:
            sequence = self.members.get(heappop(heap)[1])
            if sequence is not None:
                found.append(sequence)
        return found

    def steps_to_event(self) -> int | None:
        """Iterations until the next member ends or needs attention, at least 0; None without members."""
        members, ends = self.members, self.ends
        while ends and ends[0][1] not in members:
            heappop(ends)
        steps = ends[0][0] - self.step if ends else None
        if self.alarms or self._fulls:
            for heap in (self.alarms, self._fulls):
                while heap and heap[0][1] not in members:
                    heappop(heap)
                if heap and (steps is None or heap[0][0] - self.step < steps):
                    steps = heap[0][0] - self.step
        return steps

    def blocks_needed(self, n_steps: int) -> int:
        """New KV blocks that ``n_steps`` more iterations take [blocks].

        A growing member takes a block whenever its resident tokens are a multiple of the block size, so the members
        that do at step ``s`` are those of phase ``-s`` modulo block size.
        """
        size = self.block_tokens
        if n_steps == 1:
            return self._phases[-self.step % size]
        rest = n_steps % size
        blocks = n_steps // size * self.n_growing
        last, phases = -self.step % size, self._phases
        for phase in range(last, last - rest, -1):  # below 0 too: of the last ones
            blocks += phases[phase]
        return blocks

    def steps_for_blocks(self, n_blocks: int) -> int:
        """Iterations that ``n_blocks`` free blocks suffice for, when something grows."""
        cycles, left = divmod(n_blocks, self.n_growing)
        steps = cycles * self.block_tokens
        phase = -self.step % self.block_tokens
        for _ in range(self.block_tokens):
            left -= self._phases[phase]
            if left < 0:
                break
            steps += 1
            phase = (phase - 1) % self.block_tokens
        return steps

    def context_tokens(self) -> int:
        """KV entries the next iteration reads: what is resident, padding, and each growing member's new token."""
        return self.resident_tokens + self.padding_tokens + self.n_growing

    def max_context_tokens(self) -> int:
        """The most that one member reads in the next iteration, 0 without members."""
        if self._keeps_offsets:
            return self.step - self._reach + 1 if self.members else 0
        if not self._is_pruned:
            self._prune()
        longest = self._longest
        window = self.window_tokens
        if window is not None and self.n_growing < len(self.members):
            return window
        return self.step - longest[0][0] + 1 if longest else 0

    def _prune(self) -> None:
        """Take out of `_longest` who has left, slides over the window, or has dropped some since."""
        longest, members, step, window = self._longest, self.members, self.step, self.window_tokens
        while longest:
            reach, order = longest[0]
            sequence = members.get(order)
            if (
                sequence is not None
                and (window is None or step - reach < window)
                and reach == sequence.joined_step - sequence.joined_tokens - sequence.padding_tokens
            ):
                break
            heappop(longest)
        self._is_pruned = True

    def resident_of(self, sequence: Sequence) -> int:
        """Resident tokens of one member now."""
        resident = sequence.joined_tokens + self.step - sequence.joined_step
        return resident if self.window_tokens is None else min(resident, self.window_tokens)

    def computed_of(self, sequence: Sequence) -> int:
        """Computed tokens of one member now, resident or not."""
        return sequence.computed_tokens + self.step - sequence.joined_step

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.members.values())
