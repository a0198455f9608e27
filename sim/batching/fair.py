"""Fair shares of the service for tenants, by counting what each has got."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from sim.batching.queue import Accounting
from sim.errors import ConfigError
from sim.sequence import Sequence
from sim.spec import as_given

PROMPT_TOKEN, OUTPUT_TOKEN = 1.0, 2.0  # the paper's weights, after prices of hosted models
N_REMEMBERED = 5  # answers that the next one's length is guessed from, as in the paper


class FairShare(Accounting):
    """The tenant that has got least so far comes first, and of its requests the one that has waited longest.

    Each tenant has a counter of what it was given: its prompts' tokens, and twice its answers', over its weight. A
    request is charged when it is taken, its answer as long as the mean of its tenant's last five, and what was guessed
    wrong is made good when it ends. Who comes back after having nothing to ask is lifted to the least counter of those
    that wait, so nobody saves up. So two tenants that both wait never get far apart, whatever one of them sends.

    Parameters
    ----------
    weights : dict of str to float or None
        Shares, by tenant, of tenants with another than 1.

    References
    ----------
    Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024: the virtual token counter, with length
    prediction (section 4.4).
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.keeps_head = False
        self._weights = dict(weights or {})
        for tenant, weight in self._weights.items():
            if not 0.0 < weight < float("inf"):
                raise ConfigError(f"queue.weights.{tenant} must be > 0 and finite, got {as_given(weight)}")
        self._waiting: dict[str, deque[Sequence]] = {}  # of tenants that have any
        self._served: dict[str, float] = {}  # counters
        self._answers: dict[str, deque[int]] = {}  # the last few's lengths [tokens]
        self._guesses: dict[Sequence, float] = {}  # of those taken that have not ended [tokens]
        self._last = ""  # tenant that was taken from last
        self._n_waiting = 0

    def push(self, sequence: Sequence) -> None:
        """A request arrived."""
        self._join(sequence).append(sequence)

    def push_back(self, sequence: Sequence) -> None:
        """A running sequence was preempted, and comes before its tenant's others."""
        self._join(sequence).appendleft(sequence)

    def head(self) -> Sequence:
        """The one to admit next."""
        return self._waiting[self._next()][0]

    def take(self) -> Sequence:
        """Remove the head, and charge its tenant; what was preempted has been charged."""
        tenant = self._next()
        waiting = self._waiting[tenant]
        sequence = waiting.popleft()
        if not waiting:
            del self._waiting[tenant]
        self._n_waiting -= 1
        self._last = tenant
        if sequence not in self._guesses:
            answers = self._answers.get(tenant)
            guess = sum(answers) / len(answers) if answers else 0.0
            self._guesses[sequence] = guess
            self._charge(tenant, PROMPT_TOKEN * sequence.request.prompt_tokens + OUTPUT_TOKEN * guess)
        return sequence

    def ended(self, sequence: Sequence, n_tokens: int) -> None:
        """A sequence has its answer: now its length is known."""
        tenant = sequence.request.tenant
        self._charge(tenant, OUTPUT_TOKEN * (n_tokens - self._guesses.pop(sequence, 0.0)))
        self._answers.setdefault(tenant, deque(maxlen=N_REMEMBERED)).append(n_tokens)

    def first(self, n: int, arriving: Iterable[Sequence] = ()) -> list[Sequence]:
        """Those to admit next, at most so many, in order, as if the arriving waited too."""
        twin = FairShare(self._weights)
        twin._waiting = {tenant: deque(waiting) for tenant, waiting in self._waiting.items()}
        twin._served, twin._answers, twin._guesses = dict(self._served), self._answers, dict(self._guesses)
        twin._last, twin._n_waiting = self._last, self._n_waiting
        for sequence in arriving:
            twin.push(sequence)
        return [twin.take() for _ in range(min(n, len(twin)))]

    def victim(self, running: Iterator[Sequence]) -> Sequence:
        """The one admitted last."""
        return next(running)

    def __len__(self) -> int:
        return self._n_waiting

    def _next(self) -> str:
        """The tenant that has got least; of equals the one that has waited longest."""
        best = ""
        best_served = best_arrival = 0.0
        is_first = True
        for tenant, waiting in self._waiting.items():
            served, arrival = self._served[tenant], float(waiting[0].request.arrival_ns)
            if is_first or served < best_served or (served == best_served and arrival < best_arrival):
                best, best_served, best_arrival = tenant, served, arrival
                is_first = False
        return best

    def _join(self, sequence: Sequence) -> deque[Sequence]:
        """The queue of a sequence's tenant, lifted if it had none."""
        self._n_waiting += 1
        tenant = sequence.request.tenant
        waiting = self._waiting.get(tenant)
        if waiting is None:
            served = self._served
            lift = min([served[other] for other in self._waiting]) if self._waiting else served.get(self._last, 0.0)
            served[tenant] = max(served.get(tenant, 0.0), lift)
            waiting = self._waiting[tenant] = deque()
        return waiting

    def _charge(self, tenant: str, tokens: float) -> None:
        self._served[tenant] = self._served.get(tenant, 0.0) + tokens / self._weights.get(tenant, 1.0)
