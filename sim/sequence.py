"""What the engine knows of one request while serving it."""

from typing import Any

from sim.request import Request, Segment


class Sequence:
    """One request's state in a replica.

    While it decodes, its counters stand still and the `DecodeLedger` knows how far it is; they are written back when
    it leaves the ledger. What most sequences never change stands on the class: a sequence is made in a quarter of the
    time of a dataclass.
    """

    request: Request
    order: int = 0  # admission number in its replica, new at every admission
    target_tokens: int  # prefill is complete when so many tokens are computed
    computed_tokens: int = 0  # tokens whose KV has been computed; drops to 0 on recompute
    dropped_tokens: int = 0  # of the computed ones, those whose KV was discarded (window, compaction)
    generated_tokens: int = 0  # never decreases, not even when preempted
    cached_tokens: int | None = None  # of the prompt, found resident at first admission
    scheduled_ns: int | None = None
    first_token_ns: int | None = None
    preempted_ns: int | None = None  # since when it waits to come back
    last_token_ns: int | None = None  # its last token before that
    n_preemptions: int = 0
    is_finished: bool = False  # it has its answer
    loading: Any = None  # the event that ends its wait for KV from below; None: it does not wait
    is_swapped_in: bool = False  # when it last came back, KV was loaded and not computed anew
    room_tokens: int | None = None  # resident tokens it can reach before the cache must attend to it alone
    holding: Any = None  # what the cache holds for it; the cache's own business
    padding_tokens: int = 0  # its prompt is padded by, in a request-level batch
    joined_step: int = 0  # the ledger's step when it started decoding
    joined_tokens: int = 0  # and its resident tokens then

    def __init__(self, request: Request) -> None:
        self.request = request
        self.target_tokens = request.prompt_tokens

    @property
    def resident_tokens(self) -> int:
        """Tokens whose KV is kept."""
        return self.computed_tokens - self.dropped_tokens

    @property
    def prefill_left_tokens(self) -> int:
        """Tokens still to compute before the next one can be sampled."""
        return self.target_tokens - self.computed_tokens

    def text(self) -> tuple[Segment, ...]:
        """Identity of its prompt and of what it has generated, as far as they have one."""
        request = self.request
        content = request.content or ()
        if request.output_id is None or not self.generated_tokens:
            return content
        return (*content, (request.output_id, self.generated_tokens))
