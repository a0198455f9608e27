"""vLLM v1's engine, token by token: the slow, obvious reference that the simulator is held to.

Every token has an identity, every block an object with a reference count and a hash of all text before its end, the
free queue is a list, and the loop goes from one iteration to the next. Nothing is summed up, counted ahead or jumped
over. Written from what the engine does, not from its code:

* block pool, free queue, hashes: "Automatic Prefix Caching" in vLLM's design documents; `BlockPool`, `KVCacheManager`;
* scheduling, preemption, priorities: ``Scheduler.schedule`` and ``update_from_output``;
* async scheduling: ``EngineCore.step_with_batch_queue``. One iteration is planned while the one before it runs. Who is
  sure to end with it by length is left out, who may end by a stop token is not; what ended frees its memory when its
  output has come.

Left out on purpose: under priorities vLLM forgets to step back in its list when the victim stands before the one that
asks and had nothing scheduled, so somebody misses a token. That is a slip and no rule.
"""

from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sim.request import Finished, Request, Scenario

Token = tuple[int, int]  # of which piece of text, and where in it


@dataclass(eq=False)
class Block:
    number: int
    readers: int = 0
    key: int | None = None


@dataclass(frozen=True)
class Settings:
    """Of one engine; names are vLLM's."""

    n_blocks: int
    block_size: int = 4
    max_num_batched_tokens: int = 16
    max_num_seqs: int = 4
    enable_prefix_caching: bool = True
    async_scheduling: bool = False
    policy: str = "fcfs"
    scheduler_reserve_full_isl: bool = False
    watermark: float = 0.0
    long_prefill_token_threshold: int = 0
    blank_blocks_first: bool = True  # a freed block without a hash goes to the head of the free queue


@dataclass(eq=False)
class Seq:
    """A request in the engine."""

    request: Request
    tokens: list[Token]
    blocks: list[Block] = field(default_factory=list)
    n_hashed: int = 0  # of its blocks
    computed: int = 0  # scheduled, that is: moves on when an iteration is planned
    placeholders: int = 0  # tokens that are being sampled
    generated: int = 0
    target: int = 0  # prompt to compute, since its admission
    is_running: bool = False
    is_finished: bool = False
    scheduled_ns: int | None = None
    first_token_ns: int | None = None
    finish_ns: int | None = None
    cached: int | None = None
    n_preemptions: int = 0


@dataclass
class Work:
    """What one iteration computes for one sequence."""

    seq: Seq
    n_tokens: int
    context: int  # computed before
    is_prompt: bool
    samples: bool


Cost = Callable[[list[tuple[int, int]], int, int, int], int]
"""(prompt pieces as (new, context), decoding sequences, KV entries they read, of the longest) to nanoseconds."""


class Pool:
    """All blocks, the free ones in the order in which they are taken, and which text is resident."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.free: list[Block] = [Block(number) for number in range(settings.n_blocks)]
        self.resident: dict[int, list[Block]] = {}  # by hash, the oldest first
        self.names: dict[tuple[int | None, tuple[Token, ...]], int] = {}
        self.n_evicted = 0

    def key(self, before: int | None, tokens: tuple[Token, ...]) -> int:
        """Hash of a block: equal for equal text up to its end, and collisions there are none."""
        return self.names.setdefault((before, tokens), len(self.names))

    def keys(self, tokens: list[Token], n_blocks: int) -> list[int]:
        size = self.settings.block_size
        keys: list[int] = []
        for start in range(0, n_blocks * size, size):
            keys.append(self.key(keys[-1] if keys else None, tuple(tokens[start : start + size])))
        return keys

    def find(self, tokens: list[Token]) -> list[Block]:
        """The longest resident prefix, of all tokens but the last at most."""
        found: list[Block] = []
        if self.settings.enable_prefix_caching:
            for key in self.keys(tokens, (len(tokens) - 1) // self.settings.block_size):
                if key not in self.resident:
                    break
                found.append(self.resident[key][0])
        return found

    def touch(self, block: Block) -> None:
        if not block.readers:
            self.free.remove(block)
        block.readers += 1

    def take(self) -> Block:
        """The head of the free queue; what it held is lost."""
        block = self.free.pop(0)
        if block.key is not None:
            self.n_evicted += 1
            twins = self.resident[block.key]
            twins.remove(block)
            if not twins:
                del self.resident[block.key]
            block.key = None
        block.readers = 1
        return block

    def name(self, seq: Seq, n_tokens: int) -> None:
        """The full blocks among a sequence's first tokens can be found."""
        if not self.settings.enable_prefix_caching:
            return
        n_full = n_tokens // self.settings.block_size
        for number, key in enumerate(self.keys(seq.tokens, n_full)):
            if number >= seq.n_hashed:
                block = seq.blocks[number]
                block.key = key
                self.resident.setdefault(key, []).append(block)
        seq.n_hashed = max(seq.n_hashed, n_full)

    def give_back(self, seq: Seq) -> None:
        """Last block first."""
        for block in reversed(seq.blocks):
            block.readers -= 1
        freed = [block for block in reversed(seq.blocks) if not block.readers]
        seq.blocks, seq.n_hashed = [], 0
        if self.settings.blank_blocks_first:
            self.free = [block for block in freed if block.key is None] + self.free
            freed = [block for block in freed if block.key is not None]
        self.free += freed


