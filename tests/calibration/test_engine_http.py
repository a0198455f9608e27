"""Real clients get answers from the engine's HTTP front: OpenAI's own package, one and ten at once."""

import json
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
import uvicorn

from calibration.engine import cpu_ops
from calibration.engine.decoder import Decoder
from calibration.engine.http import Service, application, decoded
from calibration.engine.memory import Paged
from calibration.engine.serving import Engine, pool_of, regenerate
from sim.spec import Dense, Gqa, Layers, ModelSpec

TINY = ModelSpec(name="tiny", d_model=64, vocab=300, max_len=256, stack=[Layers(2, Gqa(4, 2, 64), Dense(96))])


@pytest.fixture(scope="module")
def decoder():
    return Decoder(TINY, torch.device("cpu"))


@pytest.fixture(scope="module")
def service(decoder):
    return Service(Engine(decoder, Paged(pool_of(decoder, 1024), cpu_ops.kv_copy), 128, 16))


@pytest.fixture(scope="module")
def url(service):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(application(service), host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=120.0) as found:
        yield found


def wanted(decoder, prompt: str, n: int) -> str:
    return "".join(decoded(token) for token in regenerate(decoder, list(prompt.encode()), n))


def test_a_client_gets_the_answer_that_recompute_gives(client, decoder):
    answer = client.completions.create(model="tiny", prompt="Hello", max_tokens=6)
    assert answer.choices[0].text == wanted(decoder, "Hello", 6)
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 6, 11)
    ids = client.completions.create(model="tiny", prompt=list(b"Hello"), max_tokens=6, temperature=0)
    assert ids.choices[0].text == answer.choices[0].text
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_tokens_are_streamed_one_by_one(client, decoder):
    chunks = list(
        client.completions.create(
            model="tiny", prompt="Hello", max_tokens=6, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == wanted(decoder, "Hello", 6)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices] == [None] * 5 + ["length"]
    assert chunks[-1].usage.completion_tokens == 6


def test_ten_clients_at_once_get_their_own_answers(url, service, decoder):
    prompts = [f"client {i}: " + "x" * (3 * i) for i in range(10)]
    barrier = threading.Barrier(10)
    n_before = len(service.engine.iterations)

    def ask(i: int) -> str:
        with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=120.0) as own:
            barrier.wait()
            if i % 2:
                stream = own.completions.create(model="tiny", prompt=prompts[i], max_tokens=20, stream=True)
                return "".join(chunk.choices[0].text for chunk in stream)
            return own.completions.create(model="tiny", prompt=prompts[i], max_tokens=20).choices[0].text

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(ask, range(10)))
    assert answers == [wanted(decoder, prompt, 20) for prompt in prompts]
    assert max(row.n_decoding for row in service.engine.iterations[n_before:]) > 1, "they were batched"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompt": ""}, "prompt must have tokens"),
        ({"prompt": [400]}, r"each in \[0, 300\)"),
        ({"prompt": ["a", "b"]}, "one prompt a request"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens must be >= 1"),
        ({"prompt": "a", "max_tokens": 256}, "together must be <= 256, got 257"),
        ({"prompt": "a", "model": "other"}, "model must be tiny"),
        ({"prompt": "a", "n": 2}, "n and best_of must be 1"),
        ({"prompt": "a", "temperature": 0.7}, "temperature must be 0"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_line(client, asked, said):
    with pytest.raises(openai.BadRequestError, match=said):
        client.completions.create(**{"model": "tiny"} | asked)
    assert client.completions.create(model="tiny", prompt="still here", max_tokens=1).choices[0].text


def test_a_body_that_is_no_object_is_refused(url):
    for body in (b"no JSON", b"[1]"):
        request = urllib.request.Request(f"{url}/completions", body, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        with refused.value as answer:
            assert answer.code == 400
            assert "body must be" in json.loads(answer.read())["error"]["message"]


def test_who_hangs_up_is_forgotten(client, service):
    stream = client.completions.create(model="tiny", prompt="a long one", max_tokens=200, stream=True)
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 60.0
    while not service.engine.is_idle and time.monotonic() < end:
        time.sleep(0.02)
    assert service.engine.is_idle
    memory = service.engine.memory
    assert len(memory._free) == len(memory._blocks)


def test_the_front_listens_on_this_machine_alone_unless_told():
    from sim.config import compose

    assert compose(["calibration/step=serve"], "calibration")["host"] == "127.0.0.1"
