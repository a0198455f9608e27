"""The composition root: what a configuration builds, and what a user sees who gets it wrong."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import sim
from sim.command import help_text, main
from sim.config import compose, conf_dir
from sim.errors import ConfigError
from sim.run import run
from sim.sequence import Sequence

SMALL = ["scenario=chatbot", "scenario.n_sessions=20"]


def cli(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sim", *arguments, f"hydra.run.dir={folder / 'run'}"])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["scenario.ratee=3"], "scenario.ratee is not a setting; did you mean scenario.rate?"),
        (["+scenario.ratee=3"], "scenario.ratee is not a setting; did you mean scenario.rate?"),
        (["+sead=3"], "sead is not a setting; did you mean seed?"),
        (["cache=pagd"], "cache=pagd is not a choice; did you mean paged?"),
        (["scenario.rate=-1"], "scenario.rate must be"),
        (["scenario.rate=nan"], "scenario.rate must be"),
        (["scenario.rate=fast"], "scenario.rate must be a number, got 'fast'"),
        (["replicas=0"], "replicas must be a whole number from 1 to 4096, got 0"),
        (["seed=x"], "seed must be a whole number from 0 to"),
        (["cache.block_tokens=12"], "cache.block_tokens must be a power of two"),
        (
            ["batching.max_num_batched_tokens=8", "batching.max_num_seqs=9"],
            "batching.max_num_batched_tokens must be >= batching.max_num_seqs",
        ),
        (["scenario=replay"], "scenario.path must be given"),
        (["scenario=replay", "scenario.path=no/such/file.csv"], "no/such/file.csv"),
        (["model=llama-3.1-70b"], "model=llama-3.1-70b (bf16 weights) does not fit hardware=NVIDIA H200 SXM"),
        (["slo.ttft_ms=-5"], "slo.ttft_ms must be"),
        (["model=null"], "model must be one of codellama-34b, deepseek-r1, "),
        (["tiers=3"], "tiers must be one of dram, dram_nvme, remote, got 3"),
        (["out=x"], "out is not a setting; did you mean hydra.run.dir?"),
        (["cache=streaming", "cache.window=3"], "cache.window is not a setting; did you mean cache.retention.window?"),
        (["cache.window_tokens=3"], "cache.window_tokens is not a setting; did you mean cache.block_tokens?"),
        (["tiers.levels.0.capacty_gib=3"], "did you mean tiers.levels.0.capacity_gib?"),
        (["tiers.levels.2.capacity_gib=3"], "tiers.levels.2 is not a setting; known here: 0, 1"),
        (["tiers.levels.nvme.capacity_gib=3"], "tiers.levels.nvme is not a setting; known here: 0, 1"),
        (["tiers.levels.0.eviction.foo=3"], "tiers.levels.0.eviction.foo is not a setting; known here: nothing"),
        (["slo.classes.code.ttft=9"], "slo.classes.code.ttft is not an objective"),
        (["seed.x=3"], "seed is a single value, it has no x"),
        (["experiment=swap_or_recompute", "scenario=chatbot"], "does not have; it is made for scenario=benchmark"),
        (["experiment=swap_or_recompute", "~scenario._target_"], "scenario._target_ must be given"),
        (["cache.block_tokens=0"], "cache.block_tokens must be >= 1 [tokens], got 0"),
        (["batching.max_num_batched_tokens=nan"], "batching.max_num_batched_tokens must be a whole number, got nan"),
        (["trusted_packages=os"], "trusted_packages must be a list of names, got 'os'"),
        (["scenario.rate=1e-300"], "would arrive after 146 years"),
        ([*SMALL, "cost=roofline", "hardware.device.bandwidth_bytes_per_s=1"], "1000 at most can be counted"),
        ([*SMALL, "cost.host.base_s=1e6"], "1000 at most can be counted"),
        (["replicas=100000"], "replicas must be a whole number from 1 to 4096, got 100000"),
        (["task=describe", "task.per_token_s=nan"], "task.per_token_s must be a finite number >= 0 [s], got nan"),
        (["scenario.rati=3", "output=x"], "scenario.rati is not a setting; did you mean scenario.rate?"),
        (["slo.classes={code:9}"], "slo.classes.code must be values by name, got 9"),
        (["foo"], "'foo' is not of the form key=value"),
        (["=3"], "'=3' is not of the form key=value"),
        (["scenario.rate=ü"], "scenario.rate must be a number, got 'ü'"),
        (["slo.classes=3"], "slo.classes must be values by name, got 3"),
        (["hardware.device.peak_flops=3"], "hardware.device.peak_flops must be values by name"),
        (["hardware.device=3"], "hardware.device must be a part with a _target_ of its own, got 3"),
        (["cost.capture_sizes=[1,two]"], "cost.capture_sizes.1 must be a whole number, got 'two'"),
        (["tiers.levels=3"], "tiers.levels must be a list, got 3"),
        (["scenario._target_=sim.nope.Thing"], "scenario._target_ names nothing that exists, got 'sim.nope.Thing'"),
        (["cache._target_=sim.kv.paged.PagedCach"], "did you mean sim.kv.paged.PagedCache?"),
        (["hardware.kv_blocks=99999999999999999999999"], "hardware.kv_blocks must fit 64 bits"),
        (["~seed"], "seed must be given, it was taken out of the configuration"),
        (["~preemption"], "preemption must be given, it was taken out of the configuration"),
        (["~scenario"], "scenario must be given, it was taken out of the configuration"),
        (["~scenario.rate"], "scenario.rate must be given"),
        (["cache=[paged,static]"], "cache must be the name of one file in conf/cache/; -m cache=A,B compares two"),
        (["replicas=null"], "replicas must be a whole number from 1 to 4096, got null"),
        (["scenario=replay", "scenario.path=/tmp"], "/tmp: is a folder, not a file"),
        (["scenario=replay", "scenario.path=/dev/null"], "/dev/null: is a device, not a file"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2_and_leaves_nothing(
    arguments: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    code = cli(monkeypatch, tmp_path, *arguments)

    printed = capfd.readouterr()
    assert code == 2
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("kvtwin: ")
    assert expected in printed.err
    assert not list(tmp_path.rglob("*.*"))


def test_objectives_may_be_of_a_trusted_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "objectives_of_ours.py").write_text("from sim.metrics import Slo as Ours")
    monkeypatch.syspath_prepend(tmp_path)

    code = cli(
        monkeypatch, tmp_path, *SMALL, "slo._target_=objectives_of_ours.Ours", "trusted_packages=[objectives_of_ours]"
    )

    assert code == 0
    assert (tmp_path / "run" / "manifest.json").exists()


def test_parts_of_ones_own_need_no_more_than_to_keep_the_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    import own_parts

    overrides = ["scenario=synthetic", "scenario.rate=40", "scenario.n_requests=400", "hardware.kv_blocks=150"]
    result = run({**compose(overrides), **own_parts.PARTS})

    assert len(result.requests) == 400
    assert len(result.preemptions), "memory was short"
    assert result.iterations.column("first_ps").min() == 9_000_000_000
    assert not any(result.requests.column("id") % 2 - result.requests.column("replica"))


def test_a_place_nobody_can_write_to_is_found_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("a file")

    code = cli(monkeypatch, tmp_path, *SMALL)

    assert code == 2
    assert capfd.readouterr().err.startswith("kvtwin: hydra.run.dir must be a folder to write to, got ")


@pytest.mark.parametrize(
    ("arguments", "n_lines", "expected"),
    [
        (["cache=static,nonsense"], 1, "cache=nonsense is not a choice"),
        (["cache=static,paged", "scenario.ratee=3"], 1, "scenario.ratee is not a setting"),
        (["scenario.rate=-1,-2"], 2, "job 1: scenario.rate must be a finite number > 0, got -2"),
        (["cache="], 1, "cache= is not a choice"),
        (["scenario.rate=range(5,1)"], 1, "nothing to sweep over in -m scenario.rate=range(5,1): give values"),
    ],
)
def test_a_sweep_none_of_whose_points_ran_leaves_nothing(
    arguments: list[str],
    n_lines: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)

    code = cli(monkeypatch, tmp_path, "-m", *arguments)

    printed = capfd.readouterr()
    assert code == 2
    assert printed.err.count("\n") == n_lines, printed.err
    assert expected in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_goes_on_after_a_point_that_cannot_be_and_compares_the_others(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    code = cli(monkeypatch, tmp_path, "-m", *SMALL, "cache.block_tokens=12,16,32")

    sweep = next(tmp_path.glob("outputs/*/*-sweep"))
    assert code == 2
    assert "job 0: cache.block_tokens must be a power of two" in capfd.readouterr().err
    points = json.loads((sweep / "points.json").read_text())
    assert [point["error"] and point["error"][:36] for point in points] == [
        "cache.block_tokens must be a power o",
        None,
        None,
    ]
    files = {"compare.html", "compare.json", "compare.csv", "points.json"}
    assert {path.name for path in sweep.iterdir()} == {*files, *(point["folder"] for point in points[1:])}


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    def allow_small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # the report alone takes 5 MB

    done = subprocess.run(
        [sys.executable, "-m", "sim", *SMALL, f"hydra.run.dir={tmp_path / 'run'}"],
        capture_output=True, text=True, preexec_fn=allow_small_files,
    )  # fmt: skip

    assert done.returncode == 2
    assert done.stderr == f"kvtwin: {tmp_path / 'run' / 'report.html'}: File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_a_malformed_row_is_named_by_file_and_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0.0,10,5\n1.0,ten,5\n")

    code = cli(monkeypatch, tmp_path, "scenario=replay", f"scenario.path={trace}")

    assert code == 2
    assert f"{trace}:3" in capfd.readouterr().err


def test_a_request_that_can_never_fit_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0.0,10,5\n0.1,200000,5\n0.2,10,1\n")

    result = sim.simulate("scenario=replay", f"scenario.path={trace}")

    assert result.requests.column("id").tolist() == [0, 2]
    assert result.refused.column("id").tolist() == [1]
    assert "exceed the model's maximum of 131072" in result.refusals[1]


def test_simulating_in_a_notebook_gives_tables_as_pandas() -> None:
    result = sim.simulate(*SMALL, cache="static", seed=3)

    frame = result.requests.frame()
    assert len(frame) >= 20
    assert (frame["finish_ns"] >= frame["first_token_ns"]).all()


def test_the_traffic_is_the_same_whatever_the_cache() -> None:
    static, paged = (sim.simulate(*SMALL, f"cache={cache}") for cache in ("static", "paged"))

    for column in ("prompt_tokens", "output_tokens", "session_id", "turn"):
        a, b = static.requests.frame().sort_values("id"), paged.requests.frame().sort_values("id")
        assert a[column].tolist() == b[column].tolist()


def test_another_seed_brings_other_traffic() -> None:
    one, same, other = (sim.simulate(*SMALL, seed=seed) for seed in (1, 1, 2))

    assert one.requests.rows().tobytes() == same.requests.rows().tobytes()
    assert one.requests.rows().tobytes() != other.requests.rows().tobytes()


@pytest.mark.parametrize("router", ["round_robin", "least_loaded"])
def test_replicas_share_the_traffic(router: str) -> None:
    result = sim.simulate(*SMALL, replicas=3, router=router)

    assert set(result.requests.column("replica").tolist()) == {0, 1, 2}
    assert result.n_devices == 3


def test_given_blocks_replace_the_derived_capacity() -> None:
    result = sim.simulate(*SMALL, "hardware.kv_blocks=1000")

    assert result.capacity_tokens == 16_000


def test_nothing_heavy_is_imported_for_help_or_a_simulation() -> None:
    script = (
        "import sys, sim; sim.simulate('scenario=synthetic', 'scenario.n_requests=5');"
        "print([name for name in ('torch', 'triton', 'pandas', 'plotly', 'scipy.stats', 'sklearn', 'kernels')"
        " if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_help_names_every_choice() -> None:
    text = help_text()

    for path in conf_dir().glob("*/*.yaml"):
        assert path.stem in text


@pytest.mark.parametrize(
    "choice",
    sorted(
        f"{path.parent.name}={path.stem}"
        for group in ("model", "hardware", "batching", "queue", "router", "cost", "eviction", "slo", "preemption")
        for path in (conf_dir() / group).glob("*.yaml")
        if path.stem != "belady"  # it is told the future, which `task=hit_rate` alone knows
    ),
)
def test_every_choice_composes_and_serves(choice: str) -> None:
    extra = ["hardware.tensor_parallel=4", "model.weight_dtype=fp8"] if choice == "model=llama-3.1-70b" else []
    extra += ["hardware.kv_blocks=2000", "scenario.lengths.prompt.high=600"]

    result = sim.simulate("scenario=synthetic", "scenario.n_requests=6", choice, *extra)

    assert len(result.requests) + len(result.refused) == 6


TIGHT = ["scenario=synthetic", "scenario.n_requests=20", "scenario.rate=100", "hardware.kv_blocks=200"]


@pytest.mark.parametrize("cache", ["paged", "hierarchical"])
def test_preemption_does_what_it_is_called(cache: str) -> None:
    swaps = {}
    for preemption in ("recompute", "swap", "auto"):
        result = sim.simulate(*TIGHT, f"cache={cache}", f"preemption={preemption}", "cache.prefix_caching=false")
        assert len(result.preemptions) > 0
        swaps[preemption] = result.preemptions.column("is_swap").tolist()
        assert result.counts[0].get("hit_tokens_dram", 0) == 0, "text that nobody shares"
    assert not any(swaps["recompute"])
    assert all(swaps["swap"])
    assert any(swaps["auto"]), "640 tokens over 50 GB/s take less than computing them"


def test_a_hierarchical_cache_swaps_unless_told_otherwise() -> None:
    assert compose(["cache=hierarchical"])["choices"]["preemption"] == "swap"
    assert compose(["cache=hierarchical", "preemption=recompute"])["choices"]["preemption"] == "recompute"
    assert compose([])["choices"]["preemption"] == "recompute"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["cache=static", "preemption=swap"], "preemption=swap needs blocks that can go down: cache=paged or"),
        (["~tiers", "preemption=auto"], "preemption=auto needs memory below the device: tiers=dram or"),
        (["~tiers", "cache=hierarchical"], "preemption=swap needs memory below the device: tiers=dram or"),
        (["~tiers", "cache=hierarchical", "preemption=recompute"], "cache=hierarchical needs tiers: tiers=dram or"),
        (["eviction=belady"], "eviction=belady must be told the future"),
    ],
)
def test_what_cannot_be_done_is_said(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        sim.simulate(*SMALL, *overrides)


def test_a_run_that_loses_a_request_is_a_bug_that_shows() -> None:
    from sim.errors import InvariantError
    from sim.record import Recorder
    from sim.run import check_conservation

    with pytest.raises(InvariantError, match="3 requests arrived, but 0 were served or refused"):
        check_conservation([], 3, Recorder())


def test_every_run_is_asked_whether_it_lost_a_request_or_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from sim.batching.queue import Fcfs
    from sim.errors import InvariantError
    from sim.kv.paged import PagedCache

    push, release = Fcfs.push, PagedCache.release
    config = compose(SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(Fcfs, "push", lambda queue, one: push(queue, one) if one.request.id != 3 else None)
        with pytest.raises(InvariantError, match=r"requests arrived, but \d+ were served or refused"):
            run(config)

    def forgetful(kv: PagedCache, sequence: Sequence, now_ns: int) -> None:
        if sequence.request.id != 3:
            release(kv, sequence, now_ns)

    monkeypatch.setattr(PagedCache, "release", forgetful)
    with pytest.raises(InvariantError, match=r"still holds [1-9]"):
        run(config)


def test_the_config_is_checked_before_anything_runs() -> None:
    config = compose(SMALL)

    with pytest.raises(ConfigError, match="did you mean seed"):
        run({**config, "sed": 1})
