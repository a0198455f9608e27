"""``step=validate``: a recorded run of a production engine, predicted."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calibration.bench_results import read_bench_results
from calibration.comparison import Line, compare, summary
from calibration.engine_run import EngineRun, read_engine_run
from calibration.host_time import TERMS, first_third, learn_host
from calibration.measurements import replace
from calibration.prediction import CAPACITY_TOLERANCE_FRAC, Predicted, Predictor, kernels_of, predictor
from calibration.validation_page import validation_page
from sim.cost.host import HostCost
from sim.cost.roofline import Roofline, interconnect_words
from sim.errors import ConfigError, TraceError
from sim.kv.capacity import arithmetic
from sim.profile import KernelProfile
from sim.units import NS_PER_S

NUDGE_FRAC, SATURATED_TIMES = 0.03, 2.0  # of the iterations' time; and how much more TTFT moves where a queue decides
COLUMNS = ("kernels alone", "default host time", "learnt host time")


def validate(
    run: str,
    hardware: str | None,
    out: str,
    peer_to_peer: bool = True,
    args: str | None = None,
    vllm_version: str | None = None,
    frontend: str | None = None,
) -> None:
    """Simulate the very requests of a recorded run, print how far off the simulation is, write a page.

    Three predictions: with kernel times alone, with the documented default of the host's time, and with the host's
    time learnt from the first third of the requests, which is judged on the others.

    Parameters
    ----------
    run : str
        A recorder's folder, or a file that ``vllm bench serve --save-detailed`` wrote: then ``args``, ``vllm_version``
        and ``hardware`` say what it does not, and times are a client's, ``frontend`` between it and the engine.

    Raises
    ------
    TraceError, ProfileError, ConfigError
        If the run, its kernel times or its engine's configuration cannot be read or simulated.
    """
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    recorded = read_run(Path(run), args, vllm_version)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    profile = kernels_of(recorded, folder, console.print, hardware)
    predict = predictor(recorded, profile, hardware, peer_to_peer, frontend)
    predictions = {COLUMNS[0]: predict(predict.host()), COLUMNS[1]: predict(predict.default_host())}
    lines = {name: compare(recorded, predicted) for name, predicted in predictions.items()}
    notes = [*recorded.notes, capacity_words(predict), _kernel_words(profile)]
    learnt: HostCost | None = None
    try:
        judged = ~first_third(recorded)
        learnt = host = learn_host(predict)
    except TraceError as error:
        notes.append(f"no learnt column: {error}")
    else:
        predictions[COLUMNS[2]] = predict(host)
        lines[COLUMNS[2]] = compare(recorded, predictions[COLUMNS[2]], judged)
        terms = ", ".join(f"{name} {getattr(host, name):.3g}" for name in TERMS)
        notes.append(
            f"learnt from the first {int((~judged).sum())} requests: {terms}; its column is of the other "
            f"{int(judged.sum())}, throughput of all"
        )
    if words := interconnect_of(predict):
        notes.append(words)
    notes += [*learnt_nothing(lines, learnt), *saturation(predict, predictions[COLUMNS[1]])]
    outside = predictions[COLUMNS[0]].result.provenance
    if outside["extrapolated_runs"]:
        notes.append(
            f"{outside['extrapolated_runs']} runs of iterations lie outside what was measured, their times are "
            f"extrapolated: {'; '.join(outside['extrapolated'])}"
        )
    console.print(error_table(lines))
    for note in notes:
        console.print(note, soft_wrap=True)
    replace(folder / "validation.json", json.dumps({"lines": summary(lines), "notes": notes}, indent=1).encode())
    replace(folder / "validation.html", validation_page(recorded, predictions, lines, notes).encode())
    console.print(f"Report: {folder / 'validation.html'}", soft_wrap=True)


def read_run(path: Path, args: str | None, vllm_version: str | None) -> EngineRun:
    """A recorded run: a recorder's folder, or a client's results.

    Raises
    ------
    TraceError, ConfigError
        If it cannot be read.
    """
    if path.is_file():
        return read_bench_results(path, args, vllm_version)
    for name, value in (("args", args), ("vllm_version", vllm_version)):
        if value is not None:
            raise ConfigError(f"{name} is for results of vllm bench serve; {path} says it in its meta.json")
    return read_engine_run(path)


def learnt_nothing(lines: Mapping[str, list[Line]], learnt: HostCost | None) -> list[str]:
    """What a host time of zero says: nothing is missing, or the kernels' times leave no room for any."""
    if learnt is None or any(getattr(learnt, name) for name in TERMS):
        return []
    tpot = mean_error(lines[COLUMNS[0]], "tpot")
    return [
        f"the learnt host time is 0: with kernels alone TPOT is {tpot:+z.1%} off, so "
        + ("the kernels' times are already too slow, and no host time could be seen" if tpot > 0 else "none is missing")
    ]


