"""Random choices of a router, from a stream of its own."""

from sim.request import stream

AT_ONCE = 4096  # one call of numpy takes as long as a hundred numbers


class Draws:
    """Numbers drawn one after the other; the same seed gives the same ones.

    Parameters
    ----------
    seed : int
        Of the run.
    """

    def __init__(self, seed: int) -> None:
        self._rng = stream(seed, "router")
        self._ahead: list[float] = []

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        if not self._ahead:
            self._ahead = self._rng.random(AT_ONCE).tolist()
        return int(self._ahead.pop() * n)
