"""The decode ledger as one would first write it: a list of sequences and a loop over them for every token."""

from collections.abc import Iterator
from dataclasses import dataclass

from sim.sequence import Sequence


@dataclass(eq=False)
class Decoding:
    sequence: Sequence
    resident: int
    reached: int  # resident, had it slid over none
    left: int  # tokens it still generates; negative while it pads a batch
    n_steps: int = 0
    is_named: bool = False  # `finished` has told of it
    is_armed: bool = True  # `due` has not told of its room yet
    is_counted: bool = True


class NaiveLedger:
    """Same interface as `DecodeLedger`, nothing clever."""

    def __init__(self, block_tokens: int = 1, window_tokens: int | None = None) -> None:
        self.block_tokens = block_tokens
        self.window_tokens = window_tokens
        self.decoding: list[Decoding] = []
        self.step = 0

    def join(self, sequence: Sequence) -> None:
        resident = sequence.computed_tokens - sequence.dropped_tokens
        window = self.window_tokens
        if window is not None and resident > window:
            sequence.dropped_tokens += resident - window
            resident = window
        left = sequence.request.output_tokens - sequence.generated_tokens
        sequence.joined_step = self.step
        self.decoding.append(Decoding(sequence, resident, resident, left))

    def leave(self, sequence: Sequence) -> None:
        one = self._of(sequence)
        self.decoding.remove(one)
        sequence.computed_tokens += one.n_steps
        sequence.dropped_tokens = sequence.computed_tokens - one.resident
        sequence.generated_tokens = sequence.request.output_tokens - max(0, one.left)

    def rejoin(self, sequence: Sequence) -> None:
        self.join(sequence)

    def count(self, sequence: Sequence, by: int) -> None:
        self._of(sequence).is_counted = by > 0

    def advance(self, n_steps: int) -> None:
        for _ in range(n_steps):
            for one in self.decoding:
                one.resident += self._grows(one)
                one.reached += 1
                one.left -= 1
                one.n_steps += 1
            self.step += 1

    def finished(self) -> list[Sequence]:
        done = [one for one in self.decoding if one.left <= 0 and not one.is_named]
        for one in done:
            one.is_named = True
        return sorted((one.sequence for one in done), key=lambda sequence: sequence.order)

    def due(self) -> list[Sequence]:
        full = [one for one in self.decoding if (room := self._room(one)) is not None and room <= 0]
        for one in full:
            one.is_armed = False
        return sorted((one.sequence for one in full), key=lambda sequence: sequence.order)

    def rearm(self, sequence: Sequence) -> None:
        self._of(sequence).is_armed = True

    def drop(self, sequence: Sequence, n_tokens: int) -> None:
        one = self._of(sequence)
        one.resident -= n_tokens
        one.reached -= n_tokens
        sequence.dropped_tokens += n_tokens

    def steps_to_event(self) -> int | None:
        steps = [one.left for one in self.decoding if not one.is_named]
        for one in self.decoding:
            if self.window_tokens is not None and self._grows(one):
                steps.append(self.window_tokens - one.resident)
            room = self._room(one)
            if room is not None:
                steps.append(room)
        return min(steps, default=None)

    def blocks_needed(self, n_steps: int) -> int:
        size = self.block_tokens
        return sum(
            -(-(one.resident + n_steps) // size) - -(-one.resident // size) for one in self.decoding if self._grows(one)
        )

    def steps_for_blocks(self, n_blocks: int) -> int:
        steps = 0
        while self.blocks_needed(steps + 1) <= n_blocks:
            steps += 1
        return steps

    def context_tokens(self) -> int:
        return sum(self._attended(one) for one in self.decoding)

    def max_context_tokens(self) -> int:
        return max((self._attended(one) for one in self.decoding), default=0)

    def last(self) -> Sequence:
        return self.decoding[-1].sequence

    def resident_of(self, sequence: Sequence) -> int:
        return self._of(sequence).resident

    def computed_of(self, sequence: Sequence) -> int:
        return sequence.computed_tokens + self._of(sequence).n_steps

    @property
    def members(self) -> dict[int, Sequence]:
        return {one.sequence.order: one.sequence for one in self.decoding}

    @property
    def n_growing(self) -> int:
        return sum(self._grows(one) for one in self.decoding)

    @property
    def n_emitting(self) -> int:
        return sum(not one.is_named for one in self.decoding)

    @property
    def resident_tokens(self) -> int:
        return sum(one.resident for one in self.decoding)

    @property
    def padding_tokens(self) -> int:
        return sum(one.sequence.padding_tokens for one in self.decoding)

    ends = ((0, 0),)  # always: ask `finished`

    @property
    def alarms(self) -> bool:
        return any(self._room(one) is not None for one in self.decoding)

    def __len__(self) -> int:
        return len(self.decoding)

    def __iter__(self) -> Iterator[Sequence]:
        return iter([one.sequence for one in self.decoding])

    def _of(self, sequence: Sequence) -> Decoding:
        return next(one for one in self.decoding if one.sequence is sequence)

    def _grows(self, one: Decoding) -> bool:
        return one.is_counted and (self.window_tokens is None or one.resident < self.window_tokens)

    def _attended(self, one: Decoding) -> int:
        return one.resident + self._grows(one) + one.sequence.padding_tokens

    def _room(self, one: Decoding) -> int | None:
        room = one.sequence.room_tokens
        return room - one.reached if one.is_armed and room is not None else None
