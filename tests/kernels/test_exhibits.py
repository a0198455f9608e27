import pytest
import torch

import kernels.__main__ as command
from kernels.exhibits import EXHIBITS, Stage, generation, memory, standard_attention, tiled_attention, tiles, windows

CPU = torch.device("cpu")


@pytest.mark.parametrize("window", [None, 1, 7, 40])
@pytest.mark.parametrize(("n_new", "length"), [(33, 33), (5, 40), (1, 1), (1, 50)])
@pytest.mark.parametrize("block", [(16, 16), (8, 32), (64, 64)])
def test_tiles_change_nothing(n_new, length, window, block):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 16, dtype=torch.float64) for n in (n_new, length, length))
    whole = standard_attention(q, k, v, window)
    torch.testing.assert_close(tiled_attention(q, k, v, *block, window), whole)
    mask = torch.ones(n_new, length, dtype=torch.bool).tril(length - n_new)
    if window is not None:
        mask &= torch.ones(n_new, length, dtype=torch.bool).triu(length - n_new - window + 1)
    torch.testing.assert_close(torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask), whole)


def test_standard_attention_takes_the_matrix_of_scores_and_flash_does_not():
    rows = list(memory(Stage(CPU), (1024, 2048)))
    if rows[0]["standard [MB]"] == "":
        pytest.skip("this system does not say how much memory a process takes")
    for row in rows:
        assert row["standard [MB]"] > 0.9 * row["scores [MB]"]
    assert rows[1]["flash [MB]"] < 0.25 * rows[1]["scores [MB]"]


def test_windows_say_what_is_computed_and_seen():
    rows = list(windows(Stage(CPU), (512,)))
    assert [row["window"] for row in rows] == ["all", "256", "a quarter"]
    assert rows[0]["pairs computed"] == 1.0
    assert rows[0]["output differs by"] == 0.0
    assert rows[1]["KV of a token that decodes"] == 0.5
    assert rows[2]["output differs by"] > rows[1]["output differs by"] > 0.0


def test_every_tile_and_both_ways_of_generation_are_timed():
    assert {row["rows"] for row in tiles(Stage(CPU), (64,))} == {16, 32, 64, 128}
    row = next(iter(generation(Stage(CPU), (512,))))
    assert row["recomputed [ms]"] > row["cached [ms]"] > 0.0


def test_an_exhibit_is_a_command(capsys, monkeypatch):
    import kernels.exhibits

    monkeypatch.setitem(EXHIBITS, "memory", lambda stage: kernels.exhibits.memory(stage, (256,)))
    n_threads = torch.get_num_threads()
    assert command.main(["memory", "--device", "cpu"]) == 0
    torch.set_num_threads(n_threads)
    said = capsys.readouterr().out
    assert "| tokens | flash [MB] |" in said
    assert "| 256 |" in said
