"""What caches have told a router of their blocks: an index that is fed by events and lags behind."""

from sim.engine import Replica
from sim.errors import ConfigError
from sim.kv.abilities import Publisher
from sim.kv.prefix import Listener
from sim.request import BlockRange, Request, block_keys
from sim.router.prefixes import Prefixes
from sim.router.sent import n_leading
from sim.spec import as_given
from sim.units import MS_PER_S, ns_from_s


class CacheEvents(Prefixes):
    """A replica has the blocks that its cache said it stored, as of ``delay_ms`` ago, and has not said it removed.

    As the precise prefix scorer of llm-d and NVIDIA Dynamo's KV router, on vLLM's KV cache events. Like there, a block
    of which two copies were stored is given up with the first that is removed. That a block has been removed is known
    at once: of what is told late only what is new is late.

    Parameters
    ----------
    delay_ms : float
        From a block's being stored to the router's knowing [ms].
    """

    def __init__(self, delay_ms: float = 0.0) -> None:
        if not 0.0 <= delay_ms < float("inf"):
            raise ConfigError(f"router.prefixes.delay_ms must be >= 0 and finite [ms], got {as_given(delay_ms)}")
        self._delay_ns = ns_from_s(delay_ms / MS_PER_S)
        self._feeds: dict[int, Feed] = {}  # by replica
        self._asked: Request | None = None
        self._block_tokens = 0
        self._keys: list[int] = []  # of the prompt asked about last, in blocks of so many tokens

    def found(self, request: Request, replicas: list[Replica], now_ns: int) -> list[int]:
        """As far as the index has a prompt's blocks."""
        return [self._leading(request, self._feed(replica), now_ns) for replica in replicas]

    def sent(self, request: Request, replica: Replica, now_ns: int) -> None:
        """Its cache will tell."""

    def _feed(self, replica: Replica) -> "Feed":
        feed = self._feeds.get(replica.index)
        if feed is None:
            feed = self._feeds[replica.index] = Feed(replica, self._delay_ns)
        return feed

    def _leading(self, request: Request, feed: "Feed", now_ns: int) -> int:
        feed.catch_up(now_ns)
        if self._asked is not request or self._block_tokens != feed.block_tokens:
            self._asked, self._block_tokens = request, feed.block_tokens
            content, n_tokens = request.content, request.prompt_tokens - 1
            self._keys = [] if content is None else block_keys(content, n_tokens, feed.block_tokens)
        return n_leading(self._keys, feed.known) * feed.block_tokens


class Feed(Listener):
    """The events of one replica's cache."""

    def __init__(self, replica: Replica, delay_ns: int) -> None:
        kv = replica.kv
        if not isinstance(kv, Publisher):
            raise ConfigError(
                f"router.prefixes takes events from caches that name their blocks, got a {type(kv).__name__}; "
                "router=prefix_affinity asks the cache itself, router=prefix_sent its own book"
            )
        self.block_tokens = kv.block_tokens
        self.known: dict[int, None] = {}  # blocks that the router knows of
        self._env = replica.env
        self._delay_ns = delay_ns
        self._on_their_way: dict[int, int] = {}  # block -> when it is known, in this order
        kv.publish(self)

    def stored(self, blocks: BlockRange) -> None:
        """Known after a while."""
        due_ns = self._env.now_ns + self._delay_ns
        for key in self._keys(blocks):
            self._on_their_way.pop(key, None)
            self._on_their_way[key] = due_ns

    def removed(self, blocks: BlockRange) -> None:
        """Forgotten at once."""
        for key in self._keys(blocks):
            self.known.pop(key, None)
            self._on_their_way.pop(key, None)

    def catch_up(self, now_ns: int) -> None:
        """Take note of what is known by now."""
        arrived: list[int] = []
        for key, due_ns in self._on_their_way.items():
            if due_ns > now_ns:
                break
            arrived.append(key)
        for key in arrived:
            del self._on_their_way[key]
            self.known[key] = None

    def _keys(self, blocks: BlockRange) -> range:
        piece, end, n_blocks = blocks
        return range(piece + end, piece + end + n_blocks * self.block_tokens, self.block_tokens)
