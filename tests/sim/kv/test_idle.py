import pytest

from sim.kv.eviction import Lru
from sim.kv.idle import IdleConversations
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
    conversations = IdleConversations(Lru, 100, is_kept)
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
    assert conversations.find(turn(asked)).match(turn(asked)) == matched
    assert conversations.find(turn(asked, session_id=8)) is None, "another conversation"


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