class Engine:
    """One engine core: scheduler, pool, and the loop."""

    def __init__(self, settings: Settings, cost: Cost) -> None:
        self.settings = settings
        self.cost = cost
        self.pool = Pool(settings)
        self.waiting: list[Seq] = []
        self.running: list[Seq] = []  # in order of admission

    def serve(self, scenario: Scenario) -> list[Seq]:
        """Serve everybody; sequences in the order in which they arrived."""
        arriving = list(scenario.requests(0))
        served: list[Seq] = []
        queue: deque[tuple[list[Work], int]] = deque()  # planned and perhaps running: (work, when done)
        depth = 2 if self.settings.async_scheduling else 1
        now = device_free = 0
        while arriving or queue or self.waiting or self.running:
            while arriving and arriving[0].arrival_ns <= now:
                request = arriving.pop(0)
                answers = [Seq(one, prompt_of(one)) for one in apart(request)]
                served += answers
                self.waiting += answers
            if self.waiting or self.running:
                work = self.schedule()
                start = max(now, device_free)
                for one in work:
                    if one.seq.scheduled_ns is None:
                        one.seq.scheduled_ns = start
                done = start + self.duration(work) if work else now
                if work:
                    device_free = done
                queue.append((work, done))
                if work and len(queue) < depth:
                    continue
            elif not queue:
                now = arriving[0].arrival_ns
                continue
            work, done = queue.popleft()
            now = max(now, done)
            ended = self.update(work, now)
            for number in dict.fromkeys(seq.request.id for seq in ended):
                answers = [seq for seq in served if seq.request.id == number]
                if all(seq.is_finished for seq in answers):
                    further = scenario.follow_up(Finished(answers[0].request, now))
                    if further is not None:
                        insort(arriving, further, key=lambda request: request.arrival_ns)
        return served

    def duration(self, work: list[Work]) -> int:
        pieces = [(one.n_tokens, one.context) for one in work if one.is_prompt]
        reads = [one.context + 1 for one in work if not one.is_prompt]
        return self.cost(pieces, len(reads), sum(reads), max(reads, default=0))

    def schedule(self) -> list[Work]:
        """Running sequences first, then waiting ones, under one budget of tokens."""
        settings = self.settings
        budget = settings.max_num_batched_tokens
        n_new: dict[Seq, int] = {}
        has_preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            seq = self.running[index]
            n_tokens = 0 if self.ends_for_sure(seq) else len(seq.tokens) + seq.placeholders - seq.computed
            n_tokens = min(self.at_once(n_tokens), budget)
            if not n_tokens:
                index += 1
                continue
            while not self.allocate(seq, n_tokens, []):
                victim = self.victim()
                place = self.running.index(victim)
                self.running.remove(victim)
                if place < index:
                    index -= 1
                budget += n_new.pop(victim, 0)
                self.preempt(victim)
                has_preempted = True
                if victim is seq:
                    break
            if not seq.is_running:
                break  # nobody behind it gets anything
            n_new[seq] = n_tokens
            budget -= n_tokens
            index += 1
        while self.waiting and budget > 0 and not has_preempted:
            if len(self.running) == settings.max_num_seqs:
                break
            seq = self.first_waiting()
            found = self.pool.find(seq.tokens)
            n_cached = len(found) * settings.block_size
            n_tokens = min(self.at_once(len(seq.tokens) - n_cached), budget)
            if not self.allocate(seq, n_tokens, found):
                break
            self.waiting.remove(seq)
            self.running.append(seq)
            seq.is_running = True
            seq.computed, seq.target = n_cached, len(seq.tokens)
            if seq.cached is None:
                seq.cached = n_cached
            n_new[seq] = n_tokens
            budget -= n_tokens
        return [self.planned(seq, n_tokens) for seq, n_tokens in n_new.items()]

    def ends_for_sure(self, seq: Seq) -> bool:
        """The token that is being sampled is the last that its length allows."""
        return seq.placeholders > 0 and seq.generated + seq.placeholders >= seq.request.max_output_tokens

    def at_once(self, n_tokens: int) -> int:
        most = self.settings.long_prefill_token_threshold
        return min(n_tokens, most) if most else n_tokens

    def planned(self, seq: Seq, n_tokens: int) -> Work:
        context = seq.computed
        seq.computed += n_tokens
        samples = seq.computed == len(seq.tokens) + seq.placeholders
        if samples:
            seq.placeholders += 1
        return Work(seq, n_tokens, context, context < seq.target, samples)

    def allocate(self, seq: Seq, n_tokens: int, found: list[Block]) -> bool:
        """Blocks for the next tokens, all or none."""
        settings, pool = self.settings, self.pool
        n_spare = 0
        if not seq.is_running and self.running:
            n_spare = int(settings.watermark * settings.n_blocks)
        computed = seq.computed if seq.is_running else len(found) * settings.block_size
        n_idle = sum(1 for block in found if not block.readers)
        n_held = len(seq.blocks) + len(found)
        if not seq.is_running and settings.scheduler_reserve_full_isl:
            n_whole = -(-len(seq.tokens) // settings.block_size) - n_held
            if n_whole + n_idle + n_spare > len(pool.free):
                return False
        n_blocks = max(0, -(-(computed + n_tokens) // settings.block_size) - n_held)
        if n_blocks + n_idle + n_spare > len(pool.free):
            return False
        for block in found:
            pool.touch(block)
        seq.blocks += found
        seq.n_hashed += len(found)
        seq.blocks += [pool.take() for _ in range(n_blocks)]
        pool.name(seq, min(computed + n_tokens, len(seq.tokens)))
        return True

    def victim(self) -> Seq:
        if self.settings.policy == "priority":
            return max(self.running, key=lambda seq: (seq.request.priority, seq.request.arrival_ns))
        return self.running[-1]

    def first_waiting(self) -> Seq:
        if self.settings.policy == "priority":
            return min(self.waiting, key=lambda seq: (seq.request.priority, seq.request.arrival_ns))
        return self.waiting[0]

    def preempt(self, seq: Seq) -> None:
        self.pool.give_back(seq)
        seq.is_running = False
        seq.computed = 0
        seq.n_preemptions += 1
        self.waiting.insert(0, seq)

    def update(self, work: list[Work], now: int) -> list[Seq]:
        """An iteration's output has come; returns who has its answer."""
        ended = []
        for one in work:
            seq = one.seq
            if seq.is_finished or not one.samples:
                continue
            seq.tokens.append((output_of(seq.request), seq.generated))
            seq.generated += 1
            seq.placeholders -= 1
            if seq.first_token_ns is None:
                seq.first_token_ns = now
            if seq.is_running:
                self.pool.name(seq, seq.computed - seq.placeholders)
            if seq.generated == seq.request.output_tokens:
                seq.is_finished, seq.finish_ns = True, now
                if seq.is_running:
                    self.pool.give_back(seq)
                    self.running.remove(seq)
                else:  # it gave way with its last token on the way: no preemption that a client would see
                    seq.n_preemptions -= 1
                    self.waiting.remove(seq)
                ended.append(seq)
        return ended


def apart(request: Request) -> list[Request]:
    """Several answers to one prompt are as many requests."""
    texts = [output_of(request), *((hash((output_of(request), number))) for number in range(1, request.n_samples))]
    return [request._replace(output_id=text) for text in texts]


def prompt_of(request: Request) -> list[Token]:
    """A prompt's tokens; text that nobody shares is one's own."""
    content = request.content or ((-1_000_000 - request.id, request.prompt_tokens),)
    return [(identity, place) for identity, length in content for place in range(length)]


def output_of(request: Request) -> int:
    return -2_000_000 - request.id if request.output_id is None else request.output_id
