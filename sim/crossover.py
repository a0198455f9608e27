"""Swap or recompute: one traffic with too little memory, served with every way of preempting, and the sum on paper."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from sim.errors import ConfigError
from sim.report.crossover import Crossing, Way, in_a_line, write_crossing
from sim.report.page import name_of
from sim.units import MS_PER_S, NS_PER_S, PS_PER_S

if TYPE_CHECKING:
    from rich.console import Console

    from sim.record import Result

WAYS = ("recompute", "swap", "auto")
OUTPUT_SHARE = 4  # answers are a quarter of the context: they outgrow the memory while others decode


@dataclass(frozen=True, slots=True)
class SwapOrRecompute:
    """The task ``swap_or_recompute``.

    The scenario's prompts are made to have at most ``context_tokens``, its answers at most a quarter of that, and the
    device is given memory for ``room_sequences`` such prompts: so at every length as many run, and as many are
    preempted, and only what is moved or computed differs.

    Parameters
    ----------
    context_tokens : int
        Longest prompt [tokens].
    room_sequences : int
        Prompts of that length that device memory has room for.
    """

    context_tokens: int = 4096
    room_sequences: int = 12

    def __post_init__(self) -> None:
        if self.context_tokens < 64:
            raise ConfigError(f"task.context_tokens must be >= 64 [tokens], got {self.context_tokens}")
        if self.room_sequences < 2:
            raise ConfigError(f"task.room_sequences must be >= 2 [sequences], got {self.room_sequences}")

    def __call__(self, *, config: Mapping[str, Any], out: Path, console: "Console") -> None:
        """Serve the traffic every way, write ``swap_or_recompute.json`` into ``out``, print a line of the map."""
        from sim.run import run

        sized = self.sized(config)
        results = {
            way: run({**sized, "preemption": {"_target_": f"sim.kv.preemption.{kind}"}}, console=console)
            for way, kind in zip(WAYS, ("Recompute", "Swap", "Cheaper"), strict=True)
        }
        crossing = self.crossing(sized, results)
        write_crossing(crossing, out)
        console.print(in_a_line(crossing), soft_wrap=True)

    def sized(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration with the lengths and the memory of this point."""
        block_tokens = config["cache"].get("block_tokens", 16)
        lengths = {
            "_target_": "scenarios.lengths.Nominal",
            "prompt_tokens": self.context_tokens,
            "output_tokens": self.context_tokens // OUTPUT_SHARE,
            "low_frac": 0.5,
        }
        scenario = config["scenario"]
        if "dialogue" in scenario:
            scenario = {**scenario, "dialogue": {**scenario["dialogue"], "lengths": lengths}}
        else:
            scenario = {**scenario, "lengths": lengths}
        kv_blocks = self.room_sequences * self.context_tokens // block_tokens
        return {**config, "scenario": scenario, "hardware": {**config["hardware"], "kv_blocks": kv_blocks}}

    def crossing(self, config: Mapping[str, Any], results: Mapping[str, "Result"]) -> Crossing:
        """The point of the map."""
        from sim.build import Builder
        from sim.kv.preemption import Estimator

        preempted = {
            request_id for result in results.values() for request_id in result.preemptions.column("request_id").tolist()
        }
        e2el_ms = {way: latencies_ms(result) for way, result in results.items()}
        ways = {way: way_of(result, e2el_ms[way], preempted) for way, result in results.items()}
        made = Builder(config)
        tier = made("tiers").levels[0]
        read_bytes_per_s, _ = tier.rates_of(made.hardware.n_devices)
        cache = config["cache"]
        block_tokens = cache["block_tokens"]
        estimator = Estimator(made.cost, made.scheduler.most_tokens)
        n_moved = (self.context_tokens - 1) // block_tokens * block_tokens  # full blocks, all but the last token
        n_bytes = n_moved * results["swap"].kv_bytes_per_token
        compute_s = estimator.computing_ps(0, self.context_tokens, None) / PS_PER_S
        rest_s = estimator.computing_ps(n_moved, self.context_tokens, None) / PS_PER_S
        fixed_s = tier.latency_s + -(-n_moved // cache.get("chunk_tokens", 256)) * tier.piece_s + rest_s
        return Crossing(
            name_of(config),
            self.context_tokens,
            read_bytes_per_s,
            fixed_s + n_bytes / read_bytes_per_s,
            compute_s,
            n_bytes / (compute_s - fixed_s) if compute_s > fixed_s else None,
            ways["recompute"],
            ways["swap"],
            ways["auto"],
            _error_frac(e2el_ms, preempted),
            _error_frac(e2el_ms, set(e2el_ms["swap"])),
        )


def latencies_ms(result: "Result") -> dict[int, float]:
    """From arrival to the last token, by request [ms]."""
    requests = result.requests
    e2el_ms = (requests.column("finish_ns") - requests.column("arrival_ns")) * (MS_PER_S / NS_PER_S)
    return dict(zip(requests.column("id").tolist(), e2el_ms.tolist(), strict=True))


def way_of(result: "Result", e2el_ms: Mapping[int, float], preempted: set[int]) -> Way:
    """What came out one way."""
    return Way(
        mean([e2el_ms[i] for i in preempted]) if preempted else None,
        mean(e2el_ms.values()),
        len(result.preemptions),
        int(result.preemptions.column("is_swap").sum()),
    )


def _error_frac(e2el_ms: Mapping[str, Mapping[int, float]], of: set[int]) -> float | None:
    """Standard error of the change by swapping, request by request, as a share of the latency without."""
    if len(of) < 2:
        return None
    swap, recompute = e2el_ms["swap"], e2el_ms["recompute"]
    return stdev(swap[i] - recompute[i] for i in of) / sqrt(len(of)) / mean(recompute[i] for i in of)
