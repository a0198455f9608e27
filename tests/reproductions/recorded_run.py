"""A recorded run of a production engine, predicted request by request."""

from pathlib import Path

from calibration.comparison import Line, compare
from calibration.engine_run import read_engine_run
from calibration.host_time import first_third, learn_host
from calibration.prediction import kernels_of, predictor
from tests.reproductions.row import Reproduction, Row, Skipped

RUN = Path("../shared/data/engine_runs/rtxpro6000_llama-3.1-8b_vllm-0.19")
SOURCE = "vLLM 0.19 on an RTX PRO 6000, Llama-3.1-8B, 300 ShareGPT requests at 10/s; recorded by LLMServingSim"
TITLES = {
    "kernels alone": "Recorded engine run, predicted from kernel times alone",
    "learnt": "Recorded engine run, last two thirds, host time learnt from the first",
}


def reproductions() -> list[Reproduction]:
    """Every mean within 5 %, every percentile within 8 %."""
    if not RUN.exists():
        return [Reproduction(title, SOURCE, Skipped(f"{RUN} is not there")) for title in TITLES.values()]
    run = read_engine_run(RUN)
    predict = predictor(run, kernels_of(run, Path("outputs/validate")))
    lines = {
        "kernels alone": compare(run, predict(predict.host())),
        "learnt": compare(run, predict(learn_host(predict)), ~first_third(run)),
    }
    return [Reproduction(TITLES[name], SOURCE, [row(line) for line in lines[name]]) for name in TITLES]


def row(line: Line) -> Row:
    """A statistic, its recorded value, ours, and what they may differ by."""
    what = f"{line.metric.upper()} {line.statistic} [{line.unit}]"
    return Row(what, line.real, line.simulated, line.tolerance_frac * line.real, f"{line.error_frac:+.1%}")
