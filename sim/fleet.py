"""The replicas of a run: they come, take requests, and go."""

from collections.abc import Callable

from sim.engine import Replica
from sim.errors import InvariantError
from sim.sequence import Sequence


class Fleet:
    """Replicas by number, each made when it is added; those that take requests now are ``open``.

    Parameters
    ----------
    make : callable
        Makes the replica of a number.
    beside : Fleet or None
        Another pool of the same run: numbers go on from its.
    """

    def __init__(self, make: Callable[[int], Replica], beside: "Fleet | None" = None) -> None:
        self._make = make
        self.replicas: list[Replica] = [] if beside is None else beside.replicas  # all of the run, by number
        self.members: list[Replica] = []  # all there ever were of this pool
        self.open: list[Replica] = []  # that take requests, by number

    def add(self) -> Replica:
        """One more replica, with the next number."""
        replica = self._make(len(self.replicas))
        self.replicas.append(replica)
        self.members.append(replica)
        self.open.append(replica)
        return replica

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

    def fail(self, index: int, now_ns: int) -> list[Sequence]:
        """A replica is lost with all its KV. Returns what it was serving, which goes on elsewhere or nowhere.

        One that comes back in its place is a new one: `add` it.
        """
        replica = self.replicas[index]
        if replica in self.open:
            self.open.remove(replica)
        return replica.fail(now_ns)
