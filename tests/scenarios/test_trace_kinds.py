"""What holds for every format: keys mean the same whatever else is there, unused ones stop nothing, units are said."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from scenarios.lengths import EmpiricalPairs
from scenarios.replay import Replay
from scenarios.traces.detect import KEYS, READERS, UNITS, detect, rows
from scenarios.traces.mooncake import KNOWN
from scenarios.traces.plain import OWN_COLUMNS
from scenarios.traces.text import Reading
from sim import simulate
from sim.errors import ConfigError, TraceError
from sim.metrics import Slo, summary
from sim.request import block_keys

SPEC = importlib.util.spec_from_file_location("trace_samples", Path(__file__).with_name("trace_samples.py"))
MODULE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MODULE)
SAMPLES = MODULE.SAMPLES
JSON = sorted({name for name, _ in KEYS})


@pytest.fixture
def file(tmp_path):
    def written(text, name="trace.txt"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return written


def replay(path, **settings):
    return list(Replay(path, **settings).requests(0))


def moon(**more):
    return {"timestamp": 0, "input_length": 100, "output_length": 8} | more


OWN = {
    "id": 3, "session_id": 5, "turn": 2, "max_output_tokens": 30, "output_id": 77, "slo_class": "code", "priority": -4,
    "n_samples": 4, "kind": "chat", "tenant": "acme",
}  # fmt: skip


def test_every_key_that_a_row_may_have_is_tried_here():
    assert set(OWN) == KNOWN == set(OWN_COLUMNS) - {"content"}


@pytest.mark.parametrize("key", OWN)
@pytest.mark.parametrize("others", [{}, {"hash_ids": None}, {"hash_ids": [5]}, {"model": "m", "x": 1}])
def test_a_key_of_mooncakes_means_the_same_whatever_else_stands_in_its_row(key, others, file):
    request = replay(file(json.dumps(moon(**{key: OWN[key]}) | others)))[0]
    assert getattr(request, key) == OWN[key]
    assert replay(file(json.dumps(moon(**{key: None}) | others))) == replay(file(json.dumps(moon() | others)))


@pytest.mark.parametrize("key", OWN)
@pytest.mark.parametrize("others", [{}, {"hash_ids": [5]}, {"model": "m", "x": 1}])
def test_a_wrong_value_is_refused_whatever_else_stands_in_its_row(key, others, file):
    wrong = 3 if isinstance(OWN[key], str) else "conv-1"
    with pytest.raises(TraceError, match=rf":1: {key} must be .*, got '?(conv-1|3)'?$"):
        replay(file(json.dumps(moon(**{key: wrong}) | others)))


@pytest.mark.parametrize("column", OWN)
@pytest.mark.parametrize("others", [[], ["kind"], ["session_id", "turn"]])
def test_a_column_of_ours_means_the_same_whatever_others_there_are(column, others, file):
    names = [column, *(name for name in others if name != column)]
    cells = ",".join(str(OWN[name]) for name in names)
    text = f"arrival_s,prompt_tokens,output_tokens,{','.join(names)}\n0,100,8,{cells}\n"
    assert getattr(replay(file(text))[0], column) == OWN[column]


def test_several_answers_and_priorities_need_no_hashes(file):
    path = file(json.dumps(moon(n_samples=4)))
    assert simulate("scenario=replay", f"scenario.path={path}").requests.column("output_tokens").tolist() == [32]
    rows_of = [(0, 200, 5), (0, 100, 5), (50, 20, 9), (60, 20, 0)]
    told = [
        json.dumps({"timestamp": at, "input_length": 100, "output_length": n, "priority": p}) for at, n, p in rows_of
    ]
    path = file("\n".join(told))
    result = simulate("scenario=replay", f"scenario.path={path}", "queue=priority", "batching.max_num_seqs=2")
    frame = result.requests.frame()
    assert frame.sort_values(["first_token_ns", "id"]).id.tolist() == [0, 1, 3, 2], "the smallest priority first"


UNUSED = [
    "NaN", "Infinity", "-Infinity", "1e400", "1e99999999999999999999", "9" * 5_000, '{"a": [NaN]}', '"\\ud800"', "null",
    '"{\\"input_lens\\": [["', "[[[[]]]]",
]  # fmt: skip


@pytest.mark.parametrize("value", UNUSED)
@pytest.mark.parametrize("name", JSON)
def test_a_key_that_nobody_reads_may_hold_anything(name, value, file):
    text = SAMPLES[name]
    first = text.index("{") + 1
    path = file(f'{text[:first]}"unused": {value}, {text[first:]}')
    assert detect(path) == name
    assert [row[:3] for row in rows(path)] == [row[:3] for row in rows(file(text, "plain"))]


@pytest.mark.parametrize("name", JSON)
def test_a_format_is_recognised_however_far_its_keys_are(name, file):
    """Half a megabyte of text, with brackets and quotes in it, before anything else."""
    text = SAMPLES[name]
    first = text.index("{") + 1
    padding = json.dumps('say "[{" and \\' * 40_000)
    path = file(f'{text[:first]}"generated_texts": {padding}, {text[first:]}')
    assert detect(path) == name
    assert len(list(rows(path))) == 3


def test_a_benchmark_of_twenty_thousand_requests_is_recognised(file):
    n = 20_000
    result = {"ttfts": [0.1234567] * n, "input_lens": [10] * n, "generated_texts": ['x{["'] * n, "output_lens": [2] * n}
    result |= {"start_times": [353_399.0 + k / 40 for k in range(n)], "burstiness": float("inf")}
    path = file(json.dumps(result))
    assert detect(path) == "vllm"
    assert replay(path)[-1].arrival_ns == round((n - 1) / 40 * 1e9)


@pytest.mark.parametrize("name", [name for name in JSON if "\n" in SAMPLES[name].strip() and SAMPLES[name][0] == "{"])
def test_blank_lines_before_the_first_object_change_nothing(name, file):
    path = file("\n \n" + SAMPLES[name])
    assert detect(path) == name
    assert len(list(rows(path))) == 3


def test_a_result_without_details_says_how_to_get_them(file):
    path = file(json.dumps({"request_throughput": 4.0, "total_input_tokens": 90, "burstiness": float("nan")}))
    with pytest.raises(
        TraceError, match=r"start_times must be a list \(vllm bench serve writes it with --save-detailed"
    ):
        replay(path)


def test_several_results_in_a_file_are_called_what_they_are(file):
    path = file(SAMPLES["vllm"] + "\n" + SAMPLES["vllm"])
    with pytest.raises(TraceError, match=r":2: a second result, as --append-result writes them: put each in a file"):
        replay(path)


@pytest.mark.parametrize("before", ["", '{"input_toks": 100, "output_toks": 10, "arrival_time_ns": 0}\n'])
def test_sessions_of_sub_requests_are_called_what_they_are(before, file):
    sub = {"session_id": "s0", "arrival_time_ns": 5, "sub_requests": [{"input_toks": 100, "output_toks": 10}]}
    with pytest.raises(TraceError, match=rf":{before.count(chr(10)) + 1}: a session of sub_requests"):
        replay(file(before + json.dumps(sub)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arrival_s,prompt_tokens,output_tokens,id\n0,1000,9,7\n0,1000,9,8\n1,900,9,7\n", "4: id must be new, 7 is in line 2 too"),  # noqa: E501
        ("".join(json.dumps(moon(id=i)) + "\n" for i in (4, 5, 6, 5)), "4: id must be new, 5 is in line 2 too"),
        (SAMPLES["bailian"].replace('"chat_id": 11', '"chat_id": 9'), "3: chat_id must be new, 9 is in line 2 too"),
    ],
)  # fmt: skip
def test_a_request_that_is_there_twice_is_refused_with_both_lines(text, said, file):
    path = file(text)
    with pytest.raises(TraceError) as raised:
        replay(path)
    assert str(raised.value) == f"{path}:{said}"


@pytest.mark.parametrize(
    "value", [(1 << 63) + 5, (1 << 64) - 1, "9f86d081884c7d65", "0xffffffffffffffff", (1 << 61) - 1]
)
def test_identities_of_text_have_64_bits_and_may_be_hexadecimal(value, file):
    shared = [moon(input_length=512, hash_ids=[0]), moon(input_length=512, hash_ids=[value])]
    shared.append(moon(input_length=1024, hash_ids=[value, 3]))
    first, second, third = replay(file("\n".join(map(json.dumps, shared))))
    keys = [block_keys(request.content, 512, 16) for request in (first, second, third)]
    assert keys[0] != keys[1] == keys[2], "and none is taken for another"


def test_ids_have_63_bits_and_the_message_says_so(file):
    assert replay(file(json.dumps(moon(id=(1 << 63) - 1, session_id="0x1f"))))[0].session_id == 31
    with pytest.raises(
        TraceError, match=r"id must be a whole number from 0 to 9223372036854775807, got 9223372036854775808"
    ):
        replay(file(json.dumps(moon(id=1 << 63))))
    with pytest.raises(TraceError, match=r"session_id must be a whole number from 0 to 9223372036854775807, got '-1'"):
        replay(file("arrival_s,prompt_tokens,output_tokens,session_id\n0,1,1,-1\n"))


@pytest.mark.parametrize("n_samples", [1 << 31, 1 << 62])
def test_more_answers_than_any_machine_gives_are_refused(n_samples, file):
    with pytest.raises(TraceError, match=r"n_samples must be a whole number from 1 to 2147483647"):
        replay(file(json.dumps(moon(n_samples=n_samples))))


def hashed(*prompts, ids):
    return "\n".join(json.dumps(moon(input_length=p, hash_ids=h)) for p, h in zip(prompts, ids, strict=True))


def test_the_block_size_of_hashes_is_the_one_power_of_two_that_fits(file):
    scenario = Replay(file(hashed(10, 40, 40, ids=[[9], [0, 1, 2], [0, 1, 3]])))
    contents = [request.content for request in scenario.requests(0)]
    assert contents == [((9, 10),), ((0, 16), (1, 16), (2, 8)), ((0, 16), (1, 16), (3, 8))]
    assert scenario.notes == [
        "hash_ids are read as blocks of 16 tokens, the only power of two that fits line 2 (512 is the format's own; "
        "scenario.hash_block_tokens says otherwise)."
    ]
    own = Replay(file(SAMPLES["mooncake"]))
    assert len(list(own.requests(0))) == 3
    assert own.notes == []


def test_a_block_size_that_is_told_is_taken(file):
    path = file(hashed(100, ids=[[0, 1, 2]]))
    assert replay(path, hash_block_tokens=48)[0].content == ((0, 48), (1, 48), (2, 4))
    assert replay(path, hash_block_tokens=34)[0].content == ((0, 34), (1, 34), (2, 32))
    with pytest.raises(TraceError, match=r"hash_ids must be 7 of 16 tokens each \(scenario.hash_block_tokens\), got 3"):
        replay(path, hash_block_tokens=16)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (hashed(100, ids=[[0, 1, 2]]), ":1: hash_ids must be 1 of 512 tokens each, got 3; blocks of 34 to 49 would fit: "),  # noqa: E501
        (hashed(40, 40, ids=[[0, 1, 2], [0, 1]]), ":2: hash_ids must be 3 of 16 tokens each (as in line 1; "),
        (hashed(300, 40, ids=[[0], [0, 1, 2]]), ":2: hash_ids must name blocks of one size, got 3 for 40 tokens after 1 "),  # noqa: E501
        (hashed(2, ids=[[0, 1, 2]]), ":1: hash_ids must be 1 of 512 tokens each, got 3"),
    ],
)  # fmt: skip
def test_hashes_of_no_block_size_are_refused(text, said, file):
    with pytest.raises(TraceError) as raised:
        replay(file(text))
    assert said in str(raised.value)


@pytest.mark.parametrize("name", sorted(UNITS))
def test_times_in_another_unit_are_what_they_would_be_in_the_formats_own(name, file):
    path = file(SAMPLES[name])
    own = [row.arrival_ns for row in rows(path)]
    ns = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
    for unit in ns:
        try:
            found = [row.arrival_ns for row in rows(path, reading=Reading(time_unit=unit))]
        except TraceError:  # Unix time in nanoseconds, taken for seconds
            assert ns[unit] > ns[UNITS[name]]
        else:
            assert found == pytest.approx([t * ns[unit] / ns[UNITS[name]] for t in own], abs=1)


@pytest.mark.parametrize("name", sorted(set(READERS) - set(UNITS)))
def test_a_unit_for_times_that_are_not_numbers_is_refused(name, file):
    with pytest.raises(ConfigError, match=r"scenario.time_unit is for times in numbers"):
        list(rows(file(SAMPLES[name]), reading=Reading(time_unit="s")))


def times(gap_s, n=40, scale=1.0):
    return "".join(json.dumps(moon(timestamp=round(k * gap_s * scale, 9))) + "\n" for k in range(n))


@pytest.mark.parametrize(
    ("gap_s", "is_doubted"),
    [(0.5e-3, True), (2e-3, True), (0.05, False), (30.0, False), (864_000.0, True)],
)
def test_times_that_can_only_be_in_another_unit_are_said_with_the_setting(gap_s, is_doubted, file):
    """guidellm writes and reads Mooncake's keys in seconds, and 40 requests in 20 ms are none."""
    path = file(times(gap_s, scale=1e3))
    result = simulate("scenario=replay", f"scenario.path={path}", "scenario.limit=40")
    said = [w for w in summary(result, Slo())["kvtwin"]["warnings"] if w.startswith("Times are taken in ms: 40 ")]
    assert len(said) == is_doubted
    assert all("scenario.time_unit" in one for one in said)


