"""Every trace format is recognised and read to the token and the nanosecond."""

import gzip
import importlib.util
import os
import sys
from itertools import islice
from pathlib import Path

import pytest

from scenarios.replay import Replay
from scenarios.traces.detect import READERS, detect, rows
from scenarios.traces.row import SECONDS
from scenarios.traces.text import Place
from sim.errors import ConfigError, TraceError
from sim.units import NS_PER_S


def samples():
    path = Path(__file__).with_name("trace_samples.py")
    spec = importlib.util.spec_from_file_location("trace_samples", path)
    module = sys.modules.setdefault("trace_samples", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module.SAMPLES


SAMPLES = samples()
UNTIMED = {"lengths", "claude_code", "sharegpt", "prompts"}
FROM_THE_FIRST = ["azure", "vllm", "aiperf", "guidellm", "inference_perf", "otel"]
TIMED = sorted(set(SAMPLES) - UNTIMED - set(FROM_THE_FIRST))


@pytest.fixture
def file(tmp_path):
    def written(text, name="trace.txt"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return written


def test_every_reader_has_a_sample():
    assert set(SAMPLES) == set(READERS)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_format_is_recognised_by_its_first_line(name, file):
    assert detect(file(SAMPLES[name])) == name


@pytest.mark.parametrize("name", SAMPLES)
def test_answers_are_read_in_order(name, file):
    outputs = [row.output_tokens for row in rows(file(SAMPLES[name]))]

    assert outputs == ([5, 6, 7] if name == "claude_code" else [1, 2, 3])


@pytest.mark.parametrize("name", TIMED)
def test_arrivals_are_read_to_the_nanosecond(name, file):
    arrivals = [row.arrival_ns for row in rows(file(SAMPLES[name]))]

    assert arrivals == [500_000_000, 1_250_000_000, 3_000_000_000]


@pytest.mark.parametrize("name", FROM_THE_FIRST)
def test_absolute_times_start_with_the_first_request(name, file):
    assert [row.arrival_ns for row in rows(file(SAMPLES[name]))] == [0, 750_000_000, 2_500_000_000]


@pytest.mark.parametrize("name", SAMPLES)
def test_gzip_byte_order_mark_and_windows_lines_change_nothing(name, file):
    plain = list(rows(file(SAMPLES[name])))

    assert list(rows(file(gzip.compress(SAMPLES[name].encode())))) == plain
    assert list(rows(file(b"\xef\xbb\xbf" + SAMPLES[name].encode()), name)) == plain
    assert list(rows(file(SAMPLES[name].replace("\n", "\r\n")))) == plain


@pytest.mark.parametrize("name", [n for n in SAMPLES if SAMPLES[n].count("\n") == 4 and SAMPLES[n][0] not in "{["])
def test_columns_may_stand_in_any_order_and_in_quotes(name, file):
    header, *lines = [line.split(",") for line in SAMPLES[name].splitlines()]
    turned = "\n".join(",".join(f'"{cell}"' for cell in reversed(line)) for line in (header, *lines))

    assert [row[:3] for row in rows(file(turned))] == [row[:3] for row in rows(file(SAMPLES[name]))]


def test_azure_2024_times_carry_their_zone(file):
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 23:59:59.999999+00:00,1,1\n2024-05-11 00:00:00+00:00,2,2\n"
    )

    assert [row.arrival_ns for row in rows(file(text))] == [0, 1000]


def test_mooncake_blocks_become_segments_the_last_one_partial(file):
    first, second, third = rows(file(SAMPLES["mooncake"]))

    assert first.content == ((0, 512), (1, 88))
    assert second.content == ((0, 512), (2, 512), (3, 76))
    assert third.content == ((4, 30),)


def test_bailian_chats_belong_to_the_session_of_their_root(file):
    found = list(rows(file(SAMPLES["bailian"])))

    assert [row.session_id for row in found] == [7, 9, 7]
    assert [row.turn for row in found] == [1, 1, 2]
    assert found[2].content == ((0, 16), (1, 16), (2, 8))


def test_burstgpt_version_3_has_sessions(file):
    text = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type,Session ID,Elapsed time\n"
        "1,m,10,1,11,x,abc,0.5\n2,m,10,2,12,x,def,0.5\n3,m,10,3,13,x,abc,0.5\n"
    )

    found = list(rows(file(text)))

    assert [(row.session_id, row.turn) for row in found] == [(0, 0), (1, 0), (0, 1)]


def test_agents_requests_share_blocks_with_their_parents(file):
    root, child, branch = rows(file(SAMPLES["claude_code"]))

    assert root.content == ((0, 200),)
    assert child.content == ((0, 192), (1, 108))
    assert branch.content == ((0, 64), (2, 86))


