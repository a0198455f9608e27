"""``step=recordings``: every recorded run predicted, one table of errors and one of what each mechanism is worth."""

import json
from pathlib import Path

from calibration.ablation import ablation
from calibration.comparison import Line, compare, summary
from calibration.engine_run import read_engine_run
from calibration.host_time import first_third, learn_host
from calibration.measurements import replace
from calibration.prediction import kernels_of, predictor
from sim.errors import TraceError
from sim.report.html import Page, Section, Table, render
from sim.report.words import signed

METRICS = ("ttft", "tpot", "e2el", "throughput")


def recordings(runs: str, out: str) -> None:
    """Predict every run below a folder, print and write errors of the means, and an ablation of each.

    Raises
    ------
    TraceError
        If the folder holds no recorded run, or one that cannot be read.
    """
    folders = sorted(path.parent for path in Path(runs).glob("*/meta.json"))
    if not folders:
        raise TraceError(f"{runs}: no recorded run; each is a folder with meta.json and requests.jsonl")
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    errors: dict[str, dict[str, list[Line]]] = {}
    worth: dict[str, dict[str, list[Line]]] = {}
    for folder in folders:
        recorded = read_engine_run(folder)
        predict = predictor(recorded, kernels_of(recorded, target))
        worth[folder.name] = ablation(predict)
        columns = {
            "kernels alone": compare(recorded, predict(predict.host())),
            "default host time": worth[folder.name]["all"],
        }
        try:
            columns["learnt host time, rest"] = compare(recorded, predict(learn_host(predict)), ~first_third(recorded))
        except TraceError as error:
            print(f"{folder.name}: no learnt column: {error}")
        errors[folder.name] = columns
    content = {
        "errors": {name: summary(columns) for name, columns in errors.items()},
        "ablation": {name: summary(columns) for name, columns in worth.items()},
    }
    replace(target / "recordings.json", json.dumps(content, indent=1).encode())
    replace(target / "recordings.html", page(errors, worth).encode())
    for table in (errors, worth):
        for name, columns in table.items():
            for column, lines in columns.items():
                print(f"{name}, {column}: {words(lines)}")
    print(f"Report: {target / 'recordings.html'}")


def means(lines: list[Line]) -> list[str]:
    """Errors of the means, in the order of `METRICS`; a dash where one was not recorded."""
    found = {line.metric: line.error_frac for line in lines if line.statistic == "mean"}
    return [signed(found.get(metric)) for metric in METRICS]


def words(lines: list[Line]) -> str:
    """Errors of the means on a line."""
    return ", ".join(f"{metric.upper()} {error}" for metric, error in zip(METRICS, means(lines), strict=True))


def page(errors: dict[str, dict[str, list[Line]]], worth: dict[str, dict[str, list[Line]]]) -> str:
    """Both tables as HTML text; every statistic in the first, means in the second."""
    sections = [
        Section(
            "errors",
            "Errors",
            "Simulated against recorded; learnt host times on the last two thirds of the requests.",
            tables=[
                Table(
                    [
                        [
                            f"{group[0].metric.upper()} {group[0].statistic}",
                            *(signed(one.error_frac) for one in group),
                        ]
                        for group in zip(*columns.values(), strict=True)
                    ],
                    ["", *columns],
                    title=name,
                    style="wide",
                )
                for name, columns in errors.items()
            ],
        ),
        Section(
            "ablation",
            "What each mechanism is worth",
            "Errors of the means with the documented host time, and without one mechanism at a time.",
            tables=[
                Table(
                    [[column, *means(lines)] for column, lines in columns.items()],
                    ["", *(metric.upper() for metric in METRICS)],
                    title=name,
                    style="wide",
                )
                for name, columns in worth.items()
            ],
        ),
    ]
    return render(
        Page(
            title="kvtwin: recorded runs predicted",
            heading="Recorded runs, predicted",
            lead=f"{len(errors)} recorded runs of production engines, simulated from kernel times and the engine's "
            "configuration.",
            verdict=[f"{name}: {words(columns['default host time'])}" for name, columns in errors.items()],
            mood="fair",
            sections=sections,
            footer="Made by kvtwin. Recorded times are the engine's own.",
        )
    )
