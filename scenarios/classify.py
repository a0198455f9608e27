"""What kind of conversation is this? Judged by what an operator sees, never by what is still to be generated.

Seen of a session: the prompts that arrived, and the answers of earlier turns, which have ended when the next turn
arrives. The tag of a turn depends on the session's requests alone, so it is the same on every engine. Of a request
without a session the prompt alone is seen: it is a long document, or it passes for a short chat.
"""

from dataclasses import dataclass, field

from sim.request import Request, new_tuple

SHORT_CHAT, LONG_DOCUMENT, CODE, CREATIVE = "short_chat", "long_document", "code", "creative"

LONG_PROMPT_TOKENS = 8192
# Azure 2023: 99 % of conversation prompts and of code prompts are below 4,142 and 7,436 tokens, while half of
# Mooncake's document conversations are above 6,909.
CREATIVE_ANSWER_TOKENS = 800
# Above 99 % of Azure conversation answers (601) and below 90 % of story writing (627 to 1,708, p10 to p90).
CODE_ANSWER_TOKENS = 32
CODE_PROMPT_TOKENS = 512
# Azure code: median answer 13 tokens to a prompt of 1,469; conversation: 129 to 1,020, 10 % of answers below 54.


@dataclass(slots=True)
class _Seen:
    """A session so far: its longest prompt and its ended answers."""

    n_answers: int = 0
    answer_tokens: int = 0
    pending_tokens: int = 0  # answer of the latest request, not yet to be looked at


KIND = Request._fields.index("kind")


@dataclass(slots=True)
class Classifier:
    """Tags requests, in order of arrival within each session, with the class that their session looks like."""

    _sessions: dict[int, _Seen] = field(default_factory=dict)

    def tagged(self, request: Request) -> Request:
        """The request with its class as ``kind``; what the client is promised (``slo_class``) is another matter."""
        kind = self.classify(request)
        return new_tuple(Request, (*request[:KIND], kind, *request[KIND + 1 :]))  # a fifth of the time of _replace

    def classify(self, request: Request) -> str:
        """Class of a request. A session's first request is judged by its prompt alone."""
        seen = _Seen()
        if request.session_id is not None:
            seen = self._sessions.setdefault(request.session_id, seen)
            if seen.pending_tokens:
                seen.n_answers += 1
                seen.answer_tokens += seen.pending_tokens
            seen.pending_tokens = request.output_tokens  # read from the next turn on, when it has been generated
        if request.prompt_tokens >= LONG_PROMPT_TOKENS:
            return LONG_DOCUMENT
        if not seen.n_answers:
            return SHORT_CHAT
        mean_answer = seen.answer_tokens / seen.n_answers
        if mean_answer >= CREATIVE_ANSWER_TOKENS:
            return CREATIVE
        if mean_answer <= CODE_ANSWER_TOKENS and request.prompt_tokens >= CODE_PROMPT_TOKENS:
            return CODE
        return SHORT_CHAT
