import pytest
import torch

from kernels import reference
from kernels.configs import Tiles
from kernels.decode_plan import plan_decode
from kernels.kv_quant import kv_quantise
from kernels.kv_quant_decode import quant_decode_attention
from tests.kernels.poison import DTYPES, GATES, Guarded, bits, filled_cache, relative_error

TILES = Tiles(16, 32, 4, 2)


def empty_cache(n_blocks, block_tokens, n_kv_heads, head_dim, n_bits):
    codes = Guarded((n_blocks, block_tokens, n_kv_heads, head_dim * n_bits // 8), torch.uint8, fill=0x5A)
    params = Guarded((n_blocks, block_tokens, n_kv_heads, 2), torch.float16)
    return codes, params


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_bits", [8, 4])
@pytest.mark.parametrize("head_dim", [64, 96])
def test_codes_equal_the_reference_and_padding_writes_nothing(dtype, n_bits, head_dim):
    torch.manual_seed(1)
    x = torch.randn(13, 3, head_dim).to(dtype)
    x[4] = 1.5  # a row without spread
    slots = torch.randperm(20)[:13]
    slots[2] = -1
    codes, params = empty_cache(4, 5, 3, head_dim, n_bits)
    want_codes, want_params = codes.tensor.clone(), params.tensor.clone()
    kv_quantise(x, codes.tensor, params.tensor, slots, bits=n_bits)
    reference.kv_quantise(x, want_codes, want_params, slots, bits=n_bits)
    assert torch.equal(codes.tensor, want_codes)
    assert torch.equal(bits(params.tensor), bits(want_params))
    assert params.is_intact()


@pytest.mark.parametrize("n_bits", [8, 4])
def test_what_comes_back_is_within_half_a_step(n_bits):
    torch.manual_seed(2)
    x = torch.randn(10, 2, 64)
    codes, params = empty_cache(2, 5, 2, 64, n_bits)
    kv_quantise(x, codes.tensor, params.tensor, torch.arange(10), bits=n_bits)
    back = reference.dequantised(codes.tensor, params.tensor, n_bits).flatten(0, 1)
    step = params.tensor[..., :1].double().flatten(0, 1)
    assert ((back - x).abs() <= 0.5 * step + 4e-3).all()  # 4e-3: fp16 of the step times 255 levels, and of the low


def test_tokens_of_an_existing_cache_are_quantised_in_place_of_a_gather():
    torch.manual_seed(3)
    x = torch.randn(12, 1, 64)
    from_slots, slots = torch.tensor([7, 0, 11]), torch.tensor([2, -1, 0])
    codes, params = empty_cache(1, 4, 1, 64, 8)
    want_codes, want_params = codes.tensor.clone(), params.tensor.clone()
    kv_quantise(x, codes.tensor, params.tensor, slots, bits=8, from_slots=from_slots)
    reference.kv_quantise(x[from_slots], want_codes, want_params, slots, bits=8)
    assert torch.equal(codes.tensor, want_codes)
    assert torch.equal(bits(params.tensor), bits(want_params))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_bits", [8, 4])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_attention_over_codes_matches_float64(dtype, n_bits, head_dim):
    check([40, 0, 9], dtype=dtype, n_bits=n_bits, head_dim=head_dim)


@pytest.mark.parametrize("n_bits", [8, 4])
@pytest.mark.parametrize("span", [{}, {"window": 30, "n_sinks": 3}], ids=["whole", "window"])
def test_splits_windows_and_groups_match_float64(n_bits, span):
    check([130, 33], n_bits=n_bits, heads=(7, 1), n_programs=5, **span)


def test_a_ring_of_codes_matches_float64():
    check([100], n_bits=4, window=20, n_sinks=5, ring_blocks=3)


def check(
    kv_lens, *, n_bits, dtype=torch.float32, head_dim=64, heads=(4, 2), n_programs=4, ring_blocks=None, **span
):  # fmt: skip
    torch.manual_seed(4)
    n_heads, n_kv_heads = heads
    first_pos = [length - 1 for length in kv_lens]
    k, v, table = filled_cache(
        kv_lens, first_pos, n_kv_heads=n_kv_heads, head_dim=head_dim, dtype=dtype, ring_blocks=ring_blocks, **span
    )
    quantised = []
    for cache in (k.tensor, v.tensor):
        codes, params = empty_cache(len(cache), 16, n_kv_heads, head_dim, n_bits)  # what nothing fills is poisoned
        rows = cache.flatten(0, 1)
        slots = torch.where(rows.isnan().any(-1).any(-1), -1, torch.arange(len(rows)))
        reference.kv_quantise(rows, codes.tensor, params.tensor, slots, bits=n_bits)
        quantised += [codes.tensor, params.tensor]
    q = torch.randn(len(kv_lens), n_heads, head_dim).to(dtype)
    out = Guarded(q.shape, dtype)
    plan = plan_decode(
        kv_lens,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        device="cpu",
        n_programs=n_programs,
        config=TILES,
        **span,
    )
    got = quant_decode_attention(q, *quantised, table, plan, bits=n_bits, ring_blocks=ring_blocks, out=out.tensor)
    truth = reference.quant_decode_attention(q, *quantised, table, plan, bits=n_bits, ring_blocks=ring_blocks)
    assert relative_error(got, truth) < GATES[dtype]
    assert out.is_intact()


def quantise_arguments():
    codes, params = torch.zeros(1, 4, 1, 64, dtype=torch.uint8), torch.zeros(1, 4, 1, 2, dtype=torch.float16)
    return {"x": torch.zeros(3, 1, 64), "codes": codes, "params": params, "slots": torch.arange(3), "bits": 8}


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("x", torch.zeros(3, 1, 64, dtype=torch.float64), "x"),
        ("x", torch.zeros(3, 1, 80), "x"),
        ("x", torch.zeros(1, 3, 64).transpose(0, 1)[..., ::2], "x"),
        ("codes", torch.zeros(1, 4, 1, 32, dtype=torch.uint8), "x_codes"),
        ("codes", torch.zeros(1, 4, 1, 64, dtype=torch.int8), "x_codes"),
        ("params", torch.zeros(1, 4, 1, 2), "x_params"),
        ("slots", torch.arange(4), "slots"),
        ("slots", torch.tensor([0, 1, 4]), "slots"),
        ("slots", torch.tensor([0, 1, -2]), "slots"),
        ("from_slots", torch.tensor([0, 1, 3]), "from_slots"),
        ("from_slots", torch.tensor([0, 1]), "from_slots"),
        ("bits", 2, "bits"),
    ],
)
def test_a_wrong_argument_to_quantise_is_refused_by_name(name, wrong, says):
    with pytest.raises(ValueError, match=rf"^{says} must"):
        kv_quantise(**(quantise_arguments() | {name: wrong}))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("q", torch.zeros(1, 2, 32)),
        ("k_codes", torch.zeros(1, 4, 1, 32, dtype=torch.uint8)),
        ("v_codes", torch.zeros(2, 4, 1, 64, dtype=torch.uint8)),
        ("k_params", torch.zeros(1, 4, 1, 2)),
        ("block_table", torch.tensor([[1]], dtype=torch.int32)),
        ("bits", 16),
    ],
)
def test_a_wrong_argument_to_attention_is_refused_by_name(name, wrong):
    codes, params = torch.zeros(1, 4, 1, 64, dtype=torch.uint8), torch.zeros(1, 4, 1, 2, dtype=torch.float16)
    more_params = torch.zeros(2, 4, 1, 2, dtype=torch.float16)
    right = {
        "q": torch.zeros(1, 2, 64),
        "k_codes": codes,
        "k_params": params,
        "v_codes": codes,
        "v_params": more_params if name == "v_codes" else params,
        "block_table": torch.tensor([[0]], dtype=torch.int32),
        "plan": plan_decode([3], n_heads=2, n_kv_heads=1, head_dim=64, device="cpu"),
        "bits": 8,
    }
    with pytest.raises(ValueError, match=rf"^{name} must"):
        quant_decode_attention(**(right | {name: wrong}))
