"""The task ``hit_rate``: what share of a trace's prompts a prefix cache finds, by policy and size, without time.

Prompts alone are cached and counted; in a simulation answers are cached too, and requests overlap. The order in which a
request's blocks reach the policy moves a hit rate: FIFO's on Mooncake's conversations, 1,000 blocks, is 0.0445 with
``tail_first`` and 0.0434 with ``head_first_once``, the order of the replay that ``make reproduce`` compares with.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any, cast, get_args

from sim.check import signature
from sim.config import choices_of, conf_dir, make
from sim.errors import ConfigError
from sim.kv.eviction import Belady, BlankFirst, Evictor, Fifo, Lfu, Lru
from sim.kv.replay import Hits, Touch, Trace, all_requests, read, replay
from sim.kv.stack_depth import lru_hits
from sim.kv.whole_requests import BeladyBlocks, Blocks, FifoBlocks, LfuBlocks, Requests, replay_requests
from sim.report.hit_rate import Point, page, table

if TYPE_CHECKING:
    from rich.console import Console

    from sim.request import Scenario

MadeBy = Callable[[int], Evictor]
"""Builds an evictor of so many blocks."""
BY_REQUEST: dict[Any, Callable[[Requests], Blocks]] = {Fifo: FifoBlocks, Lfu: LfuBlocks, Belady: BeladyBlocks}
"""Orders that have a faster way through a trace, tail first; all others are replayed block by block."""


@dataclass(frozen=True, slots=True)
class HitRate:
    """Replays the scenario's prompts through every policy at every capacity.

    Parameters
    ----------
    policies : sequence of str
        Of ``conf/eviction/``; the one that is chosen as ``eviction`` with its settings.
    capacity_blocks : sequence of int
        Cache sizes [blocks].
    block_tokens : int
        Block size [tokens].
    touch : {"tail_first", "head_first", "head_first_once"}
        In which order a request's blocks reach the policy, see `sim.kv.replay.Touch`.
    warmup_frac : float
        Share of the requests, the first, that fill the cache and are not counted, in [0, 1).
    """

    policies: Sequence[str]
    capacity_blocks: Sequence[int]
    block_tokens: int = 512
    touch: str = "tail_first"
    warmup_frac: float = 0.0

    def __post_init__(self) -> None:
        known = choices_of("eviction")
        for policy in _some("policies", self.policies):
            if policy not in known:
                near = get_close_matches(str(policy), known, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise ConfigError(f"policies: {policy} is not a choice; {hint}(there are {', '.join(known)})")
        for capacity in _some("capacity_blocks", self.capacity_blocks):
            if type(capacity) is not int or capacity < 1:
                raise ConfigError(f"capacity_blocks must be whole numbers >= 1 [blocks], got {capacity!r}")
        if type(self.block_tokens) is not int or self.block_tokens < 1:
            raise ConfigError(f"task.block_tokens must be >= 1 [tokens], got {self.block_tokens!r}")
        if self.touch not in get_args(Touch):
            raise ConfigError(f"task.touch must be one of {', '.join(get_args(Touch))}, got {self.touch!r}")
        if type(self.warmup_frac) not in (int, float) or not 0.0 <= self.warmup_frac < 1.0:
            raise ConfigError(f"task.warmup_frac must be in [0, 1), got {self.warmup_frac!r}")

    def __call__(
        self,
        *,
        scenario: "Scenario",
        seed: int,
        out: Path,
        console: "Console",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Replay, print the table, write ``hit_rate.json`` and ``hit_rate.html`` into ``out``."""
        trace = read(all_requests(scenario, seed), self.block_tokens)
        trace.n_warmup = int(self.warmup_frac * len(trace.blocks))
        ceiling = unlimited(trace)
        points = self.points(trace, config or {})
        out.mkdir(parents=True, exist_ok=True)
        summary = {
            "n_requests": len(trace.blocks),
            "n_warmup_requests": trace.n_warmup,
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

    def points(self, trace: Trace, config: Mapping[str, Any]) -> list[Point]:
        """A point for each policy and capacity."""
        points = []
        requests = Requests(trace)
        for policy in self.policies:
            start_s = process_time()
            found = hits(made_by(policy, config, trace), requests, self.capacity_blocks, cast("Touch", self.touch))
            per_s = trace.n_references * len(found) / max(process_time() - start_s, 1e-9)
            points += [Point(policy, *one, per_s) for one in zip(self.capacity_blocks, found, strict=True)]
        return points


def made_by(policy: str, config: Mapping[str, Any], trace: Trace) -> MadeBy:
    """What builds a policy's evictors, read from its file; one that asks for the future is told it."""
    from omegaconf import OmegaConf

    node: Any = config.get("eviction") if config.get("choices", {}).get("eviction") == policy else None
    if node is None:
        file: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "eviction" / f"{policy}.yaml"))
        # What is the engine's concerns free blocks without content, and none are freed here.
        node = {key: value for key, value in file.items() if not str(value).startswith("${engine.")}
    maker = make(node, "eviction", tuple(config.get("trusted_packages", ())), Evictor)
    order = node.get("order")
    if isinstance(order, Mapping) and "future" in signature(str(order["_target_"]), "eviction.order").parameters:
        maker = partial(maker, order=partial(maker.keywords["order"], future=trace.future()))
    return cast("MadeBy", maker)


def hits(maker: Any, requests: Requests, capacities: Sequence[int], touch: Touch) -> list[Hits]:
    """What a policy finds at each capacity, in the quickest way there is to it; each gives what `replay` does."""
    is_stack = maker.func is Lru and not (maker.keywords.get("blank_first") and any(requests.n_blank))
    if is_stack and touch != "head_first_once":
        return lru_hits(requests.trace, capacities, touch)
    order = maker.keywords.get("order") if maker.func is BlankFirst else None
    blocks = BY_REQUEST.get(getattr(order, "func", None)) if touch == "tail_first" else None
    if blocks is not None:
        return [replay_requests(requests, capacity, blocks(requests)) for capacity in capacities]
    return [replay(requests.trace, maker(capacity), touch) for capacity in capacities]


def unlimited(trace: Trace) -> Hits:
    """What a cache finds that never gives anything up."""
    room = sum(map(len, trace.blocks)) + sum(trace.n_blank())
    return lru_hits(trace, [max(room, 1)], "tail_first")[0]


def _some(key: str, values: Any) -> Sequence[Any]:
    """A list that is not empty."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ConfigError(f"{key} must be a list of at least one, got {values!r}")
    return values
