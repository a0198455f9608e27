"""Simulated time."""

import pytest
import simpy

from sim.clock import Clock


def test_an_interrupted_clock_stops_before_what_is_due_at_the_same_moment():
    env = Clock()
    happened: list[simpy.Event] = []
    env.ring(simpy.Event(env), 0, simpy.events.URGENT, happened.append)

    env.interrupt()

    assert not env.move_on_to(5, 0)
    with pytest.raises(KeyboardInterrupt):
        env.run()
    assert not happened
