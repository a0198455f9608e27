"""What a swap and a recomputation would take, added up by hand."""

import pytest

from sim.kv.preemption import Cheaper, Estimator, Recompute, Swap, Times
from sim.ledger import DecodeLedger
from sim.sequence import Sequence
from tests.sim.serving import LinearCost, asked

COST = LinearCost(1_000, per_seq_ps=10, per_context_ps=1, per_prompt_ps=50, per_prompt_context_ps=2)


def decoding(*resident):
    ledger = DecodeLedger()
    for order, n_tokens in enumerate(resident):
        sequence = Sequence(asked(order, 0, n_tokens, 9))
        sequence.order, sequence.computed_tokens, sequence.generated_tokens = order, n_tokens, 1
        ledger.join(sequence)
    return ledger


def test_computing_costs_the_sequence_its_iterations_and_each_that_decodes_what_they_take_longer():
    """Two sequences read 31 + 41 tokens and leave 10 of the budget: pieces of 10, 10 and 5 after 8, 18 and 28."""
    lost_ps = Estimator(COST, 12).computing_ps(8, 33, decoding(30, 40))
    decoding_ps = 1_000 + 2 * 10 + 31 + 41
    prompts_ps = 25 * 50 + (8 + 18 + 28) * 2
    assert lost_ps == (3 * decoding_ps + prompts_ps) + 2 * prompts_ps


def test_without_anybody_beside_the_whole_budget_is_its_own():
    assert Estimator(COST, 100).computing_ps(0, 100, None) == 1_000 + 100 * 50
    assert Estimator(COST, 100).computing_ps(0, 100, decoding()) == 1_000 + 100 * 50


@pytest.mark.parametrize(("load_ps", "until_ps"), [(1, 1_041), (1_041, 1_041), (1_042, 2_082)])
def test_who_loads_joins_when_an_iteration_ends_and_holds_up_nobody(load_ps, until_ps):
    assert Estimator(COST, 100).loading_ps(load_ps, decoding(30)) == until_ps


def test_with_nothing_running_who_loads_starts_at_once():
    assert Estimator(COST, 100).loading_ps(7, None) == 7


def test_a_copy_that_iterations_wait_for_costs_everyone():
    assert Estimator(COST, 100).waiting_ps(7, decoding(30, 40)) == 14
    assert Estimator(COST, 100).waiting_ps(7, None) == 0


@pytest.mark.parametrize(
    ("times", "saves", "loads"),
    [(Times(3, 4, 8), True, True), (Times(4, 4, 8), False, True), (Times(0, 8, 8), False, False)],
)
def test_auto_counts_what_is_still_to_be_paid(times, saves, loads):
    auto = Cheaper()
    assert (auto.saves(lambda: times), auto.loads(lambda: times)) == (saves, loads)


def test_the_others_do_not_ask():
    def asked_for():
        raise AssertionError("nobody wants to know")

    assert (Swap().saves(asked_for), Swap().loads(asked_for)) == (True, True)
    assert (Recompute().saves(asked_for), Recompute().loads(asked_for)) == (False, False)
