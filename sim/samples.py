"""Parallel sampling: several answers to one prompt, each a sequence of its own once the prompt is computed.

one sequence    [ prompt ........................ ]─┬─[ answer 0 ]
n_samples = 3                                       ├─[ answer 1 ]
                                                    └─[ answer 2 ]
                   its last iteration samples the first token of all
"""

from sim.request import Request, own_text
from sim.sequence import Sequence


class Sample(Sequence):
    """One of the sequences that answer a request together; until the prompt is complete, all of them."""

    __slots__ = ()

    def __init__(self, request: Request, samples: "Samples", n_samples: int = 1) -> None:
        super().__init__(request)
        self.samples = samples
        self.n_samples = n_samples

    def _twin(self) -> Sequence:
        return Sample(self.request, self.samples)

    def fork(self) -> list[Sequence]:
        """The prompt is complete and the first token of every answer sampled: those that go on beside this one."""
        others = self.apart()
        for other in others:
            for name in IN_COMMON:
                setattr(other, name, getattr(self, name))
        return others

    def apart(self) -> list[Sequence]:
        """The others, if each answer is a sequence of its own.

        The answers' texts differ. A conversation goes on with the first of them.
        """
        others: list[Sequence] = []
        for number in range(1, self.n_samples):
            output_id = self.request.output_id
            text = None if output_id is None else hash((output_id, number))
            others.append(Sample(self.request._replace(output_id=text, session_id=None), self.samples))
        self.n_samples = 1
        return others


IN_COMMON = (
    "computed_tokens",
    "dropped_tokens",
    "generated_tokens",
    "cached_tokens",
    "scheduled_ns",
    "first_token_ns",
    "last_token_ns",
    "padding_tokens",
)
"""What samples of a prompt share at the fork."""


class Samples:
    """A request with several answers: what of it has ended.

    All answers have the request's ``output_tokens``, as where load generators ignore the end of text. Each decodes, is
    preempted, comes back and ends alone; the request has ended when all of them have, as in vLLM's ``ParentRequest``
    (v1/engine/parallel_sampling.py).
    """

    __slots__ = (
        "_n_found",
        "are_apart",
        "cached_tokens",
        "first_token_ns",
        "n_left",
        "n_preemptions",
        "request",
        "scheduled_ns",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.scheduled_ns: int | None = None  # of the first of them, as the next two
        self.first_token_ns: int | None = None
        self.cached_tokens: int | None = None
        self.n_left = request.n_samples  # without their answer
        self.n_preemptions = 0  # of those that have it
        self.are_apart = False  # each computes the prompt, but for what it finds of it
        self._n_found = 0  # tokens of the prompt that those that have ended have found

    def ended(self, sample: Sequence) -> bool:
        """One has its answer. Returns whether all of them have."""
        self.n_left -= 1
        for name in ("scheduled_ns", "first_token_ns", "cached_tokens"):
            least, own = getattr(self, name), getattr(sample, name)
            if least is None or own < least:
                setattr(self, name, own)
        self.n_preemptions += sample.n_preemptions
        self._n_found += sample.cached_tokens or 0
        return not self.n_left

    def apart_tokens(self) -> int:
        """Prompt tokens that all but the one which found least have not found, where each looks for itself."""
        if not self.are_apart:
            return 0
        return (self.request.n_samples - 1) * self.request.prompt_tokens - self._n_found + (self.cached_tokens or 0)


def sampled(request: Request) -> Sample:
    """The sequence that computes a prompt with several answers. A prompt that nobody shares gets an identity."""
    text = request
    if request.content is None:
        own = own_text(request.id)
        text = request._replace(content=((own, request.prompt_tokens),), output_id=hash((own, 0)))
    return Sample(text, Samples(request), request.n_samples)
