"""Predict a recorded run: the same requests, the engine's own configuration, a profile of its device's kernels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from calibration.engine_run import EngineRun, Recorded
from calibration.fit import fit_profile, write_profile
from calibration.importers.llmservingsim import import_llmservingsim, model_key
from calibration.measurements import csv_bytes
from sim.build import Builder
from sim.config import compose, conf_dir, make
from sim.cost.calibrated import CalibratedOperations
from sim.cost.dense import all_reduce_curve
from sim.cost.host import HostCost
from sim.cost.iteration import IterationCost
from sim.cost.operations import DecodeCurve, FusedAttention, Operations
from sim.cost.roofline import Roofline, gathered_as, interconnect_words, n_all_reduces
from sim.errors import ConfigError, ProfileError, TraceError
from sim.kv.capacity import KVCapacity
from sim.profile import (
    KernelProfile,
    device_profiles,
    is_of,
    nearest_version,
    read_profile,
    shipped_profiles,
)
from sim.record import Ints, Result, Table
from sim.run import run
from sim.spec import ACTIVATION_BYTES, HardwareSpec, ModelSpec
from sim.step import Chunks
from sim.units import GIB

N_NULL_BLOCKS = 1
CAPACITY_TOLERANCE_FRAC = 0.05  # between the derived KV capacity and the engine's own, beyond which we warn


def kernels_of(recorded: EngineRun, cache: Path, say: Any = print, hardware: str | None = None) -> KernelProfile | None:
    """The profile of the kernel times beside a run: the shipped one if it was fitted to them, else fitted now.

    Without kernel times beside it, a shipped profile of the run's device is taken, of its model or of any; without one,
    none: times are those of the device's data sheet, and that is said. A run that names no device is of the one chosen
    with ``hardware``.

    Raises
    ------
    ProfileError
        If the kernel times are not those of the run's model or device, or nothing names a device.
    """
    degree = recorded.settings.tensor_parallel
    if not recorded.profile_path.is_dir():
        device = recorded.settings.device or (_device(_choice("hardware", hardware)) if hardware else None)
        if device is None:
            raise ProfileError(
                f"{recorded.profile_path}: missing, and the run names no device: give hardware=, one of "
                f"{', '.join(names('hardware'))}"
            )
        if fitting := [profile for profile in device_profiles(device) if _is_subject(profile, recorded)]:
            profile = nearest_version(fitting, recorded.settings.vllm_version)
            say(f"no kernel times beside the run: taking {profile.name}, of vLLM {profile.provenance.get('vllm')}")
            return profile
        say(
            f"no kernel times beside the run, and no profile of {recorded.settings.model} with tensor_parallel "
            f"{degree} on {device}: its data sheet's times, of kernels as efficient as an H200's (cost=roofline)"
        )
        return None
    measured = import_llmservingsim(recorded.profile_path, degree)
    if (device := recorded.settings.device) is not None and hardware is None and not is_of(measured.device, device):
        raise ProfileError(
            f"{recorded.profile_path}: measured on {measured.device!r}, the run is of {device!r}; give hardware= to "
            "take them all the same"
        )
    measured = replace(measured, sha256=sha256(csv_bytes(measured.rows)).hexdigest())
    fitted_before = cache / f"{measured.sha256[:16]}.json"
    for path in (*shipped_profiles().values(), *([fitted_before] if fitted_before.is_file() else [])):
        profile = read_profile(path)
        if profile.provenance.get("measurements_sha256") == measured.sha256 and profile.device == measured.device:
            break
    else:
        say(f"fitting {len(measured.rows)} kernel times of {measured.device}")
        write_profile(fit_profile(measured, compare=False, say=lambda _: None), fitted_before)
        profile = read_profile(fitted_before)
    if not _is_subject(profile, recorded):
        raise ProfileError(
            f"{recorded.profile_path}: measured {profile.subject.get('model')}, the run is of {recorded.settings.model}"
        )
    return profile


def _is_subject(profile: KernelProfile, recorded: EngineRun) -> bool:
    """Whether a profile is of the run's model and degree, or of any."""
    settings, subject = recorded.settings, profile.subject
    return not subject or (
        model_key(subject.get("model", "")) == model_key(settings.model)
        and subject.get("tensor_parallel") == settings.tensor_parallel
    )