def test_a_copied_session_is_left_out(file):
    text = SAMPLES["claude_code"] + SAMPLES["claude_code"].replace('"dup_of": null', '"dup_of": "t1"')

    assert len(list(rows(file(text)))) == 3


def replay(path, **settings):
    return list(Replay(path, **settings).requests(0))


def test_rate_scale_sends_the_same_requests_faster(file):
    path = file(SAMPLES["csv"])

    scaled = replay(path, rate_scale=2.0)

    assert [r.arrival_ns for r in scaled] == [250_000_000, 625_000_000, 1_500_000_000]
    assert [r[2:] for r in scaled] == [r[2:] for r in replay(path)]


def test_time_range_and_limit_select_rows(file):
    path = file(SAMPLES["csv"])

    assert [(r.id, r.arrival_ns, r.prompt_tokens) for r in replay(path, time_range=[1.0, 3.0])] == [
        (0, 250_000_000, 20)
    ]
    assert [r.prompt_tokens for r in replay(path, limit=2)] == [10, 20]
    assert [r.prompt_tokens for r in replay(path, time_range=[1.0, 9.0], limit=1)] == [20]


def test_shuffle_deals_the_same_requests_over_the_same_times(file):
    lines = "".join(f"{k},{k + 1},1\n" for k in range(200))
    path = file("arrival_s,prompt_tokens,output_tokens\n" + lines)

    plain, dealt = replay(path), replay(path, shuffle=True)

    assert [r.arrival_ns for r in dealt] == [r.arrival_ns for r in plain]
    assert sorted(r.prompt_tokens for r in dealt) == [r.prompt_tokens for r in plain]
    assert [r.prompt_tokens for r in dealt] != [r.prompt_tokens for r in plain]
    assert dealt == replay(path, shuffle=True)


def test_rows_out_of_order_are_an_error_unless_sorted(file):
    path = file("arrival_s,prompt_tokens,output_tokens\n5,1,1\n3,2,2\n")

    with pytest.raises(TraceError, match=r"trace\.txt:3: arrives 2\.0 s before the row above it"):
        replay(path)
    assert [r.prompt_tokens for r in replay(path, sort=True)] == [2, 1]


def test_rows_without_an_answer_are_an_error_unless_skipped(file):
    path = file("arrival_s,prompt_tokens,output_tokens\n1,5,0\n3,2,2\n")

    with pytest.raises(TraceError, match=r"trace\.txt:2: must have at least 1 token .*, got 5 and 0"):
        replay(path)
    assert [r.prompt_tokens for r in replay(path, skip_empty=True)] == [2]


def test_max_output_tokens_never_cuts_an_answer(file):
    assert [r.max_output_tokens for r in replay(file(SAMPLES["csv"]), max_output_tokens=2)] == [2, 2, 3]
    assert [r.max_output_tokens for r in replay(file(SAMPLES["csv"]))] == [1, 2, 3]


def test_a_given_format_overrides_the_header(file):
    with pytest.raises(TraceError, match="must have a column 'TIMESTAMP'"):
        replay(file(SAMPLES["csv"]), format="azure")
    with pytest.raises(ConfigError, match=r"scenario\.format must be one of azure, .*, got 'azur'"):
        replay(file(SAMPLES["csv"]), format="azur")


def test_rows_stream_before_the_file_has_been_read(file):
    good = "".join(f"{k},1,1\n" for k in range(150_000))
    path = file("arrival_s,prompt_tokens,output_tokens\n" + good + "nonsense\n")

    first = list(islice(Replay(path).requests(0), 1000))

    assert first[-1].arrival_ns == 999 * NS_PER_S


def test_a_row_is_read_alike_in_a_clean_block_and_beside_a_broken_line(file):
    good = "".join(f"{k}.{k % 10},{k + 1},7\n" for k in range(50))
    whole = list(rows(file("arrival_s,prompt_tokens,output_tokens\n" + good)))
    broken = rows(file("arrival_s,prompt_tokens,output_tokens\n" + good + "51,x,7\n"))

    assert list(islice(broken, 50)) == whole
    with pytest.raises(TraceError, match=r":52: prompt_tokens must be a whole number .*, got 'x'"):
        next(broken)


@pytest.mark.parametrize(
    ("caps", "said"),
    [
        ({"max_rows": 2}, "more than 2 rows"),
        ({"max_text_bytes": 50}, "more than 50 bytes of text"),
        ({"max_line_bytes": 20}, "line longer than 20 bytes"),
    ],
)
def test_caps_stop_a_file(caps, said, file):
    with pytest.raises(TraceError, match=said):
        replay(file(SAMPLES["csv"]), **caps)


