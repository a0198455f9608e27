"""What kernel times cannot tell, learnt from the first third of a recorded run: the host's time and the gaps it leaves.

Three numbers of `sim.cost.HostCost` are learnt: the device's idle time per iteration, more of it per sequence, and more
in iterations that compute prompts. Nothing else is: the run is simulated with the profile as it is, and the three are
chosen so that the requests of the first third get their tokens when they were recorded to. The other two thirds are
what the choice is judged on.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.comparison import predicted_latencies, recorded_latencies
from calibration.engine_run import EngineRun
from calibration.prediction import Predictor
from sim.cost.host import HostCost
from sim.errors import TraceError

TERMS = ("gap_s", "gap_per_seq_s", "prefill_gap_s")
SCALES_S = (1e-3, 1e-5, 1e-2)  # of the terms: a step of the search
LEAST_REQUESTS = 30  # to learn from and to judge on


def first_third(run: EngineRun) -> npt.NDArray[np.bool_]:
    """Requests to learn from: the first third to arrive.

    Raises
    ------
    TraceError
        If the run is too short.
    """
    if len(run) < LEAST_REQUESTS:
        raise TraceError(f"{run.path}: host time is learnt from at least {LEAST_REQUESTS} requests, got {len(run)}")
    return np.arange(len(run)) < len(run) // 3


def learn_host(predict: Predictor) -> HostCost:
    """The host time that explains the first third of a run best.

    Least squares of the logarithms of TTFT and TPOT of single requests, robust against outliers, none of the terms
    negative.
    """
    from scipy.optimize import least_squares

    run = predict.recorded
    learnt_from = first_third(run)
    real = recorded_latencies(run)

    def off(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        simulated = predicted_latencies(run, predict(_host(predict, x)))
        tpot = np.log(simulated["tpot"] / real["tpot"])[learnt_from]
        ttft = (np.log(simulated["ttft"] / real["ttft"]))[learnt_from]
        residual: npt.NDArray[np.float64] = np.nan_to_num(np.concatenate([tpot, 0.1 * ttft]))
        return residual

    found = least_squares(
        off, np.full(len(TERMS), 0.1), bounds=(0.0, np.inf), diff_step=0.05, loss="soft_l1", f_scale=0.02, max_nfev=12
    )
    return _host(predict, found.x)


def _host(predict: Predictor, x: npt.NDArray[np.float64]) -> HostCost:
    terms = {name: float(f"{value * scale:.3g}") for name, value, scale in zip(TERMS, x, SCALES_S, strict=True)}
    return predict.host(**terms)


def provenance(run: EngineRun, host: HostCost) -> dict[str, Any]:
    """The learnt terms as a profile keeps them, with the run they came from."""
    terms = {name: value for name, value in asdict(host).items() if name in TERMS}
    settings = run.settings
    return {
        **terms,
        "learnt_from": run.path.name,
        "requests": f"the first {int(first_third(run).sum())} of {len(run)} to arrive",
        "engine": f"vLLM {settings.vllm_version}, max_num_seqs {settings.max_num_seqs}, max_num_batched_tokens "
        f"{settings.max_num_batched_tokens}",
    }
