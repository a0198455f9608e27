"""Traffic for an engine: requests as the simulator knows them, with token ids made of their text's identity."""

from collections.abc import Iterator
from collections.abc import Sequence as Row

import numpy as np

from calibration.engine.memory import Sequence
from sim.request import Finished, Request, Segment
from sim.units import NS_PER_S

SYSTEM_TOKENS = 48
TURNS = (1, 2, 3)


class Listed:
    """Requests that come as they are listed, whatever is answered."""

    def __init__(self, requests: Row[Request]) -> None:
        self._requests = requests

    def requests(self, seed: int) -> Iterator[Request]:  # noqa: ARG002 nothing is drawn
        """In order of arrival."""
        yield from self._requests

    def follow_up(self, finished: Finished) -> None:
        """Nothing: clients do not wait."""


def conversations(n: int, per_s: float, most_tokens: int, seed: int = 0) -> list[Request]:
    """Short conversations behind one system prompt, in an open loop: turns come whether or not they were answered.

    Parameters
    ----------
    n : int
        Requests.
    per_s : float
        Their rate, Poisson [1/s].
    most_tokens : int
        The longest prompt with its answer; a conversation that would exceed it ends [tokens].
    """
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(NS_PER_S / per_s, n)).astype(int).tolist()
    system: Segment = (1, SYSTEM_TOKENS)
    said: dict[int, tuple[Segment, ...]] = {}  # what the next turn of a conversation begins with
    left: dict[int, int] = {}
    turns: dict[int, int] = {}
    requests = []
    n_sessions = 0
    for i, arrival_ns in enumerate(arrivals):
        new, out = int(rng.integers(8, 65)), int(rng.integers(8, 33))
        going_on = [s for s, n_left in left.items() if n_left and sum(x for _, x in said[s]) + new + out < most_tokens]
        if going_on and rng.random() < 0.5:
            session = going_on[int(rng.integers(len(going_on)))]
        else:
            session = n_sessions = n_sessions + 1
            said[session], left[session], turns[session] = (system,), int(rng.choice(TURNS)), 0
        left[session] -= 1
        content = (*said[session], (2 * i + 1000, new))
        answer: Segment = (2 * i + 1001, out)
        n_prompt = sum(x for _, x in content)
        requests.append(Request(i, arrival_ns, n_prompt, out, out, content, answer[0], session, turns[session]))
        said[session] = (*content, answer)
        turns[session] += 1
    return requests


def sequence_of(request: Request, vocab: int) -> Sequence:
    """A request's tokens: those of its text, and the answer that a later prompt may contain."""
    content = request.content or ((request.id, request.prompt_tokens),)
    prompt = [token for identity, n in content for token in text(identity, n, vocab)]
    forced = None if request.output_id is None else text(request.output_id, request.output_tokens, vocab)
    return Sequence(request, prompt, forced)


def text(identity: int, n_tokens: int, vocab: int) -> list[int]:
    """Token ids of a piece of text: the same wherever its identity is."""
    ids: list[int] = np.random.default_rng(identity % (1 << 63)).integers(0, vocab, n_tokens).tolist()
    return ids
