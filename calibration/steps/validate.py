"""``step=validate``: a recorded run of a production engine, predicted."""

import json
import sys
from pathlib import Path
from typing import Any

from calibration.comparison import Line, compare, summary
from calibration.engine_run import read_engine_run
from calibration.host_time import TERMS, first_third, learn_host
from calibration.measurements import replace
from calibration.prediction import CAPACITY_TOLERANCE_FRAC, Predictor, kernels_of, predictor
from calibration.validation_page import validation_page
from sim.cost.roofline import Roofline, interconnect_words
from sim.errors import TraceError
from sim.kv.capacity import arithmetic
from sim.profile import KernelProfile

COLUMNS = ("kernels alone", "default host time", "learnt host time")


def validate(run: str, hardware: str | None, out: str, peer_to_peer: bool = True) -> None:
    """Simulate the very requests of a recorded run, print how far off the simulation is, write a page.

    Three predictions: with kernel times alone, with the documented default of the host's time, and with the host's
    time learnt from the first third of the requests, which is judged on the others.

    Raises
    ------
    TraceError, ProfileError, ConfigError
        If the run, its kernel times or its engine's configuration cannot be read or simulated.
    """
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    recorded = read_engine_run(Path(run))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    profile = kernels_of(recorded, folder, console.print, hardware)
    predict = predictor(recorded, profile, hardware, peer_to_peer)
    predictions = {COLUMNS[0]: predict(predict.host()), COLUMNS[1]: predict(predict.default_host())}
    lines = {name: compare(recorded, predicted) for name, predicted in predictions.items()}
    notes = [*recorded.notes, capacity_words(predict), _kernel_words(profile)]
    try:
        judged = ~first_third(recorded)
        host = learn_host(predict)
    except TraceError as error:
        notes.append(f"no learnt column: {error}")
    else:
        predictions[COLUMNS[2]] = predict(host)
        lines[COLUMNS[2]] = compare(recorded, predictions[COLUMNS[2]], judged)
        learnt = ", ".join(f"{name} {getattr(host, name):.3g}" for name in TERMS)
        notes.append(
            f"learnt from the first {int((~judged).sum())} requests: {learnt}; its column is of the other "
            f"{int(judged.sum())}, throughput of all"
        )
    if words := interconnect_of(predict):
        notes.append(words)
    extrapolated = predictions[COLUMNS[0]].result.provenance.get("extrapolated_runs", 0)
    if extrapolated:
        notes.append(f"{extrapolated} runs of iterations lie outside what was measured: their times are extrapolated")
    console.print(error_table(lines))
    for note in notes:
        console.print(note, soft_wrap=True)
    replace(folder / "validation.json", json.dumps({"lines": summary(lines), "notes": notes}, indent=1).encode())
    replace(folder / "validation.html", validation_page(recorded, predictions, lines, notes).encode())
    console.print(f"Report: {folder / 'validation.html'}", soft_wrap=True)


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
    return f"{words}, {error:+.1%} against the engine's {said}{beyond}; simulated with the engine's"


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
            cells += [f"{row.simulated:,.1f}", f"{row.error_frac:+.1%}"]
        table.add_row(*cells, end_section=rows[0].statistic == "p99")
    return table
