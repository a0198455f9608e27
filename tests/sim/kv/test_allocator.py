import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from sim.errors import ConfigError, InvariantError
from sim.kv.allocator import Buddy, FirstFit


def test_buddy_rounds_up_to_a_power_of_two():
    buddy = Buddy(1024)
    offset = buddy.take(513 - 1)
    assert buddy.size_of(offset) == 512
    assert buddy.size_of(buddy.take(300)) == 512
    assert buddy.take(1) is None


def test_seven_sequences_of_2048_fit_into_15700_slots():
    buddy = Buddy(15_700)
    offsets = [buddy.take(2048) for _ in range(8)]
    assert offsets[7] is None
    assert sorted(offsets[:7]) == [0, 2048, 4096, 6144, 8192, 10240, 12288]
    assert buddy.free_tokens == 15_700 - 7 * 2048


def test_first_fit_leaves_holes_that_do_not_add_up():
    row = FirstFit(100)
    a, b, c = row.take(40), row.take(30), row.take(30)
    row.give(a)
    row.give(c)
    assert (row.free_tokens, row.largest_free_tokens) == (70, 40)
    assert row.take(50) is None
    row.give(b)
    assert row.take(100) == 0


def test_first_fit_takes_the_first_hole_that_is_long_enough():
    row = FirstFit(100)
    a, _, c, _ = row.take(10), row.take(10), row.take(20), row.take(10)
    row.give(a)
    row.give(c)
    assert row.take(15) == 20
    assert row.take(10) == 0


@pytest.mark.parametrize("make", [Buddy, FirstFit])
def test_an_extent_freed_twice_is_refused(make):
    allocator = make(64)
    offset = allocator.take(5)
    allocator.give(offset)
    with pytest.raises(InvariantError, match="freed twice"):
        allocator.give(offset)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Buddy(64, 3), r"allocator.min_tokens must be a power of two >= 1 \[tokens\], got 3"),
        (lambda: Buddy(8, 16), r"allocator.capacity_tokens must be >= 16 .* got 8"),
        (lambda: FirstFit(0), r"allocator.capacity_tokens must be >= 1 \[tokens\], got 0"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


class AllocatorLaws(RuleBasedStateMachine):
    """Extents never overlap, slots are conserved, a refusal is justified, and all of it comes back."""

    extents = Bundle("extents")

    def __init__(self):
        super().__init__()
        self.allocator = self.make()
        self.taken: dict[int, int] = {}  # size by offset

    @rule(target=extents, n_tokens=st.integers(1, 400))
    def take(self, n_tokens):
        largest = self.allocator.largest_free_tokens
        offset = self.allocator.take(n_tokens)
        if offset is None:
            assert self.needed(n_tokens) > largest
            return 0, 0
        size = self.allocator.size_of(offset)
        assert size == self.needed(n_tokens)
        self.taken[offset] = size
        return offset, n_tokens

    @rule(extent=consumes(extents))
    def give(self, extent):
        offset, n_tokens = extent
        if n_tokens:
            del self.taken[offset]
            self.allocator.give(offset)

    @invariant()
    def extents_lie_apart_inside_the_row(self):
        stop = 0
        for offset, size in sorted(self.taken.items()):
            assert offset >= stop
            stop = offset + size
        assert stop <= self.allocator.capacity_tokens

    @invariant()
    def slots_are_conserved(self):
        assert self.allocator.free_tokens == self.allocator.capacity_tokens - sum(self.taken.values())

    def teardown(self):
        fresh = self.make()
        for offset in self.taken:
            self.allocator.give(offset)
        assert self.allocator.free_tokens == fresh.free_tokens
        assert self.allocator.largest_free_tokens == fresh.largest_free_tokens


class BuddyLaws(AllocatorLaws):
    def make(self):
        return Buddy(1_570, 4)

    def needed(self, n_tokens):
        return max(4, 2 ** (n_tokens - 1).bit_length())


class FirstFitLaws(AllocatorLaws):
    def make(self):
        return FirstFit(1_570)

    def needed(self, n_tokens):
        return n_tokens


QUICK = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBuddyLaws = BuddyLaws.TestCase
TestBuddyLaws.settings = QUICK
TestFirstFitLaws = FirstFitLaws.TestCase
TestFirstFitLaws.settings = QUICK
