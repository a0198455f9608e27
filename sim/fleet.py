"""The replicas of a run: they come, take requests, and go."""

from collections.abc import Callable
from typing import Final

from sim.engine import Replica
from sim.errors import InvariantError
from sim.sequence import Sequence

STARTED: Final = 0
OPENED: Final = 1
DRAINED: Final = 2
FAILED: Final = 3
CANCELLED: Final = 4


class Fleet:
    """Replicas by number, each made when it is asked for; those that take requests now are ``open``.

    Parameters
    ----------
    make : callable
        Makes the replica of a number.
    beside : Fleet or None
        Another pool of the same run: numbers go on from its.
    note : callable or None
        Told of what happens to each replica, by its number: STARTED, OPENED, ...
    """

    def __init__(
        self,
        make: Callable[[int], Replica],
        note: Callable[[int, int], None] | None = None,
        beside: "Fleet | None" = None,
    ) -> None:
        self._make = make
        self._note = note
        self.replicas: list[Replica] = [] if beside is None else beside.replicas  # all of the run, by number
        self.members: list[Replica] = []  # all there ever were of this pool
        self.open: list[Replica] = []  # that take requests, in the order in which they came
        self.starting: list[Replica] = []  # that will

    def add(self) -> Replica:
        """One more replica, with the next number, which takes requests at once."""
        replica = self.begin()
        self.admit(len(self.replicas) - 1)
        return replica

    def begin(self) -> Replica:
        """One more replica, with the next number, begins to start."""
        replica = self._make(len(self.replicas))
        self.replicas.append(replica)
        self.members.append(replica)
        self.starting.append(replica)
        self._tell(len(self.replicas) - 1, STARTED)
        return replica

    def admit(self, index: int) -> None:
        """A replica has started, and takes requests."""
        replica = self.replicas[index]
        self.starting.remove(replica)
        self.open.append(replica)
        self._tell(index, OPENED)

    def cancel(self, index: int) -> None:
        """A replica that is starting is wanted no more."""
        self.starting.remove(self.replicas[index])
        self._tell(index, CANCELLED)

    def drain(self, index: int) -> None:
        """A replica takes no more requests, and serves those it has.

        Raises
        ------
        InvariantError
            If it takes none already.
        """
        replica = self.replicas[index]
        if replica not in self.open:
            raise InvariantError(f"replica {index} is drained, and takes no requests")
        self.open.remove(replica)
        self._tell(index, DRAINED)

    def fail(self, index: int, now_ns: int) -> list[Sequence]:
        """A replica is lost with all its KV. Returns what it was serving, which goes on elsewhere or nowhere.

        One that comes back in its place is a new one: `add` it.
        """
        replica = self.replicas[index]
        if replica in self.open:
            self.open.remove(replica)
        self._tell(index, FAILED)
        return replica.fail(now_ns)

    def _tell(self, index: int, event: int) -> None:
        if self._note is not None:
            self._note(index, event)
