"""The reference itself, against torch's own attention and by hand."""

import torch

from kernels import reference


def test_full_causal_attention_equals_torch():
    torch.manual_seed(1)
    q, k, v = (torch.randn(9, heads, 64, dtype=torch.float64) for heads in (4, 2, 2))
    got = reference.attention(q, k, v, torch.arange(9), 0, 0.125, None, 0)
    rows = (x.transpose(0, 1)[None] for x in (q, k, v))
    want = torch.nn.functional.scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=True)
    assert torch.allclose(got, want[0].transpose(0, 1))


def test_window_and_sinks_let_through_exactly_their_keys():
    q, k = torch.zeros(1, 1, 4), torch.zeros(10, 1, 4)  # equal scores: the output is the mean of the values seen
    v = torch.arange(10.0)[:, None, None].expand(10, 1, 4)
    got = reference.attention(q, k, v, torch.arange(10), 8, 1.0, 3, 2)
    assert got[0, 0, 0] == (0 + 1 + 6 + 7 + 8) / 5
    assert reference.visible_keys(8, 9, 3, 2).tolist() == [0, 1, 6, 7, 8]


def test_rows_of_a_ring_come_from_the_wrapped_column():
    cache = torch.arange(5.0)[:, None, None, None].expand(5, 2, 1, 1)  # a block's value is its id
    table_row = torch.tensor([4, 0, 1, 2])
    got = reference.rows_of(cache, table_row, torch.tensor([0, 2, 8, 10]), 1, 3)
    assert got.flatten().tolist() == [4.0, 0.0, 0.0, 1.0]  # columns 0, 1, 4 -> 1, 5 -> 2