def configuration(
    recorded: EngineRun, profile: KernelProfile | None, hardware: str | None = None, frontend: str | None = None
) -> dict[str, Any]:
    """The simulator's configuration of the engine that was recorded.

    Raises
    ------
    ConfigError
        If its model or device has no data sheet here; names those that have.
    """
    settings = recorded.settings
    device = settings.device or (profile.device if profile else None)
    model = _choice("model", model_key(settings.model))
    if hardware is None and device is not None:
        hardware = next((name for name in names("hardware") if is_of(_device(name), device)), None)
    if hardware is None:
        raise ConfigError(f"no data sheet of {device!r} in conf/hardware, there are {', '.join(names('hardware'))}")
    overrides = [
        f"engine={engine_of(settings.vllm_version)}",
        f"model={model}",
        f"model.weight_dtype={settings.weight_dtype}",
        f"model.kv_dtype={settings.kv_dtype}",
        f"hardware={hardware}",
        f"hardware.tensor_parallel={settings.tensor_parallel}",
        f"hardware.memory_utilization_frac={settings.memory_utilization_frac}",
        f"hardware.counts_graphs={str(settings.counts_graphs).lower()}",
        "cost=roofline",  # for its host and graphs: the predictor brings operations, which may be another device's
        f"cost.host.scheduling={'async' if settings.is_async else 'sync'}",
        "batching=chunked",
        f"batching.plans_ahead={str(settings.is_async).lower()}",
        f"batching.long_prefill_token_threshold={settings.long_prefill_tokens}",
        "cache=paged",
        f"cache.block_tokens={settings.block_tokens}",
        f"cache.prefix_caching={str(settings.has_prefix_caching).lower()}",
        f"cache.watermark={settings.watermark_frac}",
        f"cache.reserves_prompt={str(settings.reserves_prompt).lower()}",
        f"replicas={settings.data_parallel}",
        "router=least_loaded",
        "slo=none",
    ]
    if frontend is not None:
        overrides.append(f"frontend={frontend}")
    for key, value in (
        ("batching.max_num_seqs", settings.max_num_seqs),
        ("batching.max_num_batched_tokens", settings.max_num_batched_tokens),
        ("cost.capture_sizes", None if settings.capture_sizes is None else list(settings.capture_sizes)),
    ):
        if value is not None:
            overrides.append(f"{key}={value}")
    if settings.max_model_len is not None:
        overrides.append(f"model.max_len={settings.max_model_len}")
    if settings.device_memory_bytes is not None:
        overrides.append(f"hardware.device.memory_gib={settings.device_memory_bytes / GIB}")
    return compose(overrides)


def engine_of(version: str) -> str:
    """The file in conf/engine of the newest vLLM that is no newer than a recorded one, else the oldest.

    A version that is none, a nightly build, is taken for the newest. Where a switch came between two of the files, the
    recorded settings say so, or their defaults by version (`engine_settings`).
    """
    engines = sorted((_version(name.removeprefix("vllm-")) or NEWEST, name) for name in names("engine"))
    asked = _version(version) or NEWEST
    return next((name for known, name in reversed(engines) if known <= asked), engines[0][1])


NEWEST = (1 << 30, 0)


def _version(text: str) -> tuple[int, int] | None:
    """Major and minor of a version, None if it is not one."""
    parts = text.removeprefix("v").split(".")[:2]
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 and all(part.isdecimal() for part in parts) else None


def names(group: str) -> list[str]:
    """Choices of a group."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _choice(group: str, name: str) -> str:
    if name not in names(group):
        raise ConfigError(f"no data sheet of {name!r} in conf/{group}, there are {', '.join(names(group))}")
    return name


def _device(hardware: str) -> str:
    import yaml  # type: ignore[import-untyped]

    content = yaml.safe_load((conf_dir() / "hardware" / f"{hardware}.yaml").read_text(encoding="utf-8"))
    return str(content["device"]["name"])


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the simulation says of a run's requests, in their order [ns]; and everything else it left."""

    queued_ns: Ints
    first_token_ns: Ints
    last_token_ns: Ints
    result: Result


