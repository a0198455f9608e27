"""What kernel times cannot tell, learnt from the first third of a recorded run: the host's time and the gaps it leaves.

Three numbers of `sim.cost.HostCost` are learnt: the device's idle time per iteration, more of it per sequence, and more
in iterations that compute prompts. Nothing else is: the run is simulated with the profile as it is, and the three are
chosen so that the requests of the first third get their tokens when they were recorded to. The other two thirds are
what the choice is judged on.
"""

from dataclasses import asdict
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.comparison import predicted_latencies, recorded_latencies
from calibration.engine_run import EngineRun
from calibration.prediction import Predictor
from sim.cost.host import HostCost
from sim.errors import TraceError

TERMS = ("gap_s", "gap_per_seq_s", "prefill_gap_s")
STEPS_S = (4e-4, 4e-6, 4e-3)  # of the search, at first
MOVES = tuple(move for move in product((1, 0, -1), repeat=len(TERMS)) if 0 < sum(map(abs, move)) < len(TERMS))
"""One term up or down, or two: both, or one up and the other down, for terms that can stand in for one another."""
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

    Least mean square of the logarithms of simulated over recorded TPOT and E2EL of single requests. A simulation
    answers in jumps, an iteration more or less, so derivatives are of no use: a pattern search moves the terms up
    and down, alone and together, and halves its steps where nothing is gained.
    """
    run = predict.recorded
    learnt_from = first_third(run)
    real = recorded_latencies(run)

    @cache
    def loss(terms: tuple[float, ...]) -> float:
        simulated = predicted_latencies(run, predict(predict.host(**dict(zip(TERMS, terms, strict=True)))))
        off = [np.log(simulated[name] / real[name])[learnt_from] for name in ("tpot", "e2el")]
        return float(np.nanmean(np.concatenate(off) ** 2))

    best = (0.0,) * len(TERMS)
    least = loss(best)
    for fineness in (1, 2, 4):
        improves = True
        while improves:
            improves = False
            for move in MOVES:
                steps = zip(best, move, STEPS_S, strict=True)
                tried = tuple(round(max(0.0, term + way * step / fineness), 9) for term, way, step in steps)
                if tried != best and (value := loss(tried)) < least:
                    best, least, improves = tried, value, True
    return predict.host(**dict(zip(TERMS, best, strict=True)))


def provenance(run: EngineRun, host: HostCost) -> dict[str, Any]:
    """The learnt terms as a profile keeps them, with the run they came from."""
    terms = {name: value for name, value in asdict(host).items() if name in TERMS}
    settings = run.settings
    batch = {name: getattr(settings, name) for name in ("max_num_seqs", "max_num_batched_tokens")}
    return {
        **terms,
        "learnt_from": run.path.name,
        "requests": f"the first {int(first_third(run).sum())} of {len(run)} to arrive",
        "engine": ", ".join(
            [f"vLLM {settings.vllm_version}", *(f"{name} {value}" for name, value in batch.items() if value)]
        ),
    }
