"""The best iteration times there are: a measured profile where one fits, else the data sheet."""

from collections.abc import Sequence

from sim.cost.calibrated import calibrated_cost
from sim.cost.host import HostCost
from sim.cost.iteration import CAPTURE_SIZES, IterationCost
from sim.cost.pipeline import Pipeline
from sim.cost.roofline import Efficiency, Roofline, interconnect_words
from sim.errors import ConfigError, ProfileError
from sim.spec import DeviceSpec, ModelSpec


def best_cost(
    model: ModelSpec,
    device: DeviceSpec,
    host: HostCost,
    efficiency: Efficiency,
    tensor_parallel: int = 1,
    capture_sizes: Sequence[int] = CAPTURE_SIZES,
    sample: bool = False,
    seed: int = 0,
    peer_to_peer: bool = True,
    engine_version: str | None = None,
    expert_parallel: bool = False,
    sampling: str = "greedy",
    pipeline: Pipeline | None = None,
) -> IterationCost:
    """Iteration times from the device's shipped profile, or from its data sheet if it has none that fits the model.

    Every report says which of the two it stands on, and why. ``cost=calibrated`` and ``cost=roofline`` choose.
    ``sample`` and ``engine_version`` are those of ``cost=calibrated``.

    Raises
    ------
    ConfigError
        If times are to be off by a draw of their standard errors, and there is no profile that has them.
    """
    try:
        return calibrated_cost(
            model,
            device,
            host,
            tensor_parallel,
            None,
            sample,
            seed,
            capture_sizes,
            peer_to_peer,
            engine_version,
            expert_parallel,
            sampling,
            pipeline,
        )
    except ProfileError as error:
        if sample:
            raise ConfigError(f"cost.sample needs a profile's standard errors: {error}") from None
        by_data_sheet = Roofline(model, device, tensor_parallel, efficiency, peer_to_peer, expert_parallel, sampling)
        cost = IterationCost(by_data_sheet, host, capture_sizes, pipeline=pipeline)
        cost.provenance = {"source": f"data sheet of {device.name} (roofline)", "why": str(error)}
        if words := interconnect_words(device, tensor_parallel, peer_to_peer):
            cost.provenance = {**cost.provenance, "interconnect": words}
        return cost
