"""An HTTP front for the engine: ``/v1/completions`` as OpenAI's clients ask it, whole or streamed.

The engine's loop runs in a thread of its own; each request waits for its tokens in the server's loop. There is no
tokenizer: a text's tokens are its bytes, and a prompt may be a list of token ids. A token below 256 is said as its
byte, any other as its number; with random weights neither says anything, which is what load tests ask for.
"""

import asyncio
import json
import queue
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from calibration.engine.memory import Sequence
from calibration.engine.serving import Engine
from sim.errors import ConfigError
from sim.request import Request

DEFAULT_TOKENS = 16  # of an answer, as OpenAI's completions
BYTES = 256
IDLE_S = 0.2  # how long the engine's thread waits for a request before it looks whether it is to end


@dataclass(eq=False)
class Answer:
    """A request on its way: its sequence, and its tokens as they come; None ends them, an error is raised there."""

    sequence: Sequence
    loop: asyncio.AbstractEventLoop
    tokens: "asyncio.Queue[int | Exception | None]" = field(default_factory=asyncio.Queue)
    is_gone: bool = False  # nobody listens any more

    def tell(self, token: "int | Exception | None") -> None:
        """Hand a token to the server's loop, from the engine's thread."""
        self.loop.call_soon_threadsafe(self.tokens.put_nowait, token)


class Service:
    """The engine in a thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        engine.told = self._told
        self._inbox: queue.Queue[Answer] = queue.Queue()
        self._answers: dict[int, Answer] = {}
        self._ids = count()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End after the iteration that runs; who waits is told."""
        self._is_over.set()
        self._thread.join()

    def submit(self, tokens: list[int], max_tokens: int) -> Answer:
        """Queue a prompt; called in the server's loop.

        Raises
        ------
        ConfigError
            If the engine could not serve it even alone.
        """
        model = self.engine.decoder.model
        if not tokens or any(not 0 <= token < model.vocab for token in tokens):
            raise ConfigError(f"prompt must have tokens, each in [0, {model.vocab})")
        if max_tokens < 1:
            raise ConfigError(f"max_tokens must be >= 1, got {max_tokens}")
        if len(tokens) + max_tokens > min(model.max_len, self.engine.memory.pool.n_slots):
            most = min(model.max_len, self.engine.memory.pool.n_slots)
            raise ConfigError(f"prompt and max_tokens together must be <= {most}, got {len(tokens) + max_tokens}")
        request = Request(next(self._ids), time.monotonic_ns(), len(tokens), max_tokens, max_tokens)
        answer = Answer(Sequence(request, list(tokens)), asyncio.get_running_loop())
        self._inbox.put(answer)
        return answer

    def _run(self) -> None:
        try:
            while not self._is_over.is_set():
                self._take_in()
                if self.engine.is_idle:
                    continue
                for sequence in self.engine.step():
                    self._answers.pop(sequence.request.id).tell(None)
                self._drop_the_gone()
        except Exception as error:  # nobody must wait for ever for a loop that has ended
            self._end(error)
            raise
        self._end(ConfigError("the server was stopped"))

    def _take_in(self) -> None:
        """Everybody who came since; waits for one when there is nothing to do."""
        wait = self.engine.is_idle
        while True:
            try:
                answer = self._inbox.get(timeout=IDLE_S) if wait else self._inbox.get_nowait()
            except queue.Empty:
                return
            wait = False
            self._answers[answer.sequence.request.id] = answer
            self.engine.submit(answer.sequence)

    def _drop_the_gone(self) -> None:
        """Take back what is held for clients that hung up."""
        for number, answer in list(self._answers.items()):
            if answer.is_gone:
                self.engine.abort(answer.sequence)
                del self._answers[number]

    def _told(self, sequence: Sequence, token: int) -> None:
        self._answers[sequence.request.id].tell(token)

    def _end(self, error: Exception) -> None:
        self._is_over.set()
        waiting = list(self._answers.values())
        while not self._inbox.empty():
            waiting.append(self._inbox.get_nowait())
        for answer in waiting:
            answer.tell(error)