class RankOperations:
    """Operations of one tensor-parallel rank measured alone: what it waits for of the others is added.

    All-reduces of hidden states and the gathering of logits, over the interconnect: as measured between such devices
    where the profile has it, else by the data sheet.
    """

    def __init__(self, profile: KernelProfile, model: ModelSpec, hardware: HardwareSpec) -> None:
        degree = hardware.tensor_parallel
        self.alone = alone = CalibratedOperations(profile, model, hardware.device, degree)
        self.provenance, self.is_fused = alone.provenance, alone.is_fused
        self.n_launches, self.ranges, self.asked = alone.n_launches, alone.ranges, alone.asked
        self.prefill_attention_s, self.fused_attention_s = alone.prefill_attention_s, alone.fused_attention_s
        self.decode_attention, self.copy_s = alone.decode_attention, alone.copy_s
        self._model, self._has_ranks = model, degree > 1
        self._all_reduce_s: Callable[[float], float] = Roofline(
            model, hardware.device, degree, peer_to_peer=hardware.peer_to_peer
        ).all_reduce_s
        if self._has_ranks and hardware.peer_to_peer and "all_reduce" in profile.operations:
            measured = all_reduce_curve(profile.operations, degree, 0.0)
            assert measured is not None, "there are ranks"
            self._all_reduce_s = measured
        elif words := interconnect_words(hardware.device, degree, hardware.peer_to_peer):
            self.provenance |= {"interconnect": words}

    @property
    def extrapolated_runs(self) -> int:
        """Iterations with chunks outside the range the profile was fitted in."""
        return self.alone.extrapolated_runs

    def dense_s(self, n_tokens: int) -> float:
        """All layers on ``n_tokens`` tokens, all-reduces included [s]."""
        seconds = self.alone.dense_s(n_tokens)
        if self._has_ranks:
            n_bytes = n_tokens * self._model.d_model * ACTIVATION_BYTES
            seconds += n_all_reduces(self._model) * self._all_reduce_s(n_bytes)
        return seconds

    def sequences_s(self, n_seqs: int) -> float:
        """lm_head, sampler, and between them the logits of all ranks gathered [s]."""
        seconds = self.alone.sequences_s(n_seqs)
        if self._has_ranks:
            seconds += self._all_reduce_s(gathered_as(n_seqs, self._model))
        return seconds


class Scaled:
    """Operations that take a multiple of what others do: to see what hangs on a few percent of an iteration."""

    def __init__(self, operations: Operations, factor: float) -> None:
        self._operations, self._factor = operations, factor
        self.n_launches = getattr(operations, "n_launches", 0)
        self.is_fused = bool(getattr(operations, "is_fused", False))

    def dense_s(self, n_tokens: int) -> float:
        """All layers but attention [s]."""
        return self._factor * self._operations.dense_s(n_tokens)

    def sequences_s(self, n_seqs: int) -> float:
        """lm_head and sampler [s]."""
        return self._factor * self._operations.sequences_s(n_seqs)

    def prefill_attention_s(self, chunks: Chunks) -> float:
        """Attention of chunks [s]."""
        return self._factor * self._operations.prefill_attention_s(chunks)

    def fused_attention_s(self, chunks: Chunks, batch: int, context_tokens: int, longest_tokens: int) -> float:
        """Attention of chunks and decoding sequences in one launch [s]."""
        assert isinstance(self._operations, FusedAttention), "asked only where is_fused"
        return self._factor * self._operations.fused_attention_s(chunks, batch, context_tokens, longest_tokens)

    def decode_attention(self, batch: int) -> DecodeCurve:
        """Attention of decoding sequences."""
        curve = self._operations.decode_attention(batch)
        seconds = tuple(self._factor * s for s in curve.seconds)
        return curve._replace(seconds=seconds, skew_s=self._factor * curve.skew_s)

    def copy_s(self, moved_bytes: float, host_bytes: float) -> float:
        """Copies [s]."""
        return self._factor * self._operations.copy_s(moved_bytes, host_bytes)


