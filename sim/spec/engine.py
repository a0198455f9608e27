"""A version of a serving engine: what its defaults were."""

from dataclasses import dataclass

from sim.errors import ConfigError
from sim.spec.values import as_given, whole


@dataclass(frozen=True, slots=True)
class BatchLimit:
    """The largest iteration that an engine plans by default on the devices that this fits.

    Parameters
    ----------
    from_gib : float
        Memory that a device has at least [GiB].
    except_named : list of str
        Words in the names of devices that it does not fit all the same, in small letters.
    """

    from_gib: float
    except_named: list[str]
    max_num_batched_tokens: int
    max_num_seqs: int

    def __post_init__(self) -> None:
        if not 0 <= self.from_gib < float("inf"):
            raise ConfigError(f"engine.batch_limits.from_gib must be >= 0 [GiB], got {as_given(self.from_gib)}")
        whole(
            "engine.batch_limits",
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_num_seqs=self.max_num_seqs,
        )


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What "as in vLLM" means: a version's defaults, under the engine's own names, each with its source in the YAML.

    The files of other groups refer to them, so that a setting given there goes before the engine's.
    """

    name: str  # engine and version, for the report
    version: str
    async_scheduling: bool
    scheduler_reserve_full_isl: bool
    blank_blocks_first: bool  # freed blocks that hold no full block of text are taken first
    forks_samples: bool  # several answers compute their prompt once, and are not requests of their own
    long_prefill_token_threshold: int  # 0: none
    cudagraph_capture_sizes: list[int]
    batch_limits: list[BatchLimit]  # the first that fits the device holds
    args: str = ""  # vLLM's own flags, which set what they mean (`sim.engine_args`)
