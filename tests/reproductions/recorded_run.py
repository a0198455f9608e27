"""A recorded run of a production engine, predicted request by request."""

from pathlib import Path

from calibration.comparison import Line, compare
from calibration.engine_run import read_engine_run
from calibration.host_time import first_third, learn_host
from calibration.prediction import kernels_of, predictor
from tests.reproductions.row import Reproduction, Row, Skipped

RUNS = Path("../shared/data/engine_runs")
DEVICES = {"rtxpro6000_llama-3.1-8b_vllm-0.19": "an RTX PRO 6000", "rtx4090_llama-3.1-8b_vllm-0.19": "an RTX 4090"}
SOURCE = "vLLM 0.19 on {device}, Llama-3.1-8B, 300 ShareGPT requests at 10/s; recorded by LLMServingSim"
TITLES = {
    "default": "Recorded engine run on {device}, with the documented host time",
    "learnt": "Recorded engine run on {device}, last two thirds, host time learnt from the first",
}


def reproductions() -> list[Reproduction]:
    """Every mean within 5 %, every percentile within 8 %."""
    made = []
    for name, device in DEVICES.items():
        source, titles = (
            SOURCE.format(device=device),
            {key: title.format(device=device) for key, title in TITLES.items()},
        )
        if not (RUNS / name).exists():
            made += [Reproduction(title, source, Skipped(f"{RUNS / name} is not there")) for title in titles.values()]
            continue
        run = read_engine_run(RUNS / name)
        folder = Path("outputs/validate")
        folder.mkdir(parents=True, exist_ok=True)
        predict = predictor(run, kernels_of(run, folder, lambda _: None))
        lines = {
            "default": compare(run, predict(predict.default_host())),
            "learnt": compare(run, predict(learn_host(predict)), ~first_third(run)),
        }
        made += [Reproduction(titles[key], source, [row(line) for line in lines[key]]) for key in titles]
    return made


def row(line: Line) -> Row:
    """A statistic, its recorded value, ours, and what they may differ by."""
    what = f"{line.metric.upper()} {line.statistic} [{line.unit}]"
    return Row(what, line.real, line.simulated, line.tolerance_frac * line.real, f"{line.error_frac:+.1%}")
