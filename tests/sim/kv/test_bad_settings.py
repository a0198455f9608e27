"""Settings no cache can work with: one line that names the key, the value and the range."""

import sys
from math import inf, nan

import pytest

from sim.command import main
from sim.errors import ConfigError
from sim.run import run, simulate
from tests.sim.kv.composed import configured

TRAFFIC = ("scenario=synthetic",)

BAD = [
    ("streaming", {"cache__retention__window": 2}, r"cache.retention.window must be .* >= cache.retention.sinks \(4\)"),
    ("streaming", {"cache__retention__window": 0}, r"cache.retention.window must be >= 1 .*, got 0"),
    ("streaming", {"cache__retention__sinks": -1}, r"cache.retention.sinks must be >= 0 \[tokens\], got -1"),
    ("streaming", {"cache__retention__overlap": 1020}, r"cache.retention.overlap must be .* < 1020 .*, got 1020"),
    ("streaming", {"cache__retention__overlap": -1}, r"cache.retention.overlap must be null, or >= 0 .*, got -1"),
    ("streaming", {"cache__retention__dynamic": True}, r"cache.retention.overlap must be given .*, got null"),
    (
        "streaming",
        {"cache__retention__dynamic": True, "cache__retention__overlap": 510},
        r"cache.retention.overlap must be .* < 510 \[tokens\], half the window, for it is dynamic, got 510",
    ),
    ("streaming", {"cache__retention__low_frac": 0.95}, r"cache.retention.low_frac and high_frac .* 0.95 and 0.9"),
    ("streaming", {"cache__retention__high_frac": nan}, r"cache.retention.low_frac and high_frac .* got 0.5 and nan"),
    (
        "streaming",
        {"hardware__kv_blocks": 20},
        r"cache.retention.window and sinks must together be <= 320 \[tokens\], .*hardware.kv_blocks.*, got 1024",
    ),
    ("compressed", {"cache__retention__keep_ratio": 0}, r"cache.retention.keep_ratio must be > 0 and <= 1, got 0"),
    (
        "compressed",
        {"cache__retention__keep_ratio": 1.01},
        r"cache.retention.keep_ratio must be > 0 and <= 1, got 1.01",
    ),
    ("compressed", {"cache__retention__keep_ratio": nan}, r"cache.retention.keep_ratio must be > 0 and <= 1, got nan"),
    ("compressed", {"cache__retention__bits": 3}, r"cache.retention.bits must be 2, 4, 8 or 16 \[bits\], got 3"),
    ("compressed", {"cache__retention__every": 0}, r"cache.retention.every must be >= 1 \[tokens\], got 0"),
    ("compressed", {"cache__retention__group": 0}, r"cache.retention.group must be >= 1 \[elements\], got 0"),
    ("dynamic", {"cache__reservation__growth": 0.99}, r"cache.reservation.growth must be >= 1 and finite, got 0.99"),
    ("dynamic", {"cache__reservation__growth": inf}, r"cache.reservation.growth must be >= 1 and finite, got inf"),
    ("dynamic", {"cache__reservation__initial": 0}, r"cache.reservation.initial must be >= 1 \[tokens\], got 0"),
    ("predictive", {"cache__reservation__history": 0}, r"cache.reservation.history must be >= 2, got 0"),
    (
        "predictive",
        {"cache__reservation__history": 10**7},
        r"cache.reservation.history must be <= 1000000 \[turns\], got 10000000",
    ),
    (
        "predictive",
        {"cache__reservation__margin_frac": -0.1},
        r"cache.reservation.margin_frac must be >= 0 .*, got -0.1",
    ),
    (
        "predictive",
        {"cache__reservation__unstable_factor": 0.9},
        r"cache.reservation.unstable_factor must be >= 1 .* 0.9",
    ),
    ("predictive", {"cache__reservation__ahead": -1}, r"cache.reservation.ahead must be >= 0, got -1"),
    ("static", {"cache__max_len": 131_073}, r"cache.max_len must be <= 131072 \[tokens\], the model's maximum, got"),
    ("dynamic", {"cache__max_len": 0}, r"cache.max_len must be >= 1 \[tokens\], got 0"),
    ("static", {"cache__reservation__max_len": 0}, r"cache.reservation.max_len must be >= 1 \[tokens\], got 0"),
    (
        "static",
        {"cache__reservation__max_len": 131_073},
        r"cache.reservation.max_len must be <= 131072 \[tokens\], the model's maximum, got 131073",
    ),
    (
        "static",
        {"hardware__kv_blocks": 100},
        r"cache.max_len must be <= 1024 \[tokens\], the longest extent in 1600 .*, got 131072",
    ),
    (
        "static",
        {"cache__allocator__min_tokens": 3},
        r"cache.allocator.min_tokens must be a power of two >= 1 \[tokens\], got 3",
    ),
    ("paged", {"cache__watermark": 1}, r"cache.watermark must be in \[0, 1\), got 1"),
    ("paged", {"cache__watermark": -0.1}, r"cache.watermark must be in \[0, 1\), got -0.1"),
    *(
        (cache, {"cache__block_tokens": size}, rf"cache.block_tokens must be .*>= 1 \[tokens\], got {size}$")
        for cache in ("paged", "streaming", "compressed", "hierarchical")
        for size in (12, 0, -16)
    ),
    (
        "hierarchical",
        {"tiers__levels__0__read_bytes_per_s": 1e9},
        r"tiers.levels must go from fast to slow: nvme reads 6.5e\+09 B/s, dram above it 1e\+09 B/s",
    ),
    ("hierarchical", {"tiers__levels__1__name": "dram"}, r"tiers.levels must have a name each, got dram twice"),
    (
        "hierarchical",
        {"tiers__levels__0__capacity_gib": 0},
        r"tiers.levels.0.capacity_gib must be > 0 and finite, got 0",
    ),
    (
        "hierarchical",
        {"tiers__levels__0__capacity_gib": 1e-9},
        r"tiers.levels.0.capacity_gib must hold one block of 2097152 bytes, got 1e-09",
    ),
    ("hierarchical", {"tiers__levels": []}, r"tiers.levels must name at least one tier, got none"),
    ("hierarchical", {"cache__write": "sideways"}, r"cache.write must be one of .*, got 'sideways'"),
    ("hierarchical", {"cache__prefetch": -1}, r"cache.prefetch must be >= 0 \[requests\], got -1"),
]