def mean_error(lines: list[Line], metric: str) -> float:
    """Error of a metric's mean [fraction]; 0 where it was not recorded."""
    return next((line.error_frac for line in lines if (line.metric, line.statistic) == (metric, "mean")), 0.0)


def saturation(predict: Predictor, usual: Predicted) -> list[str]:
    """How far TTFT moves with the iterations' time, where it moves by several times as much: a queue near saturation.

    There a few percent of TPOT decide over TTFT, and an error of TTFT says little more than one of TPOT. Answers of a
    single token have none.
    """
    if (predict.recorded.output_tokens == 1).all():
        return []

    def ttft_s(predicted: Predicted) -> float:
        return float(np.mean(predicted.first_token_ns - predicted.queued_ns)) / NS_PER_S

    base, host = ttft_s(usual), predict.default_host()
    moved = [ttft_s(predict(host, factor)) / base - 1.0 for factor in (1.0 - NUDGE_FRAC, 1.0 + NUDGE_FRAC)]
    if max(map(abs, moved)) < SATURATED_TIMES * NUDGE_FRAC:
        return []
    return [
        f"near saturation: iterations {NUDGE_FRAC:.0%} shorter or longer move the mean TTFT by {moved[0]:+z.1%} or "
        f"{moved[1]:+z.1%}; its error says little more than that of TPOT"
    ]


def interconnect_of(predict: Predictor) -> str | None:
    """What was taken for all-reduces over PCIe that nobody measured; None where they were, or there are none."""
    operations = predict.operations
    if isinstance(operations, Roofline):
        return interconnect_words(operations.device, operations.tensor_parallel, operations.peer_to_peer)
    words = getattr(operations, "provenance", {}).get("interconnect")
    return None if words is None else str(words)


def _kernel_words(profile: KernelProfile | None) -> str:
    """Where the kernels' times are from."""
    if profile is None:
        return "kernel times: nobody measured them; from the data sheet, of kernels as efficient as an H200's"
    return f"kernel times: {profile.name}, {profile.convention}"


def capacity_words(predict: Predictor) -> str:
    """The derived KV capacity, beside the engine's own where it said."""
    derived, said = predict.derived, predict.recorded.settings.reported_blocks
    sheet = predict.config["hardware"]["device"]["name"]
    source = "the engine's arguments" if derived.is_given else f"the data sheet of {sheet}"
    words = f"KV capacity derived from {source}: {derived.n_blocks} blocks of {derived.block_tokens} tokens"
    if said is None:
        return f"{words}; the engine's own was not recorded"
    error = derived.n_blocks / said - 1.0
    beyond = "" if abs(error) <= CAPACITY_TOLERANCE_FRAC else f": WRONG, one of {arithmetic(derived.terms)}"
    return f"{words}, {error:+z.1%} against the engine's {said}{beyond}; simulated with the engine's"


def error_table(lines: dict[str, list[Line]]) -> Any:
    """Recorded, simulated and error of every statistic, one pair of columns a prediction."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Recorded and simulated", title_justify="left")
    table.add_column("")
    table.add_column("recorded", justify="right")
    for name in lines:
        if name == COLUMNS[2]:
            table.add_column("recorded, last two thirds", justify="right")
        table.add_column(name, justify="right")
        table.add_column("error", justify="right")
    for rows in zip(*lines.values(), strict=True):
        cells = [escape(f"{rows[0].metric.upper()} {rows[0].statistic} [{rows[0].unit}]"), f"{rows[0].real:,.1f}"]
        for name, row in zip(lines, rows, strict=True):
            if name == COLUMNS[2]:
                cells.append(f"{row.real:,.1f}")
            cells += [f"{row.simulated:,.1f}", f"{row.error_frac:+z.1%}"]
        table.add_row(*cells, end_section=rows[0].statistic == "p99")
    return table
