"""What a client asks for, and the identity of the tokens it sends."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np

Segment = tuple[int, int]
"""A piece of text: (identity, n_tokens). Equal identities after equal prefixes mean equal tokens."""


new_tuple: Final = tuple.__new__  # makes a NamedTuple in less than half the time of calling its class


class Request(NamedTuple):
    """What a client asked for. A fact: nothing changes it after arrival.

    ``content`` names the prompt's text piece by piece, all ``prompt_tokens`` of it, so that caches find shared prefixes
    without token ids; ``None`` means text that no other request shares. ``output_id`` names the text the model will
    generate, so that a later prompt can contain it. A tuple, because millions are made: a frozen dataclass takes five
    times as long. Whoever makes requests checks them.
    """

    id: int
    arrival_ns: int
    prompt_tokens: int
    output_tokens: int  # oracle: the engine alone reads it, never a policy
    max_output_tokens: int
    content: tuple[Segment, ...] | None = None
    output_id: int | None = None
    session_id: int | None = None
    turn: int = 0
    slo_class: str = ""
    priority: int = 0  # lower is served first
    n_samples: int = 1  # answers sampled from one prompt; their KV shares the prompt's blocks
    kind: str = ""  # what its session looks like to who classifies traffic: short_chat, code, ...
    tenant: str = ""  # whose it is, among whom the service is to be shared


@dataclass(frozen=True, slots=True)
class Finished:
    """What a client sees when its request ends; a closed-loop scenario answers it with the next request."""

    request: Request
    finish_ns: int
    is_refused: bool = False


class Stage(NamedTuple):
    """A time in which traffic has one rate."""

    rate: float  # [1/s], of what the scenario counts: requests, or sessions begun
    begin_ns: int
    end_ns: int


def stages_of(scenario: "Scenario") -> tuple[Stage, ...]:
    """The stages of a scenario whose traffic has some, as it says in ``stages``."""
    return tuple(getattr(scenario, "stages", ()))


class Scenario(Protocol):
    """Traffic: an open stream of requests, and where it has a method ``follow_up``, what finished ones bring about."""

    def requests(self, seed: int) -> Iterator[Request]:
        """Requests in order of arrival. Every call starts the same stream anew."""
        ...


FollowUp = Callable[[Finished], Request | None]
"""The request that a finished one brings about (next turn, next of a closed loop), at or after its finish."""


def follow_up_of(scenario: Scenario) -> FollowUp | None:
    """What a scenario makes of a request's end; None of an open stream, which does not listen."""
    return getattr(scenario, "follow_up", None)


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The random numbers of one purpose: changing what else is drawn never moves them.

    Examples
    --------
    >>> float(stream(0, "arrivals").random()) == float(stream(0, "arrivals").random())
    True
    """
    from zlib import crc32

    return np.random.default_rng([seed, crc32(purpose.encode())])


def text_of(request: Request, generated_tokens: int) -> tuple[Segment, ...]:
    """Identity of a request's prompt and of so much of its answer, as far as they have one."""
    content = request.content or ()
    if request.output_id is None or not generated_tokens:
        return content
    return (*content, (request.output_id, generated_tokens))


def whole_text(request: Request, generated_tokens: int) -> tuple[Segment, ...]:
    """The same, with an identity of its own for text that nobody shares."""
    if request.content is not None:
        return text_of(request, generated_tokens)
    return ((own_text(request.id), request.prompt_tokens + generated_tokens),)


def own_text(request_id: int) -> int:
    """Identity of text that belongs to one request alone: a hash, for others are plain numbers.

    Examples
    --------
    >>> own_text(0) == own_text(0) != own_text(1)
    True
    """
    return hash((0x70726976, request_id))


BlockRange = tuple[int, int, int]
"""Full blocks that end in one piece of a text: (identity of the text up to there, end of the first [tokens], count)."""


def block_ranges(content: tuple[Segment, ...], n_tokens: int, block_tokens: int) -> list[BlockRange]:
    """The full blocks among the first ``n_tokens`` tokens of a text, by the piece in which they end.

    A block's identity depends on everything before its end, like vLLM's chained block hash: it is that of the text up
    to its piece, together with where it ends.

    Parameters
    ----------
    content : tuple of (identity, n_tokens)
        The text, piece by piece.
    n_tokens : int
        How much of it to cover; what exceeds the text has no identity [tokens].
    block_tokens : int
        Block size [tokens].

    Returns
    -------
    list of BlockRange
        In order, pieces in which no block ends left out.

    Examples
    --------
    >>> [(end, n_blocks) for _, end, n_blocks in block_ranges(((7, 40), (8, 3), (9, 30)), 73, 16)]
    [(16, 2), (48, 2)]
    """
    ranges = []
    end = chain = n_before = 0
    for identity, length in content:
        chain = hash((chain, identity, end))
        end += length
        n_blocks = (end if end < n_tokens else n_tokens) // block_tokens - n_before
        if n_blocks > 0:
            ranges.append((chain, (n_before + 1) * block_tokens, n_blocks))
            n_before += n_blocks
        if end >= n_tokens:
            break
    return ranges


def block_keys(content: tuple[Segment, ...], n_tokens: int, block_tokens: int) -> list[int]:
    """One number per block of `block_ranges`, in order: equal keys mean equal text up to the block's end.

    Examples
    --------
    >>> a = block_keys(((7, 32), (8, 16)), 48, 16)
    >>> b = block_keys(((7, 32), (9, 16)), 48, 16)
    >>> [x == y for x, y in zip(a, b)]
    [True, True, False]
    """
    keys: list[int] = []
    for piece, end, n_blocks in block_ranges(content, n_tokens, block_tokens):
        if n_blocks == 1:  # the rule where a trace names blocks: a sixth of the time of a range
            keys.append(piece + end)
        else:
            keys.extend(range(piece + end, piece + end + n_blocks * block_tokens, block_tokens))
    return keys