@dataclass(frozen=True, slots=True)
class Predictor:
    """Simulates one recorded run under any host time; the kernels' tables are made once."""

    recorded: EngineRun
    config: Mapping[str, Any]
    operations: Operations
    derived: KVCapacity

    def __call__(self, host: HostCost, factor: float = 1.0) -> Predicted:
        """Simulate, the device's times multiplied by ``factor``.

        Raises
        ------
        TraceError
            If the simulation refuses requests that the engine served.
        """
        operations = self.operations if factor == 1.0 else Scaled(self.operations, factor)
        sizes = self.recorded.settings.capture_sizes
        cost = IterationCost(operations, host, self.config["cost"]["capture_sizes"] if sizes is None else sizes)
        result = run(self.config, Recorded(self.recorded), cost=cost)
        if result.refusals:
            number, reason = next(iter(result.refusals.items()))
            raise TraceError(f"{self.recorded.path}: request {number} was served, but is refused here: {reason}")
        order = np.argsort(result.requests.column("id"))
        arrival, first, last = (
            result.requests.column(name)[order].copy() for name in ("arrival_ns", "first_token_ns", "finish_ns")
        )
        replica = result.requests.column("replica")[order]
        queued = arrival.copy()
        for index in np.unique(replica):
            mine = replica == index
            queued[mine] = queued_ns(arrival[mine], result.iterations, int(index))
        if self.recorded.is_clients:
            added_ns = make(self.config["frontend"], "frontend").added_ns
            return Predicted(arrival, first + added_ns, last + added_ns, result)
        return Predicted(queued, first, last, result)

    def host(self, **terms: float) -> HostCost:
        """Host time with the given terms and no others."""
        how = "async" if self.recorded.settings.is_async else "sync"
        return HostCost(**({"base_s": 0.0, "per_seq_s": 0.0} | terms), scheduling=how)

    def default_host(self) -> HostCost:
        """The documented default, of ``conf/cost/calibrated.yaml``."""
        host: HostCost = make(self.config["cost"]["host"], "cost.host")
        return host


def predictor(
    recorded: EngineRun,
    profile: KernelProfile | None,
    hardware: str | None = None,
    peer_to_peer: bool = True,
    frontend: str | None = None,
) -> Predictor:
    """Put together what simulates a run; without a profile, from the data sheet.

    The KV capacity is derived from data sheets, or from the blocks or bytes that the engine was given; where the engine
    reported its own, that one is simulated with, so that an error of the derivation is seen as such and not as one of
    the engine's times. One of its blocks holds nobody's KV: vLLM keeps it for positions that need none
    (``null_block``, vllm/v1/core/block_pool.py).
    """
    config, settings = configuration(recorded, profile, hardware, frontend), recorded.settings
    config["hardware"]["peer_to_peer"] = peer_to_peer
    made = Builder(config)
    derived = made.capacity()
    n_blocks = settings.given_blocks
    if n_blocks is None and settings.kv_memory_bytes is not None:
        n_blocks = int(settings.kv_memory_bytes // (derived.block_tokens * derived.bytes_per_token))
    if n_blocks is not None:
        derived = replace(derived, n_blocks=n_blocks, is_given=True)
    n_blocks = settings.reported_blocks or derived.n_blocks
    if n_blocks <= N_NULL_BLOCKS:
        raise TraceError(f"{recorded.path / 'meta.json'}: {n_blocks} KV blocks leave none to use")
    config["hardware"]["kv_blocks"] = n_blocks - N_NULL_BLOCKS
    degree = made.hardware.tensor_parallel
    operations: Operations
    if profile is None:
        operations = Roofline(made.model, made.hardware.device, degree, peer_to_peer=peer_to_peer)
    elif profile.subject:
        operations = RankOperations(profile, made.model, made.hardware)
    else:  # of any model: all-reduces are among its operations
        operations = CalibratedOperations(profile, made.model, made.hardware.device, degree, None, peer_to_peer)
    return Predictor(recorded, config, operations, derived)


def queued_ns(arrival_ns: Ints, iterations: Table, replica: int = 0) -> Ints:
    """When the engine's loop takes a request into its queue: at the end of the iteration it arrives in, or at once.

    This is what vLLM records as ``queued_ts``: its core reads its inbox between iterations.
    """
    rows = iterations.rows()[iterations.column("replica") == replica]
    name = {column: i for i, column in enumerate(iterations.columns)}
    n_steps, start = rows[:, name["n_steps"]], rows[:, name["start_ns"]]
    row_of = np.repeat(np.arange(len(rows)), n_steps)
    k = np.arange(len(row_of)) - np.repeat(np.cumsum(n_steps) - n_steps, n_steps)
    first, growth, carry = (rows[row_of, name[c]] for c in ("first_ps", "growth_ps", "carry_ps"))
    starts = start[row_of] + (carry + k * first + k * (k - 1) // 2 * growth) // 1000
    ends = start[row_of] + (carry + (k + 1) * first + k * (k + 1) // 2 * growth) // 1000
    i = np.searchsorted(starts, arrival_ns, side="left") - 1  # the last one to start before it
    is_busy = (i >= 0) & (ends[np.maximum(i, 0)] >= arrival_ns)
    queued: Ints = np.where(is_busy, ends[np.maximum(i, 0)], arrival_ns)
    return queued