def test_a_gzip_bomb_stops_at_the_cap(file):
    bomb = gzip.compress(b"arrival_s,prompt_tokens,output_tokens\n" + b"1,1,1\n" * 1_000_000)
    one_line = gzip.compress(b"arrival_s,prompt_tokens,output_tokens\n" + b"1" * 5_000_000)

    with pytest.raises(TraceError, match="more than 200000 bytes of text: refused"):
        list(rows_within(file(bomb), max_text_bytes=200_000))
    with pytest.raises(TraceError, match=r":2: line longer than 4194304 bytes: refused"):
        replay(file(one_line))


def rows_within(path, **caps):
    return Replay(path, **caps).requests(0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rate_scale": 0}, "scenario.rate_scale must be a finite number > 0, got 0"),
        ({"rate_scale": float("nan")}, "scenario.rate_scale must be a finite number > 0, got nan"),
        ({"limit": 0}, "scenario.limit must be a whole number >= 1, got 0"),
        (
            {"time_range": [3, 1]},
            "scenario.time_range must be [start, end] with 0 <= start < end [s], got [3, 1]",
        ),
        ({"max_rows": True}, "scenario.max_rows must be a whole number >= 1, got True"),
    ],
)
def test_settings_without_sense_are_refused_by_key(settings, said):
    with pytest.raises(ConfigError) as raised:
        Replay("trace.csv", **settings)

    assert str(raised.value) == said


@pytest.mark.parametrize(
    "cells",
    [
        ["0.5", "12.25"],
        ["7", "123456789"],
        ["1.123456789", "2.5", "3."],
        ["999999999.999999999"],
        ["1", "2.5"],
        ["1.5.5", "2"],
        [".5"],
        ["", "1"],
        ["1234567890.5"],
        ["1.0000000001"],
        ["-1.5"],
        ["1e3"],
        ["１.5"],
    ],
)
def test_a_block_of_times_is_read_as_one_by_one_or_left_to_that(cells):
    many = SECONDS.many(cells)

    assert many is None or many == [SECONDS.one(cell, "arrival_s", Place("")) for cell in cells]
    assert many is not None or cells not in (["0.5", "12.25"], ["7", "123456789"], ["1.123456789", "2.5", "3."])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        ("arrival_s,prompt_tokens,output_tokens\n1,2,3\n".encode("utf-16"), "is text in UTF-16, and must be in UTF-8"),
        ("arrival_s,prompt_tokens,output_tokens\n".encode("utf-16-le"), "is text in UTF-16, and must be in UTF-8"),
        ("arrival_s,prompt_tokens,output_tokens\n".encode("utf-16-be"), "is text in UTF-16, and must be in UTF-8"),
        (b"PAR1\x15\x04\x15", "is Parquet, not text or gzipped text"),
        (b"\x28\xb5\x2f\xfd\x04", "is packed with zstd, not text or gzipped text"),
        (gzip.compress(gzip.compress(b"1,2,3\n", mtime=0), mtime=0), "is gzipped twice, not text or gzipped text"),
        (
            b"arrival_s,prompt_tokens,output_tokens\n1,2,3\n\x00\x01\n",
            "3: is not text: there is a zero byte in this line",
        ),
    ],
)
@pytest.mark.parametrize("told", [None, "csv"])
def test_what_is_no_text_is_called_by_its_name(content, said, told, file):
    path = file(content)

    with pytest.raises(TraceError) as raised:
        replay(path, format=told)

    assert str(raised.value) in (f"{path}: {said}", f"{path}:{said}")


def test_folders_pipes_and_devices_are_no_traces(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    for path, kind in ((tmp_path, "folder"), (tmp_path / "pipe", "pipe"), ("/dev/zero", "device")):
        with pytest.raises(TraceError, match=f"is a {kind}, not a file$"):
            replay(str(path))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"time_range": [50.0, 60.0]}, " within scenario.time_range=[50.0, 60.0]"),
        ({"skip_empty": True, "limit": 3}, " within scenario.skip_empty=True"),
    ],
)
def test_nothing_left_of_a_trace_is_an_error_and_no_empty_run(settings, said, file):
    path = file("arrival_s,prompt_tokens,output_tokens\n1,5,0\n3,0,2\n")

    with pytest.raises(TraceError) as raised:
        list(Replay(path, **({"skip_empty": True} | settings)).requests(0))

    assert str(raised.value).startswith(f"{path}: no row is left{said}")


def test_a_table_of_clients_is_no_trace(file):
    path = file("category,client,mean_rate,rate_weighted_cv\na,1,2,3\n")

    with pytest.raises(TraceError, match="a table of clients, not of their requests: task=describe shows"):
        replay(path)


def test_a_missing_file_is_named():
    with pytest.raises(TraceError, match=r"^no/such/file\.csv: no such file$"):
        next(Replay("no/such/file.csv").requests(0))
