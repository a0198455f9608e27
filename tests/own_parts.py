"""Parts as somebody else would write them: plain Python that keeps the contracts, and nothing more."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice

from sim.batching.plan import DECODE, Batch, Plan, Scheduler
from sim.batching.queue import Queue
from sim.kv.cache import Copies, KVCache, Parcel
from sim.kv.site import Site
from sim.ledger import DecodeLedger
from sim.request import Request
from sim.router import Router
from sim.sequence import Sequence
from sim.step import CostModel, Shape

PARTS = {
    "trusted_packages": ["own_parts"],
    "cache": {"_target_": "own_parts.Slots", "_partial_": True},
    "cost": {"_target_": "own_parts.Flat", "step_us": 9000},
    "queue": {"_target_": "own_parts.LastFirst"},
    "batching": {"_target_": "own_parts.Few", "most": 5},
    "router": {"_target_": "own_parts.ById"},
    "replicas": 2,
}
"""In place of a configuration's."""


class Slots(KVCache):
    """A slot for each token; nothing is found again."""

    held_tokens = 0
    idle_tokens = 0

    def __init__(self, site: Site) -> None:
        self.capacity_tokens = site.capacity_tokens
        self.block_tokens = 1
        self.window_tokens = None
        self.is_endless = False
        self.copies = Copies()

    @property
    def rounding_tokens(self) -> int:
        return 0

    def match(self, request: Request, generated_tokens: int | None = None) -> int:
        return 0

    def admit(self, sequence: Sequence, n_tokens: int, ledger: DecodeLedger, parcel: Parcel | None = None) -> bool:
        if self.held_tokens + ledger.n_growing + n_tokens > self.capacity_tokens:
            return False
        self.held_tokens += n_tokens
        sequence.holding = (sequence.holding or 0) + n_tokens
        return True

    def extend(self, sequence: Sequence, n_tokens: int, ledger: DecodeLedger) -> bool:
        return self.admit(sequence, n_tokens, ledger)

    def attend(self, sequence: Sequence, ledger: DecodeLedger) -> bool:
        raise AssertionError("no sequence has asked for it")

    def steps_within(self, ledger: DecodeLedger, n_steps: int) -> int:
        free = self.capacity_tokens - self.held_tokens
        return min(n_steps, free // ledger.n_growing) if ledger.n_growing else n_steps

    def advance(self, ledger: DecodeLedger, n_steps: int) -> None:
        self.held_tokens += n_steps * ledger.n_growing

    def trim(self, sequence: Sequence, ledger: DecodeLedger) -> None:
        return

    def fork(self, sequence: Sequence, others: list[Sequence], ledger: DecodeLedger) -> int:
        return 0

    def release(self, sequence: Sequence, now_ns: int) -> None:
        self.held_tokens -= max(sequence.holding, sequence.resident_tokens)
        sequence.holding = None

    def refuses(self, request: Request) -> str | None:
        return "too long" if request.prompt_tokens + request.output_tokens > self.capacity_tokens else None

    def counts(self) -> Mapping[str, int | float]:
        return {}


class Flat(CostModel):
    """Every iteration takes as long, and a prompt token a microsecond more."""

    def __init__(self, step_us: int) -> None:
        self.step_ps = step_us * 1_000_000

    def pace(self, shape: Shape) -> tuple[int, int, int]:
        n_prompt = sum(n_tokens for n_tokens, *_ in shape[0])
        return self.step_ps + n_prompt * 1_000_000, 0, 1 if n_prompt else 1 << 50


class LastFirst(Queue):
    """Last come, first served."""

    def __init__(self) -> None:
        self.keeps_head = False
        self._waiting: deque[Sequence] = deque()

    def push(self, sequence: Sequence) -> None:
        self._waiting.appendleft(sequence)

    def push_back(self, sequence: Sequence) -> None:
        self._waiting.appendleft(sequence)

    def head(self) -> Sequence:
        return self._waiting[0]

    def take(self) -> Sequence:
        return self._waiting.popleft()

    def first(self, n: int, arriving: Iterable[Sequence] = ()) -> list[Sequence]:
        return list(islice(chain(arriving, self._waiting), n))

    def victim(self, running: Iterator[Sequence]) -> Sequence:
        return next(running)

    def __len__(self) -> int:
        return len(self._waiting)


class Few(Scheduler):
    """A few at a time, one prompt an iteration, and nobody decodes beside it."""

    def __init__(self, most: int) -> None:
        self.most = most

    @property
    def most_seqs(self) -> int:
        return self.most

    def plan(self, batch: Batch, now_ns: int) -> Plan | None:
        batch.make_room()
        if len(batch.waiting) and batch.n_running() < self.most:
            admitted = batch.admit(None, now_ns, self.most - batch.n_running())
            if admitted is not None:
                return Plan([admitted], decodes=False)
        if not batch.ledger.members:
            return None
        return DECODE


class ById(Router):
    """Requests with odd numbers here, with even ones there."""

    def place(self, request: Request, stage, fleet, now_ns):
        return fleet.open[request.id % len(fleet.open)]
