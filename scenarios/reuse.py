"""How much of the prompts has been seen before: the most that an endless prefix cache could save."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from scenarios.statistics import Spread, spread
from sim.request import Segment
from sim.units import NS_PER_S

Content = tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class ReuseStats:
    """Shared prefixes of a stream of prompts.

    A piece is what the traffic names as one: a hashed block in a trace, a turn's text in a dialogue. A request's
    parent is the latest earlier request that shares most with it, beyond what all requests share. Where the traffic
    names the text of answers, an answer has been seen by whoever's prompt goes on from it.
    """

    n_pieces: int
    n_unique_pieces: int
    once_frac: float  # of the unique pieces, those used once
    ceiling_frac: float  # of all prompt tokens, those in a prefix seen before
    common_tokens: int  # at the beginning of every prompt
    child_frac: float  # of the requests, those with a parent
    depth: Spread | None  # requests from the root of each to itself, 1 for a root
    parent_gap_s: Spread | None
    single_frac: float  # of the roots, those without children
    new_tokens: Spread | None  # of requests with a parent, beyond the shared prefix


def reuse_stats(
    contents: list[Content | None],
    prompt_tokens: Iterable[int],
    arrival_ns: list[int],
    answers: Sequence[Segment | None] | None = None,
) -> ReuseStats | None:
    """Walk prompts in order of arrival through a tree of all earlier ones; None where nothing has an identity.

    ``answers`` names the text that each request brought forth, as far as a cache can hold it.
    """
    named = [content for content in contents if content]
    if not named:
        return None
    n_common = _common_pieces(named)
    seen: dict[int, list[int]] = {}  # piece after its prefix: longest so far, times used, latest request
    depth, gaps, new, children = [0] * len(contents), [], [], [0] * len(contents)
    roots = []
    n_pieces = n_tokens = n_seen_tokens = 0
    for number, (content, length) in enumerate(zip(contents, prompt_tokens, strict=True)):
        n_tokens += length
        parent, n_shared, chain, start, is_shared = None, 0, 0, 0, True
        for k, (identity, piece_tokens) in enumerate(content or ()):
            chain = hash((chain, identity, start))
            start += piece_tokens
            known = seen.get(chain)
            if known is None:
                seen[chain] = [piece_tokens, 1, number]
                is_shared = False
            else:
                if is_shared:
                    n_shared += min(known[0], piece_tokens)
                    is_shared = known[0] >= piece_tokens
                    parent = known[2] if k >= n_common else None
                known[0] = max(known[0], piece_tokens)
                known[1] += 1
                known[2] = number
            n_pieces += 1
        if content and answers is not None and (answer := answers[number]) is not None:
            text = hash((chain, answer[0], start))
            if text not in seen:
                seen[text] = [answer[1], 0, number]  # no prompt has used it yet
        n_seen_tokens += n_shared
        if parent is None:
            depth[number] = 1
            roots.append(number)
        else:
            depth[number] = depth[parent] + 1
            children[parent] += 1
            gaps.append((arrival_ns[number] - arrival_ns[parent]) / NS_PER_S)
            new.append(length - n_shared)
    used = np.array([times for _, times, _ in seen.values() if times])
    return ReuseStats(
        n_pieces,
        len(used),
        float((used == 1).mean()),
        n_seen_tokens / n_tokens,
        sum(piece_tokens for _, piece_tokens in named[0][:n_common]) if len(named) == len(contents) else 0,
        len(new) / len(contents),
        spread(np.array(depth)) if new else None,
        spread(np.array(gaps)) if new else None,
        float(np.mean([children[root] == 0 for root in roots])),
        spread(np.array(new)) if new else None,
    )


def _common_pieces(contents: list[Content]) -> int:
    """Pieces at the beginning that all prompts share; a lone prompt shares nothing."""
    first = contents[0]
    n = len(first) if len(contents) > 1 else 0
    for content in contents:
        same = 0
        while same < min(n, len(content)) and content[same] == first[same]:
            same += 1
        n = same
        if not n:
            break
    return n
