"""Two thousand damaged trace files: each is refused in one clear line, none is read as something it is not.

The files are generated, not kept: a valid file of some format, and one damage after which it cannot be right.
"""

import gzip
import importlib.util
import json
import random
import re
from pathlib import Path

import pytest

from scenarios.replay import Replay
from scenarios.traces.detect import READERS
from sim.errors import TraceError

N_CASES = 2000
N_GROUPS = 20


def samples():
    spec = importlib.util.spec_from_file_location("trace_samples", Path(__file__).with_name("trace_samples.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SAMPLES


SAMPLES = samples()
TABLES = sorted(name for name in SAMPLES if SAMPLES[name].count("\n") == 4 and not SAMPLES[name].startswith("{"))
RECORDS = ["mooncake", "bailian", "llmservingsim"]
NUMBERS = {
    "csv": (0, 1, 2),
    "azure": (0, 1, 2),
    "burstgpt": (0, 2, 3),
    "vidur": (0, 1, 2),
    "apex": (0, 1, 2),
    "lengths": (0, 1),
    "llmservingsim_csv": (0, 1, 2),
}
NO_NUMBERS = (
    "NaN", "nan", "inf", "-inf", "Infinity", "-1", "-0.5", "", " ", "x", "1_0", "٣", "0x10", "1e400", "1e-400e", "--1",
    "1,5", "9" * 30, "1.2.3", "None", "null", "true", "\x00", "1;2", "½",
)  # fmt: skip
NO_VALUES = (None, True, "5", [1], {}, -1, 10**30, -0.5, float("nan"), float("inf"), float("-inf"))


def damaged_cell(rng, name):
    lines = [line.split(",") for line in SAMPLES[name].splitlines()]
    lines[rng.randrange(1, 4)][rng.choice(NUMBERS[name])] = rng.choice(NO_NUMBERS)
    return "\n".join(map(",".join, lines)).encode()


def damaged_shape(rng, name):
    lines = SAMPLES[name].splitlines()
    k = rng.randrange(1, 4)
    lines[k] = rng.choice(
        [lines[k] + ",1", lines[k].rpartition(",")[0], lines[k] + '"', '"' + lines[k], lines[k] + ","]
    )
    return "\n".join(lines).encode()


def damaged_header(rng, name):
    text = SAMPLES[name]
    header, _, rest = text.partition("\n")
    cells = header.split(",")
    column = rng.choice(NUMBERS[name])
    cells[column] = rng.choice(
        [cells[column] + "s", cells[column][:-1], "", cells[column].swapcase(), cells[(column + 1) % len(cells)]]
    )
    return rng.choice([",".join(cells) + "\n" + rest, rest, header, ""]).encode()


def damaged_value(rng, name):
    records = [json.loads(line) for line in SAMPLES[name].splitlines()]
    keys = {
        "mooncake": ("timestamp", "input_length", "output_length"),
        "bailian": ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length", "turn"),
        "llmservingsim": ("input_toks", "output_toks", "arrival_time_ns"),
    }[name]
    record, key = rng.choice(records), rng.choice(keys)
    value = rng.choice(NO_VALUES)
    record[key] = -2 if key == "parent_chat_id" and value == -1 else value
    if rng.random() < 0.2:
        del record[key]
    if rng.random() < 0.2 and name != "llmservingsim":
        record["hash_ids"] = rng.choice([[1] * 99, "1", [-1], [True], [None], [0.5], {}, [10**30]])
    return "\n".join(map(json.dumps, records)).encode()


def damaged_syntax(rng, name):
    lines = SAMPLES[name].splitlines()
    k = rng.randrange(len(lines))
    at = rng.randrange(1, len(lines[k]))
    lines[k] = rng.choice([lines[k][:at], "[" * 100_000, "[1]", "5", "{}", lines[k] + "}", "nonsense"])
    return "\n".join(lines).encode()


def damaged_bytes(rng, name):
    data = SAMPLES[name].encode()
    at = rng.randrange(len(data))
    return data[:at] + rng.choice([b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xfe\xff"]) + data[at:]


def damaged_gzip(rng, name):
    packed = gzip.compress(SAMPLES[name].encode() * 50)
    at = rng.randrange(12, len(packed) - 9)
    flipped = packed[:at] + bytes([packed[at] ^ rng.randrange(1, 256)]) + packed[at + 1 :]
    return rng.choice([packed[:at], flipped, packed[:10]])


def damaged_order(rng, name):
    lines = SAMPLES[name].splitlines()
    n_header = 0 if lines[0].startswith("{") else 1
    body = lines[n_header:]
    i, k = rng.choice([(0, 1), (0, 2), (1, 2)])
    body[i], body[k] = body[k], body[i]
    return "\n".join([*lines[:n_header], *body]).encode()


def damaged_result(rng, name):
    record = json.loads(SAMPLES["vllm"])
    key = rng.choice(["start_times", "input_lens", "output_lens"])
    damage = rng.randrange(4)
    if damage == 0:
        del record[key]
    elif damage == 1:
        record[key] = rng.choice([None, 5, "x", {}, [], record[key][:2]])
    elif damage == 2:
        record[key][rng.randrange(3)] = rng.choice(NO_VALUES)
    text = json.dumps(record)
    return (text[: rng.randrange(1, len(text))] if damage == 3 else text).encode()


def damaged_tree(rng, name):
    record = json.loads(SAMPLES["claude_code"])
    entry = rng.choice(record["req"])
    damage = rng.randrange(4)
    if damage == 0:
        entry[rng.choice([0, 1, 2])] = rng.choice(NO_VALUES)
    elif damage == 1:
        entry[5] = rng.choice([7, -2, "0", None, True])
    elif damage == 2:
        record["req"][1][6] = rng.choice([99, -1, None, "3"])
    else:
        record["bs"] = rng.choice([0, -64, None, 1.5])
    return json.dumps(record).encode()


REQUESTS = {  # of each result: where its requests are, and the keys of their numbers
    "aiperf": (lambda text: [json.loads(line) for line in text.splitlines()], (
        ("metadata", "request_start_ns"), ("metrics", "input_sequence_length", "value"),
        ("metrics", "output_sequence_length", "value"),
    )),
    "guidellm": (lambda text: json.loads(text)["benchmarks"][0]["requests"]["successful"], (
        ("request_start_time",), ("prompt_tokens",), ("output_tokens",),
    )),
    "inference_perf": (json.loads, (
        ("start_time",), ("info", "request_metrics", "text", "input_tokens"),
        ("info", "response_metrics", "output_tokens"),
    )),
    "prompts": (lambda text: [json.loads(line) for line in text.splitlines()], (("output_tokens",), ("prompt",))),
}  # fmt: skip


def damaged_request(rng, name):
    """A number that is none, or missing, in a load generator's result."""
    requests, keys = REQUESTS[name]
    held = requests(SAMPLES[name])
    *owners, key = rng.choice(keys)
    request = rng.choice(held)
    for owner in owners:
        request = request[owner]
    request[key] = rng.choice([value for value in NO_VALUES if value != "5" or key != "prompt"])
    if name == "guidellm":
        return json.dumps({"benchmarks": [{"requests": {"successful": held}}]}).encode()
    return (json.dumps(held) if name == "inference_perf" else "\n".join(map(json.dumps, held))).encode()


def damaged_span(rng, name):
    export = json.loads(SAMPLES["otel"].splitlines()[0])
    spans = export["resourceSpans"][0]["scopeSpans"][0]["spans"]
    span = rng.choice(spans)
    damage = rng.randrange(4)
    if damage == 0:
        span["startTimeUnixNano"] = rng.choice([None, "x", "-1", 10**30, [1]])
    elif damage == 1:
        span["attributes"][rng.choice([2, 3])]["value"]["intValue"] = rng.choice(["x", "-1", 10**30, [1], "NaN", "1.5"])
    elif damage == 2:
        span["attributes"] = rng.choice([5, "x", [1], {}])
    else:
        export["resourceSpans"][0]["scopeSpans"] = rng.choice([5, "x", [1], [{"spans": 7}]])
    return json.dumps(export).encode()


def damaged_list(rng, name):
    text = SAMPLES[name]
    damage = rng.randrange(3)
    if damage == 0:
        return text[: rng.randrange(1, len(text) - 1)].encode()
    held = json.loads(text)
    if damage == 1:
        held[rng.randrange(len(held))] = rng.choice([5, "x", [1], None])
    else:
        rng.choice(held)["conversations" if name == "sharegpt" else "start_time"] = rng.choice(
            [True, "x", None, [1, 2]]
        )
    return json.dumps(held).encode()


DAMAGES = (
    [(damaged_cell, TABLES)] * 6
    + [(damaged_shape, TABLES), (damaged_header, TABLES)]
    + [(damaged_value, RECORDS)] * 4
    + [(damaged_syntax, RECORDS), (damaged_bytes, TABLES + RECORDS), (damaged_gzip, TABLES + RECORDS)]
    + [(damaged_order, sorted({*TABLES, *RECORDS} - {"lengths", "bailian"}))]
    + [(damaged_result, ["vllm"])] * 2
    + [(damaged_tree, ["claude_code"])] * 2
    + [(damaged_request, sorted(REQUESTS))] * 3
    + [(damaged_span, ["otel"]), (damaged_list, ["sharegpt", "inference_perf"])]
)


def case(number):
    rng = random.Random(number)
    damage, names = rng.choice(DAMAGES)
    name = rng.choice(names)
    is_told = damage is not damaged_header and rng.random() < 0.5
    return f"{damage.__name__}({name})", damage(rng, name), name if is_told else None


def trouble(number, path):
    """What is wrong with how a damaged file is received, or None."""
    what, data, told = case(number)
    path.write_bytes(data)
    try:
        n = sum(1 for _ in Replay(str(path), format=told).requests(0))
    except TraceError as error:
        said = str(error)
        is_clear = re.match(rf"{re.escape(str(path))}(:\d+)?: \S", said) and "\n" not in said and len(said) < 600
        return None if is_clear else f"case {number} {what}: unclear: {said!r}"
    except Exception as error:
        return f"case {number} {what}: {type(error).__name__}: {error}"
    return f"case {number} {what}: read as {n} requests: {data[:300]!r}"


@pytest.mark.parametrize("group", range(N_GROUPS))
def test_a_damaged_file_is_refused_in_one_line_that_says_where(group, tmp_path):
    numbers = range(group * N_CASES // N_GROUPS, (group + 1) * N_CASES // N_GROUPS)

    troubles = [trouble(number, tmp_path / "damaged") for number in numbers]

    assert [said for said in troubles if said] == []


def test_the_cases_reach_every_format_and_every_damage():
    named = {case(number)[0] for number in range(N_CASES)}

    assert {what.partition("(")[2].rstrip(")") for what in named} == set(READERS)
    assert {what.partition("(")[0] for what in named} == {damage.__name__ for damage, _ in DAMAGES}
