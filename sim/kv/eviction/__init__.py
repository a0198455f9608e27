"""In which order free blocks are taken, and with them the cached content that nobody uses now.

`Evictor` is what a cache talks to. `Lru` is one; the other policies are an `Order` of units, used as
``BlankFirst(capacity_blocks, Lfu)``.
"""

from sim.kv.eviction.blank_first import BlankFirst
from sim.kv.eviction.fifo import Fifo
from sim.kv.eviction.lfu import Lfu
from sim.kv.eviction.lru import Lru
from sim.kv.eviction.unit import Evictor, Order, Unit

__all__ = ["BlankFirst", "Evictor", "Fifo", "Lfu", "Lru", "Order", "Unit"]
