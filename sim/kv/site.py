"""Where a cache stands: what a run gives each of its caches, and no setting of theirs."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import simpy

from sim.errors import ConfigError
from sim.kv.cache import Copies
from sim.kv.capacity import KVCapacity
from sim.kv.eviction import Evictor
from sim.kv.preemption import Preemption
from sim.kv.tiers import Tier, Tiers, TierSpec
from sim.record import Recorder
from sim.spec import HardwareSpec, ModelSpec
from sim.step import CostModel


@dataclass(frozen=True, slots=True)
class Site:
    """The first argument of every cache's constructor.

    Parameters
    ----------
    env, recorder
        For what takes time: transfers from and to memory below.
    cost : CostModel
        What computing tokens again takes, where that is asked.
    replica : int
        Whose cache it is.
    model, hardware : ModelSpec, HardwareSpec
    capacity : KVCapacity
        KV slots, and what a token's KV takes of them.
    eviction : callable
        Makes the evictor of so many blocks, all free.
    below : Tiers or None
        Memory below the device.
    preemption : Preemption
        What preempted sequences do about KV below.
    max_batched_tokens : int
        Tokens that an iteration computes at most, for estimates [tokens].
    chunk_tokens : int or None
        Tokens of one prompt that an iteration computes at most; None: prompts are computed whole [tokens].
    copies : Copies
        Where caches note what the next iteration waits for: one for all that serve the same batch.
    stores : dict of str to Tier
        By name, the tiers that all replicas of a run share; made by the first that needs one.
    """

    env: simpy.Environment
    cost: CostModel
    recorder: Recorder
    replica: int
    model: ModelSpec
    hardware: HardwareSpec
    capacity: KVCapacity
    eviction: Callable[[int], Evictor]
    below: Tiers | None
    preemption: Preemption
    max_batched_tokens: int
    chunk_tokens: int | None = None
    copies: Copies = field(default_factory=Copies)
    stores: dict[str, Tier] = field(default_factory=dict)

    @property
    def capacity_tokens(self) -> int:
        """KV slots at the model's full width [tokens]."""
        return self.capacity.n_tokens

    @property
    def bytes_per_token(self) -> float:
        """KV of a token at full width, on each accelerator [B]."""
        return self.capacity.bytes_per_token

    @property
    def element_bits(self) -> float:
        """Width of an element of the KV: 16, or 8 for models served with fp8 KV [bits]."""
        return 8.0 * self.model.kv_bytes

    def tier(self, spec: TierSpec, level: int, block_tokens: int, block_bytes: int) -> tuple[Tier, bool]:
        """A tier of blocks of a size, and whether it is new: what is shared is there already for all but the first.

        Raises
        ------
        ConfigError
            If it is shared, and keeps blocks of another size.
        """
        found = self.stores.get(spec.name) if spec.is_shared else None
        if found is not None:
            if found.block != (block_tokens, block_bytes):
                raise ConfigError(
                    f"tiers.levels.{level} is shared, so that all its blocks must be alike: of {found.block[0]} tokens "
                    f"in {found.block[1]} bytes, got {block_tokens} in {block_bytes}"
                )
            return found, False
        ranks, replica = self.hardware.tensor_parallel, None if spec.is_shared else self.replica
        made = Tier(spec, block_tokens, block_bytes, self.env, self.recorder, replica, level, ranks)
        if spec.is_shared:
            self.stores[spec.name] = made
        return made, True

    def part(self, capacity_tokens: int) -> "Site":
        """So many of its slots, for a cache beside others."""
        return replace(self, capacity=replace(self.capacity, n_blocks=capacity_tokens, block_tokens=1))
