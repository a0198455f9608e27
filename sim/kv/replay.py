"""A trace through the prefix cache without time: which of each prompt's blocks are still there when it comes.

One request at a time, nothing in flight, so what an eviction policy keeps is all that matters. Only prompts are
cached, answers are not: traces name no text for them.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Literal

import numpy as np

from sim.errors import ConfigError
from sim.kv.eviction import Evictor, Unit
from sim.request import Finished, Request, Scenario, block_keys, follow_up_of

Touch = Literal["tail_first", "head_first", "head_first_once"]
"""How a request's blocks reach the evictor.

``tail_first``: as in vLLM, the request takes room for all that is missing, holds what it found meanwhile, and frees
its blocks last-first. ``head_first``: one block after the other from the prompt's start, each looked up at its turn
and nothing held, as simulators of caches without prefixes do. ``head_first_once``: the same, but all are looked up
when the request comes: what its own blocks push out is not fetched again.
"""

_FILLER = -1  # identity that completes a prompt's last block; traces name theirs from 0


@dataclass(slots=True)
class Trace:
    """Prompts as blocks, blocks as numbers from 0 in order of first appearance."""

    block_tokens: int
    blocks: list[list[int]] = field(default_factory=list)  # per request: those whose text has an identity
    prompt_tokens: "array[int]" = field(default_factory=lambda: array("q"))
    n_distinct: int = 0
    n_warmup: int = 0  # first requests: they fill the cache, and nothing of them is counted

    @property
    def counted_tokens(self) -> "array[int]":
        """Length of each prompt that counts [tokens]."""
        return self.prompt_tokens[self.n_warmup :]

    @property
    def n_references(self) -> int:
        """Blocks of all prompts that count, last incomplete ones included [blocks]."""
        return sum(-(-n // self.block_tokens) for n in self.counted_tokens)

    def n_blank(self) -> list[int]:
        """By request, blocks whose text has no identity: they take room, and nobody finds them."""
        lengths = zip(self.prompt_tokens, self.blocks, strict=True)
        return [-(-n_tokens // self.block_tokens) - len(blocks) for n_tokens, blocks in lengths]

    def future(self) -> list[int]:
        """Every reference to a block that has an identity, in order: what Belady's bound knows."""
        return [block for blocks in self.blocks for block in blocks]


@dataclass(frozen=True, slots=True)
class Hits:
    """What a replay found: counts, and the shares made of them."""

    n_references: int  # [blocks]
    n_full: int
    n_prompt_tokens: int
    hit_blocks: int  # of the longest resident prefixes
    hit_full: int  # of these, full blocks
    hit_tokens: int
    resident_blocks: int  # looked up and there, whether their prefix was or not
    evicted_blocks: int  # given up with their content, to make room

    @classmethod
    def of(cls, trace: Trace, n_hit: Any, n_resident: Any, n_evicted: int) -> "Hits":
        """Sums over the requests that count.

        Parameters
        ----------
        trace : Trace
        n_hit, n_resident : list or array of int
            By request, warm-up included [blocks].
        n_evicted : int
            After the warm-up [blocks].
        """
        tokens, size = np.asarray(trace.counted_tokens), trace.block_tokens
        hit = np.asarray(n_hit, dtype=np.int64)[trace.n_warmup :]
        full = tokens // size
        return cls(
            trace.n_references,
            int(full.sum()),
            int(tokens.sum()),
            int(hit.sum()),
            int(np.minimum(hit, full).sum()),
            int(np.minimum(hit * size, tokens).sum()),
            int(sum(n_resident[trace.n_warmup :])),
            n_evicted,
        )

    @property
    def missed_blocks(self) -> int:
        """Blocks that have to be computed: all after the first that is not there."""
        return self.n_references - self.hit_blocks

    @property
    def block_frac(self) -> float:
        """Share of blocks hit."""
        return self.hit_blocks / self.n_references

    @property
    def full_frac(self) -> float:
        """Share of full blocks hit."""
        return self.hit_full / self.n_full if self.n_full else 0.0

    @property
    def token_frac(self) -> float:
        """Share of prompt tokens hit."""
        return self.hit_tokens / self.n_prompt_tokens

    @property
    def resident_frac(self) -> float:
        """Share of blocks found resident: the hit rate of a cache without prefixes."""
        return self.resident_blocks / self.n_references


def all_requests(scenario: Scenario, seed: int) -> Iterator[Request]:
    """Every request in order of arrival, each answered as it arrives: who waits for answers goes on at once."""
    stream, follow_up = scenario.requests(seed), follow_up_of(scenario)
    following = next(stream, None)
    answers: list[tuple[int, int, Request]] = []  # follow-ups: time, order
    order = 0
    while following is not None or answers:
        if following is not None and (not answers or following.arrival_ns <= answers[0][0]):
            request, following = following, next(stream, None)
        else:
            request = heappop(answers)[2]
        yield request
        answer = None if follow_up is None else follow_up(Finished(request, request.arrival_ns))
        if answer is not None:
            order += 1
            heappush(answers, (answer.arrival_ns, order, answer))


