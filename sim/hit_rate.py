"""The task ``hit_rate``: what share of a trace's prompts a prefix cache finds, by policy and size, without time.

Prompts alone are cached and counted; in a simulation answers are cached too, and requests overlap. The order in which a
request's blocks reach the policy moves a hit rate: FIFO's on Mooncake's conversations, 1,000 blocks, is 0.0445 with
``tail_first`` and 0.0434 with ``head_first_once``, the order of the replay that ``make reproduce`` compares with.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any, get_args

from sim.errors import ConfigError
from sim.kv.eviction import Arc, Belady, BlankFirst, Evictor, Fifo, Gdsf, Lfu, Lru, S3Fifo
from sim.kv.replay import Touch, Trace, all_requests, read, replay
from sim.report.hit_rate import Point, page, table

if TYPE_CHECKING:
    from rich.console import Console

    from sim.request import Scenario

POLICIES: dict[str, Callable[[Trace], Callable[[int], Evictor]]] = {
    "lru": lambda _: Lru,
    "lfu": lambda _: partial(BlankFirst, order=Lfu),
    "fifo": lambda _: partial(BlankFirst, order=Fifo),
    "s3fifo": lambda _: partial(BlankFirst, order=S3Fifo),
    "arc": lambda _: partial(BlankFirst, order=Arc),
    "gdsf": lambda _: partial(BlankFirst, order=Gdsf),
    "belady": lambda trace: partial(BlankFirst, order=partial(Belady, future=trace.future())),
}
"""How a replay makes the evictors of ``conf/eviction/``: the bound alone needs the trace."""


@dataclass(frozen=True, slots=True)
class HitRate:
    """Replays the scenario's prompts through every policy at every capacity.

    Parameters
    ----------
    policies : sequence of str
        Of ``conf/eviction/``.
    capacity_blocks : sequence of int
        Cache sizes [blocks].
    block_tokens : int
        Block size [tokens].
    touch : {"tail_first", "head_first", "head_first_once"}
        In which order a request's blocks reach the policy, see `sim.kv.replay.Touch`.
    """

    policies: Sequence[str]
    capacity_blocks: Sequence[int]
    block_tokens: int = 512
    touch: str = "tail_first"

    def __post_init__(self) -> None:
        for policy in _some("policies", self.policies):
            if policy not in POLICIES:
                near = get_close_matches(str(policy), POLICIES, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise ConfigError(f"policies: {policy} is not a choice; {hint}(there are {', '.join(POLICIES)})")
        for capacity in _some("capacity_blocks", self.capacity_blocks):
            if type(capacity) is not int or capacity < 1:
                raise ConfigError(f"capacity_blocks must be whole numbers >= 1 [blocks], got {capacity!r}")
            if "s3fifo" in self.policies and capacity < 20:
                raise ConfigError(f"capacity_blocks must be >= 20 [blocks] for s3fifo, got {capacity!r}")
        if type(self.block_tokens) is not int or self.block_tokens < 1:
            raise ConfigError(f"task.block_tokens must be >= 1 [tokens], got {self.block_tokens!r}")
        if self.touch not in get_args(Touch):
            raise ConfigError(f"task.touch must be one of {', '.join(get_args(Touch))}, got {self.touch!r}")

    def __call__(self, *, scenario: "Scenario", seed: int, out: Path, console: "Console") -> None:
        """Replay, print the table, write ``hit_rate.json`` and ``hit_rate.html`` into ``out``."""
        trace = read(all_requests(scenario, seed), self.block_tokens)
        ceiling = replay(trace, Lru(trace.n_references))
        points = self.points(trace)
        out.mkdir(parents=True, exist_ok=True)
        summary = {
            "n_requests": len(trace.blocks),
            "n_block_references": trace.n_references,
            "n_distinct_blocks": trace.n_distinct,
            "block_tokens": self.block_tokens,
            "touch": self.touch,
            "unlimited": Point("unlimited", trace.n_references, ceiling, 0.0).row(),
            "points": [point.row() for point in points],
        }
        (out / "hit_rate.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        (out / "hit_rate.html").write_text(page(points, trace, ceiling, self.touch), encoding="utf-8")
        console.print(table(points, trace, ceiling, self.touch))
        console.print(f"Page: {out / 'hit_rate.html'}", soft_wrap=True)

    def points(self, trace: Trace) -> list[Point]:
        """One replay per policy and capacity."""
        points = []
        for policy in self.policies:
            evictor = POLICIES[policy](trace)
            for capacity in self.capacity_blocks:
                start_s = process_time()
                hits = replay(trace, evictor(capacity), self.touch)  # type: ignore[arg-type]
                points.append(Point(policy, capacity, hits, trace.n_references / (process_time() - start_s)))
        return points


def _some(key: str, values: Any) -> Sequence[Any]:
    """A list that is not empty."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ConfigError(f"{key} must be a list of at least one, got {values!r}")
    return values