@pytest.mark.parametrize(("cache", "settings", "message"), BAD, ids=lambda value: str(value)[:60])
def test_a_cache_that_cannot_work_is_refused_with_key_value_and_range(cache, settings, message):
    config = configured(*TRAFFIC, f"cache={cache}", **settings)
    with pytest.raises(ConfigError, match=message) as refused:
        run(config)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["cache=streaming", "cache.retention.window=2"], "cache.retention.window must be >= 1 and >= cache.retention"),
        (["cache=static", "hardware.kv_blocks=100"], "cache.max_len must be <= 1024"),
        (["eviction=lruu"], "eviction=lruu is not a choice; did you mean lru?"),
        (["cache=static", "cache.max_lem=512"], "cache.max_lem is not a setting; did you mean cache.max_len?"),
    ],
)
def test_on_the_command_line_that_is_one_line_and_exit_code_2(arguments, expected, monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(sys, "argv", ["sim", *TRAFFIC, *arguments, f"hydra.run.dir={tmp_path / 'run'}"])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capfd.readouterr().err
    assert stopped.value.code == 2
    assert printed.startswith(f"kvtwin: {expected}")
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("cache", "settings"),
    [
        (
            "static",
            {"cache__max_len": 4096},
        ),  # below the model's: the longer are refused one by one
        ("streaming", {"cache__retention__window": 4}),
        ("streaming", {"cache__retention__overlap": 0}),
        ("streaming", {"hardware__kv_blocks": 64}),
        ("compressed", {"cache__retention__keep_ratio": 1.0, "cache__retention__bits": 2}),
        ("dynamic", {"cache__reservation__growth": 1.0, "cache__reservation__initial": 1}),
        ("predictive", {"cache__reservation__history": 2}),
        ("paged", {"cache__block_tokens": 1, "cache__watermark": 0.99}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_last_value_that_is_allowed_serves(cache, settings):
    config = configured(*TRAFFIC, f"cache={cache}", scenario__n_requests=3, **settings)
    assert len(run(config).requests) == 3


@pytest.mark.parametrize("cache", ["static", "dynamic", "predictive"])
def test_extents_are_no_longer_than_asked_and_who_needs_more_is_refused(cache):
    result = simulate(*TRAFFIC, f"cache={cache}", "cache.max_len=700")
    rows = result.requests.frame()
    assert len(result.refused)
    assert len(rows)
    assert (rows.prompt_tokens + rows.output_tokens - 1 <= 700).all()
    assert all("extents have 700 at most" in reason for reason in result.refusals.values())