def read(requests: Iterable[Request], block_tokens: int) -> Trace:
    """Prompts of a scenario as numbered blocks.

    Parameters
    ----------
    requests : iterable of Request
    block_tokens : int
        Block size [tokens].

    Raises
    ------
    ConfigError
        If there is no request.
    """
    trace = Trace(block_tokens)
    numbers: dict[int, int] = {}
    for request in requests:
        n_tokens = request.prompt_tokens
        content = request.content or ()
        n_pad = -n_tokens % block_tokens
        if n_pad and sum(length for _, length in content) == n_tokens:
            content = (*content, (_FILLER, n_pad))
            n_tokens += n_pad
        keys = block_keys(content, n_tokens, block_tokens)
        trace.blocks.append([numbers.setdefault(key, len(numbers)) for key in keys])
        trace.prompt_tokens.append(request.prompt_tokens)
    if not trace.blocks:
        raise ConfigError("the scenario has no request: a hit rate needs one")
    trace.n_distinct = len(numbers)
    return trace


def replay(trace: Trace, evictor: Evictor, touch: Touch = "tail_first") -> Hits:
    """Send every prompt through a cache whose blocks are the evictor's.

    Parameters
    ----------
    trace : Trace
        From `read`.
    evictor : Evictor
        Of the cache's size, all blocks free.
    touch : {"tail_first", "head_first", "head_first_once"}
        How a request's blocks reach the evictor.
    """
    size = trace.block_tokens
    resident: list[Unit | None] = [None] * trace.n_distinct
    all_hit: list[int] = []
    all_resident: list[int] = []
    n_evicted = 0
    for i, (blocks, n_blank) in enumerate(zip(trace.blocks, trace.n_blank(), strict=True)):
        if i == trace.n_warmup:
            n_evicted = 0
        units = [resident[block] for block in blocks]
        found = [unit for unit in units if unit is not None]
        all_hit.append(len(units) if len(found) == len(units) else units.index(None))
        if touch == "tail_first":
            all_resident.append(len(found))
            n_evicted += _hold(blocks, units, found, n_blank, resident, evictor, size)
        else:
            n_resident, n_given_up = _pass(blocks, units, resident, evictor, size, touch == "head_first")
            all_resident.append(n_resident)
            n_evicted += n_given_up + _pass_blank(n_blank, resident, evictor)
    return Hits.of(trace, all_hit, all_resident, n_evicted)


def _hold(
    blocks: Sequence[int],
    units: list[Unit | None],
    found: list[Unit],
    n_blank: int,
    resident: list[Unit | None],
    evictor: Evictor,
    size: int,
) -> int:
    """Serve one request as a paged cache does, and say how many blocks were given up for it.

    Of one longer than the cache, the end is not kept.
    """
    n_evicted = 0
    evictor.claim(found)
    if len(found) < len(units) or n_blank:
        missing = [block for block, unit in zip(blocks, units, strict=True) if unit is None]
        room = len(evictor)
        del missing[room:]
        n_blank = min(n_blank, room - len(missing))
        evicted = evictor.victims(len(missing) + n_blank, missing)
        n_evicted = len(evicted)
        for unit in evicted:
            resident[unit.key] = None  # type: ignore[index]
        for block in missing:
            if evicted:  # a block's record is used again, as the block is: a third of the time of making one
                unit = resident[block] = evicted.pop()
                unit.key, unit.n_hits = block, 0
            else:
                resident[block] = Unit(block, size)
        evictor.park_blank(n_blank)
        units = [resident[block] for block in blocks]
        if len(missing) == room:
            units = [unit for unit in units if unit is not None]
    units.reverse()
    evictor.park(units)  # type: ignore[arg-type]
    return n_evicted


def _pass(
    blocks: Sequence[int],
    units: list[Unit | None],
    resident: list[Unit | None],
    evictor: Evictor,
    size: int,
    looks_up_again: bool,
) -> tuple[int, int]:
    """Touch one request's blocks from its start, and say how many were resident, and how many were given up."""
    n_resident = n_evicted = 0
    for block, before in zip(blocks, units, strict=True):
        unit = resident[block]
        n_resident += (unit if looks_up_again else before) is not None
        if unit is not None:
            evictor.claim((unit,))
        elif before is None or looks_up_again:
            for evicted in evictor.victims(1, (block,)):
                resident[evicted.key] = None  # type: ignore[index]
                n_evicted += 1
            unit = resident[block] = Unit(block, size)
        else:
            continue
        evictor.park((unit,))
    return n_resident, n_evicted


def _pass_blank(n_blank: int, resident: list[Unit | None], evictor: Evictor) -> int:
    """Let blocks that nobody shares pass through, and say how many others were given up."""
    n_blank = min(n_blank, len(evictor))
    evicted = evictor.victims(n_blank)
    for unit in evicted:
        resident[unit.key] = None  # type: ignore[index]
    evictor.park_blank(n_blank)
    return len(evicted)
