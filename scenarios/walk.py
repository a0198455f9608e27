"""All of a scenario's traffic in order of arrival, with the answers' times given instead of simulated.

Open streams need no answers. Sessions and closed loops do: their times come from a run, or from a server that is never
busy.
"""

from collections.abc import Callable, Iterator, Mapping
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple

from scenarios.distributions import is_number, require
from sim.errors import ConfigError
from sim.request import Finished, Request, Scenario, follow_up_of
from sim.units import ns_from_s


class Ending(NamedTuple):
    """When an answer is there, and which of two that are there in the same tick is the first."""

    finished: Finished
    rank: int = 0  # ties go by rank, then by arrival


Server = Callable[[Request], Ending]


def idle_server(first_token_s: float, per_token_s: float) -> Server:
    """Answers as of a server without load: so long to the first token, so long for each further one [s]."""
    for key, value in (("first_token_s", first_token_s), ("per_token_s", per_token_s)):
        require(f"task.{key}", value, is_number(value, 0.0), "a finite number >= 0 [s]")
    first_ns, each_ns = ns_from_s(first_token_s), ns_from_s(per_token_s)
    return lambda request: Ending(
        Finished(request, request.arrival_ns + first_ns + (request.output_tokens - 1) * each_ns)
    )


def recorded_server(scheduled_ns: Mapping[int, int], finish_ns: Mapping[int, int]) -> Server:
    """Answers at the times of a run, by request id [ns]; who is not among them was refused on arrival.

    An engine ends the sequences of an iteration in the order in which it had admitted them.
    """

    def answer(request: Request) -> Ending:
        at_ns = finish_ns.get(request.id)
        if at_ns is None:
            return Ending(Finished(request, request.arrival_ns, is_refused=True), -1)
        return Ending(Finished(request, at_ns), scheduled_ns[request.id])

    return answer


def walk(scenario: Scenario, seed: int, server: Server) -> Iterator[Request]:
    """Every request that a scenario brings about, in order of arrival.

    Raises
    ------
    ConfigError
        If the server's times do not belong to this traffic.
    """
    arriving: list[tuple[int, int, Request]] = []  # follow-ups: time, order
    ending: list[tuple[int, int, int, Finished]] = []  # answers: time, rank, order
    stream = scenario.requests(seed)
    follow_up = follow_up_of(scenario)
    following = next(stream, None)
    order = last_ns = 0
    while following is not None or arriving or ending:
        outside_ns = inf if following is None else following.arrival_ns
        follow_up_ns = arriving[0][0] if arriving else inf
        if follow_up is not None and ending and ending[0][0] < min(outside_ns, follow_up_ns):
            answer = follow_up(heappop(ending)[3])
            if answer is not None:
                order += 1
                heappush(arriving, (answer.arrival_ns, order, answer))
            continue
        if following is not None and outside_ns <= follow_up_ns:
            request, following = following, next(stream, None)
        else:
            request = heappop(arriving)[2]
        if request.arrival_ns < last_ns:
            raise ConfigError(f"scenario: request {request.id} arrives before one that it follows has ended")
        last_ns = request.arrival_ns
        yield request
        if follow_up is not None:
            finished, rank = server(request)
            if finished.finish_ns < request.arrival_ns:
                raise ConfigError(f"scenario: request {request.id} cannot end before it arrives")
            order += 1
            heappush(ending, (finished.finish_ns, rank, order, finished))
