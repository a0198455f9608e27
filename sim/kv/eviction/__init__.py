"""In which order free blocks are taken, and with them the cached content that nobody uses now.

`Evictor` is what a cache talks to. `Lru` is one; the other policies are an `Order` of units, used as
``BlankFirst(capacity_blocks, Lfu)``.
"""

from sim.kv.eviction.arc import Arc
from sim.kv.eviction.belady import Belady
from sim.kv.eviction.blank_first import BlankFirst
from sim.kv.eviction.contract import Divider, Evictor, Order
from sim.kv.eviction.fifo import Fifo
from sim.kv.eviction.gdsf import Gdsf
from sim.kv.eviction.lfu import Lfu
from sim.kv.eviction.lru import Lru
from sim.kv.eviction.s3fifo import S3Fifo
from sim.kv.eviction.unit import Unit

__all__ = ["Arc", "Belady", "BlankFirst", "Divider", "Evictor", "Fifo", "Gdsf", "Lfu", "Lru", "Order", "S3Fifo", "Unit"]
