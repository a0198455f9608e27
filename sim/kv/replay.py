"""A trace through the prefix cache without time: which of each prompt's blocks are still there when it comes.

One request at a time, nothing in flight, so what an eviction policy keeps is all that matters. Only prompts are
cached, answers are not: traces name no text for them.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Literal

from sim.errors import ConfigError
from sim.kv.eviction import Evictor, Unit
from sim.request import Finished, FollowUps, Request, Scenario, block_keys

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

    @property
    def n_references(self) -> int:
        """Blocks of all prompts, last incomplete ones included [blocks]."""
        return sum(-(-n // self.block_tokens) for n in self.prompt_tokens)

    @property
    def n_full(self) -> int:
        """Full blocks of all prompts [blocks]."""
        return sum(n // self.block_tokens for n in self.prompt_tokens)

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
    stream = scenario.requests(seed)
    following = next(stream, None)
    answers: list[tuple[int, int, Request]] = []  # follow-ups: time, order
    order = 0
    while following is not None or answers:
        if following is not None and (not answers or following.arrival_ns <= answers[0][0]):
            request, following = following, next(stream, None)
        else:
            request = heappop(answers)[2]
        yield request
        answer = scenario.follow_up(Finished(request, request.arrival_ns)) if isinstance(scenario, FollowUps) else None
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
    hit_blocks = hit_full = hit_tokens = n_resident = 0
    for blocks, n_tokens in zip(trace.blocks, trace.prompt_tokens, strict=True):
        units = [resident[block] for block in blocks]
        found = [unit for unit in units if unit is not None]
        n_hit = len(units) if len(found) == len(units) else units.index(None)
        hit_blocks += n_hit
        hit_full += min(n_hit, n_tokens // size)
        hit_tokens += min(n_hit * size, n_tokens)
        n_blank = -(-n_tokens // size) - len(blocks)
        if touch == "tail_first":
            n_resident += len(found)
            _hold(blocks, units, found, n_blank, resident, evictor, size)
        else:
            n_resident += _pass(blocks, units, resident, evictor, size, touch == "head_first")
            _pass_blank(n_blank, resident, evictor)
    return Hits(
        trace.n_references, trace.n_full, sum(trace.prompt_tokens), hit_blocks, hit_full, hit_tokens, n_resident
    )


def _hold(
    blocks: Sequence[int],
    units: list[Unit | None],
    found: list[Unit],
    n_blank: int,
    resident: list[Unit | None],
    evictor: Evictor,
    size: int,
) -> None:
    """Serve one request as a paged cache does; of one longer than the cache, the end is not kept."""
    evictor.claim(found)
    if len(found) < len(units) or n_blank:
        missing = [block for block, unit in zip(blocks, units, strict=True) if unit is None]
        room = len(evictor)
        del missing[room:]
        n_blank = min(n_blank, room - len(missing))
        evicted = evictor.victims(len(missing) + n_blank, missing)
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


def _pass(
    blocks: Sequence[int],
    units: list[Unit | None],
    resident: list[Unit | None],
    evictor: Evictor,
    size: int,
    looks_up_again: bool,
) -> int:
    """Touch one request's blocks from its start, and say how many were resident."""
    n_resident = 0
    for block, before in zip(blocks, units, strict=True):
        unit = resident[block]
        n_resident += (unit if looks_up_again else before) is not None
        if unit is not None:
            evictor.claim((unit,))
        elif before is None or looks_up_again:
            for evicted in evictor.victims(1, (block,)):
                resident[evicted.key] = None  # type: ignore[index]
            unit = resident[block] = Unit(block, size)
        else:
            continue
        evictor.park((unit,))
    return n_resident


def _pass_blank(n_blank: int, resident: list[Unit | None], evictor: Evictor) -> None:
    """Let blocks that nobody shares pass through."""
    n_blank = min(n_blank, len(evictor))
    for evicted in evictor.victims(n_blank):
        resident[evicted.key] = None  # type: ignore[index]
    evictor.park_blank(n_blank)
