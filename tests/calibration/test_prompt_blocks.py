"""``prompt_blocks.jsonl``: which prompts of a recorded run begin alike."""

import json

import pytest

from calibration.prompt_blocks import read_prompt_blocks, shared_tokens
from sim.errors import TraceError
from sim.request import block_keys

ROWS = [
    {"request_id": "a", "input_toks": 40},
    {"request_id": "b", "input_toks": 48},
    {"request_id": "c", "input_toks": 9},
]


def line(name, ids, block_tokens=16, **others) -> str:
    return json.dumps({"request_id": name, "block_tokens": block_tokens, "hash_ids": ids} | others) + "\n"


@pytest.fixture
def read(tmp_path):
    def write(*lines: str):
        path = tmp_path / "prompt_blocks.jsonl"
        path.write_text("".join(lines), encoding="utf-8")
        return read_prompt_blocks(path, ROWS)

    return write


def test_prompts_share_the_blocks_they_begin_with_and_no_more(read):
    a, b, c = read(line("b", [1, 2, 4]), line("a", [1, 2]), line("failed", [1]))
    assert c is None
    assert sum(n for _, n in a) == 40  # two full blocks, and a rest that nobody shares
    assert sum(n for _, n in b) == 48
    keys = [block_keys(text, 48, 16) for text in (a, b)]
    assert keys[0][:2] == keys[1][:2]
    assert shared_tokens([a, b, c]) == 32
    assert shared_tokens([b, a, c]) == 32
    assert shared_tokens([a, a]) == 40


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], "line 1: not JSON"),
        (["[]"], r"line 1: must be an object, got '\[\]'"),
        ([line("a", [1]), line("a", [1])], "line 2: request_id 'a' a second time"),
        ([line(7, [1])], "request_id: must be text, got 7"),
        ([line("a", [1], 0)], r"block_tokens: must be a whole number >= 1 \[tokens\], got 0"),
        ([line("a", [1, -2])], r"hash_ids: must be a list of whole numbers >= 0, got \[1, -2\]"),
        ([line("a", [1, 2, 3])], "3 full blocks of 16 tokens, but 'a' has input_toks 40"),
    ],
)
def test_a_spoilt_line_is_refused_by_number_and_field(read, lines, said):
    with pytest.raises(TraceError, match=f"prompt_blocks.jsonl: .*{said}"):
        read(*lines)