def test_seconds_are_seconds_once_told(file):
    scenario = Replay(file(times(0.5)), time_unit="s")
    assert [request.arrival_ns for request in scenario.requests(0)] == [k * 500_000_000 for k in range(40)]
    assert scenario.notes == []


def test_all_at_once_is_no_matter_of_units(file):
    for name in ("mooncake", "lengths"):
        text = times(0.0) if name == "mooncake" else SAMPLES[name]
        scenario = Replay(file(text))
        assert list(scenario.requests(0))
        assert scenario.notes == []


@pytest.mark.parametrize("rate_scale", [0.001, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("start_s", [0, 819_000, 1_764_331_200])
def test_requests_keep_their_distances_wherever_a_files_clock_begins(start_s, rate_scale, file):
    text = "arrival_s,prompt_tokens,output_tokens\n"
    path = file(text + "".join(f"{start_s + k // 3}.{k % 3}7,10,5\n" for k in range(9)))
    told = [r.arrival_ns for r in replay(path, rate_scale=rate_scale)]
    since = [at - told[0] for at in told]
    own = [(k // 3 * 10 + k % 3) * 10**8 for k in range(9)]
    assert since == [round(at / rate_scale) for at in own]


def test_a_skipped_row_is_no_origin_and_none_that_others_may_not_precede(file):
    """The first row failed, and was written an hour after the second."""
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    text += "2024-05-10 11:00:00.0,9,0\n2024-05-10 10:00:00.0,9,1\n2024-05-10 10:00:01.5,9,2\n"
    assert [r.arrival_ns for r in replay(file(text), skip_empty=True)] == [0, 1_500_000_000]
    records = [
        {"input_toks": 9, "output_toks": o, "arrival_time": t} for t, o in ((7200.0, 0), (3600.0, 1), (3601.5, 2))
    ]
    path = file("\n".join(map(json.dumps, records)))
    assert [r.arrival_ns for r in replay(path, skip_empty=True)] == [0, 1_500_000_000]


def test_failed_requests_of_load_generators_have_no_answer(file):
    failed = MODULE.aiperf(9.0, 0, 0) | {
        "metrics": {"error_isl": {"value": 55, "unit": "tokens"}},
        "error": {"code": 499},
    }
    path = file(SAMPLES["aiperf"] + json.dumps(failed) + "\n")
    assert [row[1:3] for row in rows(path)][-1] == (55, 0)
    assert len(replay(path, skip_empty=True)) == 3
    benchmark = {"successful": [MODULE.guidellm(1, 10, 1)], "errored": [MODULE.guidellm(0, None, None)]}
    path = file(json.dumps({"benchmarks": [{"requests": benchmark}]}))
    assert [row[:3] for row in rows(path)] == [(0, 0, 0), (10**9, 10, 1)]


def test_older_versions_of_load_generators_are_read(file):
    """guidellm before 0.4 and inference-perf before multimodal prompts."""
    old = {"start_time": 1_759_813_207.5, "prompt_tokens": 10, "output_tokens": 1}
    path = file(json.dumps({"benchmarks": [{"requests": {"successful": [old, old | {"start_time": 1_759_813_208}]}}]}))
    assert [row[:3] for row in rows(path)] == [(0, 10, 1), (500_000_000, 10, 1)]
    old = {"start_time": 5.5, "end_time": 6, "info": {"input_tokens": 10, "output_tokens": 1}, "error": None}
    assert [row[:3] for row in rows(file(json.dumps([old])))] == [(0, 10, 1)]


def test_sessions_of_aiperf_are_its_correlations(file):
    found = [row.session_id for row in rows(file(SAMPLES["aiperf"]))]
    assert found[0] == found[2] != found[1]


def test_texts_are_estimated_and_that_is_said(file):
    scenario = Replay(file(SAMPLES["sharegpt"]), chars_per_token=2.0)
    assert [(r.arrival_ns, r.prompt_tokens, r.output_tokens) for r in scenario.requests(0)] == [
        (0, 20, 2), (0, 40, 4), (0, 60, 6),
    ]  # fmt: skip
    assert scenario.notes == [
        "Lengths are estimated: 2 characters of text are taken for a token (scenario.chars_per_token)."
    ]
    drawn = EmpiricalPairs(file(SAMPLES["prompts"])).pairs(np.random.default_rng(0), 50)
    assert {*drawn[0].tolist()} == {10, 20, 30}


def test_a_long_list_is_read_piece_by_piece(file):
    """Elements across the blocks that a file is read in."""
    conversations = [{"from": "human", "value": "é" * 3_001}, {"from": "gpt", "value": "y" * 8}]
    path = file(json.dumps([{"conversations": conversations}] * 900, ensure_ascii=False, indent=1))
    assert Path(path).stat().st_size > 5 << 20
    assert {row[:3] for row in rows(path)} == {(0, 751, 2)}
    with pytest.raises(TraceError, match="element longer than 1000 bytes"):
        list(rows(path, reading=Reading(line_bytes=1_000)))
    with pytest.raises(TraceError, match="more than 5 rows"):
        list(rows(path, reading=Reading(rows=5)))


def test_a_value_of_a_hundred_thousand_characters_is_not_echoed(file):
    long = "x" * 100_000
    for text in (
        json.dumps(moon(slo_class=[long])), json.dumps(moon(timestamp=long)), json.dumps(moon(input_length=long)),
        json.dumps(moon(hash_ids=[long])), json.dumps(moon(segments=long)), json.dumps([long]),
        f"arrival_s,prompt_tokens,output_tokens\n0,{long},1\n", long,
        f"TIMESTAMP,ContextTokens,GeneratedTokens\n{long},1,1\n",
    ):  # fmt: skip
        with pytest.raises(TraceError) as raised:
            replay(file(text), format=None if "{" in text or "," in text else "csv")
        assert len(str(raised.value)) < 600
    with pytest.raises(ConfigError) as refused:
        replay("trace.csv", format=long)
    assert len(str(refused.value)) < 600