def encoded(prompt: Any) -> list[int]:
    """Token ids of a prompt: itself, or a text's bytes.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    if isinstance(prompt, str):
        return list(prompt.encode())
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return prompt
    if isinstance(prompt, list) and len(prompt) == 1:
        return encoded(prompt[0])
    raise ConfigError("prompt must be a text or a list of token ids, one prompt a request")


def decoded(token: int) -> str:
    """What a token says."""
    return chr(token) if token < BYTES else f" {token}"


def application(service: Service) -> Any:
    """The ASGI application: ``/v1/completions``, ``/v1/models``, ``/health``."""
    from contextlib import asynccontextmanager

    from starlette.applications import Starlette
    from starlette.requests import Request as HttpRequest
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    name = service.engine.decoder.model.name

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    def refused(message: str, status: int = 400) -> Response:
        kind = "invalid_request_error" if status == 400 else "server_error"
        error = {"message": message, "type": kind, "param": None, "code": None}
        return JSONResponse({"error": error}, status_code=status)

    def chunk(number: int, text: str, finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        head = {"id": f"cmpl-{number}", "object": "text_completion", "created": int(time.time()), "model": name}
        return {**head, "choices": [choice]}

    def usage(answer: Answer) -> dict[str, Any]:
        n_in, n_out = answer.sequence.request.prompt_tokens, answer.sequence.n_generated
        details = {"cached_tokens": answer.sequence.cached_tokens}
        tokens = {"prompt_tokens": n_in, "completion_tokens": n_out, "total_tokens": n_in + n_out}
        return {**tokens, "prompt_tokens_details": details}

    async def tokens_of(answer: Answer) -> AsyncIterator[int]:
        try:
            while (token := await answer.tokens.get()) is not None:
                if isinstance(token, Exception):
                    raise token
                yield token
        finally:
            answer.is_gone = True

    async def streamed(answer: Answer, wants_usage: bool) -> AsyncIterator[str]:
        number, n_left = answer.sequence.request.id, answer.sequence.request.output_tokens
        try:
            async for token in tokens_of(answer):
                n_left -= 1
                yield f"data: {json.dumps(chunk(number, decoded(token), None if n_left else 'length'))}\n\n"
        except Exception as error:
            yield f"data: {json.dumps({'error': {'message': str(error), 'type': 'server_error'}})}\n\n"
            return
        if wants_usage:
            yield f"data: {json.dumps({**chunk(number, '', None), 'choices': [], 'usage': usage(answer)})}\n\n"
        yield "data: [DONE]\n\n"

    async def completions(request: HttpRequest) -> Response:
        try:
            asked = await request.json()
        except ValueError:
            return refused("the body must be JSON")
        if not isinstance(asked, dict):
            return refused("the body must be an object")
        if asked.get("model", name) != name:
            return refused(f"model must be {name}, got {asked['model']}")
        if asked.get("n", 1) != 1 or asked.get("best_of", 1) != 1:
            return refused("n and best_of must be 1")
        temperature = asked.get("temperature")
        if temperature is not None and temperature != service.engine.temperature:
            return refused(f"temperature must be {service.engine.temperature:g}, the engine's, got {temperature}")
        most = asked.get("max_tokens")
        most = DEFAULT_TOKENS if most is None else most
        if type(most) is not int:
            return refused(f"max_tokens must be a whole number, got {most!r}")
        try:
            answer = service.submit(encoded(asked.get("prompt")), most)
        except ConfigError as error:
            return refused(str(error))
        if asked.get("stream"):
            wants_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
            return StreamingResponse(streamed(answer, wants_usage), media_type="text/event-stream")
        try:
            text = "".join([decoded(token) async for token in tokens_of(answer)])
        except Exception as error:
            return refused(str(error), 500)
        return JSONResponse({**chunk(answer.sequence.request.id, text, "length"), "usage": usage(answer)})

    async def models(_: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model", "owned_by": "kvtwin"}]})

    async def health(_: HttpRequest) -> Response:
        return Response(status_code=200)

    routes = [
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/models", models),
        Route("/health", health),
    ]
    return Starlette(routes=routes, lifespan=lifespan)
