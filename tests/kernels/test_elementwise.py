import pytest
import torch

from kernels import reference
from kernels.angles import cos_sin_table
from kernels.dense import dense, dense_shapes
from kernels.rms_norm import rms_norm
from kernels.rope import rope
from kernels.silu_mul import silu_mul
from tests.kernels.poison import DTYPES, GATES, Guarded, bits, relative_error


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [64, 100, 4096])
@pytest.mark.parametrize("has_residual", [False, True])
def test_rms_norm_matches_float64(dtype, width, has_residual):
    torch.manual_seed(1)
    x, weight = torch.randn(3, width).to(dtype), torch.randn(width).to(dtype)
    residual = torch.randn(3, width).to(dtype) if has_residual else None
    want_residual = residual.clone() if has_residual else None
    out = Guarded((3, width), dtype)
    got = rms_norm(x, weight, residual=residual, out=out.tensor)
    truth = reference.rms_norm(x, weight, residual=want_residual)
    assert relative_error(got, truth) < GATES[dtype]
    assert out.is_intact()
    if has_residual:
        assert relative_error(residual, want_residual.double()) < GATES[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_rope_matches_float64_on_slices_of_the_qkv_output(dtype, head_dim):
    torch.manual_seed(2)
    qkv = torch.randn(5, 9, head_dim).to(dtype)
    want = qkv.double()
    positions = torch.tensor([0, 49, 7, 7, 3])
    table = cos_sin_table(50, head_dim, device="cpu")
    rope(qkv[:, :5], qkv[:, 5:7], positions, table)
    reference.rope(want[:, :5], want[:, 5:7], positions, table)
    assert relative_error(qkv, want) < GATES[dtype]
    assert torch.equal(qkv[:, 7:].double(), want[:, 7:]), "values must stay"


def test_rope_at_position_zero_changes_nothing():
    q = torch.randn(2, 3, 64)
    turned = q.clone()
    rope(turned, turned[:, :1].clone(), torch.zeros(2, dtype=torch.int64), cos_sin_table(4, 64, device="cpu"))
    assert torch.equal(bits(turned), bits(q))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 100, 1500])
def test_silu_mul_matches_float64(dtype, width):
    torch.manual_seed(3)
    x = torch.randn(3, 2 * width).to(dtype)
    out = Guarded((3, width), dtype)
    assert relative_error(silu_mul(x, out=out.tensor), reference.silu_mul(x)) < GATES[dtype]
    assert out.is_intact()


def test_dense_is_a_product_with_the_transposed_weight():
    x, weight = torch.randn(3, 8), torch.randn(5, 8)
    assert torch.allclose(dense(x, weight), x @ weight.T)


def test_dense_shapes_hold_every_weight_of_a_layer():
    shapes = dense_shapes(4096, 32, 8, 128, 14336, 128256)
    n_layer = sum(a * b for name, (a, b) in shapes.items() if name != "lm_head")
    assert n_layer == 4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336
    assert dense_shapes(8, 2, 2, 4, 16, 10, is_gated=False)["up"] == (16, 8)


HALF = torch.zeros(2, 8, dtype=torch.float64)
ANGLES = cos_sin_table(4, 64, device="cpu")
Q = torch.zeros(2, 1, 64)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: rms_norm(HALF, torch.zeros(8)), "x"),
        (lambda: rms_norm(torch.zeros(2, 8), torch.zeros(7)), "weight"),
        (lambda: rms_norm(torch.zeros(2, 8), torch.zeros(8), eps=0.0), "eps"),
        (lambda: rms_norm(torch.zeros(2, 8), torch.zeros(8), residual=torch.zeros(2, 9)), "residual"),
        (lambda: rms_norm(torch.zeros(8, 2).T, torch.zeros(8)), "x"),
        (lambda: rope(Q[..., :40], Q[..., :40], torch.arange(2), ANGLES[:, :40]), "q"),
        (lambda: rope(Q, Q[:1], torch.arange(2), ANGLES), "k"),
        (lambda: rope(Q, Q, torch.tensor([0, 4]), ANGLES), "positions"),
        (lambda: rope(Q, Q, torch.arange(2), ANGLES.half()), "cos_sin"),
        (lambda: silu_mul(torch.zeros(2, 7)), "gate_up"),
        (lambda: silu_mul(torch.zeros(2, 8), out=torch.zeros(2, 8)), "out"),
        (lambda: dense(torch.zeros(2, 8), torch.zeros(4, 7)), "weight"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(call, says):
    with pytest.raises(ValueError, match=rf"^{says} must"):
        call()
