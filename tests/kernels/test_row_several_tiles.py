"""Rows that one program keeps in several tiles, interpreted, in tiny tiles."""

import pytest
import torch

import fastnorm.functional as F
from fastnorm.kernels import row_geometry, row_plans
from fastnorm.kernels.row_geometry import RowSpec
from fastnorm.kernels.row_plans import forward_plan
from fastnorm.kernels.tiers import WITHOUT_CLUSTERS
from tests.conftest import assert_close, make_input, running
from tests.kernels import traffic
from tests.kernels.tilings import interpreted, tiny_tilings

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
KERNEL = "several_tiles_row_kernel"
STREAMING = ["row_moments_kernel", "row_apply_kernel"]


def parameters(L, dtype, count):
    torch.manual_seed(1)
    return [(torch.randn(L) + 1.0).to(dtype) for _ in range(count)]


@interpreted
@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("L", [96, 97, 128, 70])
@pytest.mark.parametrize(("activation", "residual"), [(None, False), ("relu", True)])
def test_norms(L, dtype, activation, residual):
    x = make_input((7, L), "contiguous", dtype=dtype, mean=5.0)
    other = make_input((7, L), "contiguous", dtype=dtype) if residual else None
    weight, bias = parameters(L, dtype, 2)
    fused = {"activation": activation, "residual": other}
    wide = fused | {"residual": None if other is None else other.double()}
    with tiny_tilings(), running("triton") as launched:
        y = F.layer_norm(x, (L,), weight, bias, **fused)
        z = F.rms_norm(x, (L,), weight, 1e-5, **fused)
        alone = F.layer_norm(x, (L,), None, None)
    assert launched == [KERNEL] * 3
    with running("reference"):
        x, weight, bias = x.double(), weight.double(), bias.double()
        assert_close(y, F.layer_norm(x, (L,), weight, bias, **wide), "layer norm")
        assert_close(z, F.rms_norm(x, (L,), weight, 1e-5, **wide), "RMS norm")
        assert_close(alone, F.layer_norm(x, (L,)), "layer norm without parameters")


@interpreted
def test_a_sum_is_returned():
    x, residual = (make_input((5, 100), "contiguous", dtype=BF16) for _ in range(2))
    with tiny_tilings(), running("triton") as launched:
        y, total = F.add_rms_norm(x, residual, (100,), None, 1e-5)
    assert launched == [KERNEL]
    assert torch.equal(total, x + residual)
    with running("reference"):
        assert_close(y, F.rms_norm(total.double(), (100,), None, 1e-5), "y")


@interpreted
@pytest.mark.parametrize("op", ["layer", "rms"])
def test_rows_and_parameters_are_read_once(op):
    """Parameters once for each program, rows once in all."""
    x = make_input((64, 128), "contiguous", dtype=BF16)
    weight, bias = parameters(128, BF16, 2)
    with tiny_tilings(), running("triton"), traffic.meter() as moved:
        if op == "layer":
            F.layer_norm(x, (128,), weight, bias)
        else:
            F.rms_norm(x, (128,), weight, 1e-5)
    statistics, kept = 4 * 64, 2 * 128 * 2  # for each of two programs
    assert len(moved.launches) == 1
    assert 2 * x.nbytes <= moved.total <= 2 * x.nbytes + (1 + (op == "layer")) * (statistics + kept)


@interpreted
def test_others_stream():
    """Wide parameters, those of each row, gates, and what is too long for registers."""
    x = make_input((4, 100), "contiguous", dtype=BF16)
    wide, *_ = parameters(100, FP32, 1)
    scale = torch.randn(4, 100)
    long = make_input((4, 140), "contiguous", dtype=BF16)
    with tiny_tilings(), running("triton") as launched:
        F.layer_norm(x, (100,), wide)
        F.layer_norm(x.float(), (100,))
        F.layer_norm(long, (140,))
        F.gated_rms_norm(x, x, None)
        F.rms_norm(x, (100,), None, 1e-5, scale=scale)
    assert [name for name in launched if name != "modulate_kernel"] == STREAMING * 5


@interpreted
def test_groups_have_their_own_parameters():
    x = make_input((4, 200), "contiguous", dtype=BF16)
    (weight,) = parameters(200, BF16, 1)
    with tiny_tilings(), running("triton") as launched:
        y = F.gated_rms_norm(x, None, weight, 1e-5, group_size=100)
    assert launched == STREAMING
    with running("reference"):
        assert_close(y, F.gated_rms_norm(x.double(), None, weight.double(), 1e-5, group_size=100))


def plan_of(L, x, weight, norm="layer", addend=None):
    dtypes = (x, addend, addend, None, weight, weight, x, *[None] * 5)
    row_plans.forward_plan.cache_clear()
    try:
        return forward_plan(1000, L, dtypes, RowSpec(norm), 132, 227 * 1024, WITHOUT_CLUSTERS)
    finally:
        row_plans.forward_plan.cache_clear()


@pytest.mark.parametrize(
    ("L", "x", "weight", "tiles"),
    [(16384, BF16, BF16, 1), (16385, BF16, BF16, 5), (32768, FP16, None, 8), (20480, BF16, FP32, 0),
     (32769, BF16, BF16, 0), (20480, FP32, FP32, 0), (20480, torch.float64, None, 0)],
)  # fmt: skip
def test_which_rows_need_several_tiles(monkeypatch, L, x, weight, tiles):
    """0: none will do, the rows stream."""
    monkeypatch.setattr(row_geometry.launch, "INTERPRETED", False)
    plan = plan_of(L, x, weight)
    assert plan.tier == ("one_program" if tiles else "streaming")
    assert (plan.first.name == KERNEL) == (tiles > 1)
    assert plan.geometry.tiles == max(tiles, 1)


@pytest.mark.parametrize(("norm", "longest"), [("layer", 24576), ("rms", 32768)])
def test_sums_take_registers_too(monkeypatch, norm, longest):
    monkeypatch.setattr(row_geometry.launch, "INTERPRETED", False)
    tiers = [plan_of(L, BF16, BF16, norm, BF16).tier for L in (longest, longest + 1)]
    assert tiers == ["one_program", "streaming"]
