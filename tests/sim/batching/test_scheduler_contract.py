"""One suite for all schedulers: every file of conf/batching/, under traffic that fills it."""

import pytest

from sim.config import choices_of, compose
from tests.sim.chosen import chosen
from tests.sim.serving import LinearCost, Listed, asked, serve

SMALL = {"max_num_seqs": 4, "max_num_batched_tokens": 48, "max_batch_size": 4}
"""What of it a scheduler has, set so that a few requests are many."""


def small(name: str) -> object:
    node = compose([f"batching={name}"])["batching"]
    return chosen("batching", name, *(f"batching.{key}={value}" for key, value in SMALL.items() if key in node))


SCHEDULERS = {name: small(name) for name in choices_of("batching")}
LISTED = Listed([asked(i, 7 * i, 5 + 11 * (i % 7), 1 + 5 * (i % 4), n_samples=1 + (i % 9 == 8)) for i in range(40)])


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("replicas", [1, 2])
def test_everybody_is_served_within_its_limits(name, replicas):
    scheduler = SCHEDULERS[name]()
    house = serve(LISTED, scheduler=SCHEDULERS[name], cost=lambda: LinearCost(5_003, 1_009, 101, 53), replicas=replicas)
    assert len(house.requests()) == len(LISTED.listed)
    longest = max(request.prompt_tokens for request in LISTED.listed)
    for row in house.iterations():
        assert row["prefill_tokens"] <= max(scheduler.most_tokens, longest)
        assert row["decode_seqs"] + row["padding_seqs"] <= scheduler.most_seqs
        if scheduler.chunk_tokens is not None:
            assert row["prefill_tokens"] + row["decode_seqs"] <= scheduler.most_tokens


@pytest.mark.parametrize("name", SCHEDULERS)
def test_jumps_equal_single_steps(name):
    how = {"scheduler": SCHEDULERS[name], "cost": lambda: LinearCost(5_003, 1_009, 101, 53), "replicas": 2}
    assert serve(LISTED, **how).facts() == serve(LISTED, **how, max_steps=1).facts()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_who_waits_alone_is_served(name):
    (row,) = serve(Listed([asked(0, 3, 40, 5)]), scheduler=SCHEDULERS[name]).requests()
    assert row["output_tokens"] == 5
