from functools import partial

import pytest

from sim.kv.eviction import Arc, BlankFirst, Fifo, Gdsf, Lfu, Lru, S3Fifo
from sim.kv.eviction.queue import Queue
from sim.kv.sessions import IdleSessions
from sim.request import Request
from sim.sequence import Sequence

SAID = ((1, 40), (2, 60))
GOES_ON = (*SAID, (3, 20))


def turn(content, session_id=7, computed_tokens=0, dropped_tokens=0):
    """A sequence with a prompt of this text, computed so far."""
    n_tokens = sum(length for _, length in content)
    sequence = Sequence(Request(0, 0, n_tokens, 1, 1, content=content, session_id=session_id))
    sequence.computed_tokens, sequence.dropped_tokens = computed_tokens, dropped_tokens
    return sequence


def idle(*ended, is_kept=True):
    """Conversations whose last turns held ten blocks each."""
    conversations = IdleSessions(Lru, 100, is_kept)
    for sequence in ended:
        conversations.keep(sequence, f"blocks of {sequence.request.session_id}", 10)
    return conversations


@pytest.mark.parametrize(
    ("asked", "dropped_tokens", "matched"),
    [
        (GOES_ON, 0, 100),
        (SAID, 0, 99),  # the last token is always computed
        (((1, 40), (9, 80)), 0, 40),  # said otherwise: as far as they agree
        (GOES_ON, 30, 100),  # what is left of it stands for all
        (((1, 40), (9, 80)), 30, 0),  # or for nothing
        (SAID, 30, 0),
    ],
)
def test_a_turn_goes_on_from_the_text_it_shares_with_the_last_one(asked, dropped_tokens, matched):
    conversations = idle(turn(SAID, computed_tokens=100, dropped_tokens=dropped_tokens))
    assert conversations.find(turn(asked).request).match(turn(asked).request, None) == matched
    assert conversations.find(turn(asked, session_id=8).request) is None, "another conversation"


def test_what_is_taken_up_is_idle_no_more():
    conversations = idle(turn(SAID, computed_tokens=100))
    assert conversations.take(turn(GOES_ON)).holding == "blocks of 7"
    assert conversations.take(turn(GOES_ON)) is None
    assert (conversations.n_blocks, conversations.n_evicted) == (0, 0)


def test_whole_conversations_give_way_in_the_order_of_the_policy():
    conversations = idle(*(turn(SAID, session_id, 100) for session_id in (4, 5, 6)))
    assert conversations.evict(11) == ["blocks of 4", "blocks of 5"]
    assert (conversations.n_blocks, conversations.n_evicted) == (10, 2)


@pytest.mark.parametrize(
    ("sequence", "is_kept", "keeps"),
    [
        (turn(SAID), True, True),
        (turn(SAID), False, False),
        (turn(SAID, session_id=None), True, False),
    ],
)
def test_only_conversations_leave_something(sequence, is_kept, keeps):
    assert idle(is_kept=is_kept).keeps(sequence) is keeps


def taken_up(conversations, session_id, n_blocks=10):
    """The conversation's next turn goes on from what the last one left, and leaves more."""
    sequence = turn(GOES_ON, session_id, computed_tokens=120)
    assert conversations.take(sequence) is not None
    conversations.keep(sequence, f"blocks of {session_id}", n_blocks)


@pytest.mark.parametrize(
    ("order", "first"),
    [
        (None, 5),  # least recently used
        (Fifo, 4),  # a turn more does not make a conversation younger
        (Lfu, 5),
        (partial(S3Fifo, promote_at=1, small_frac=0.5), 5),
        (Arc, 5),
        (Gdsf, 5),
    ],
)
def test_a_policy_knows_a_conversation_from_turn_to_turn(order, first):
    conversations = IdleSessions(Lru if order is None else partial(BlankFirst, order=order), 100, True)
    for session_id in (4, 5):
        conversations.keep(turn(SAID, session_id, 100), f"blocks of {session_id}", 10)
    taken_up(conversations, 4)
    assert conversations.evict(1) == [f"blocks of {first}"]


def test_the_least_frequent_conversation_goes_however_late_it_was_here():
    conversations = IdleSessions(partial(BlankFirst, order=Lfu), 100, True)
    conversations.keep(turn(SAID, 4, 100), "blocks of 4", 10)
    taken_up(conversations, 4)
    conversations.keep(turn(SAID, 5, 100), "blocks of 5", 10)
    assert conversations.evict(1) == ["blocks of 5"]


def test_what_was_lost_is_not_known_again():
    conversations = IdleSessions(partial(BlankFirst, order=Lfu), 100, True)
    for session_id in (4, 5):
        conversations.keep(turn(SAID, session_id, 100), f"blocks of {session_id}", 10)
    taken_up(conversations, 5)
    sequence = turn(GOES_ON, 4, 120)
    conversations.take(sequence)
    conversations.lose(sequence)
    conversations.keep(sequence, "blocks of 4 anew", 10)
    assert conversations.evict(1) == ["blocks of 4 anew"]


@pytest.mark.parametrize("order", [Fifo, S3Fifo])
def test_a_policy_keeps_nothing_of_what_was_dropped_or_lost(order):
    evictor = BlankFirst(100, order)
    conversations = IdleSessions(lambda _: evictor, 100, True)
    for session_id in range(200):
        conversations.keep(turn(SAID, session_id, 100), "blocks", 10)
        if session_id % 2:
            assert conversations.drop(turn(SAID, session_id)) is not None
        else:
            sequence = turn(GOES_ON, session_id, 120)
            conversations.take(sequence)
            conversations.lose(sequence)
    assert len(evictor) == conversations.n_blocks == 0
    assert not evictor.order._passed
    queues = [value for value in vars(evictor.order).values() if isinstance(value, Queue)]
    assert not any(queue.counts or queue.n_blocks for queue in queues)


def test_gdsf_gives_up_the_emptier_extent_of_two():
    conversations = IdleSessions(partial(BlankFirst, order=Gdsf), 1000, True)
    conversations.keep(turn(SAID, 4, 100), "half empty", 200)
    conversations.keep(turn(SAID, 5, 100), "full", 100)
    assert conversations.evict(1) == ["half empty"]


@pytest.mark.parametrize("n_blocks", [5, 40])
def test_s3fifo_counts_an_extent_that_has_grown_or_shrunk_since(n_blocks):
    evictor = BlankFirst(100, S3Fifo)
    conversations = IdleSessions(lambda _: evictor, 100, True)
    conversations.keep(turn(SAID, 4, 100), "blocks of 4", 10)
    taken_up(conversations, 4, n_blocks)
    assert evictor.order._small.n_blocks + evictor.order._main.n_blocks == n_blocks
    assert conversations.evict(1) == ["blocks of 4"]
    assert evictor.order._small.n_blocks + evictor.order._main.n_blocks == 0
