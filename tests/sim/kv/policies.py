"""Every eviction policy of conf/eviction/ that needs not be told the future: a new file is tested by every suite."""

from sim.config import choices_of
from sim.hit_rate import MadeBy, made_by
from sim.kv.replay import Trace

EVICTORS: dict[str, MadeBy] = {name: made_by(name, {}, Trace(1)) for name in choices_of("eviction") if name != "belady"}
