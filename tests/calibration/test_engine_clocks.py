import itertools
import time

import pytest
import torch

from calibration.engine import cpu_ops
from calibration.engine.clocks import Processor, Wall, clock_of
from calibration.engine.decoder import Decoder
from calibration.engine.memory import Paged
from calibration.engine.serving import Engine, pool_of
from calibration.engine.traffic import conversations, sequence_of
from sim.errors import ConfigError
from sim.spec import Dense, Gqa, Layers, ModelSpec

TINY = ModelSpec(name="tiny", d_model=64, vocab=300, max_len=256, stack=[Layers(1, Gqa(2, 1, 64), Dense(64))])


def test_processor_time_counts_work_and_not_what_others_take():
    clock = Processor()
    start, wall_ns = clock.now_ns(), time.perf_counter_ns()
    time.sleep(0.2)
    assert clock.now_ns() - start < 0.1 * (time.perf_counter_ns() - wall_ns)
    while time.thread_time_ns() < start + 20_000_000:
        sum(range(1000))
    assert clock.now_ns() - start >= 20_000_000
    before = clock.now_ns()
    clock.sleep(3600.0)
    assert clock.now_ns() - before >= 3600 * 10**9


@pytest.mark.parametrize(
    ("name", "device", "said"), [("x", "cpu", "wall or cpu"), ("cpu", "cuda", "device must be cpu")]
)
def test_clocks_that_tell_nothing_are_refused(name, device, said):
    with pytest.raises(ConfigError, match=said):
        clock_of(name, device)
    assert isinstance(clock_of("wall", "cuda"), Wall)


@pytest.mark.parametrize("clock", [Processor(), Wall()])
def test_arrivals_come_when_the_clock_says(clock):
    decoder = Decoder(TINY, torch.device("cpu"), clock=clock)
    engine = Engine(decoder, Paged(pool_of(decoder, 1024), cpu_ops.kv_copy), 64, 8)
    requests = conversations(5, 50.0, 255)
    start_ns = clock.now_ns()
    served = engine.serve([sequence_of(request, 300) for request in requests])
    for one in served:
        assert one.is_finished
        due = start_ns + one.request.arrival_ns
        assert due <= one.queued_ns <= one.scheduled_ns < one.first_token_ns < one.last_token_ns


def test_conversations_share_their_beginnings_and_are_the_same_at_any_rate():
    requests = conversations(60, 10.0, 500)
    assert all(a.arrival_ns < b.arrival_ns for a, b in itertools.pairwise(requests))
    assert len({request.session_id for request in requests}) < 60
    later = [request for request in requests if request.turn]
    assert later
    for request in later:
        before = next(r for r in requests if r.session_id == request.session_id and r.turn == request.turn - 1)
        a, b = sequence_of(request, 300), sequence_of(before, 300)
        assert a.tokens[: len(b.tokens) + before.output_tokens] == [*b.tokens, *b.forced], (
            "history and answer come first"
        )
    faster = conversations(60, 1000.0, 500)
    assert [request[2:] for request in faster] == [request[2:] for request in requests]
