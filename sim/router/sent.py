"""Which prompts went where, by a router's own book: nobody tells it what became of them."""

from sim.engine import Replica
from sim.errors import ConfigError
from sim.request import Request, block_keys
from sim.router.prefixes import Prefixes


class Sent(Prefixes):
    """Approximate: a replica is taken to have the prompts that were sent to it last, as many blocks as it is given.

    As SGLang's router (``cache_aware``, a tree of what it has routed) and the approximate prefix scorer of the Gateway
    API inference extension and llm-d, which keeps an LRU of block hashes a server (``lruCapacityPerServer``). It takes
    no note of answers, nor of what caches have evicted; a prompt counts from the moment it is sent.

    Parameters
    ----------
    block_tokens : int
        What a prompt is cut into [tokens].
    capacity_blocks : int
        Remembered of each replica; the Gateway API inference extension's default is 31250.
    """

    def __init__(self, block_tokens: int = 64, capacity_blocks: int = 31250) -> None:
        for key, value in (("block_tokens", block_tokens), ("capacity_blocks", capacity_blocks)):
            if value < 1:
                raise ConfigError(f"router.prefixes.{key} must be >= 1, got {value}")
        self._block_tokens = block_tokens
        self._capacity_blocks = capacity_blocks
        self._blocks: dict[int, dict[int, None]] = {}  # by replica, those sent last at the end
        self._asked: Request | None = None
        self._keys: list[int] = []  # of the prompt asked about last

    def found(self, request: Request, replicas: list[Replica], now_ns: int) -> list[int]:  # noqa: ARG002
        """As far as a prompt's blocks were sent there before."""
        keys, size = self._keys_of(request), self._block_tokens
        return [n_leading(keys, self._blocks.get(replica.index, {})) * size for replica in replicas]

    def sent(self, request: Request, replica: Replica, now_ns: int) -> None:  # noqa: ARG002
        """Remember a prompt's blocks, and forget those sent longest ago where there are too many."""
        blocks = self._blocks.setdefault(replica.index, {})
        for key in self._keys_of(request):
            blocks.pop(key, None)
            blocks[key] = None
        while len(blocks) > self._capacity_blocks:
            del blocks[next(iter(blocks))]

    def _keys_of(self, request: Request) -> list[int]:
        """Blocks that can be found again: of what comes before the last token."""
        if self._asked is not request:
            self._asked = request
            content = request.content
            self._keys = [] if content is None else block_keys(content, request.prompt_tokens - 1, self._block_tokens)
        return self._keys


def n_leading(keys: list[int], blocks: dict[int, None]) -> int:
    """How many keys, from the first on, are among some blocks."""
    n_found = 0
    for key in keys:
        if key not in blocks:
            break
        n_found += 1
    return n_found
