"""All of a scenario's traffic in order of arrival, with the answers' times given instead of simulated.

Open streams need no answers. Sessions and closed loops do: their times come from a run, or from a server that is never
busy.
"""

from collections.abc import Callable, Iterator, Mapping
from heapq import heappop, heappush

from sim.errors import ConfigError
from sim.request import Finished, Request, Scenario
from sim.units import ns_from_s

Ending = Callable[[Request], Finished]


def idle_server(first_token_s: float, per_token_s: float) -> Ending:
    """Answers as of a server without load: so long to the first token, so long for each further one [s]."""
    first_ns, each_ns = ns_from_s(first_token_s), ns_from_s(per_token_s)
    return lambda request: Finished(request, request.arrival_ns + first_ns + (request.output_tokens - 1) * each_ns)


def as_in_run(finish_ns: Mapping[int, int]) -> Ending:
    """Answers at the times of a run, by request id [ns]; who is not among them was refused on arrival."""

    def ending(request: Request) -> Finished:
        at_ns = finish_ns.get(request.id)
        return Finished(request, request.arrival_ns, is_refused=True) if at_ns is None else Finished(request, at_ns)

    return ending


def walk(
    scenario: Scenario, seed: int, ending: Ending, rank: Callable[[Request], int] | None = None
) -> Iterator[Request]:
    """Every request that a scenario brings about, in order of arrival.

    Parameters
    ----------
    ending : callable
        When each request's answer is there.
    rank : callable or None
        Order of requests that end in the same tick; None is the order of their arrival.
    """
    due: list[tuple[int, int, int, Request]] = []  # arrivals and ends to come: time, kind, order, request
    stream = scenario.requests(seed)
    is_open_loop = bool(getattr(scenario, "is_open_loop", False))
    n_pushed = 0
    following = next(stream, None)
    last_ns = 0
    while following is not None or due:
        if following is not None and (not due or following.arrival_ns <= due[0][0]):
            request, following = following, next(stream, None)
        else:
            at_ns, is_end, _, request = heappop(due)
            if is_end:
                answer = scenario.follow_up(_ended(request, at_ns, ending))
                if answer is not None:
                    n_pushed += 1
                    heappush(due, (answer.arrival_ns, 0, n_pushed, answer))
                continue
        if request.arrival_ns < last_ns:
            raise ConfigError(f"scenario: request {request.id} arrives before the one ahead of it in the stream")
        last_ns = request.arrival_ns
        yield request
        if not is_open_loop:
            n_pushed += 1
            order = n_pushed if rank is None else rank(request)
            heappush(due, (ending(request).finish_ns, 1, order, request))


def _ended(request: Request, at_ns: int, ending: Ending) -> Finished:
    finished = ending(request)
    if finished.finish_ns != at_ns or at_ns < request.arrival_ns:
        raise ConfigError(f"scenario: request {request.id} cannot end at {finished.finish_ns} ns")
    return finished
